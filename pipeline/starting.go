package pipeline

import (
	"context"
	"time"

	"github.com/restante/restante/event"
)

// asking is what one event asks of a replay.
type asking struct {
	id        event.ID  // of the event; needed in pub/sub
	at        time.Time // of the event
	bound     event.ID  // the largest message id that belongs to the replay
	subscribe int64     // offset of the event that began it
	slice     int
	after     event.Topic   // where the slice before ended
	delay     time.Duration // before it begins
}

// bound is the largest id of a message that may have been published before an event of a client.
func (r *Replayer) bound(h event.Head) event.ID {
	if s := r.Limits.ClockSkew; s > 0 {
		return event.LastIDAt(h.At.Add(time.Millisecond + s))
	}
	return event.LastIDAt(h.ID.Time())
}

// start begins a replay with the others of this fetch.
func (o *owner) start(ctx context.Context, rec Record, c *client, rp Replay, a asking) {
	if run, _ := o.prepare(ctx, ctx, rec, c, rp, a); run != nil {
		o.fresh = append(o.fresh, run)
	}
}

// prepare makes a replay, to be run by the caller under ctx, or raises the bound of the one that runs for the same filter and rule. It
// makes none, and returns false, once wait has ended: then the event is finished, unless it was ctx that ended.
func (o *owner) prepare(ctx, wait context.Context, rec Record, c *client, rp Replay, a asking) (run func(), ok bool) {
	o.begin(rec)
	key := jobKey{rp.Filter.String(), rp.Rule}
	jctx, cancel := context.WithCancelCause(ctx)
	j := &job{
		o: o, c: c, replay: rp, at: a.at, bound: a.bound, subscribe: a.subscribe, slice: a.slice, from: a.after, offsets: []int64{rec.Offset},
		cancel: cancel, began: time.Now(), settled: time.Now().Add(a.delay + o.r.Limits.Settle), event: rec, delay: a.delay,
	}
	for old := (*job)(nil); ; {
		if old, ok = c.claim(wait, key, j, old); old == nil {
			break
		}
		if old.raise(a.at, a.bound, a.subscribe, rec.Offset) {
			cancel(nil)
			return nil, true
		}
	}
	if !ok {
		cancel(nil)
		if ctx.Err() == nil { // else the partition goes to another owner, who repeats the event
			o.done(rec.Offset)
		}
		return nil, false
	}
	if !o.follow(j, a.id) {
		cancel(nil)
		c.remove(key, j)
		o.done(rec.Offset)
		return nil, true
	}
	if a.delay == 0 {
		j.place = o.r.admit.ask() // here, so that replays are admitted in the order of their subscribes
	}
	return func() {
		defer cancel(nil)
		j.run(jctx)
		c.remove(key, j)
		if !j.aborted {
			j.report()
		}
	}, true
}

// launch begins the replays of one fetch, when all that it says of their clients is known.
func (o *owner) launch() {
	for _, run := range o.fresh {
		o.jobs.Go(run) // ends by itself or by its cancel; Own waits for it
	}
	o.fresh = nil
}
