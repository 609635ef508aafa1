package pipeline_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// TestAMessageFromAFastClockWaitsAtMostForTheNextSubscribe: clock_skew says how far the clocks of broker nodes may be apart. What is
// further ahead looks as if it came after the subscribe: it is not lost, and comes with a later one.
func TestAMessageFromAFastClockWaitsAtMostForTheNextSubscribe(t *testing.T) {
	t.Parallel()
	limits := func(r *pipeline.Replayer) { r.Limits.ClockSkew, r.Limits.Settle = 2*time.Second, 0 }
	story(t, nil, limits, func(t *testing.T, s *stack, b *broker) {
		for _, m := range []struct {
			ahead   time.Duration
			payload string
		}{{time.Second, "within"}, {20 * time.Second, "beyond"}} {
			e := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte(m.payload)}
			e.ID, e.At = e.ID.WithTime(e.At.Add(m.ahead)), e.At.Add(m.ahead)
			s.put(e)
			if err := s.store.Store.Apply(t.Context(), s.rules.ForSink("s")(e).Ops); err != nil {
				t.Fatal(err)
			}
		}
		s.cluster.Reset(writerGroup, s.messages(0), s.cluster.Span(s.messages(0)).End)
		s.subscribe("c", "t/1")
		time.Sleep(10 * time.Second)
		if diff := cmp.Diff([]string{"within"}, b.payloads("c")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		time.Sleep(20 * time.Second)
		s.subscribe("c", "t/1")
		time.Sleep(10 * time.Second)
		if got := b.payloads("c"); len(got) != 2 || got[1] != "beyond" { // the broker's acks remove nothing here: no writer runs
			t.Errorf("got %v, want beyond at the second subscribe", got)
		}
	})
}
