package pipeline_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
)

// TestABacklogIsToldFromWhatComesNow: how old records are when they are fetched, of those that were there before the member came, and
// of those that came while it was there.
func TestABacklogIsToldFromWhatComesNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.publish("t/1", "a")
		s.subscribe("c", "t/none")
		time.Sleep(time.Minute)
		s.publish("t/1", "b")
		s.subscribe("c", "t/none")
		time.Sleep(time.Second)
		s.writer(testLimits, nil)
		s.replayer(newBroker(s), nil, nil)
		time.Sleep(10 * time.Second)
		for range 3 {
			s.publish("t/1", "c")
			s.subscribe("c", "t/none")
			time.Sleep(time.Second)
		}
		late := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), Sender: "pub", QoS: 1, Payload: []byte("d")}
		late.At = late.At.Add(-20 * time.Second) // out of a spool: it was not in the log before
		s.put(late)
		time.Sleep(10 * time.Second)
		for _, want := range []struct {
			group, topic, phase string
			n                   uint64
			least, most         float64
		}{
			{writerGroup, topics.Messages, "starting", 2, 62, 63},
			{writerGroup, topics.Messages, "running", 4, 20, 21},
			{replayGroup, topics.Sessions, "starting", 2, 62, 63},
			{replayGroup, topics.Sessions, "running", 3, 0, 1},
		} {
			n, sum := observed(t, s.metrics.ReceiveDelay.WithLabelValues(want.group, want.topic, want.phase))
			if n != want.n || sum < want.least || sum > want.most {
				t.Errorf("%s of %s, %s: %d records were %v s old, want %d of %v", want.group, want.topic, want.phase, n, sum, want.n, want.least)
			}
		}
	})
}

// TestOfALargeFetchOnlySomeRecordsAreLookedAt, the first among them, which is the eldest.
func TestOfALargeFetchOnlySomeRecordsAreLookedAt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.publish("t/1", "the eldest")
		time.Sleep(time.Hour)
		for range 999 {
			s.publish("t/1", "x")
		}
		time.Sleep(time.Second)
		limits := testLimits
		limits.Fetch = 1000
		s.writer(limits, nil)
		time.Sleep(10 * time.Second)
		n, sum := observed(t, s.metrics.ReceiveDelay.WithLabelValues(writerGroup, topics.Messages, "starting"))
		if n < 32 || n > 64 || sum < 3600+float64(n) || sum > 3601+float64(n) {
			t.Errorf("%d records were %v s old", n, sum)
		}
	})
}
