package pipeline

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// Pub/sub: a client's position of a topic is the id up to which it needs nothing more. It is the topic's own row, else the least of
// the rows of the client's filters that match. A filter's row is written at the first subscribe and at each completed catch-up; a
// topic's when its messages are acknowledged. Rows belong to the owner of the client's partition.
//
// What must hold is that no position passes a message that the client still needs:
//   - while a replay runs, only its own acks move the positions of its topics; what is acknowledged live is remembered;
//   - a replay that ends with anything left leaves a mark, and while one stands live acks move nothing. It is durable before the
//     replay's events are committed: until then the uncommitted events are the mark. A first subscribe sets one too, before the row of
//     the filter, which says what the filter is owed and not what the client has: an owner that reads older acks again must not take
//     it for that;
//   - a live ack says that what the broker sent before its message is acknowledged, and nothing of what another node's clock may date
//     before it: it moves a position to some time before both at most. A replay says nothing of what came after it looked;
//   - the events that moved a position are committed after it is durable.

// mostAcked bounds the acknowledged ids above the position that are remembered, of one topic. They save repetitions only.
const mostAcked = 10_000

// closed is the id of a mark that does not stand any more: it is overwritten, not removed, so that its stamp is there to be read.
var closed = event.IDOf(0, 0, 1)

// ledger has the positions of one client in one sink. Its methods can be called from any goroutine and wait for nothing.
type ledger struct {
	k      *keeper
	client event.ClientID
	turn   chan struct{} // whoever reads the rows

	mu      sync.Mutex
	loaded  bool
	todo    []func()             // what waits for the rows to be read, in order
	rows    map[string]*position // by key
	wide    []*position          // those of filters
	marks   []*position
	running map[*job]scope // replays
	heard   map[event.Topic]*heard
	clock   int64  // µs of the newest event of the client
	set     uint64 // how many marks were set
	dirty   map[*position]struct{}
	held    []int64 // events that are finished with the next flush
	waits   bool    // for a flush
}

// kind is what a row says.
type kind byte

const (
	kindFloor kind = iota // the position of a scope
	kindMark              // something may be left up to its id; it stands until a position reaches it
	kindOwn               // the client is subscribed to the topic itself, beside a filter that matches it
)

// position is a row.
type position struct {
	scope
	kind
	text  string
	gone  bool
	id    event.ID
	stamp int64
	since uint64 // of a mark: how many had been set with it, 0 = by an owner before; of a floor: when it was lowered
}

// heard is what is known of a topic's acks.
type heard struct {
	acked map[event.ID]struct{} // above the position
	live  event.ID              // where live acks would move it to
}

func newLedger(k *keeper, c event.ClientID) *ledger {
	return &ledger{
		k: k, client: c, turn: make(chan struct{}, 1), rows: make(map[string]*position), running: make(map[*job]scope),
		heard: make(map[event.Topic]*heard), dirty: make(map[*position]struct{}),
	}
}

// load takes over the rows that are stored, and does what waited for them.
func (l *ledger) load(rows []sinks.PutAcked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.loaded {
		return
	}
	for _, r := range rows {
		if s, k, ok := parseKey(r.Topic); ok {
			p := l.row(s, k)
			p.id, p.stamp, p.gone = r.Message, r.Stamp, false
		}
	}
	l.loaded = true
	for _, do := range l.todo {
		do()
	}
	l.todo = nil
}

// do does something that needs the rows, now or when they are there. The caller holds mu.
func (l *ledger) do(fn func()) {
	if l.loaded {
		fn()
	} else {
		l.todo = append(l.todo, fn)
	}
	l.wait()
}

// wait asks for a flush. The caller holds mu.
func (l *ledger) wait() {
	if !l.waits {
		l.waits = true
		l.k.add(l)
	}
}

// row is the row of a scope, gone where there is none.
func (l *ledger) row(s scope, k kind) *position {
	text := s.key() + suffix[k]
	p := l.rows[text]
	if p == nil {
		p = &position{scope: s, kind: k, text: text, gone: true}
		l.rows[text] = p
		switch {
		case k == kindMark:
			l.marks = append(l.marks, p)
		case k == kindFloor && !s.exact():
			l.wide = append(l.wide, p)
		}
	}
	return p
}

func (l *ledger) put(p *position, id event.ID) {
	p.gone, p.id = false, id
	l.dirty[p] = struct{}{}
	l.wait()
}

// raise moves a position up, never down.
func (l *ledger) raise(s scope, id event.ID) {
	if p := l.row(s, kindFloor); p.gone || id.Compare(p.id) > 0 {
		l.put(p, id)
	}
}

// reaches is raise for a replay, which says nothing of what a position was lowered for since it looked.
func (l *ledger) reaches(s scope, id event.ID, looked uint64) {
	if l.row(s, kindFloor).since <= looked {
		l.raise(s, id)
	}
}

// at is a topic's position; false = the client has none.
func (l *ledger) at(t event.Topic) (event.ID, bool) {
	if p := l.rows[t.String()]; p != nil && !p.gone {
		return p.id, true
	}
	return l.least(t)
}

// least is the least position of the filters that match.
func (l *ledger) least(t event.Topic) (id event.ID, ok bool) {
	for _, p := range l.wide {
		if !p.gone && p.match(t) && (!ok || p.id.Compare(id) < 0) {
			id, ok = p.id, true
		}
	}
	return id, ok
}

// most is the greatest row that matches a topic: up to there every replay that has caught up had it.
func (l *ledger) most(t event.Topic) (id event.ID) {
	if p := l.rows[t.String()]; p != nil && !p.gone {
		id = p.id
	}
	for _, p := range l.wide {
		if !p.gone && p.match(t) && p.id.Compare(id) > 0 {
			id = p.id
		}
	}
	return id
}

// blocked reports whether live acks of the topic must not move its position.
func (l *ledger) blocked(t event.Topic) bool {
	for _, s := range l.running {
		if s.match(t) {
			return true
		}
	}
	for _, m := range l.marks {
		if !m.gone && m.match(t) && m.id.Compare(l.most(t)) > 0 {
			return true
		}
	}
	return false
}

// saw notes an event of the client: rows are written at the newest one's time.
func (l *ledger) saw(id event.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock = max(l.clock, id.Micros())
}

// hold keeps an event from being committed before the next flush.
func (l *ledger) hold(offset int64) {
	l.held = append(l.held, offset)
	l.wait()
}

// due is what is to be written, and the events that are finished with it.
type due struct {
	first []sinks.Op // marks, to be durable before the others
	then  []sinks.Op
	held  []int64
}

// take adds what is to be written. It is false where the rows are not read yet.
func (l *ledger) take(d *due) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.loaded {
		return false
	}
	l.listen()
	for _, p := range slices.SortedFunc(maps.Keys(l.dirty), func(a, b *position) int { return cmp.Compare(a.text, b.text) }) {
		if p.kind == kindMark && p.id == closed && p.stamp == 0 {
			continue // it was never stored
		}
		p.stamp = max(l.clock, p.stamp+1)
		row := sinks.PutAcked{Client: l.client, Topic: p.text, Message: p.id, Stamp: p.stamp}
		switch {
		case p.gone:
			d.then = append(d.then, sinks.DeleteAcked{Client: l.client, Topic: p.text, Stamp: p.stamp})
		case p.kind == kindMark && p.id != closed:
			d.first = append(d.first, row)
		default:
			d.then = append(d.then, row)
		}
	}
	clear(l.dirty)
	d.held = append(d.held, l.held...)
	l.held, l.waits = nil, false
	return true
}

// listen lets live acks move positions where they may, and forgets what is below.
func (l *ledger) listen() {
	for t, h := range l.heard {
		at, ok := l.at(t)
		if !ok {
			delete(l.heard, t) // it never subscribed, as far as is known: its first subscribe says where it begins
			continue
		}
		if !h.live.IsZero() && !l.blocked(t) {
			if h.live.Compare(at) > 0 {
				l.raise(topicScope(t), h.live)
				at = h.live
			}
			h.live = event.ID{}
		}
		maps.DeleteFunc(h.acked, func(id event.ID, _ struct{}) bool { return id.Compare(at) <= 0 })
		if len(h.acked) == 0 && h.live.IsZero() {
			delete(l.heard, t)
		}
	}
}

// idle reports whether nothing is under way.
func (l *ledger) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.waits && len(l.running) == 0 && len(l.todo) == 0
}
