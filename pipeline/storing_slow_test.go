package pipeline_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/sinks"
)

// takes lets a store need so much time for each op; what is cut off is not done at all.
func takes(each func() time.Duration) func(context.Context, []sinks.Op, func() error) error {
	return func(ctx context.Context, ops []sinks.Op, apply func() error) error {
		for range ops {
			select {
			case <-time.After(each()):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return apply()
	}
}

func TestABatchThatNoAttemptIsLongEnoughForIsCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMetrics(), &store{}
		s.hook = takes(func() time.Duration { return 100 * time.Millisecond })
		storing := storing(s, m)
		storing.Timeout = 10 * time.Second
		done := make(chan error, 1)
		ctx, giveUp := context.WithTimeout(t.Context(), time.Hour)
		defer giveUp()
		go func() {
			_, err := storing.Persist(ctx, puts(t, 1000))
			done <- err
		}()
		time.Sleep(time.Second * 15)
		if got := testutil.ToFloat64(m.Stalled.WithLabelValues("s")); got != 1 {
			t.Errorf("stalled %v while it is too slow, want 1", got)
		}
		if err := <-done; err != nil {
			t.Fatalf("1000 ops at 100 ms each, 10 s for an attempt: %v", err)
		}
		if got := len(s.payloads(t, "t/1")); got != 1000 {
			t.Errorf("%d are stored, want 1000", got)
		}
		if got := testutil.ToFloat64(m.Stalled.WithLabelValues("s")); got != 0 {
			t.Errorf("stalled %v at the end, want 0", got)
		}
	})
}

func TestAStoreThatHungIsServedSoonAfterwards(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		began := time.Now()
		s.hook = takes(func() time.Duration {
			if time.Since(began) < time.Hour {
				return 24 * time.Hour // nothing answers, and no connection is cut
			}
			return time.Millisecond
		})
		storing := storing(s, newMetrics())
		storing.Timeout = 10 * time.Second
		if _, err := storing.Persist(t.Context(), puts(t, 1000)); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(began); got > time.Hour+30*time.Second {
			t.Errorf("persisted %v after the store was back, want soon", got-time.Hour)
		}
		if got := len(s.payloads(t, "t/1")); got != 1000 {
			t.Errorf("%d are stored, want 1000", got)
		}
	})
}
