package pipeline

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/restante/restante/fault"
)

// Backoff is the one retry curve: it doubles from First up to Most, each wait drawn from its upper half.
type Backoff struct {
	First, Most time.Duration
	// Rand draws from [0, 1); nil = math/rand. A test that must be repeatable sets it.
	Rand func() float64
}

// DefaultBackoff is the curve of DESIGN §5: 50 ms to 5 s.
var DefaultBackoff = Backoff{First: 50 * time.Millisecond, Most: 5 * time.Second}

// Delay is the wait after the given failed attempt, from 1 on.
func (b Backoff) Delay(attempt int) time.Duration {
	d := b.First
	for i := 1; i < attempt && d < b.Most; i++ {
		d *= 2
	}
	d = min(d, b.Most)
	r := b.Rand
	if r == nil {
		r = rand.Float64
	}
	return d/2 + time.Duration(r()*float64(d/2))
}

// Sleep waits for d or the end of ctx, and returns ctx's cause in the second case.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Patiently calls fn until it succeeds, fails for good, or has failed for as long as patience.
func Patiently(ctx context.Context, patience time.Duration, fn func() error) error {
	began := time.Now()
	for attempt := 1; ; attempt++ {
		err := fn()
		if err == nil || fault.IsFatal(err) || ctx.Err() != nil || time.Since(began) > patience {
			return err
		}
		if Sleep(ctx, DefaultBackoff.Delay(attempt)) != nil {
			return err
		}
	}
}

// drainContext ends with work, or d after ctx has ended: what is held may be finished until then.
func drainContext(ctx, work context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancelCause(work)
	var timer *time.Timer
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		timer = time.AfterFunc(d, func() { cancel(errDrainOver) })
	})
	return out, func() {
		if !stop() {
			<-fired
			timer.Stop()
		}
		cancel(context.Canceled)
	}
}
