package pipeline

import (
	"context"
	"time"

	"github.com/restante/restante/event"
)

// FirstAll as [Rule.First] is everything that is stored.
const FirstAll time.Duration = -1

// progress is how far a pub/sub replay has brought its client. It belongs to the job's goroutine, but for what end takes.
type progress struct {
	led    *ledger
	looked uint64   // which marks were set when the view of this pass was asked for
	upTo   event.ID // how far that view may move a position
	passed map[event.Topic]event.ID
	open   map[event.ID]event.Topic // sent and not acknowledged

	complete bool // guarded by the job's mu; what the others say then stands
}

// follow gives a pub/sub replay the client's positions. It is false where they cannot be kept.
func (o *owner) follow(j *job, said event.ID) bool {
	if j.replay.Mode != Pubsub {
		return true
	}
	l := o.ledger(j.c, j.replay.Sink)
	if l == nil {
		return false
	}
	l.saw(said)
	j.pos = &progress{led: l, passed: make(map[event.Topic]event.ID), open: make(map[event.ID]event.Topic)}
	l.begin(j, scopeOf(j.replay.Filter, j.replay.Within), o.r.first(j), j.bound)
	return true
}

// first is where the positions of a client begin that subscribes for the first time.
func (r *Replayer) first(j *job) event.ID {
	if j.replay.First < 0 {
		return closed // before any other
	}
	if r.trail() == 0 && j.replay.First == 0 {
		return j.bound // one clock: what is before the subscribe, and nothing else
	}
	at := j.bound.Time().Add(-r.Limits.ClockSkew)
	return event.FirstIDAt(at.Add(-r.trail() - j.replay.First))
}

// ready waits until the positions are read.
func (j *job) ready(ctx context.Context) error {
	if j.pos == nil {
		return nil
	}
	return j.retry(ctx, "read positions", func() error { return j.pos.led.ready(ctx) })
}

// looks notes that a pass begins.
func (j *job) looks() {
	if j.pos != nil {
		j.pos.looked, j.pos.upTo = j.pos.led.looks(), j.o.r.ceiling(j.o.r.Now())
	}
}

// above narrows the selection of a topic to what the client still needs.
func (j *job) above(t event.Topic, s selection) selection {
	if j.pos == nil {
		return s
	}
	from, ok := j.pos.led.from(t)
	if !ok {
		from = s.until // the positions were removed: the replay is about to end
	}
	s.floors[byPosition] = from
	sent := s.skip
	s.skip = func(id event.ID) bool { return sent(id) || j.pos.led.has(t, id) }
	return s
}

// dealt notes that all up to a message is dealt with but for what is open; open says that it is one of those.
func (j *job) dealt(t event.Topic, id event.ID, open bool) {
	if j.pos == nil {
		return
	}
	j.pos.passed[t] = id
	if open {
		j.pos.open[id] = t
	}
}

// landed notes that the client has a message, and moves the position of its topic.
func (j *job) landed(id event.ID) {
	if j.pos == nil {
		return
	}
	t, ok := j.pos.open[id]
	if !ok {
		return
	}
	delete(j.pos.open, id)
	low := j.pos.passed[t]
	for other, of := range j.pos.open {
		if of == t && other.Compare(low) <= 0 {
			low = other.Before()
		}
	}
	if low.Compare(j.pos.upTo) > 0 {
		low = j.pos.upTo
	}
	j.pos.led.replayed(t, id, low, j.pos.looked)
}

// leftOver notes that a message is not waited for any more: it is left for a later pass.
func (j *job) leftOver(id event.ID) {
	if j.pos == nil {
		return
	}
	t, ok := j.pos.open[id]
	if !ok {
		return
	}
	delete(j.pos.open, id)
	if id.Compare(j.pos.passed[t]) <= 0 {
		j.pos.passed[t] = id.Before()
	}
}

// finish tells the owner, by way of the positions, that the job's events are finished. The caller holds mu.
func (p *progress) finish(j *job) {
	e := ending{complete: p.complete, bound: j.bound, offsets: j.offsets}
	if p.complete {
		e.looked, e.upTo, e.topics = p.looked, p.upTo, p.passed
	}
	p.led.end(j, e)
}
