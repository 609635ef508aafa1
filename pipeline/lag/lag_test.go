package lag_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/lag"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(stack.Main(m)) }

const (
	group = "g"
	topic = "m"
	dead  = "d"
)

var partitions = map[string]int{topic: 2, dead: 2}

// count is a cluster whose topics have as many partitions as it says.
type count int

func (n count) PartitionCount(context.Context, string) (int, error) { return int(n), nil }

type world struct {
	*testing.T
	cluster *fakelog.Cluster
	reg     *prometheus.Registry
	o       *lag.Observer
}

func newWorld(t *testing.T, hook fakelog.Hook) world {
	t.Helper()
	w := world{T: t, reg: prometheus.NewRegistry()}
	w.cluster = fakelog.New(fakelog.Config{Partitions: partitions, Partition: func(key string, n int) int { return len(key) % n }})
	client := w.cluster.Client()
	client.Hook = hook
	groups := []lag.Group{{Name: group, Topics: []string{topic}}}
	w.o = lag.New(&lag.Observer{
		Reader: client.Log(), Topics: count(3), Groups: groups, Partitions: partitions, Dead: dead, Every: 10 * time.Second,
		Metrics: lag.NewMetrics(w.reg, groups, partitions, map[string]time.Duration{topic: time.Hour}), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: time.Now,
	})
	return w
}

// put appends a record to partition 0 or 1.
func (w world) put(topic string, part int, at time.Time) {
	w.cluster.Put(pipeline.Outgoing{Topic: topic, Wire: event.Wire{Key: []byte(strings.Repeat("k", 2+part)), Value: []byte("v"), Time: at}})
}

// shows gives the values of a metric by its labels.
func (w world) shows(name string, labels ...string) map[string]float64 {
	w.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				for _, want := range labels {
					if l.GetName() == want {
						values = append(values, l.GetValue())
					}
				}
			}
			out[strings.Join(values, "/")] = m.GetGauge().GetValue()
		}
	}
	return out
}

func (w world) lags(wantRecords, wantSeconds map[string]float64) {
	w.Helper()
	if d := cmp.Diff(wantRecords, w.shows("restante_kafka_consumer_lag_records", "partition")); d != "" {
		w.Errorf("records (-want +got):\n%s", d)
	}
	if d := cmp.Diff(wantSeconds, w.shows("restante_kafka_consumer_lag_seconds", "partition")); d != "" {
		w.Errorf("seconds (-want +got):\n%s", d)
	}
}

func TestLagIsSeenOfAGroupWithoutMembers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var opened atomic.Int32
		w := newWorld(t, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpOpen {
				opened.Add(1)
			}
			return fakelog.Verdict{}
		})
		w.lags(map[string]float64{}, map[string]float64{}) // nothing was seen yet
		now := time.Now()
		w.put(topic, 0, now.Add(-300*time.Second))
		w.put(topic, 0, now.Add(-200*time.Second))
		w.put(topic, 0, now.Add(-100*time.Second))
		w.put(dead, 0, now)
		w.o.Look(t.Context())
		w.lags(map[string]float64{"0": 3, "1": 0}, map[string]float64{"0": 300, "1": 0})
		w.cluster.Reset(group, pipeline.TP{Topic: topic}, 1)
		w.o.Look(t.Context())
		w.lags(map[string]float64{"0": 2, "1": 0}, map[string]float64{"0": 200, "1": 0})
		time.Sleep(time.Minute)
		w.put(topic, 1, now)
		w.o.Look(t.Context())
		w.lags(map[string]float64{"0": 2, "1": 1}, map[string]float64{"0": 260, "1": 60})
		if n := opened.Load(); n != 4 {
			t.Errorf("%d partitions were read, want 3 and that of the dead letters: one that stands still is not read again", n)
		}
		w.cluster.Retain(pipeline.TP{Topic: topic}, 2) // what was removed is not behind any more
		w.o.Look(t.Context())
		w.lags(map[string]float64{"0": 1, "1": 1}, map[string]float64{"0": 160, "1": 60})
		w.cluster.Reset(group, pipeline.TP{Topic: topic}, 3)
		w.cluster.Reset(group, pipeline.TP{Topic: topic, Part: 1}, 1)
		w.o.Look(t.Context())
		w.lags(map[string]float64{"0": 0, "1": 0}, map[string]float64{"0": 0, "1": 0})

		for name, want := range map[string]map[string]float64{
			"restante_kafka_topic_partitions":             {topic: 3, dead: 3},
			"restante_kafka_configured_partitions":        {topic: 2, dead: 2},
			"restante_dlq_depth_records":                  {dead: 1},
			"restante_kafka_configured_retention_seconds": {topic: 3600},
		} {
			if d := cmp.Diff(want, w.shows(name, "topic")); d != "" {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
		}
		if problems, err := testutil.GatherAndLint(w.reg); err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	})
}

func TestALookThatFailsShowsItsAge(t *testing.T) {
	t.Parallel()
	for _, op := range []string{fakelog.OpCommitted, fakelog.OpSpans, fakelog.OpFetch} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				broken := false
				w := newWorld(t, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
					if broken && c.Op == op {
						return fakelog.Verdict{Err: errors.New("away")}
					}
					return fakelog.Verdict{}
				})
				seen := func() float64 { return w.shows("restante_kafka_lag_observed_timestamp_seconds", "group")[group] }
				w.put(topic, 0, time.Now())
				if seen() != 0 {
					t.Errorf("seen at %v before the first look", seen())
				}
				w.o.Look(t.Context())
				first := seen()
				if want := float64(time.Now().Unix()); first != want {
					t.Errorf("seen at %v, want %v", first, want)
				}
				broken = true
				w.cluster.Reset(group, pipeline.TP{Topic: topic}, 0)
				w.put(topic, 1, time.Now())
				time.Sleep(time.Minute)
				w.o.Look(t.Context())
				if seen() != first {
					t.Errorf("a look that failed counts as one")
				}
				broken = false
				w.o.Look(t.Context())
				if want := float64(time.Now().Unix()); seen() != want {
					t.Errorf("seen at %v, want %v", seen(), want)
				}
			})
		})
	}
}

func TestAnObserverLooksAtOnceAndAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.o.Run(ctx) }() // ends with ctx
		synctest.Wait()
		w.lags(map[string]float64{"0": 0, "1": 0}, map[string]float64{"0": 0, "1": 0})
		w.put(topic, 0, time.Now())
		time.Sleep(25 * time.Second)
		synctest.Wait()
		w.lags(map[string]float64{"0": 1, "1": 0}, map[string]float64{"0": 20, "1": 0})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestTheEldestDeadLetterIsShown: also when what came later has an earlier timestamp in another partition, and none when all are gone.
func TestTheEldestDeadLetterIsShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		shown := func(want map[string]float64) {
			t.Helper()
			w.o.Look(t.Context())
			if d := cmp.Diff(want, w.shows("restante_dlq_oldest_record_timestamp_seconds", "topic")); d != "" {
				t.Errorf("eldest (-want +got):\n%s", d)
			}
		}
		shown(map[string]float64{dead: 0})
		first := time.Now()
		w.put(dead, 0, first)
		time.Sleep(time.Hour)
		w.put(dead, 0, time.Now())
		shown(map[string]float64{dead: float64(first.Unix())})
		w.put(dead, 1, first.Add(-time.Minute))
		shown(map[string]float64{dead: float64(first.Add(-time.Minute).Unix())})
		w.cluster.Retain(pipeline.TP{Topic: dead, Part: 1}, 1)
		shown(map[string]float64{dead: float64(first.Unix())})
		w.cluster.Retain(pipeline.TP{Topic: dead}, 1)
		shown(map[string]float64{dead: float64(first.Add(time.Hour).Unix())})
		w.cluster.Retain(pipeline.TP{Topic: dead}, 2)
		shown(map[string]float64{dead: 0})
	})
}
