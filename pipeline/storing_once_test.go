package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// TestAStoreThatIsAwayIsSaidOnce: by whichever partition meets it first, and again when the last of them goes on.
func TestAStoreThatIsAwayIsSaidOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		var away atomic.Bool
		away.Store(true)
		st := &store{hook: func(_ context.Context, _ []sinks.Op, apply func() error) error {
			if away.Load() {
				return errors.New("refused")
			}
			return apply()
		}}
		s := &pipeline.Storing{
			Sink: "s", Store: st, Backoff: pipeline.DefaultBackoff, Metrics: newMetrics(), Log: slog.New(slog.NewTextHandler(&text, nil)),
		}
		for outage := 1; outage <= 2; outage++ {
			away.Store(true)
			var partitions sync.WaitGroup
			for i := range 5 {
				partitions.Go(func() {
					time.Sleep(time.Duration(i) * time.Second)
					op := sinks.PutSub{Client: event.ClientID(fmt.Sprint("c", i)), Filter: eventtest.Filter(t, "t"), Stamp: 1}
					if bad, err := s.Persist(t.Context(), []sinks.Op{op}); err != nil || bad != nil {
						t.Errorf("%v, %v", bad, err)
					}
				})
			}
			time.Sleep(20 * time.Second)
			away.Store(false)
			partitions.Wait()
			for _, want := range []string{"apply failed, will retry", "apply succeeded again"} {
				if n := strings.Count(text.String(), want); n != outage {
					t.Errorf("after outage %d the log says %q %d times:\n%s", outage, want, n, text.String())
				}
			}
		}
	})
}
