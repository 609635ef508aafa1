package pipeline_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/pipeline"
)

// narrow is a producer that takes nothing while it is shut.
type narrow struct {
	pipeline.Producer
	open chan struct{}
}

// Append waits for the opening.
func (n narrow) Append(ctx context.Context, o pipeline.Outgoing) (pipeline.Receipt, error) {
	select {
	case <-n.open:
		return n.Producer.Append(ctx, o)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TestTheWaitOfSourcesIsToldWhileTheyWait: of all of them together, and what is slow behind the producer's door is no wait of theirs.
func TestTheWaitOfSourcesIsToldWhileTheyWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		shown := func(want float64) {
			t.Helper()
			synctest.Wait()
			for range 2 { // a look changes nothing
				if got := counterOf(t, s.metrics.Backpressure); got < want || got > want+0.001 {
					t.Errorf("sources have waited for %v s, want %v", got, want)
				}
			}
		}
		in.slowDown(topics.Messages, 10*time.Second)
		in.accept(t, in.message("t/1", "a"))
		time.Sleep(20 * time.Second)
		shown(0)

		door := narrow{in.producer, make(chan struct{})}
		in.Producer = door
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		for _, ctx := range []context.Context{ctx, t.Context()} {
			go func() { // ends with ctx, or when the door opens
				_, err := in.Accept(ctx, in.message("t/1", "b"))
				ended <- err
			}()
		}
		shown(0)
		time.Sleep(10 * time.Second)
		shown(20)
		cancel()
		if err := <-ended; err == nil {
			t.Error("a call that was given up was taken")
		}
		time.Sleep(5 * time.Second)
		shown(25)
		close(door.open)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		shown(25)
		in.accept(t, in.message("t/1", "c"))
		shown(25)
	})
}
