package sim

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/spool"
)

// box holds the events for one ingest.
type box struct {
	queue []*letter // not acknowledged
	more  chan struct{}
}

type letter struct {
	e      event.Event
	handed *incarnation
	// answered is closed when the broker has its answer, for who waits for it; nil = nobody does. One that is late counts for nothing.
	answered chan struct{}
	late     bool
}

func (b *box) put(e event.Event) { b.add(&letter{e: e}) }

func (b *box) add(l *letter) {
	b.queue = append(b.queue, l)
	close(b.more)
	b.more = make(chan struct{})
}

// source is an ingest's way from the broker.
type source struct {
	in  *incarnation
	box *box
}

type owed struct {
	l *letter
	r pipeline.Receipt
	// held says that the event is an alias that cannot get into the log now: the broker is told to deliver nothing.
	held bool
}

// Run hands over and acknowledges in order.
func (s *source) Run(ctx, work context.Context, accept pipeline.Accept) {
	owing := make(chan owed, 1000)
	var wg sync.WaitGroup
	wg.Go(func() { // ends with owing
		for o := range owing {
			if o.r != nil {
				err := pipeline.Wait(work, o.r)
				o.held = o.held || errors.Is(err, spool.ErrSpooling)
				if err != nil && !o.held {
					return
				}
			}
			if v := s.in.w.step.park(work, &call{in: s.in, op: opConfirm, key: opConfirm}); v.Err != nil {
				return
			}
			s.confirm(o)
		}
	})
	defer wg.Wait()
	defer close(owing)
	for {
		l, err := s.next(ctx)
		if err != nil {
			return
		}
		var r pipeline.Receipt
		if p, ok := l.e.(event.Published); !ok || !isReplay(p) || p.Sender != "" { // who knows the sender need not look at the marks
			r, err = accept(ctx, l.e)
		}
		held := errors.Is(err, spool.ErrSpooling)
		if err != nil && !held {
			return
		}
		owing <- owed{l, r, held}
	}
}

func (s *source) confirm(o owed) {
	b := s.in.w.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(s.box.queue) == 0 || s.box.queue[0] != o.l {
		panic("sim: events are acknowledged out of order")
	}
	s.box.queue = s.box.queue[1:]
	switch {
	case o.held, o.l.late:
		b.w.hist.holdsBack(o.l.e)
	default:
		b.confirmed(o.l.e)
	}
	if o.l.answered != nil {
		close(o.l.answered)
	}
}

func (s *source) next(ctx context.Context) (*letter, error) {
	for {
		if v := s.in.w.step.park(ctx, &call{in: s.in, op: opSource, key: opSource}); v.Err != nil {
			return nil, v.Err
		}
		b := s.in.w.broker
		b.mu.Lock()
		more := s.box.more
		s.box.queue = slices.DeleteFunc(s.box.queue, func(l *letter) bool { // who waited for an answer of the dead got none
			return l.answered != nil && (l.late || l.handed != nil) && l.handed != s.in
		})
		for _, l := range s.box.queue {
			if l.handed != s.in {
				l.handed = s.in
				b.mu.Unlock()
				return l, nil
			}
		}
		b.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
