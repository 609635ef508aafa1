package app

import (
	"context"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestAScrapeSeesHowLongAProcessHasBeenEnding: while it finishes, not only when it has.
func TestAScrapeSeesHowLongAProcessHasBeenEnding(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth()
		reg := NewRegistry("writer", h)
		signals := make(chan os.Signal, 1)
		var seen []float64
		life := Life{Signals: signals, Drain: 20 * time.Second, Health: h, Log: NewLogger(t.Output(), "test", "debug")}
		life.Run(func(ctx, _ context.Context) error {
			time.Sleep(3 * time.Second)
			seen = append(seen, drainedFor(t, reg))
			signals <- syscall.SIGTERM
			<-ctx.Done()
			for range 2 {
				time.Sleep(5 * time.Second)
				seen = append(seen, drainedFor(t, reg))
			}
			return nil
		})
		if len(seen) != 3 || seen[0] != 0 || seen[1] != 5 || seen[2] != 10 {
			t.Errorf("%v, want 0 before and then 5 and 10 s", seen)
		}
	})
}

func drainedFor(t *testing.T, reg prometheus.Gatherer) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		if f.GetName() == "restante_shutdown_drain_duration_seconds" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Error("there is no such metric")
	return -1
}
