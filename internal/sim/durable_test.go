package sim

import (
	"context"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

// committed judges a commit at the moment when it is made.
func (w *world) committed(group string, tp pipeline.TP, at int64) {
	h := w.hist
	h.mu.Lock()
	defer h.mu.Unlock()
	key := group + " " + tp.String()
	prev := h.last[key]
	if at < prev {
		h.broken("commit goes back: %s %s from %d to %d", group, tp, prev, at)
		return
	}
	h.last[key] = at
	if at > prev {
		h.say("%s commits %s before %d", group, tp, at)
	}
	if group != writers {
		if !w.calm {
			h.hears(tp, at)
		}
		return
	}
	if at > int64(len(h.log[tp])) {
		h.broken("commit beyond the end: %s %d of %d", tp, at, len(h.log[tp]))
		return
	}
	for _, r := range h.log[tp][prev:at] {
		if why := w.undone(r); why != "" {
			h.broken("commit before it is durable: %s@%d: %s", tp, r.Offset, why)
		}
	}
	if tp.Topic == topics.Sessions && at == int64(len(h.log[tp])) {
		w.clientRows(tp.Part, func(format string, args ...any) { h.broken("commit of all there is: "+format, args...) })
	}
}

// clientRows compares the rows of a partition's clients with what the log says. Whoever writes late or again must change nothing.
func (w *world) clientRows(part int, broken func(string, ...any)) {
	ctx, model := context.Background(), w.hist.model
	for _, c := range w.plan.clients {
		if part >= 0 && fakelog.Partition(string(c), w.plan.sessionParts) != part {
			continue
		}
		got, _, _ := w.mem.Client(ctx, c)
		if want, _, _ := model.Client(ctx, c); got != want {
			broken("client %s is %+v, want %+v", c, got, want)
		}
		subs, _ := w.mem.Subs(ctx, c)
		if want, _ := model.Subs(ctx, c); !slices.Equal(subs, want) {
			broken("subscriptions of %s are %v, want %v", c, subs, want)
		}
	}
}

// undone says what of a record's effects is missing. h.mu is held.
func (w *world) undone(r pipeline.Record) string {
	if d, ok := w.hist.dead[r.TP][r.Offset]; ok {
		if string(d.Key) != string(r.Key) || string(d.Value) != string(r.Value) {
			return "its dead letter is not whole"
		}
		return ""
	}
	kind := event.Messages
	if r.Topic == topics.Sessions {
		kind = event.Sessions
	}
	e, err := event.Decode(kind, r.Wire)
	if err != nil {
		return "it is malformed and not in the dead letters"
	}
	ctx := context.Background()
	switch e := e.(type) {
	case event.Published:
		m := w.hist.msgs[e.ID]
		switch {
		case m == nil, m.expired(time.Now().Add(w.plan.replay.ClockSkew)):
			return ""
		case isRetained(e.Topic):
			return w.unretained(e)
		case e.QoS == 0, !m.acked.IsZero():
			return ""
		}
		if !w.stored(e.Topic, e.ID) {
			return w.hist.label(e.ID) + " is not stored, not acked, not in the dead letters"
		}
	case event.Acked:
		if r.Topic == topics.Messages && w.counts(e) && w.stored(e.Topic, e.Message) {
			return w.hist.label(e.Message) + " is acked and still stored"
		}
	case event.Subscribed:
		subs, _ := w.mem.Subs(ctx, e.Client)
		for _, s := range subs {
			if s.Filter == e.Filter {
				return ""
			}
		}
		for _, later := range w.hist.log[r.TP] {
			if u, err := event.Decode(event.Sessions, later.Wire); err == nil {
				if u, ok := u.(event.Unsubscribed); ok && u.Client == e.Client && u.Filter == e.Filter && u.ID.Micros() >= e.ID.Micros() {
					return "" // whichever came first: a clock may have been put back
				}
			}
		}
		return "the subscription is not stored"
	case event.Connected:
		if _, ok, _ := w.mem.Client(ctx, e.Client); !ok {
			return "the client is not stored"
		}
	case event.Unsubscribed, event.Disconnected, event.ReplayContinued, event.Replayed, event.Dropped:
	}
	return ""
}

// unretained says what is missing of a retained message, or of the removal of one. The latest by its id counts.
func (w *world) unretained(e event.Published) string {
	later := false
	for _, m := range w.hist.order {
		later = later || m.Topic == e.Topic && !m.logged.IsZero() && m.ID.Compare(e.ID) > 0
	}
	got, ok := w.retained(w.mem, e.Topic)
	switch {
	case len(e.Payload) > 0 && !later && (!ok || got != e.ID):
		return w.hist.label(e.ID) + " is not retained"
	case len(e.Payload) == 0 && ok && got.Compare(e.ID) <= 0:
		return w.hist.label(e.ID) + " has removed what is retained, and it is still there"
	}
	return ""
}

func (w *world) retained(s *memory.Store, t event.Topic) (event.ID, bool) {
	got, err := s.Retained(context.Background(), mustFilter(t.String()), event.Topic{}, 1)
	if err != nil {
		panic(err)
	}
	if len(got) == 0 {
		return event.ID{}, false
	}
	return got[0].ID, true
}

func (w *world) counts(e event.Acked) bool { return len(w.rules.ForSink(sink)(e).Ops) > 0 }

func (w *world) stored(t event.Topic, id event.ID) bool {
	got, err := w.mem.Messages(context.Background(), sinks.Query{Topic: t, After: id.Before(), Until: id, Limit: 1})
	if err != nil {
		panic(err)
	}
	return len(got) > 0
}
