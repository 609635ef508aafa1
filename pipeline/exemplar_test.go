package pipeline_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// examples are the exemplars of a histogram, by name and value.
func examples(t *testing.T, o prometheus.Observer) map[string]float64 {
	t.Helper()
	var m dto.Metric
	if err := o.(prometheus.Metric).Write(&m); err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, b := range m.GetHistogram().GetBucket() {
		for _, l := range b.GetExemplar().GetLabel() {
			found[l.GetName()+"="+l.GetValue()] = b.GetExemplar().GetValue()
		}
	}
	return found
}

// TestTheSlowestOfAFlushIsNamed: one publish and one ack of all that a flush has written, so that a slow point leads to a message.
func TestTheSlowestOfAFlushIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		var all []event.Published
		for range 3 {
			all = append(all, s.publish("t/1", "a"))
			time.Sleep(time.Second)
		}
		s.writer(testLimits, nil)
		time.Sleep(5 * time.Second)
		s.ack("c", all[0])
		late := event.Acked{Head: s.head(), Topic: all[1].Topic, Client: "c", Message: all[1].ID}
		late.At = late.At.Add(-time.Second)
		s.put(late)
		s.ack("c", all[2])
		time.Sleep(10 * time.Second)
		for event, slow := range map[string]event.ID{"publish": all[0].ID, "ack": all[1].ID} {
			latency := s.metrics.PersistLatency.WithLabelValues("s", event)
			n, sum := observed(t, latency)
			found := examples(t, latency)
			took, ok := found["msgid="+slow.String()]
			if !ok || len(found) != 1 || n < 2 || took <= sum/float64(n) {
				t.Errorf("%s: %d took %v s, exemplars %v, want that of %s alone", event, n, sum, found, slow)
			}
		}
	})
}

// TestTheFirstMessageOfAReplayIsNamed.
func TestTheFirstMessageOfAReplayIsNamed(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		first := s.keep("t/1", "a")
		s.keep("t/1", "b")
		s.subscribe("c", "t/1")
		time.Sleep(time.Minute)
		found := examples(t, s.metrics.ReplayFirst)
		if _, ok := found["msgid="+first.ID.String()]; !ok || len(found) != 1 {
			t.Errorf("%v, want %s", found, first.ID)
		}
	})
}

// TestWhatIsNoExemplarIsObservedAllTheSame: OpenMetrics takes 128 characters of text.
func TestWhatIsNoExemplarIsObservedAllTheSame(t *testing.T) {
	t.Parallel()
	h := prometheus.NewHistogram(pipeline.Histogram("h", "Help.", pipeline.FastBuckets))
	const name = "request_id"
	for _, of := range []string{"", "\xff", strings.Repeat("é", 128-len(name)+1), strings.Repeat("é", 128-len(name))} {
		pipeline.ObserveExample(h, 1, name, of)
	}
	if n, sum := observed(t, h); n != 4 || sum != 4 || len(examples(t, h)) != 1 {
		t.Errorf("%d observations of %v with the exemplars %v", n, sum, examples(t, h))
	}
}
