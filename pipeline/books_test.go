package pipeline_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// books are what the writers have counted, without zeros: of publishes by fate, of acks by effect.
func (s *stack) books() (fates, effects map[string]int) {
	fates, effects = map[string]int{}, map[string]int{}
	for _, f := range []string{"stored", "history", "elided", "overtaken", "expired", "rejected", "repeated", "qos0", "unselected"} {
		fates[f] = int(counterOf(s.t, s.metrics.Messages.WithLabelValues("s", f)))
	}
	for _, e := range []string{"deleted", "elided", "repeated", "unstored", "ignored", "unselected"} {
		effects[e] = int(counterOf(s.t, s.metrics.Acks.WithLabelValues("s", e)))
	}
	for _, m := range []map[string]int{fates, effects} {
		maps.DeleteFunc(m, func(_ string, n int) bool { return n == 0 })
	}
	return fates, effects
}

// rejects has the store refuse for good what is bad.
func rejects(_ context.Context, ops []sinks.Op, apply func() error) error {
	bad := func(o sinks.Op) bool { m, ok := o.(sinks.PutMessage); return ok && string(m.Payload) == "bad" }
	if slices.ContainsFunc(ops, bad) {
		return fault.Poison(errDown)
	}
	return apply()
}

func TestEveryPublishAndEveryAckIsBookedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := pipeline.Rule{Hook: pipeline.MessagePublish, Action: pipeline.OnMessageStore, Topic: eventtest.Filter(t, "log/#"), Sink: "s"}
		retain := pipeline.Rule{Hook: pipeline.MessagePublish, Action: pipeline.OnMessageRetain, Topic: eventtest.Filter(t, "#"), Sink: "s"}
		s := newStack(t, 1, append(queueRules(t, "t/#", func(r *pipeline.Rule) { r.IgnoreClients = []string{"monitor"} }), store, retain)...)
		s.store.set(rejects)
		s.writer(testLimits, nil)
		rest := func() { time.Sleep(5 * time.Second) }
		rest()
		published := 0
		publish := func(topic string, change func(*event.Published)) event.Published {
			e := event.Published{Head: s.head(), Topic: eventtest.Topic(t, topic), Sender: "pub", QoS: 1, Payload: []byte("x")}
			if change != nil {
				change(&e)
			}
			s.put(e)
			published++
			return e
		}
		again := func(e event.Published) { s.put(e); published++ }

		kept := []event.Published{publish("t/1", nil), publish("t/1", nil), publish("t/1", nil)} // stored
		rest()
		again(kept[0])            // repeated
		s.ack("c", kept[0])       // deleted
		s.ack("d", kept[0])       // repeated
		s.ack("monitor", kept[1]) // ignored
		rest()
		again(kept[0])                  // repeated: it must not come back
		s.ack("c", publish("t/1", nil)) // elided, both
		late := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("x")}
		s.ack("c", late)                                                                       // deleted, before it is there
		again(late)                                                                            // overtaken
		again(late)                                                                            // repeated
		over := publish("t/1", func(e *event.Published) { e.Expiry = 500 * time.Millisecond }) // expired, before the hold is over
		bad := publish("t/1", func(e *event.Published) { e.Payload = []byte("bad") })          // rejected
		rest()
		s.ack("c", over)                                                             // unstored
		s.ack("c", bad)                                                              // unstored
		bad = publish("t/1", func(e *event.Published) { e.Payload = []byte("bad") }) // elided with its ack: nobody has to refuse it
		s.ack("c", bad)
		publish("t/1", func(e *event.Published) { e.QoS = 0 })                                                           // qos0
		s.ack("c", publish("u/1", nil))                                                                                  // unselected, both
		publish("u/1", func(e *event.Published) { e.Retain = true })                                                     // unselected: only the retained one is kept
		publish("log/1", nil)                                                                                            // history
		publish("log/1", func(e *event.Published) { e.QoS = 0 })                                                         // history
		s.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{Value: []byte("?"), Time: time.Now()}}) // neither
		rest()

		fates, effects := s.books()
		want := map[string]int{
			"stored": 3, "history": 2, "elided": 2, "overtaken": 1, "expired": 1, "rejected": 1, "repeated": 3, "qos0": 1, "unselected": 2,
		}
		if diff := cmp.Diff(want, fates); diff != "" {
			t.Errorf("publishes (-want +got):\n%s", diff)
		}
		want = map[string]int{"deleted": 2, "elided": 2, "repeated": 1, "unstored": 2, "ignored": 1, "unselected": 1}
		if diff := cmp.Diff(want, effects); diff != "" {
			t.Errorf("acks (-want +got):\n%s", diff)
		}
		sum := 0
		for _, n := range fates {
			sum += n
		}
		s.counter(float64(sum), float64(published), "the sum of all fates")
		if waiting := fates["stored"] + fates["overtaken"] - effects["deleted"]; waiting != len(s.store.payloads(t, "t/1")) {
			t.Errorf("%d messages wait by the books, %q are stored", waiting, s.store.payloads(t, "t/1"))
		}
		s.counter(counterOf(t, s.metrics.Expired.WithLabelValues("s")), 1, "expired")
	})
}

// TestTheBooksOfRandomHistoriesAddUp: with repetitions, inversions and partitions that change hands.
func TestTheBooksOfRandomHistoriesAddUp(t *testing.T) {
	t.Parallel()
	for seed := range 300 {
		synctest.Test(t, func(t *testing.T) { booked(t, uint64(seed)) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func booked(t *testing.T, seed uint64) {
	s := newStack(t, 2)
	s.store.set(rejects)
	r := rand.New(rand.NewPCG(seed, 1))
	l := testLimits
	l.Hold, l.Records, l.Fetch = time.Duration(r.IntN(3))*500*time.Millisecond, 1+r.IntN(20), 1+r.IntN(10)
	writers := []*process{s.writer(l, nil), s.writer(l, nil)}
	var all []event.Published
	acked, bad := map[event.ID]bool{}, map[event.ID]bool{}
	records := 0
	for range 20 + r.IntN(30) {
		switch r.IntN(12) {
		case 0, 1, 2, 3, 4:
			e := event.Published{Head: s.head(), Topic: eventtest.Topic(t, fmt.Sprintf("t/%d", r.IntN(4))), QoS: 1, Payload: fmt.Append(nil, len(all))}
			switch r.IntN(8) {
			case 0:
				e.Payload = []byte("bad")
				bad[e.ID] = true
			case 1: // its ack comes first
				s.ack("c", e)
				acked[e.ID] = true
				fallthrough
			default:
				all = append(all, e)
			}
			s.put(e)
			records++
		case 5, 6, 7:
			if len(all) > 0 {
				e := all[max(len(all)-1-r.IntN(3), 0)]
				s.ack("c", e)
				acked[e.ID] = true
			}
		case 8:
			if len(all) > 0 {
				s.put(all[r.IntN(len(all))])
				records++
			}
		case 9:
			if i := r.IntN(2); r.IntN(2) == 0 {
				if err := writers[i].stop(); err != nil {
					t.Error(err)
				}
				writers[i] = s.writer(l, nil)
			} else {
				s.cluster.Rebalance(writerGroup)
			}
		default:
			time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
		}
	}
	time.Sleep(time.Minute)
	fates, effects := s.books()
	sum, stored := 0, 0
	for _, n := range fates {
		sum += n
	}
	for i := range 4 {
		stored += len(s.store.payloads(t, fmt.Sprintf("t/%d", i)))
	}
	got := []int{sum, sum - fates["repeated"], effects["deleted"] + effects["elided"], fates["stored"] + fates["overtaken"] - effects["deleted"], fates["rejected"]}
	want := []int{records, len(all) + len(bad), len(acked), stored, len(bad)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records, published, delivered, waiting, rejected (-want +got):\n%s\n%v %v", diff, fates, effects)
	}
	if fates["elided"] != effects["elided"] {
		t.Errorf("%d publishes are elided by %d acks", fates["elided"], effects["elided"])
	}
}
