package pipeline

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// keeper reads and writes the positions of one partition's clients in one sink: it gathers what has changed and writes it together,
// and then lets the owner commit the events that it came from.
type keeper struct {
	o       *owner
	sink    string
	storing *Storing

	mu   sync.Mutex
	line []*ledger // those that wait for a flush
}

// ledger is the client's in a sink; nil where positions cannot be kept there.
func (o *owner) ledger(c *client, sink string) *ledger {
	if l := c.ledgers[sink]; l != nil {
		return l
	}
	k := o.keepers[sink]
	if k == nil {
		at, ok := o.r.Sinks[sink]
		if !ok || at.Positions == nil {
			o.r.Metrics.Skipped.WithLabelValues("replayer", SkipUnsupported).Inc()
			return nil
		}
		k = &keeper{o: o, sink: sink, storing: at.Positions}
		o.keepers[sink] = k
		o.jobs.Go(func() { k.run(o.ctx) }) // ends with the generation; Own waits for it
	}
	l := newLedger(k, c.id)
	c.ledgers[sink] = l
	return l
}

func (k *keeper) add(l *ledger) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.line = append(k.line, l)
	k.o.r.Metrics.PositionsWaiting.Inc()
}

func (k *keeper) run(ctx context.Context) {
	for Sleep(ctx, k.o.r.Limits.PositionHold) == nil {
		if err := k.flush(ctx); err != nil && ctx.Err() == nil {
			k.o.failed(err)
			return
		}
	}
}

// flush makes durable what has changed, for as long as it takes. Its errors are the end of ctx and fault.Fatal.
func (k *keeper) flush(ctx context.Context) error {
	k.mu.Lock()
	line := k.line
	k.line = nil
	k.mu.Unlock()
	if len(line) == 0 {
		return nil
	}
	const abreast = 16
	var g errgroup.Group
	g.SetLimit(abreast)
	for _, l := range line {
		g.Go(func() error { return l.ready(ctx) })
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil { // those that are not ready stay in the line
		k.o.r.Log.WarnContext(ctx, "positions not read, will retry", "sink", k.sink, "err", err)
	}
	var d due
	waiting := k.o.r.Metrics.PositionsWaiting
	taken := 0
	for _, l := range line {
		if l.take(&d) {
			taken++
			continue
		}
		waiting.Dec()
		k.add(l)
	}
	err := k.store(ctx, d.first)
	if err == nil {
		err = k.store(ctx, d.then)
	}
	if waiting.Sub(float64(taken)); err != nil {
		return err
	}
	for _, offset := range d.held {
		k.o.done(offset)
	}
	return nil
}

// store writes rows. One that the store refuses for good is told and left out: the client's next subscribe repeats what it is for.
func (k *keeper) store(ctx context.Context, ops []sinks.Op) error {
	const batch = 1000
	m := k.o.r.Metrics.Positions
	for len(ops) > 0 {
		some := ops[:min(batch, len(ops))]
		ops = ops[len(some):]
		todo := make([]int, len(some))
		for i := range some {
			todo[i] = i
		}
		bad := make(map[int]error)
		if err := k.storing.apply(ctx, some, todo, bad); err != nil {
			return fmt.Errorf("store positions: %w", err)
		}
		for i, err := range bad {
			k.o.r.Log.ErrorContext(ctx, "position cannot be stored, messages will be repeated", "sink", k.sink, "row", some[i].Row(), "err", err)
		}
		m.WithLabelValues(positionStored).Add(float64(len(some) - len(bad)))
		m.WithLabelValues(positionRefused).Add(float64(len(bad)))
	}
	return nil
}

// ready reads the client's rows, once. Its errors are transient.
func (l *ledger) ready(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l.turn }()
	l.mu.Lock()
	loaded := l.loaded
	l.mu.Unlock()
	if loaded {
		return nil
	}
	rows, err := l.k.o.r.Sinks[l.k.sink].Store.Positions(ctx, l.client)
	if err != nil {
		return err
	}
	l.load(rows)
	return nil
}

// failed ends the process for what only an operator can put right.
func (o *owner) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken == nil {
		o.broken = err
	}
}

func (o *owner) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.broken
}

// keep makes durable what the owner's clients have changed, at the end.
func (o *owner) keep(ctx context.Context) error {
	for _, k := range o.keepers {
		if err := k.flush(ctx); err != nil {
			if fault.IsFatal(err) {
				return err
			}
			o.r.Log.WarnContext(ctx, "positions not stored in time, their events are read again", "sink", k.sink, "err", err)
		}
	}
	return nil
}

// letGo forgets what is not flushed: it belongs to the next owner.
func (o *owner) letGo() {
	for _, k := range o.keepers {
		k.mu.Lock()
		o.r.Metrics.PositionsWaiting.Sub(float64(len(k.line)))
		k.line = nil
		k.mu.Unlock()
	}
}

// settled reports whether nothing of the client's positions is under way.
func (c *client) settled() bool {
	for _, l := range c.ledgers {
		if !l.idle() {
			return false
		}
	}
	return true
}

// trail is how far positions stay behind: within it clocks do not tell what was before what, and events may be late, those too whose id
// is by a clock that is behind.
func (r *Replayer) trail() time.Duration {
	return max(r.Limits.Settle, r.Limits.ClockSkew) + r.Limits.ClockSkew
}

// ceiling is the highest position that something said at that time may lead to.
func (r *Replayer) ceiling(at time.Time) event.ID {
	if now := r.Now(); now.Before(at) {
		at = now
	}
	return event.LastIDAt(at.Add(-r.trail()))
}

// heardLive is how far a live ack may move a position. It says that all that the broker sent before the message is acknowledged, and
// nothing of what came after it, which may have an id before it: from another broker node, or while the ack took its time.
func (r *Replayer) heardLive(id event.ID, at time.Time) event.ID {
	switch {
	case r.trail() == 0: // one clock
		return id
	case id.Time().Before(at):
		at = id.Time()
	}
	return r.ceiling(at)
}

// moved lets an ack move the positions that the rules say.
func (o *owner) moved(rec Record, e event.Acked) {
	c := o.client(e.Client)
	for _, p := range o.r.Plan(e).Positions {
		l := o.ledger(c, p.Sink)
		if l == nil {
			continue
		}
		l.saw(e.ID)
		var upTo event.ID
		if !e.Replayed {
			upTo = o.r.heardLive(p.Message, e.At)
		}
		l.ack(rec, p.Topic, p.Message, upTo)
	}
}

// forgets removes the positions that an unsubscribe says.
func (o *owner) forgets(rec Record, e event.Unsubscribed) {
	c := o.client(e.Client)
	for _, f := range o.r.Plan(e).Forgets {
		if l := o.ledger(c, f.Sink); l != nil {
			l.saw(e.ID)
			o.begin(rec)
			l.forget(rec.Offset, f.Filter)
		}
	}
}

// lost keeps positions from passing a delivery that the broker gave up. A replay that runs looks once more when its message must be there.
func (o *owner) lost(rec Record, e event.Dropped) {
	c := o.client(e.Client)
	for _, p := range o.r.Plan(e).Positions {
		l := o.ledger(c, p.Sink)
		if l == nil {
			continue
		}
		c.lookAgain(p.Topic)
		l.saw(e.ID)
		o.begin(rec)
		l.dropped(rec.Offset, p.Topic, p.Message, event.LastIDAt(e.At.Add(o.r.Limits.ClockSkew)))
	}
}
