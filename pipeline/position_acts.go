package pipeline

import (
	"maps"
	"slices"

	"github.com/restante/restante/event"
)

// What happens to a ledger.

// ack notes that the client has a message. Of a live one, upTo is how far that may move the position; zero = not at all.
func (l *ledger) ack(rec Record, t event.Topic, id, upTo event.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hears(t)
	h.add(id)
	if upTo.Compare(h.live) > 0 {
		h.live = upTo
	}
	if len(l.held) == 0 { // else an event before this one is held, until both are flushed
		l.k.o.begin(rec)
		l.hold(rec.Offset)
	}
}

// has reports whether the client has acknowledged a message above its position.
func (l *ledger) has(t event.Topic, id event.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.heard[t]
	if h == nil {
		return false
	}
	_, ok := h.acked[id]
	return ok
}

// begin notes that a replay begins. first is where the client's positions begin when it never had one of the filter.
func (l *ledger) begin(j *job, s scope, first, bound event.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[j] = s
	l.do(func() { l.subscribed(s, first, bound) })
}

// subscribed gives a scope its position, where it has none yet.
func (l *ledger) subscribed(s scope, first, bound event.ID) {
	p := l.row(s, kindFloor)
	if t, ok := s.filter.Exact(); ok {
		if id, known := l.least(t); known { // it has the topic by another filter too
			if first = id; l.row(s, kindOwn).gone {
				l.put(l.row(s, kindOwn), closed)
			}
		}
	} else if p.gone {
		for _, q := range slices.Collect(maps.Values(l.rows)) {
			t, exact := q.filter.Exact()
			if !exact || q.gone || q.kind != kindFloor || !s.match(t) {
				continue
			}
			if _, other := l.least(t); !other { // only a subscription to the topic can have made it
				l.put(l.row(q.scope, kindOwn), closed)
			}
		}
	}
	if p.gone {
		l.put(p, first)
		l.mark(s, after(bound))
	}
}

// after is an id behind another.
func after(id event.ID) event.ID { return event.IDOf(id.Micros()+1, 0, 0) }

// looks returns which marks are set by now.
func (l *ledger) looks() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.set
}

// from is where a replay of the topic begins.
func (l *ledger) from(t event.Topic) (event.ID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at(t)
}

// replayed says that the client has a message of a replay, and all up to an id of the topic, as far as was known when that looked.
func (l *ledger) replayed(t event.Topic, id, upTo event.ID, looked uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.at(t); ok {
		l.hears(t).add(id)
		if upTo.Compare(at) > 0 {
			l.reaches(topicScope(t), upTo, looked)
		}
	}
}

// hears is what is known of a topic's acks.
func (l *ledger) hears(t event.Topic) *heard {
	h := l.heard[t]
	if h == nil {
		h = &heard{acked: make(map[event.ID]struct{})}
		l.heard[t] = h
	}
	return h
}

func (h *heard) add(id event.ID) {
	if len(h.acked) < mostAcked {
		h.acked[id] = struct{}{}
	}
}

// mark sets the mark of a scope: messages up to id may be left. A row that is there must not have reached it. A mark that stands beyond
// id already stands for this too: only a replay that looks from now on may clear it.
func (l *ledger) mark(s scope, id event.ID) {
	m := l.row(s, kindMark)
	l.set++
	m.since = l.set
	if m.gone || id.Compare(m.id) > 0 {
		l.put(m, id)
		l.k.o.r.Metrics.PositionMarks.WithLabelValues(markSet).Inc()
	}
}

// handsOn sets the mark of a replay whose rest another one will take.
func (l *ledger) handsOn(j *job, bound event.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.running[j]; ok {
		l.do(func() { l.mark(s, after(bound)) })
	}
}

// ending is how a replay ended.
type ending struct {
	complete bool
	bound    event.ID
	looked   uint64                   // which marks were set when it looked for the last time
	upTo     event.ID                 // how far that look may move a position
	topics   map[event.Topic]event.ID // that it has sent messages of
	offsets  []int64                  // the events that end with it
}

// end notes that a replay has ended. Its events are finished when that is durable.
func (l *ledger) end(j *job, e ending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.running[j]
	if !ok {
		return
	}
	delete(l.running, j)
	l.held = append(l.held, e.offsets...)
	l.do(func() {
		if !e.complete {
			l.mark(s, after(e.bound))
			return
		}
		done := e.bound
		if e.upTo.Compare(done) < 0 {
			done = e.upTo
		}
		l.reaches(s, done, e.looked)
		for t := range e.topics {
			if id, ok := l.at(t); ok && done.Compare(id) > 0 {
				l.reaches(topicScope(t), done, e.looked)
			}
		}
		for _, m := range l.marks {
			if !m.gone && m.id != closed && m.id.Compare(after(e.bound)) <= 0 && m.since <= e.looked && s.covers(m.scope) {
				l.put(m, closed)
				l.k.o.r.Metrics.PositionMarks.WithLabelValues(markCleared).Inc()
			}
		}
	})
}

// dropped says that the broker gave up a live delivery: the position must not pass it, and a replay has to look for it. A zero id is
// one that the broker does not tell.
func (l *ledger) dropped(offset int64, t event.Topic, id, now event.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold(offset)
	l.do(func() {
		at, ok := l.at(t)
		if !ok {
			return // nothing is owed to who was never seen to subscribe
		}
		s := topicScope(t)
		if id.IsZero() {
			id = now
		} else if at.Compare(id) >= 0 {
			p := l.row(s, kindFloor)
			p.since = l.set + 1 // as the mark
			l.put(p, id.Before())
		}
		if most := l.most(t); most.Compare(id) >= 0 {
			id = after(most) // what stands already was reached without it
		}
		l.mark(s, id)
	})
}

// forget removes the positions of a filter, and those of its topics that the client does not have by another subscription.
func (l *ledger) forget(offset int64, f event.Filter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold(offset)
	l.do(func() {
		for _, p := range l.rows {
			if _, exact := p.filter.Exact(); p.filter == f && (!exact || p.kind == kindOwn) {
				l.remove(p)
			}
		}
		for _, p := range slices.Collect(maps.Values(l.rows)) {
			if t, exact := p.filter.Exact(); exact && !p.gone && f.Match(t) && !l.needs(t) {
				l.remove(p)
				delete(l.heard, t)
			}
		}
	})
}

// needs reports whether a subscription of the client is known that has the topic.
func (l *ledger) needs(t event.Topic) bool {
	if _, ok := l.least(t); ok {
		return true
	}
	p := l.rows[topicScope(t).key()+suffix[kindOwn]]
	return p != nil && !p.gone
}

func (l *ledger) remove(p *position) {
	if !p.gone {
		p.gone = true
		l.dirty[p] = struct{}{}
	}
}
