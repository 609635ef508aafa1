package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// tailOp is a change of a stored message, or of a retained one, that stands in the log.
type tailOp struct {
	offset int64
	at     time.Time // of the event
	read   time.Time // when the tail came to it; zero = by a look below the floor
	topic  event.Topic
	id     event.ID
	put    *sinks.Message // nil = the message is gone
	retain sinks.Op       // nil = it is about a stored message
	size   int
}

// tailPart is what is kept of one partition. One goroutine at a time uses it.
type tailPart struct {
	tp        TP
	ops       []tailOp // by offset
	byTopic   map[event.Topic][]tailOp
	bytes     int
	committed int64
	floor     int64 // the log from here on is kept
	pos       int64 // up to here
	end       int64
	looked    bool // the look-back below floor is done
	used      time.Time
	stream    Stream
}

func (p *tailPart) close() {
	if p.stream != nil {
		_ = p.stream.Close() // nothing is lost with a reader
		p.stream = nil
	}
}

// trim forgets what lies below the commit, but for the acks of the last moments: a publish that is repeated above it may be gone. The
// moments are of the log or of the clock: events that waited for their ingest come late, and close together.
func (p *tailPart) trim(committed int64, span Span, lookBack time.Duration) {
	const catchUp = 5000 // records that are cheaper to read than to leave out
	back := committed < p.committed || span.End < p.pos
	p.committed, p.end = committed, span.End
	if back || p.pos < committed-catchUp || p.pos < span.First {
		p.reset(committed) // the group's offsets or the topic were reset by hand, or too much was left unread
		return
	}
	until := time.Time{}
	for i := range p.ops {
		if until = p.ops[i].at; p.ops[i].offset >= committed {
			break
		}
	}
	now := time.Now()
	keep := func(o tailOp) bool {
		return o.put == nil && (until.Sub(o.at) <= lookBack || now.Sub(o.read) <= lookBack)
	}
	touched := make(map[event.Topic]struct{})
	for n := 0; n < len(p.ops) && p.ops[n].offset < committed; n++ {
		o := p.ops[n]
		if keep(o) {
			continue
		}
		p.bytes -= o.size
		p.floor = max(p.floor, o.offset+1)
		touched[o.topic] = struct{}{}
	}
	for topic := range touched {
		if rest := sieve(p.byTopic[topic], committed, keep); len(rest) > 0 {
			p.byTopic[topic] = rest
		} else {
			delete(p.byTopic, topic)
		}
	}
	p.ops = sieve(p.ops, committed, keep)
}

// sieve takes out of ops, which ascend, what lies below the commit and is not to be kept.
func sieve(ops []tailOp, committed int64, keep func(tailOp) bool) []tailOp {
	below := 0
	for below < len(ops) && ops[below].offset < committed {
		below++
	}
	first := below
	for i := below - 1; i >= 0; i-- {
		if keep(ops[i]) {
			first--
			ops[first] = ops[i]
		}
	}
	clear(ops[:first])
	return ops[first:]
}

func (p *tailPart) reset(to int64) {
	p.close()
	p.ops, p.bytes, p.floor, p.pos, p.looked = nil, 0, to, to, false
	clear(p.byTopic)
}

// advance reads from where it stands to the end, within the budget.
func (p *tailPart) advance(ctx context.Context, t *Tail) error {
	err := p.read(ctx, t)
	if err == nil {
		err = p.lookBelow(ctx, t)
	}
	if err != nil {
		p.reset(p.committed)
		return fmt.Errorf("read the tail of %s: %w", p.tp, err)
	}
	return nil
}

func (p *tailPart) read(ctx context.Context, t *Tail) error {
	const limit, wait = 5000, 200 * time.Millisecond
	share := t.Budget / t.Parts // which no other partition can take away
	for empty := 0; p.pos < p.end; empty++ {
		if t.left.Load() <= 0 && p.bytes > share {
			if p.pos >= p.committed {
				return nil
			}
			// What fills the budget lies below the commit, and what was not read is in the store by now.
			t.left.Add(int64(p.bytes))
			p.reset(p.committed)
			continue
		}
		if p.stream == nil {
			s, err := t.Reader.Open(ctx, p.tp, p.pos)
			if err != nil {
				return err
			}
			p.stream = s
		}
		recs, err := p.stream.Fetch(ctx, limit, wait)
		if err != nil {
			p.close()
			if errors.Is(err, ErrGap) {
				return fmt.Errorf("offset %d: %w", p.pos, err)
			}
			return err
		}
		for _, r := range recs {
			before := p.bytes
			p.add(t.Plan, r, false, t.Retained)
			t.left.Add(int64(before - p.bytes))
			p.pos = r.Offset + 1
			empty = -1
		}
		if at := p.stream.Position(); at > p.pos { // markers of transactions, say: nothing lies there
			p.pos, empty = at, -1
		}
		if len(recs) == 0 && empty == 2 {
			return fmt.Errorf("offset %d: %w", p.pos, errNoAnswer)
		}
	}
	return nil
}

// add keeps what a record does to stored messages, and to retained ones. A record that is none of ours is the writers' business.
func (p *tailPart) add(plan Planner, r Record, acksOnly, retained bool) {
	e, err := event.Decode(event.Messages, r.Wire)
	if err != nil {
		return
	}
	var now time.Time
	if !acksOnly {
		now = time.Now()
	}
	for _, op := range plan(e).Ops {
		o := tailOp{offset: r.Offset, at: r.Time, read: now, size: 184}
		switch op := op.(type) {
		case sinks.PutMessage:
			if acksOnly || op.History {
				continue
			}
			m := op.Message
			o.topic, o.id, o.put = m.Topic, m.ID, &m
			o.size += len(m.Payload) + len(m.Topic.String())
		case sinks.DeleteMessage:
			o.topic, o.id = op.Topic, op.ID
		case sinks.PutRetained:
			if !retained {
				continue
			}
			o.topic, o.retain = op.Topic, op
			o.size += len(op.Payload) + len(op.Topic.String())
		case sinks.DeleteRetained:
			if !retained {
				continue
			}
			o.topic, o.retain = op.Topic, op
		case sinks.PutAcked, sinks.DeleteAcked, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
			continue
		}
		p.ops = append(p.ops, o)
		p.byTopic[o.topic] = append(p.byTopic[o.topic], o)
		p.bytes += o.size
	}
}

// lookBelow reads the acks of the last moments below the floor, once: a publish that was repeated, or inverted behind its ack,
// may stand above it.
func (p *tailPart) lookBelow(ctx context.Context, t *Tail) error {
	if p.looked || p.floor == 0 {
		return nil
	}
	var ref time.Time
	for _, o := range p.ops {
		if o.offset >= p.committed && (o.put != nil || o.retain != nil) {
			ref = o.at
			break
		}
	}
	if ref.IsZero() {
		return nil // no publish that an older ack could be for, or a retained one that is the elder
	}
	from, err := t.Reader.OffsetAt(ctx, p.tp, ref.Add(-t.LookBack))
	if err != nil {
		return err
	}
	below := &tailPart{tp: p.tp, byTopic: make(map[event.Topic][]tailOp)}
	if err := readRange(ctx, t.Reader, p.tp, from, p.floor, func(r Record) { below.add(t.Plan, r, true, t.Retained) }); err != nil {
		return err
	}
	p.looked = true
	if len(below.ops) == 0 {
		return nil
	}
	p.floor = below.ops[0].offset
	p.ops = append(below.ops, p.ops...)
	p.bytes += below.bytes
	for topic, ops := range below.byTopic {
		p.byTopic[topic] = append(ops, p.byTopic[topic]...)
	}
	return nil
}

// overlay adds one topic's changes to a view. Below the commit only acks count, and retained messages, whose changes commute.
func (p *tailPart) overlay(topic event.Topic, v *View) {
	ops := p.byTopic[topic]
	if len(ops) == 0 {
		return
	}
	o := overlay{gone: make(map[event.ID]struct{})}
	for i := range ops {
		switch {
		case ops[i].retain != nil && o.retained == nil:
			o.retained = ops[i].retain
		case ops[i].retain != nil:
			o.retained = sinks.Merge(o.retained, ops[i].retain)
		case ops[i].put == nil:
			o.gone[ops[i].id] = struct{}{}
		}
	}
	seen := make(map[event.ID]struct{})
	for i := range ops {
		m := ops[i].put
		if m == nil || ops[i].offset < p.committed {
			continue
		}
		_, dup := seen[m.ID]
		if _, gone := o.gone[m.ID]; gone || dup {
			continue
		}
		seen[m.ID] = struct{}{}
		o.puts = append(o.puts, *m)
	}
	slices.SortFunc(o.puts, func(a, b sinks.Message) int { return a.ID.Compare(b.ID) })
	v.topics[topic] = o
}
