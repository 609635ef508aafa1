package sim

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
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
	// rounds counts those that could not see all of the tail.
	rounds int
}

type message struct {
	event.Published
	n         int
	confirmed time.Time
	logged    time.Time // first
	acked     time.Time // first ack in the log that counts
	at        pipeline.Record
}

type subscription struct {
	client     event.ClientID
	conn       int
	filter     event.Filter
	begin, end time.Time
}

type delivery struct {
	client event.ClientID
	conn   int
	m      *message
	at     time.Time
	replay bool
}

func newHistory() *history {
	return &history{
		begin: time.Now(), msgs: make(map[event.ID]*message), log: make(map[pipeline.TP][]pipeline.Record),
		dead: make(map[pipeline.TP]map[int64]pipeline.Record), last: make(map[string]int64),
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
	m := &message{Published: e, n: len(h.order)}
	h.msgs[e.ID] = m
	h.order = append(h.order, m)
	h.say("%s publishes m%d to %s %.12q qos %d", e.Sender, m.n, e.Topic, e.Payload, e.QoS)
}

func (h *history) confirmed(id event.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.msgs[id]; m.confirmed.IsZero() {
		m.confirmed = time.Now()
		h.say("m%d is confirmed", m.n)
	}
}

func (h *history) subscribed(c event.ClientID, conn int, f event.Filter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subs = append(h.subs, &subscription{client: c, conn: conn, filter: f, begin: time.Now()})
	h.say("%s subscribes %s", c, f)
}

func (h *history) unsubscribed(c event.ClientID, filter string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		if s.client == c && s.filter.String() == filter && s.end.IsZero() {
			s.end = time.Now()
		}
	}
}

func (h *history) delivered(c event.ClientID, conn int, id event.ID, replay bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, delivery{c, conn, h.msgs[id], time.Now(), replay})
	how := "live"
	if replay {
		how = "replay"
	}
	h.say("%s gets %s (%s)", c, h.label(id), how)
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
		text += " " + h.label(e.ID)
	case event.Acked:
		if m := h.msgs[e.Message]; m != nil && m.acked.IsZero() && r.Topic == topics.Messages && h.counts(e) {
			m.acked = time.Now()
		}
		text += fmt.Sprintf(" %s by %s", h.label(e.Message), e.Client)
	case event.Subscribed:
		text += fmt.Sprintf(" %s %s", e.Client, e.Filter)
	case event.Unsubscribed:
		text += fmt.Sprintf(" %s %s", e.Client, e.Filter)
	case event.ReplayContinued:
		text += fmt.Sprintf(" %s %s slice %d of @%d", e.Client, e.Filter, e.Slice, e.Subscribe)
	case event.Connected:
		text += " " + string(e.Client)
	case event.Disconnected:
		text += " " + string(e.Client)
	case event.Replayed:
		text += fmt.Sprintf(" %s is %s for %s", e.BrokerID, h.label(e.Message), e.Client)
	case event.Dropped:
	}
	h.say("log %s@%d: %s", r.TP, r.Offset, text)
}
