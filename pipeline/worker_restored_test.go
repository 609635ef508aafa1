package pipeline_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// TestAStoreFromABackupIsFilledFromTheLog: what was stored since the backup is missing, and what was acknowledged since is back, until the
// group's offset is set back behind the backup. Then the store is as it was.
func TestAStoreFromABackupIsFilledFromTheLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		var all []event.Published
		for i := range 10 {
			all = append(all, s.publish("t/1", fmt.Sprint(i)))
		}
		run := func() {
			t.Helper()
			w := s.writer(testLimits, nil)
			time.Sleep(2 * time.Minute)
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
		}
		run()
		for _, n := range []int{1, 7} {
			s.ack("c", all[n])
		}
		run()
		before := s.store.payloads(t, "t/1")

		s.store = &store{}
		for _, m := range all[:5] { // the backup
			op := sinks.PutMessage{Message: sinks.Message{ID: m.ID, Topic: m.Topic, QoS: m.QoS, Payload: m.Payload, Sender: m.Sender, Arrived: m.At}}
			if err := s.store.Apply(t.Context(), []sinks.Op{op}); err != nil {
				t.Fatal(err)
			}
		}
		run()
		if diff := cmp.Diff([]string{"0", "1", "2", "3", "4"}, s.store.payloads(t, "t/1")); diff != "" {
			t.Errorf("without a reset (-want +got):\n%s", diff)
		}

		s.cluster.Reset(writerGroup, s.messages(0), 0)
		s.mu.Lock()
		s.last[0] = 0
		s.mu.Unlock()
		run()
		if diff := cmp.Diff(before, s.store.payloads(t, "t/1")); diff != "" {
			t.Errorf("after a reset (-want +got):\n%s", diff)
		}
	})
}
