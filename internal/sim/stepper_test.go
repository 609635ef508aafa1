package sim

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/restante/restante/internal/sim/fakelog"
)

var (
	errInjected = errors.New("injected fault")
	errUnknown  = errors.New("injected fault, outcome unknown")
	errOver     = errors.New("the simulation is over")
)

// stepper lets the calls of all processes go one at a time. Between two steps every goroutine of the bubble is blocked, so what
// happens depends on the seed alone.
type stepper struct {
	rng    *rand.Rand
	agenda agenda
	steps  int
	// judge decides about a call when its turn has come, delay how long it takes at the least.
	judge func(*call) fakelog.Verdict
	delay func(*call) time.Duration
	// gather brings what other goroutines want on the agenda.
	gather func()
	// trace, when set, is told of every step.
	trace func(*call, fakelog.Verdict)
	// admitted, when set, is told of every call that comes.
	admitted func(*call)

	mu     sync.Mutex
	fresh  []*call // not seen by the driver yet
	wake   chan struct{}
	over   chan struct{}
	parked []*call // the driver's
}

// call is one interface call that waits for its turn.
type call struct {
	in    *incarnation
	op    string
	key   string
	land  func() // its effect, where it may come although its caller has gone
	twin  bool   // others of the same key may stand beside it, and it changes nothing
	turn  chan fakelog.Verdict
	ready time.Time
	left  bool // the caller has gone; guarded by mu
}

func newStepper(rng *rand.Rand) *stepper {
	return &stepper{rng: rng, wake: make(chan struct{}, 1), over: make(chan struct{})}
}

// park waits for the call's turn.
func (s *stepper) park(ctx context.Context, c *call) fakelog.Verdict {
	if ctx.Err() != nil { // whoever also waits for something else may come here or not
		return fakelog.Verdict{Err: context.Cause(ctx)}
	}
	c.turn = make(chan fakelog.Verdict, 1)
	s.mu.Lock()
	s.fresh = append(s.fresh, c)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case v := <-c.turn:
		return v
	case <-s.over:
		return fakelog.Verdict{Err: errOver}
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		c.left = true
		return fakelog.Verdict{Err: context.Cause(ctx)}
	}
}

// at puts fn on the agenda. Only the driver and what it calls may use it.
func (s *stepper) at(t time.Time, fn func()) {
	heap.Push(&s.agenda, item{t, s.agenda.seq, fn})
	s.agenda.seq++
}

func (s *stepper) after(d time.Duration, fn func()) { s.at(time.Now().Add(d), fn) }

// run drives until done says so.
func (s *stepper) run(done func() bool) {
	for {
		synctest.Wait()
		s.gather()
		if done() {
			return
		}
		now := time.Now()
		if len(s.agenda.items) > 0 && !s.agenda.items[0].at.After(now) {
			heap.Pop(&s.agenda).(item).fn()
			continue
		}
		s.admit(now)
		if c := s.pick(now); c != nil {
			s.release(c)
			continue
		}
		wait := time.Minute
		if len(s.agenda.items) > 0 {
			wait = min(wait, s.agenda.items[0].at.Sub(now))
		}
		for _, c := range s.parked {
			wait = min(wait, c.ready.Sub(now))
		}
		t := time.NewTimer(wait)
		select {
		case <-s.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// admit gives the calls that are new their times, in a canonical order.
func (s *stepper) admit(now time.Time) {
	s.mu.Lock()
	fresh := s.fresh
	s.fresh = nil
	s.mu.Unlock()
	slices.SortStableFunc(fresh, func(a, b *call) int {
		return cmp.Or(cmp.Compare(a.in.name, b.in.name), strings.Compare(a.key, b.key))
	})
	for _, c := range fresh {
		c.ready = now.Add(s.delay(c))
		if s.admitted != nil {
			s.admitted(c)
		}
	}
	s.parked = append(s.parked, fresh...)
}

// pick takes a call whose time has come; the dead's never comes.
func (s *stepper) pick(now time.Time) *call {
	var ready []int
	s.parked = slices.DeleteFunc(s.parked, func(c *call) bool { return c.in.dead.Load() })
	for i, c := range s.parked {
		if !c.ready.After(now) {
			ready = append(ready, i)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	i := ready[s.rng.IntN(len(ready))]
	c := s.parked[i]
	s.parked = slices.Delete(s.parked, i, i+1)
	return c
}

// twins takes the calls that cannot be told from c. They go with it and with its verdict: what they do next can be told apart.
func (s *stepper) twins(c *call) []*call {
	if !c.twin {
		return nil
	}
	var all []*call
	s.parked = slices.DeleteFunc(s.parked, func(o *call) bool {
		same := o.in == c.in && o.key == c.key
		if same {
			all = append(all, o)
		}
		return same
	})
	return all
}

func (s *stepper) release(c *call) {
	s.mu.Lock()
	left := c.left
	s.mu.Unlock()
	s.steps++
	if left {
		if c.land != nil && s.rng.IntN(2) == 0 {
			c.land()
		}
		return
	}
	v := s.judge(c)
	if s.trace != nil {
		s.trace(c, v)
	}
	c.turn <- v
	for _, o := range s.twins(c) {
		o.turn <- v
	}
}

// bury takes the calls of an incarnation that has died: none of them returns before the end. Writes that were sent may land.
func (s *stepper) bury(in *incarnation, within time.Duration) {
	in.dead.Store(true)
	s.admit(time.Now())
	for _, c := range s.parked {
		if c.in == in && c.land != nil && s.rng.IntN(2) == 0 {
			s.after(time.Duration(s.rng.Int64N(int64(within))), c.land)
		}
	}
}

type item struct {
	at  time.Time
	seq int
	fn  func()
}

// agenda is a heap of what is to be done, by time.
type agenda struct {
	items []item
	seq   int
}

func (a *agenda) Len() int { return len(a.items) }

func (a *agenda) Less(i, j int) bool {
	return cmp.Or(a.items[i].at.Compare(a.items[j].at), cmp.Compare(a.items[i].seq, a.items[j].seq)) < 0
}
func (a *agenda) Swap(i, j int) { a.items[i], a.items[j] = a.items[j], a.items[i] }
func (a *agenda) Push(x any)    { a.items = append(a.items, x.(item)) }

func (a *agenda) Pop() any {
	n := len(a.items) - 1
	x := a.items[n]
	a.items = a.items[:n]
	return x
}
