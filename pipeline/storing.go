package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// Storing makes ops durable in one sink: it coalesces, applies, retries for ever what is transient, and finds what is poison.
// It is shared by the workers of a sink and safe for concurrent use.
type Storing struct {
	Sink    string
	Store   sinks.Writer
	Backoff Backoff
	// Timeout limits one attempt; what it cuts off is unknown, and tried again. 0 = no limit.
	Timeout time.Duration
	// Turn is called at each attempt: a writer that waits for its store is alive. nil = nobody asks.
	Turn    func()
	Metrics *Metrics
	Log     *slog.Logger

	stalled atomic.Int32 // flushes that are being retried
}

// stall notes that a flush is being retried, and reports whether it is the only one: a store that is away is said once, not by
// every partition.
func (s *Storing) stall() bool {
	s.Metrics.Stalled.WithLabelValues(s.Sink).Inc()
	return s.stalled.Add(1) == 1
}

// resume notes the end of a stall, and reports whether it was the last.
func (s *Storing) resume() bool {
	s.Metrics.Stalled.WithLabelValues(s.Sink).Dec()
	return s.stalled.Add(-1) == 0
}

// Persist returns when every op is durable or known to be poison; poison maps the indexes of poison ops to their causes. An error
// (fault.Fatal, or the cause of ctx's end) means that nothing may be taken as durable.
func (s *Storing) Persist(ctx context.Context, ops []sinks.Op) (poison map[int]error, err error) {
	merged, from := sinks.Coalesce(ops)
	bad := make(map[int]error)
	all := make([]int, len(merged))
	for i := range merged {
		all[i] = i
	}
	if err := s.apply(ctx, merged, all, bad); err != nil {
		return nil, err
	}
	s.Metrics.Persisted.WithLabelValues(s.Sink).Add(float64(len(merged) - len(bad)))
	for i, cause := range bad {
		for _, j := range from[i] {
			if poison == nil {
				poison = make(map[int]error)
			}
			poison[j] = cause
		}
	}
	return poison, nil
}

// effort is one Persist: it counts as stalled from its first failed attempt to its end.
type effort struct {
	*Storing
	ops      []sinks.Op
	bad      map[int]error
	attempts int
	stalled  bool
}

// apply makes ops[i] durable for every i of todo, or notes it in bad.
func (s *Storing) apply(ctx context.Context, ops []sinks.Op, todo []int, bad map[int]error) error {
	e := &effort{Storing: s, ops: ops, bad: bad}
	err := e.apply(ctx, todo)
	if e.stalled && s.resume() && err == nil {
		s.Log.InfoContext(ctx, "apply succeeded again", "sink", s.Sink, "attempts", e.attempts)
	}
	return err
}

// apply is the one retry loop of the writers.
func (e *effort) apply(ctx context.Context, todo []int) error {
	for attempt := 1; len(todo) > 0; attempt++ {
		batch := e.ops
		if len(todo) < len(e.ops) {
			batch = make([]sinks.Op, len(todo))
			for i, j := range todo {
				batch[i] = e.ops[j]
			}
		}
		e.attempts++
		slow, err := e.attempt(ctx, batch)
		if err == nil {
			return nil
		}
		left, halve, ferr := sift(err, todo, e.bad)
		switch {
		case ferr != nil:
			return ferr
		case ctx.Err() != nil:
			return fmt.Errorf("apply %d ops to sink %q: %w", len(todo), e.Sink, context.Cause(ctx))
		case len(left) == 0:
			return nil
		}
		if !halve {
			e.Metrics.Retries.WithLabelValues(e.Sink).Inc()
			e.say(ctx, len(left), err)
			// As much as before, in as long as there is: what does not fit into an attempt never would.
			halve = slow && len(left) == len(todo) && len(left) > 1
		}
		if halve {
			// Or the store cannot say which op is the poison.
			mid := len(left) / 2
			return errors.Join(e.apply(ctx, left[:mid]), e.apply(ctx, left[mid:]))
		}
		todo = left
		if err := Sleep(ctx, e.Backoff.Delay(attempt)); err != nil {
			return fmt.Errorf("apply %d ops to sink %q: %w", len(todo), e.Sink, err)
		}
	}
	return nil
}

// say tells once that something is retried.
func (e *effort) say(ctx context.Context, n int, err error) {
	if e.stalled {
		return
	}
	e.stalled = true
	if e.stall() {
		e.Log.WarnContext(ctx, "apply failed, will retry until it succeeds", "sink", e.Sink, "ops", n, "err", err)
	}
}

// attempt reports beside the error whether its time was over.
func (s *Storing) attempt(ctx context.Context, batch []sinks.Op) (slow bool, err error) {
	if s.Turn != nil {
		s.Turn()
	}
	limited := ctx
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	err = s.Store.Apply(limited, batch)
	return limited.Err() != nil && ctx.Err() == nil, err
}

// sift sorts what an Apply left undone: left is to be tried again (half by half when halve is set), bad is never storable.
func sift(err error, todo []int, bad map[int]error) (left []int, halve bool, fatal error) {
	var part *sinks.ApplyError
	if !errors.As(err, &part) {
		switch {
		case fault.IsFatal(err):
			return nil, false, err
		case fault.IsPoison(err) && len(todo) == 1:
			bad[todo[0]] = err
			return nil, false, nil
		default:
			return todo, fault.IsPoison(err), nil
		}
	}
	for i, j := range todo {
		cause, failed := part.Failed[i]
		switch {
		case !failed:
		case fault.IsFatal(cause):
			return nil, false, cause
		case fault.IsPoison(cause):
			bad[j] = cause
		default:
			left = append(left, j)
		}
	}
	return left, false, nil
}
