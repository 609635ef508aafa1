package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/restante/restante/event"
)

var errHandedOn = errors.New("the rest is handed on")

// drain waits until all that was sent is acked; errNotAcking when the eldest has waited too long.
func (j *job) drain(ctx context.Context) error {
	for {
		j.collect()
		if len(j.order) == 0 {
			return nil
		}
		f := j.sent[j.order[0]]
		left := j.o.r.Limits.AckTimeout - time.Since(f.at)
		if left <= 0 {
			return errNotAcking
		}
		if err := waitAck(ctx, f, left); err != nil {
			return err
		}
	}
}

// waitAck returns when the message is acked, after d, or with the cause of ctx's end.
func waitAck(ctx context.Context, f *flight, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-f.acked:
	case <-t.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// await waits for what other replays of the client have on its way. It tells whether any of that was not acked: then it is left
// for this replay.
func (j *job) await(ctx context.Context) (left bool, err error) {
	for len(j.others) > 0 {
		f := j.others[0]
		if err := j.awaitOne(ctx, f.flight); err != nil {
			return false, err
		}
		j.others = j.others[1:]
		if f.isAcked() {
			j.sent[f.id] = f.flight // not again in this replay
			j.landed(f.id)
		} else {
			left = true
			j.leftOver(f.id)
		}
	}
	return left, nil
}

// awaitOne gives the place to others until a flight is over.
func (j *job) awaitOne(ctx context.Context, f *flight) error {
	if !j.c.wait(j, f) {
		return nil
	}
	select {
	case <-f.over: // with a place in the line, see land
	case <-ctx.Done():
		if j.c.leaveWait(j, f) {
			return context.Cause(ctx)
		}
	}
	return j.enter(ctx)
}

// enter waits for a place among the active replays.
func (j *job) enter(ctx context.Context) error {
	r := j.o.r
	if j.place == nil {
		j.place = r.admit.ask()
	}
	select {
	case <-j.place.come:
	default:
		parked := r.Metrics.ReplayParked.WithLabelValues(parkedAdmission)
		parked.Inc()
		defer parked.Dec()
		select {
		case <-j.place.come:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		r.admit.leave(j.place)
		j.place = nil
		return context.Cause(ctx)
	}
	j.active = true
	r.Metrics.ReplayActive.Inc()
	return nil
}

// leave gives the place to others.
func (j *job) leave() {
	if j.active {
		j.active = false
		j.o.r.Metrics.ReplayActive.Dec()
		j.o.r.admit.leave(j.place)
		j.place = nil
	}
}

// aside gives the place to others while wait runs.
func (j *job) aside(ctx context.Context, wait func() error) error {
	j.leave()
	if err := wait(); err != nil {
		return err
	}
	return j.enter(ctx)
}

// park waits with a client that does not acknowledge. When an ack comes, or the pause is over, it returns nil: in the
// second case what is un-acked is sent again. After the last pause the client is given up; its messages stay stored.
func (j *job) park(ctx context.Context) error {
	r := j.o.r
	if j.retries >= len(r.Limits.Retry) {
		return errNotAcking
	}
	pause := r.Limits.Retry[j.retries]
	j.retries++
	parked := r.Metrics.ReplayParked.WithLabelValues(parkedNotAcking)
	parked.Inc()
	defer parked.Dec()
	r.Log.InfoContext(ctx, "client does not acknowledge, its replay waits", "clientid", string(j.c.id), "unacked", len(j.order), "pause", pause)
	err := j.aside(ctx, func() error {
		if len(j.order) > 0 {
			return waitAck(ctx, j.sent[j.order[0]], pause)
		}
		return Sleep(ctx, pause)
	})
	if err != nil {
		return err
	}
	before := len(j.order)
	if j.collect(); len(j.order) < before {
		for _, id := range j.order {
			j.sent[id].at = time.Now() // it is awake: the other acks may be on their way
		}
		return nil
	}
	j.release()
	return nil
}

// handOn ends a slice: when all that was sent is acked, what is left goes to the log as an event of the same client.
func (j *job) handOn(ctx context.Context) error {
	err := j.drain(ctx)
	for errors.Is(err, errNotAcking) {
		if err = j.park(ctx); err != nil {
			return err
		}
		err = j.drain(ctx) // what park has given up is read again by the next slice
	}
	if err != nil {
		return err
	}
	r := j.o.r
	j.mu.Lock()
	e := event.ReplayContinued{
		Head:   event.Head{ID: r.Minter.Mint(), Source: r.Source, At: j.at},
		Client: j.c.id, Filter: j.replay.Filter, QoS: j.replay.QoS, Bound: j.bound, Subscribe: j.subscribe, Slice: j.slice + 1,
		Rule: j.replay.Rule, After: j.keptAfter,
	}
	j.over = true
	j.mu.Unlock()
	if j.pos != nil {
		j.pos.led.handsOn(j, e.Bound)
	}
	o := Outgoing{Topic: r.Topics.Sessions, Wire: event.Encode(e, e.Routes()[0], r.Now())}
	if err := j.retry(ctx, "hand on the rest", func() error { return appendAndWait(ctx, r.Producer, o) }); err != nil {
		return err
	}
	return errHandedOn
}
