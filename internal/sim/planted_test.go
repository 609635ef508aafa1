package sim

import (
	"context"
	"errors"
	"slices"
	"strings"
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
	commitFirst     planted = "commit before apply"
	ackFirst        planted = "ack before produce"
	giveUp          planted = "give up after two tries"
	dropPoison      planted = "drop poison"
	deadFirst       planted = "dead letter before it is durable"
	offByOne        planted = "commit one too many"
	staleCommit     planted = "commits of a stale generation"
	cutOff          planted = "drain of a stopped writer cut off"
	drainFirst      planted = "drain of the spool before it is durable"
	wallClock       planted = "writes with the wall clock's time"
	naiveElision    planted = "naive elision"
	ageElision      planted = "elision by the age of the assignment"
	staleStore      planted = "committed offsets read after the store"
	staleEnds       planted = "tail read before the committed offsets are"
	noSecondPass    planted = "no second pass behind a lagging writer"
	acksIgnored     planted = "acks in the tail ignored"
	noLookBack      planted = "no look-back"
	sliceLost       planted = "slice lost"
	echoIgnored     planted = "mark of a replay ignored"
	aliasSpooled    planted = "alias answered from the spool"
	naivePosition   planted = "naive position"
	positionPassing planted = "position over a job given up"
)

func (p planted) store(s *store) sinks.Writer {
	switch p {
	case commitFirst, giveUp, dropPoison, cutOff, wallClock:
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
	switch {
	case s.bug == cutOff && s.in.ctx.Err() != nil:
		return nil
	case s.bug == wallClock:
		return s.store.Apply(ctx, stamped(ops, time.Now().UnixMicro()))
	case s.bug == commitFirst:
		s.in.w.later(time.Second, func() {
			if !s.in.dead.Load() {
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

// stamped are ops as they would be if the time of the write decided between two of them, where that can be said.
func stamped(ops []sinks.Op, now int64) []sinks.Op {
	out := slices.Clone(ops)
	for i, op := range out {
		switch o := op.(type) {
		case sinks.PutSub:
			o.Stamp = now
			out[i] = o
		case sinks.DeleteSub:
			o.Stamp = now
			out[i] = o
		case sinks.PutClient:
			downLast := o.Down.Stamp >= o.Up.Stamp
			if o.Up.Stamp > 0 {
				o.Up.Stamp = now
			}
			if o.Down.Stamp > 0 {
				o.Down.Stamp = now
				if !downLast {
					o.Down.Stamp--
				}
			}
			out[i] = o
		case sinks.PutMessage, sinks.DeleteMessage, sinks.PutAcked, sinks.DeleteAcked, sinks.PutRetained, sinks.DeleteRetained:
		}
	}
	return out
}

func (p planted) worker(in *incarnation, w *pipeline.Worker) {
	switch p {
	case offByOne:
		w.Generation = &eager{w.Generation}
	case staleCommit:
		w.Generation = &stubborn{w.Generation, in.w}
	case naiveElision:
		w.Limits.MarkAfter, w.Limits.Recall, w.Limits.Memory = 0, 0, 2
		fallthrough
	case ageElision:
		w.Reader = &markless{w.Reader}
		w.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	}
}

// markless lets the mark be at the beginning.
type markless struct{ pipeline.Log }

func (l *markless) Spans(ctx context.Context, topic string, parts ...int) (map[int]pipeline.Span, error) {
	spans, err := l.Log.Spans(ctx, topic, parts...)
	for n, s := range spans {
		spans[n] = pipeline.Span{First: s.First}
	}
	return spans, err
}

// stubborn commits for a generation that is over.
type stubborn struct {
	pipeline.Generation
	w *world
}

func (g *stubborn) Commit(ctx context.Context, at map[pipeline.TP]pipeline.Next) error {
	err := g.Generation.Commit(ctx, at)
	if !errors.Is(err, pipeline.ErrFenced) {
		return err
	}
	for tp, n := range at {
		g.w.cluster.Reset(writers, tp, n.Offset())
		g.w.committed(writers, tp, n.Offset())
	}
	return nil
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

func (p planted) tail(w *world, t *pipeline.Tail) {
	switch p {
	case noLookBack:
		t.LookBack = 0
	case staleEnds:
		t.Reader = &lateReader{Log: t.Reader, ends: make(map[int]pipeline.Span)}
	case noSecondPass:
		t.Reader = &shortReader{t.Reader, w}
	case acksIgnored:
		plan := t.Plan
		t.Plan = func(e event.Event) pipeline.Plan {
			p := plan(e)
			p.Ops = slices.DeleteFunc(p.Ops, func(o sinks.Op) bool { _, ok := o.(sinks.DeleteMessage); return ok })
			return p
		}
	}
}

// lateReader gives the ends that it was asked for the last time.
type lateReader struct {
	pipeline.Log
	ends map[int]pipeline.Span // of the rounds, one at a time
}

func (l *lateReader) Spans(ctx context.Context, topic string, parts ...int) (map[int]pipeline.Span, error) {
	spans, err := l.Log.Spans(ctx, topic, parts...)
	for n, s := range spans {
		if old, ok := l.ends[n]; ok && old.First == s.First {
			spans[n] = old
		}
		l.ends[n] = s
	}
	return spans, err
}

// shortReader ends the tail where its budget would, and does not tell.
type shortReader struct {
	pipeline.Log
	w *world
}

func (l *shortReader) Spans(ctx context.Context, topic string, parts ...int) (map[int]pipeline.Span, error) {
	const most = 8
	spans, err := l.Log.Spans(ctx, topic, parts...)
	for n, s := range spans {
		from := max(s.First, l.w.cluster.Committed(writers, pipeline.TP{Topic: topic, Part: n}))
		spans[n] = pipeline.Span{First: s.First, End: min(s.End, from+most)}
	}
	return spans, err
}

func (p planted) reader(s *store) sinks.Reader {
	switch p {
	case staleStore:
		return &oldStore{s}
	case naivePosition, positionPassing:
		return &wrongPositions{s, p}
	}
	return s
}

// wrongPositions are those of somebody who takes the latest ack for all before it, or who leaves no mark.
type wrongPositions struct {
	*store
	bug planted
}

func (s *wrongPositions) Positions(ctx context.Context, c event.ClientID) ([]sinks.PutAcked, error) {
	rows, err := s.store.Positions(ctx, c)
	if err != nil {
		return nil, err
	}
	if s.bug == positionPassing {
		return slices.DeleteFunc(rows, func(r sinks.PutAcked) bool { return strings.HasSuffix(r.Topic, "/#/open") }), nil
	}
	h := s.in.w.hist
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.order {
		if m.had[c].IsZero() || !isPubsub(m.Topic) {
			continue
		}
		i := slices.IndexFunc(rows, func(r sinks.PutAcked) bool { return r.Topic == m.Topic.String() })
		switch {
		case i < 0:
			rows = append(rows, sinks.PutAcked{Client: c, Topic: m.Topic.String(), Message: m.ID, Stamp: m.ID.Micros()})
		case m.ID.Compare(rows[i].Message) > 0:
			rows[i].Message = m.ID
		}
	}
	return rows, nil
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
