package pipeline

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// throttle lets so many reads of a store run at once as it answers within the target on average, first come first served: more
// of them would only wait in the store, with those of the writers behind them.
type throttle struct {
	line   admission
	most   int
	target time.Duration
	gauge  prometheus.Gauge    // the limit
	beside prometheus.Observer // how many run, as one begins

	mu      sync.Mutex
	limit   int
	running int
	calls   int // since the limit was looked at
	spent   time.Duration
}

const leastReads = 2

func newThrottle(most int, target time.Duration, gauge prometheus.Gauge, beside prometheus.Observer) *throttle {
	most = max(most, 1)
	gauge.Set(float64(most))
	return &throttle{line: admission{free: most}, most: most, limit: most, target: target, gauge: gauge, beside: beside}
}

// do calls read when its turn has come. An error of ctx is its cause.
func (t *throttle) do(ctx context.Context, read func() error) error {
	p := t.line.ask()
	defer t.line.leave(p)
	select {
	case <-p.come:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	t.runs(1)
	began := time.Now()
	err := read()
	t.runs(-1)
	if ctx.Err() == nil {
		t.took(time.Since(began))
	}
	return err
}

// runs counts the reads that run.
func (t *throttle) runs(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running += n; n > 0 {
		t.beside.Observe(float64(t.running))
	}
}

// took looks at the limit once for each round of so many reads as may run at once: down by a quarter, up by an eighth.
func (t *throttle) took(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls++
	t.spent += d
	if t.calls < t.limit {
		return
	}
	next := t.limit
	switch mean := t.spent / time.Duration(t.calls); {
	case mean > t.target:
		next = max(t.limit-max(t.limit/4, 1), min(leastReads, t.most))
	case mean < t.target/2 && t.line.waits():
		next = min(t.limit+max(t.limit/8, 1), t.most)
	}
	t.line.widen(next - t.limit)
	t.limit, t.calls, t.spent = next, 0, 0
	t.gauge.Set(float64(next))
}

// throttled is a store whose reads pass a throttle.
type throttled struct {
	store sinks.Reader
	by    *throttle
}

var _ sinks.Reader = throttled{}

func throttledCall[T any](ctx context.Context, t *throttle, read func() (T, error)) (T, error) {
	var out T
	err := t.do(ctx, func() (err error) {
		out, err = read()
		return err
	})
	return out, err
}

func (s throttled) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	return throttledCall(ctx, s.by, func() ([]sinks.Message, error) { return s.store.Messages(ctx, q) })
}

func (s throttled) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	return throttledCall(ctx, s.by, func() ([]event.Topic, error) { return s.store.Topics(ctx, f, after, limit) })
}

func (s throttled) Retained(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]sinks.Message, error) {
	return throttledCall(ctx, s.by, func() ([]sinks.Message, error) { return s.store.Retained(ctx, f, after, limit) })
}

func (s throttled) Subs(ctx context.Context, client event.ClientID) ([]sinks.Sub, error) {
	return throttledCall(ctx, s.by, func() ([]sinks.Sub, error) { return s.store.Subs(ctx, client) })
}

func (s throttled) Positions(ctx context.Context, client event.ClientID) ([]sinks.PutAcked, error) {
	return throttledCall(ctx, s.by, func() ([]sinks.PutAcked, error) { return s.store.Positions(ctx, client) })
}

func (s throttled) Acked(ctx context.Context, client event.ClientID, topic string) (id event.ID, ok bool, err error) {
	err = s.by.do(ctx, func() (err error) {
		id, ok, err = s.store.Acked(ctx, client, topic)
		return err
	})
	return id, ok, err
}

func (s throttled) Client(ctx context.Context, client event.ClientID) (c sinks.Client, ok bool, err error) {
	err = s.by.do(ctx, func() (err error) {
		c, ok, err = s.store.Client(ctx, client)
		return err
	})
	return c, ok, err
}
