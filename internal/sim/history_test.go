package sim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

// history is what happened, as far as clients, the log and the store can see it.
type history struct {
	mu    sync.Mutex
	begin time.Time
	lines []string
	msgs  map[event.ID]*message
	order []*message
	subs  []*subscription
	got   []delivery
	log   map[pipeline.TP][]pipeline.Record
	dead  map[pipeline.TP]map[int64]pipeline.Record // by the place of the record that is dead
	bad   []string                                  // promises broken, found on the way
	last  map[string]int64                          // committed, by group and partition
	// counts says whether an ack deletes: that of another than the addressee does not.
	counts func(event.Acked) bool
	// owing is since when a client is owed what is published to a filter in pub/sub.
	owing map[clientFilter]time.Time
	// names are what the broker calls replays, aliases those of them whose alias is in the log.
	names   map[event.ID]event.ID
	sent    map[event.ID]time.Time // when they came to the broker
	aliases map[event.ID]bool
	held    map[clientMessage]bool // replays that were held back
	dropped map[clientMessage]bool // live deliveries that the broker gave up
	seen    map[seen]int
	// ops are what an event leads to in the store, model the store as it must be by the log of sessions.
	ops   func(event.Event) []sinks.Op
	model *memory.Store
	// rounds counts those that could not see all of the tail.
	rounds int
}

type message struct {
	event.Published
	n         int
	taken     time.Time // by the broker
	expires   time.Time // zero = never
	confirmed time.Time
	logged    time.Time                    // first
	again     time.Time                    // last
	acked     time.Time                    // first ack in the log that counts
	had       map[event.ClientID]time.Time // by whom it is acknowledged in the log, whether that counts or not
	at        pipeline.Record
}

func (m *message) expired(at time.Time) bool { return !m.expires.IsZero() && !m.expires.After(at) }

type clientFilter struct {
	client event.ClientID
	filter string
}

type clientMessage struct {
	client event.ClientID
	id     event.ID
}

type subscription struct {
	client     event.ClientID
	conn       int
	filter     event.Filter
	qos        event.QoS
	begin, end time.Time
	owed       time.Time       // since when, in pub/sub
	replaced   time.Time       // by a subscribe to the same filter at another QoS
	beginAt    time.Time       // by the broker's clock
	endAt      time.Time       // by the broker's clock
	logged     time.Time       // the first time that it is in the log
	told       pipeline.Record // of its end, the first; the zero one as long as none is in the log
	heard      time.Time       // when a replayer had dealt with that
}

// tells notes the record that tells of the end of a client's subscriptions: of those that ended at that time by the broker's clock, or
// of all that ended until then.
func (h *history) tells(r pipeline.Record, c event.ClientID, at time.Time, all bool) {
	for _, s := range h.subs {
		if s.client == c && !s.end.IsZero() && s.told.Topic == "" && (s.endAt.Equal(at) || all && s.endAt.Before(at)) {
			s.told = r
		}
	}
}

// hears notes that the records of a partition below an offset are dealt with by the replayers.
func (h *history) hears(tp pipeline.TP, below int64) {
	for _, s := range h.subs {
		if s.told.TP == tp && s.told.Offset < below && s.heard.IsZero() {
			s.heard = time.Now()
		}
	}
}

type delivery struct {
	client event.ClientID
	conn   int
	m      *message
	at     time.Time
	sent   time.Time // when the replayer's publish came to the broker; that of an envelope waits for its alias
	replay bool
}

func newHistory() *history {
	return &history{
		begin: time.Now(), model: &memory.Store{}, msgs: make(map[event.ID]*message), log: make(map[pipeline.TP][]pipeline.Record),
		dead: make(map[pipeline.TP]map[int64]pipeline.Record), last: make(map[string]int64), owing: make(map[clientFilter]time.Time),
		names: make(map[event.ID]event.ID), sent: make(map[event.ID]time.Time), aliases: make(map[event.ID]bool), held: make(map[clientMessage]bool), dropped: make(map[clientMessage]bool), seen: make(map[seen]int),
	}
}

func (h *history) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.say(format, args...)
}

func (h *history) say(format string, args ...any) {
	h.lines = append(h.lines, fmt.Sprintf("%12.6f  ", time.Since(h.begin).Seconds())+fmt.Sprintf(format, args...))
}

func (h *history) broken(format string, args ...any) {
	h.bad = append(h.bad, fmt.Sprintf(format, args...))
	h.say("BROKEN: "+format, args...)
}

func (h *history) hash() string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(h.lines, "\n"))))
}

// name is what a message is called in the history.
func (h *history) name(id event.ID) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.label(id)
}

func (h *history) label(id event.ID) string {
	if m := h.msgs[id]; m != nil {
		return fmt.Sprintf("m%d", m.n)
	}
	return id.String()
}

func (h *history) published(e event.Published) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := &message{Published: e, n: len(h.order), taken: time.Now(), had: make(map[event.ClientID]time.Time)}
	if e.Expiry > 0 {
		m.expires = e.At.Add(e.Expiry)
	}
	h.msgs[e.ID] = m
	h.order = append(h.order, m)
	h.say("%s publishes m%d to %s %.12q qos %d", e.Sender, m.n, e.Topic, e.Payload, e.QoS)
}

// confirmed is false for what no client has published.
func (h *history) confirmed(id event.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.msgs[id]
	if m != nil && m.confirmed.IsZero() {
		m.confirmed = time.Now()
		h.say("m%d is confirmed", m.n)
	}
	return m != nil
}

func (h *history) renamed(name, id event.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names[name], h.sent[name] = id, time.Now()
}

// drops notes a delivery that the broker gives up.
func (h *history) drops(c event.ClientID, id event.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropped[clientMessage{c, id}] = true
	h.say("%s does not get %s: its queue is full", c, h.label(id))
}

// holdsBack notes a replay that the broker delivers to nobody.
func (h *history) holdsBack(e event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a, ok := e.(event.Replayed); ok {
		h.held[clientMessage{a.Client, a.Message}] = true
		h.seen[seenHeldAlias]++
		h.say("%s is held back for %s", h.label(a.Message), a.Client)
	}
}

func (h *history) subscribed(c event.ClientID, conn int, f event.Filter, qos event.QoS, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &subscription{client: c, conn: conn, filter: f, qos: qos, begin: time.Now(), beginAt: at}
	if k := (clientFilter{c, f.String()}); qos > 0 {
		if h.owing[k].IsZero() {
			h.owing[k] = s.begin
		}
		s.owed = h.owing[k]
	}
	if qos == 0 {
		h.seen[seenSkipped]++
	}
	for _, o := range h.subs {
		if o.client == c && o.filter == f && o.qos != qos && o.end.IsZero() && o.replaced.IsZero() {
			o.replaced = s.begin
		}
	}
	h.subs = append(h.subs, s)
	h.say("%s subscribes %s qos %d", c, f, qos)
}

// unsubscribed is the end of a subscription, at a time by the broker's clock; said tells that the client wanted it.
func (h *history) unsubscribed(c event.ClientID, filter string, at time.Time, said bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		if s.client == c && s.filter.String() == filter && s.end.IsZero() {
			s.end, s.endAt = time.Now(), at
		}
	}
	if said {
		delete(h.owing, clientFilter{c, filter})
	}
}

func (h *history) delivered(c event.ClientID, conn int, d handing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.msgs[d.id] == nil {
		h.broken("feedback: %s gets %s, which nobody has published", c, d.id)
		return
	}
	now := time.Now()
	sent, waited := h.sent[d.renamed]
	if !waited {
		sent = now
	}
	h.got = append(h.got, delivery{c, conn, h.msgs[d.id], now, sent, d.replay})
	how := "live"
	if d.replay {
		how = "replay"
	}
	h.say("%s gets %s (%s)", c, h.label(d.id), how)
}

// appended is told of every record of the log.
func (h *history) appended(r pipeline.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log[r.TP] = append(h.log[r.TP], r)
	if r.Topic == topics.Dead {
		tp, offset := deadPlace(r)
		if h.dead[tp] == nil {
			h.dead[tp] = make(map[int64]pipeline.Record)
		}
		h.dead[tp][offset] = r
		h.say("log %s@%d: dead letter of %s@%d", r.TP, r.Offset, tp, offset)
		return
	}
	kind := event.Messages
	if r.Topic == topics.Sessions {
		kind = event.Sessions
	}
	e, err := event.Decode(kind, r.Wire)
	if err != nil {
		h.say("log %s@%d: no event of ours", r.TP, r.Offset)
		return
	}
	if kind == event.Sessions {
		if err := h.model.Apply(context.Background(), h.ops(e)); err != nil {
			panic(err)
		}
	}
	text := event.TypeOf(e)
	switch e := e.(type) {
	case event.Published:
		m := h.msgs[e.ID]
		if m == nil {
			h.broken("feedback: %s is in the log and nobody has published it", e.ID)
			break
		}
		if m.logged.IsZero() {
			m.logged, m.at = time.Now(), r
		}
		m.again = time.Now()
		text += " " + h.label(e.ID)
	case event.Acked:
		if name := h.names[e.BrokerID]; !name.IsZero() && !h.aliases[e.BrokerID] {
			h.broken("alias: %s acknowledges %s as %s, and no alias is before that in the log", e.Client, h.label(name), e.BrokerID)
		}
		if m := h.msgs[e.Message]; m != nil {
			if m.had[e.Client].IsZero() {
				m.had[e.Client] = time.Now()
			}
			if m.acked.IsZero() && r.Topic == topics.Messages && h.counts(e) {
				m.acked = time.Now()
			}
		}
		text += fmt.Sprintf(" %s by %s", h.label(e.Message), e.Client)
	case event.Subscribed:
		for _, s := range h.subs {
			if s.client == e.Client && s.filter == e.Filter && s.beginAt.Equal(e.At) && s.logged.IsZero() {
				s.logged = time.Now()
			}
		}
		text += fmt.Sprintf(" %s %s", e.Client, e.Filter)
	case event.Unsubscribed:
		h.tells(r, e.Client, e.At, false)
		text += fmt.Sprintf(" %s %s", e.Client, e.Filter)
	case event.ReplayContinued:
		h.seen[seenSlice]++
		text += fmt.Sprintf(" %s %s slice %d of @%d", e.Client, e.Filter, e.Slice, e.Subscribe)
	case event.Connected:
		h.tells(r, e.Client, e.At, true)
		text += " " + string(e.Client)
	case event.Disconnected:
		if !e.ConnectedAt.IsZero() || e.Reason != "takenover" { // else it does not say of which connection it is
			h.tells(r, e.Client, e.At, false)
		}
		text += " " + string(e.Client)
	case event.Replayed:
		h.aliases[e.BrokerID] = true
		text += fmt.Sprintf(" %s is %s for %s", e.BrokerID, h.label(e.Message), e.Client)
	case event.Dropped:
		text += fmt.Sprintf(" %s for %s", h.label(e.Message), e.Client)
	}
	h.say("log %s@%d: %s", r.TP, r.Offset, text)
}
