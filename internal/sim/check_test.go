package sim

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

// enough is how long a client must stay, with everything well, to have got what waits for it.
const enough = 25 * time.Second

// verdict judges a history when all is at rest. It returns every promise that was broken.
func (w *world) verdict() []string {
	h := w.hist
	bad := slices.Clone(h.bad)
	broken := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	w.loss(broken)
	w.ghosts(broken)
	w.order(broken)
	w.books(broken)
	return bad
}

func (h *history) since(t time.Time) string { return fmt.Sprintf("%.3f", t.Sub(h.begin).Seconds()) }

func (w *world) addressed(m *message, c event.ClientID) bool {
	return len(w.rules.ForSink(sink)(event.Acked{Head: event.Head{ID: m.ID}, Topic: m.Topic, Client: c, Message: m.ID}).Ops) > 0
}

// loss: what was confirmed before a subscribe, and is acknowledged by nobody, comes to a client that stays long enough.
func (w *world) loss(broken func(string, ...any)) {
	h := w.hist
	healed := h.begin.Add(chaos)
	for _, s := range h.subs {
		end := s.end
		if end.IsZero() {
			end = h.begin.Add(rest)
		}
		from := s.begin
		if healed.After(from) {
			from = healed
		}
		if end.Sub(from) < enough {
			continue
		}
		for _, m := range h.order {
			switch {
			case m.QoS == 0, m.confirmed.IsZero(), !m.confirmed.Before(s.begin), !s.filter.Match(m.Topic), !w.addressed(m, s.client):
				continue
			case !m.acked.IsZero() && m.acked.Before(end):
				continue
			}
			if _, dead := h.dead[m.at.TP][m.at.Offset]; dead {
				continue
			}
			got := slices.ContainsFunc(h.got, func(d delivery) bool {
				return d.m == m && d.client == s.client && !d.at.Before(s.begin) && !d.at.After(end)
			})
			if !got {
				broken("loss: m%d, confirmed at %s, never came to %s, who subscribed %s at %s", m.n, h.since(m.confirmed), s.client, s.filter, h.since(s.begin))
			}
		}
	}
}

// ghosts: nothing is replayed for a subscribe that began after its ack was in the log. A delivery does not say for which subscribe
// it is; any that was made before the ack may be the one, for as long as the replayer may not have heard of its end: an outage of
// the log or of ingest puts that off. A round that could not see the whole tail (the writers lag, DESIGN §6) sees not all acks.
func (w *world) ghosts(broken func(string, ...any)) {
	h := w.hist
	hears := func(s *subscription) time.Duration {
		if s.end.Sub(h.begin) >= settled {
			return 5 * time.Second // all is well
		}
		return 25 * time.Second
	}
	for _, d := range h.got {
		if !d.replay || d.m.acked.IsZero() || !d.m.acked.Before(d.at) {
			continue
		}
		excused := slices.ContainsFunc(h.subs, func(s *subscription) bool {
			return s.client == d.client && s.filter.Match(d.m.Topic) && !s.begin.After(d.m.acked) && (s.end.IsZero() || d.at.Sub(s.end) < hears(s))
		})
		if !excused && (w.complete() || d.at.Sub(h.begin) > back) {
			broken("ghost: m%d came to %s at %s, but its ack was in the log at %s", d.m.n, d.client, h.since(d.at), h.since(d.m.acked))
		}
	}
}

// complete reports whether all rounds saw the whole tail.
func (w *world) complete() bool { return w.hist.rounds == 0 }

// order: of one publisher and topic, first replays within a connection come in the order of their publishing.
func (w *world) order(broken func(string, ...any)) {
	h := w.hist
	type line struct {
		client event.ClientID
		conn   int
		from   event.ClientID
		topic  event.Topic
	}
	subs := make(map[line]int)
	last := make(map[line]*message)
	seen := make(map[line]map[*message]bool)
	for _, d := range h.got {
		k := line{d.client, d.conn, d.m.Sender, d.m.Topic}
		if _, ok := subs[k]; !ok {
			for _, s := range h.subs {
				if s.client == d.client && s.conn == d.conn && s.filter.Match(d.m.Topic) {
					subs[k]++
				}
			}
		}
		if subs[k] > 1 {
			continue // two replays of one topic may take turns
		}
		if seen[k] == nil {
			seen[k] = make(map[*message]bool)
		}
		if seen[k][d.m] {
			continue
		}
		seen[k][d.m] = true
		if !d.replay {
			continue
		}
		if l := last[k]; l != nil && l.n > d.m.n {
			broken("order: m%d came to %s after m%d, both from %s to %s", d.m.n, d.client, l.n, d.m.Sender, d.m.Topic)
		}
		last[k] = d.m
	}
}

// books: at rest all is read, and the store holds what the log says, no more and no less.
func (w *world) books(broken func(string, ...any)) {
	h := w.hist
	for _, tp := range slices.SortedFunc(maps.Keys(h.log), compareTP) {
		end := int64(len(h.log[tp]))
		for _, group := range []string{writers, readers} {
			if tp.Topic == topics.Dead || group == readers && (tp.Topic == topics.Messages || w.plan.readers == 0) || end == 0 {
				continue
			}
			if at := w.cluster.Committed(group, tp); at != end {
				broken("liveness: group %s has committed %d of %d in %s", group, at, end, tp)
			}
		}
	}
	for _, m := range h.order {
		if m.logged.IsZero() && m.QoS > 0 {
			broken("liveness: m%d is not in the log", m.n)
		}
	}
	model := &memory.Store{}
	live := make(map[event.ID]*message)
	for tp, recs := range h.log {
		if tp.Topic == topics.Dead {
			continue
		}
		kind := event.Messages
		if tp.Topic == topics.Sessions {
			kind = event.Sessions
		}
		for _, r := range recs {
			e, err := event.Decode(kind, r.Wire)
			if err != nil {
				continue
			}
			for _, o := range w.rules.ForSink(sink)(e).Ops {
				if poisonous(o) {
					continue
				}
				if err := model.Apply(context.Background(), []sinks.Op{o}); err != nil {
					panic(err)
				}
			}
			if p, ok := e.(event.Published); ok && p.QoS > 0 {
				live[p.ID] = h.msgs[p.ID]
			}
		}
	}
	for id, m := range live {
		_, dead := h.dead[m.at.TP][m.at.Offset]
		want := m.acked.IsZero()
		if want && dead && !poisonous(sinks.PutMessage{Message: sinks.Message{Payload: m.Payload}}) {
			broken("m%d is in the dead letters and was no poison", m.n)
		}
		want = want && !dead
		if got := w.stored(m.Topic, id); got != want {
			broken("books: at rest m%d stored = %v, want %v", m.n, got, want)
		}
		if got, want := w.stored(m.Topic, id), w.storedIn(model, m.Topic, id); got != want {
			broken("elision: m%d stored = %v, without elision %v", m.n, got, want)
		}
	}
	for _, c := range w.plan.clients {
		got, _, _ := w.mem.Client(context.Background(), c)
		want, _, _ := model.Client(context.Background(), c)
		if got != want {
			broken("books: client %s is %+v, want %+v", c, got, want)
		}
		subs, _ := w.mem.Subs(context.Background(), c)
		wants, _ := model.Subs(context.Background(), c)
		if !slices.Equal(subs, wants) {
			broken("books: subscriptions of %s are %v, want %v", c, subs, wants)
		}
	}
}

func (w *world) storedIn(s *memory.Store, t event.Topic, id event.ID) bool {
	got, err := s.Messages(context.Background(), sinks.Query{Topic: t, After: id.Before(), Until: id, Limit: 1})
	if err != nil {
		panic(err)
	}
	return len(got) > 0
}

func compareTP(a, b pipeline.TP) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Part, b.Part))
}
