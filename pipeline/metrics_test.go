package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// observed are the count and the sum of a histogram.
func observed(t *testing.T, o prometheus.Observer) (count uint64, sum float64) {
	t.Helper()
	var m dto.Metric
	if err := o.(prometheus.Metric).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
}

// TestWhatIsInTheStoreTellsHowLongItTook: a message, and its ack, which were held for a second each. What was elided never went there.
func TestWhatIsInTheStoreTellsHowLongItTook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.writer(testLimits, nil)
		time.Sleep(5 * time.Second)
		m := s.publish("t/1", "payload")
		time.Sleep(5 * time.Second)
		s.ack("c", m)
		s.ack("c", s.publish("t/1", "live"))
		time.Sleep(5 * time.Second)
		if s.elided() != 1 {
			t.Errorf("%v were elided, want 1", s.elided())
		}
		for _, event := range []string{"publish", "ack"} {
			if n, sum := observed(t, s.metrics.PersistLatency.WithLabelValues("s", event)); n != 1 || sum < 0.9 || sum > 1.5 {
				t.Errorf("%s: %d took %v s, want 1 that took about the hold, 1 s", event, n, sum)
			}
		}
		if _, sum := observed(t, s.metrics.BatchBytes.WithLabelValues("s")); sum != float64(len("t/1")*4+len("payload")) {
			t.Errorf("%v bytes were flushed", sum)
		}
	})
}

// TestTheEldestThatIsNotDurableIsShown also when it is a session event that waits for what came before it.
func TestTheEldestThatIsNotDurableIsShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		in.slowDown(topics.Messages, 10*time.Second)
		in.slowDown(topics.Sessions, 10*time.Second)
		shown := func(want float64) {
			t.Helper()
			synctest.Wait()
			if got := counterOf(t, s.metrics.IngestOldest); got != want {
				t.Errorf("the eldest is of %v, want %v", got, want)
			}
		}
		seconds := func() float64 { return float64(time.Now().UnixMilli()) / 1e3 }
		shown(0)
		begin := seconds()
		in.accept(t, in.message("t/1", "a"))
		time.Sleep(3 * time.Second)
		in.accept(t, event.Subscribed{Client: "c", Filter: eventtest.Filter(t, "t/1"), QoS: 1})
		time.Sleep(3 * time.Second)
		shown(begin)
		time.Sleep(5 * time.Second) // the message is durable, the subscribe is on its way
		shown(begin + 3)
		time.Sleep(20 * time.Second)
		shown(0)
	})
}

// TestABacklogIsToldOfReplaysThatCameToAnEnd: of one that found nothing, too, but not of one that was broken off.
func TestABacklogIsToldOfReplaysThatCameToAnEnd(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "t/none")
		for range 3 {
			s.keep("t/1", "x")
		}
		s.subscribe("c", "t/1")
		time.Sleep(time.Minute)
		s.keep("t/2", "x")
		b.behave(func(delivery) time.Duration { return time.Hour })
		s.subscribe("d", "t/2")
		time.Sleep(time.Second)
		s.put(event.Disconnected{Head: s.head(), Client: "d", Reason: "normal"})
		time.Sleep(time.Minute)
		if diff := cmp.Diff(map[string]int{"complete": 1, "empty": 1, "aborted": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		if n, sum := observed(t, s.metrics.ReplayBacklog); n != 2 || sum != 3 {
			t.Errorf("%d replays had %v messages, want 2 with none and 3", n, sum)
		}
	})
}

// TestBytesThatSourcesBringAreCounted, whether a rule wants them or not, and of a message that is taken at the second attempt once.
func TestBytesThatSourcesBringAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		shown := func(want float64) {
			t.Helper()
			if got := counterOf(t, s.metrics.ReceivedBytes); got != want {
				t.Errorf("%v bytes, want %v", got, want)
			}
		}
		shown(0)
		in.accept(t, in.message("t/1", "12345"))
		in.accept(t, in.message("unwanted", "123"))
		in.accept(t, in.session("c"))
		synctest.Wait() // the session event has gone its way
		shown(8)
		working := in.Producer
		in.Producer = narrow{working, nil}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := in.Accept(ctx, in.message("t/1", "1")); err == nil {
			t.Error("it was taken")
		}
		shown(8)
		in.Producer = working
		in.accept(t, in.message("t/1", "1"))
		shown(9)
	})
}

// TestNodesOfBrokersAreBounded: their names come from outside.
func TestNodesOfBrokersAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		for range 2 { // those that are known stay known
			for i := range 200 {
				e := in.message("t/1", "x")
				e.Source = fmt.Sprint("restante/emqx/n", i)
				e.At = time.Now().Add(time.Duration(i) * time.Second).Truncate(time.Millisecond)
				e.ID = s.minter.Mint().WithTime(e.At)
				in.accept(t, e)
			}
			synctest.Wait()
			if n := testutil.CollectAndCount(s.metrics.BrokerClock); n != 65 {
				t.Fatalf("%d nodes, want 64 and other", n)
			}
			for node, want := range map[string]float64{"restante/emqx/n0": 0, "restante/emqx/n63": 63, "other": 199} {
				if got := counterOf(t, s.metrics.BrokerClock.WithLabelValues(node)); got != want {
					t.Errorf("%s is %v s ahead, want %v", node, got, want)
				}
			}
		}
	})
}

// TestHistogramsAreClassicAndNative: the limits that are promised stand among the classic buckets.
func TestHistogramsAreClassicAndNative(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := pipeline.NewMetrics(reg, nil, []string{"s"})
	m.ReplayFirst.Observe(0.5)
	m.PersistLatency.WithLabelValues("s", "publish").Observe(0.5)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	limits := map[string][]float64{
		"restante_replay_first_message_seconds": {1}, "restante_writer_persist_latency_seconds": {10, 30},
	}
	n := 0
	for _, f := range families {
		if f.GetType() != dto.MetricType_HISTOGRAM {
			continue
		}
		n++
		for _, m := range f.GetMetric() {
			h := m.GetHistogram()
			if h.GetZeroThreshold() != 1.0/1024 || h.Schema == nil {
				t.Errorf("%s is not native, or not as the others", f.GetName())
			}
			for _, limit := range limits[f.GetName()] {
				if !slices.ContainsFunc(h.GetBucket(), func(b *dto.Bucket) bool { return b.GetUpperBound() == limit }) {
					t.Errorf("%s has no bucket for %v", f.GetName(), limit)
				}
			}
			if len(h.GetBucket()) < 6 {
				t.Errorf("%s has %d classic buckets", f.GetName(), len(h.GetBucket()))
			}
		}
	}
	if n < 9 {
		t.Errorf("%d histograms", n)
	}
}
