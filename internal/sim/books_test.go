package sim

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

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
		if m.logged.IsZero() && m.QoS > 0 && w.rules.Wants(m.Published) {
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
			if p, ok := e.(event.Published); ok && p.QoS > 0 && !isRetained(p.Topic) && h.msgs[p.ID] != nil {
				live[p.ID] = h.msgs[p.ID]
			}
		}
	}
	for id, m := range live {
		dead := h.isDead(m)
		want := m.acked.IsZero() && !m.expired(time.Now())
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
	w.shelves(broken, model)
	w.clientRows(-1, func(format string, args ...any) { broken("books: "+format, args...) })
}

// shelves: at rest each topic retains what was last said.
func (w *world) shelves(broken func(string, ...any), model *memory.Store) {
	for _, t := range []string{"r/1", "r/2"} {
		got, _ := w.retained(w.mem, mustTopic(t))
		if want, _ := w.retained(model, mustTopic(t)); got != want {
			broken("books: %s retains %s, want %s", t, w.hist.label(got), w.hist.label(want))
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
