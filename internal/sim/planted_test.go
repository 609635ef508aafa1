package sim

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

// planted is a bug that a test puts around the pipeline, to see whether the judges find it. The zero value is none.
type planted string

const (
	commitFirst planted = "commit before apply"
	giveUp      planted = "give up after two tries"
	dropPoison  planted = "drop poison"
	offByOne    planted = "commit one too many"
	staleStore  planted = "committed offsets read after the store"
	acksIgnored planted = "acks in the tail ignored"
	noMark      planted = "elision without the mark"
)

func (p planted) store(s *store) sinks.Writer {
	switch p {
	case commitFirst, giveUp, dropPoison:
		return &lyingStore{store: s, bug: p, tries: make(map[string]int)}
	}
	return s
}

// lyingStore says that ops are durable although they are not.
type lyingStore struct {
	*store
	bug   planted
	tries map[string]int
}

func (s *lyingStore) Apply(ctx context.Context, ops []sinks.Op) error {
	if s.bug == commitFirst {
		s.in.w.later(time.Second, func() {
			if !s.in.dead {
				_ = s.write(ops)
			}
		})
		return nil
	}
	err := s.store.Apply(ctx, ops)
	s.in.w.hist.mu.Lock() // the workers of a process share the store
	defer s.in.w.hist.mu.Unlock()
	key := rows(ops)
	s.tries[key]++
	var part *sinks.ApplyError
	switch {
	case s.bug == giveUp && s.tries[key] > 2:
		return nil
	case s.bug == dropPoison && errors.As(err, &part):
		for i, cause := range part.Failed {
			if fault.IsPoison(cause) {
				delete(part.Failed, i)
			}
		}
		if len(part.Failed) == 0 {
			return nil
		}
	case s.bug == dropPoison && fault.IsPoison(err) && len(ops) == 1:
		return nil
	}
	return err
}

func (p planted) worker(w *pipeline.Worker) {
	switch p {
	case offByOne:
		w.Generation = &eager{w.Generation}
	case noMark:
		w.Limits.MarkAfter = 0
	}
}

// eager commits one record too many.
type eager struct{ pipeline.Generation }

func (g *eager) Commit(ctx context.Context, at map[pipeline.TP]pipeline.Next) error {
	more := make(map[pipeline.TP]pipeline.Next)
	for tp, n := range at {
		more[tp] = pipeline.Record{TP: tp, Offset: n.Offset()}.Next()
	}
	return g.Generation.Commit(ctx, more)
}

func (p planted) tail(t *pipeline.Tail) {
	if p != acksIgnored {
		return
	}
	plan := t.Plan
	t.Plan = func(e event.Event) pipeline.Plan {
		p := plan(e)
		p.Ops = slices.DeleteFunc(p.Ops, func(o sinks.Op) bool { _, ok := o.(sinks.DeleteMessage); return ok })
		return p
	}
}

func (p planted) reader(s *store) sinks.Reader {
	if p == staleStore {
		return &oldStore{s}
	}
	return s
}

// oldStore reads what the store held a moment ago: as if the offsets of the round had been read after it.
type oldStore struct{ *store }

func (s *oldStore) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	if _, err := s.store.Messages(ctx, q); err != nil {
		return nil, err
	}
	old := &memory.Store{}
	w := s.in.w
	w.hist.mu.Lock()
	defer w.hist.mu.Unlock()
	for _, o := range w.journal {
		if time.Since(o.at) < 100*time.Millisecond {
			break
		}
		if err := old.Apply(ctx, o.ops); err != nil {
			return nil, err
		}
	}
	return old.Messages(ctx, q)
}

// entry is what was written to the store.
type entry struct {
	at  time.Time
	ops []sinks.Op
}

// rush makes owners that do not know that they are none the rule, with a slow store.
func (p *plan) rush() {
	p.parts, p.writers, p.ackDelay, p.limits.Hold, p.limits.Records = 1, 2, time.Second, time.Second, 5
	for i := range 9 {
		at := time.Duration(i+1) * 4 * time.Second
		p.add(at, func(w *world) {
			w.change(func(m *mood) { m.slow = 0.5 })
			w.expel("writer", i%2, 2*time.Second)
		}, "writer %d is out of its group", i%2)
		p.add(at+2100*time.Millisecond, func(w *world) { w.kill("writer", i%2) }, "writer %d is killed", i%2)
		p.add(at+2200*time.Millisecond, func(w *world) { w.start("writer", i%2) }, "writer %d starts", i%2)
	}
	p.sort()
}

func TestPlantedBugsAreFound(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("a bug is found without the race detector or not at all")
	}
	for _, bug := range []planted{commitFirst, giveUp, dropPoison, offByOne, staleStore, acksIgnored} {
		t.Run(string(bug), func(t *testing.T) {
			t.Parallel()
			_, most := seeds(300, 300)
			for seed := range uint64(most) {
				p := draw(seed)
				p.planted = bug
				if bug == noMark {
					p.rush()
				}
				if r := simulate(t, p); len(r.bad) > 0 {
					t.Logf("found with seed %d: %s", seed, r.bad[0])
					return
				}
			}
			t.Errorf("not found with %d seeds", most)
		})
	}
}
