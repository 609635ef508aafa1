package pipeline_test

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestARepeatedPublishOfAWrittenMessageDoesNotElide(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.writer(testLimits, nil)
		time.Sleep(time.Second)
		m := s.publish("t/1", "a")
		time.Sleep(3 * time.Second) // it is written
		s.put(m)                    // repeated
		s.ack("c", m)
		time.Sleep(3 * time.Second)
		if got := s.store.payloads(t, "t/1"); len(got) > 0 {
			t.Errorf("an acknowledged message is still stored: %v", got)
		}
		s.counter(s.elided(), 0, "elided")
	})
}
