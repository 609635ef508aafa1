package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/restante/restante/sinks"
)

// flush makes the ripe prefix of what is held durable, then commits, then forgets it. Never in another order. With all set
// everything held is ripe.
func (w *Worker) flush(ctx context.Context, all bool) error {
	if len(w.hold.recs) == 0 {
		return nil
	}
	n, trigger := len(w.hold.recs), triggerEnd
	if !all {
		full := n >= w.Limits.Records || w.hold.bytes >= w.Limits.Bytes
		switch {
		case full:
			trigger = triggerBytes
		case time.Now().Before(w.flushDue()):
			return nil
		default:
			n, trigger = w.hold.ripe(time.Now(), w.Limits.Hold), triggerHold
		}
		if n == 0 {
			return nil
		}
	}
	began := time.Now()
	w.lastFlush = began
	err := w.finish(ctx, w.hold.recs[:n])
	outcome := outcomeOK
	switch {
	case errors.Is(err, ErrFenced):
		outcome = outcomeFenced
	case err != nil:
		outcome = outcomeError
	}
	w.Metrics.Flushes.WithLabelValues(w.Storing.Sink, trigger, outcome).Inc()
	if err != nil {
		return err
	}
	w.Metrics.FlushSeconds.WithLabelValues(w.Storing.Sink).Observe(time.Since(began).Seconds())
	w.Metrics.BatchRecords.WithLabelValues(w.Storing.Sink).Observe(float64(n))
	w.settle(n)
	w.hold.drop(n)
	w.measure(len(w.hold.recs), w.hold.bytes)
	return nil
}

// finish makes recs durable and commits.
func (w *Worker) finish(ctx context.Context, recs []held) error {
	if w.doubt || time.Since(w.lastGood) > w.Limits.Session {
		if err := w.commit(ctx, Before(*recs[0].rec)); err != nil {
			return err
		}
	}
	w.hold.wrote(len(recs))
	if err := w.persist(ctx, recs); err != nil {
		return err
	}
	w.wroteAt = w.Now()
	for i := range recs {
		r := &recs[i]
		if r.dead == nil {
			continue
		}
		reason := ReasonMalformed
		if r.ops != nil {
			reason = ReasonRejected
		}
		if err := w.Dead.Bury(ctx, *r.rec, reason, r.dead); err != nil {
			return err
		}
	}
	return w.commit(ctx, recs[len(recs)-1].rec.Next())
}

// persist applies the ops of recs and notes on each record what is poison.
func (w *Worker) persist(ctx context.Context, recs []held) error {
	n := 0
	for i := range recs {
		n += len(recs[i].ops)
	}
	if n == 0 {
		return nil
	}
	ops := make([]sinks.Op, 0, n)
	owner := make([]int, 0, n)
	for i := range recs {
		for range recs[i].ops {
			owner = append(owner, i)
		}
		ops = append(ops, recs[i].ops...)
	}
	poison, err := w.Storing.Persist(ctx, ops)
	if err != nil {
		return err
	}
	for i, cause := range poison {
		recs[owner[i]].dead = cause
	}
	return nil
}

// commit retries what is transient: the generation's end shows as ErrFenced or as the end of ctx.
func (w *Worker) commit(ctx context.Context, next Next) error {
	for attempt := 1; ; attempt++ {
		err := w.Generation.Commit(ctx, map[TP]Next{w.TP: next})
		if err == nil {
			w.lastGood, w.doubt = time.Now(), false
			return nil
		}
		if errors.Is(err, ErrFenced) || ctx.Err() != nil {
			return fmt.Errorf("commit %s before %d: %w", w.TP, next.Offset(), err)
		}
		if attempt == 1 {
			w.Log.WarnContext(ctx, "commit failed, will retry", "topic", w.TP.Topic, "partition", w.TP.Part, "err", err)
		}
		if err := Sleep(ctx, w.Storing.Backoff.Delay(attempt)); err != nil {
			return fmt.Errorf("commit %s before %d: %w", w.TP, next.Offset(), err)
		}
	}
}
