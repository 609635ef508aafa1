package pipeline_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// weather lets the store and the log fail at random until it is fine.
type weather struct {
	mu   sync.Mutex
	rand *rand.Rand
	fine bool
}

func (w *weather) draw(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fine {
		return -1
	}
	return w.rand.IntN(n)
}

// log fails one call in eight, before or after it does its work.
func (w *weather) log(_ context.Context, c fakelog.Call) fakelog.Verdict {
	switch d := w.draw(16); {
	case d > 1 || d < 0 || c.Op == fakelog.OpJoin || c.Op == fakelog.OpJoined:
		return fakelog.Verdict{}
	default:
		return fakelog.Verdict{Err: errDown, Done: d == 1 && (c.Op == fakelog.OpCommit || c.Op == fakelog.OpAppend)}
	}
}

// store fails before or after it applies, in part, or slowly; what is bad is poison, which it can name or not.
func (w *weather) store(s *store) func(context.Context, []sinks.Op, func() error) error {
	return func(ctx context.Context, ops []sinks.Op, apply func() error) error {
		bad := func(o sinks.Op) bool { m, ok := o.(sinks.PutMessage); return ok && string(m.Payload) == "bad" }
		d := w.draw(8)
		switch d {
		case 0:
			return errDown
		case 1:
			if !slices.ContainsFunc(ops, bad) {
				_ = apply()
			}
			return errDown
		case 2:
			if err := pipeline.Sleep(ctx, 3*time.Second); err != nil {
				return err
			}
		}
		if d != 3 && slices.ContainsFunc(ops, bad) {
			return fault.Poison(errDown)
		}
		failed := map[int]error{}
		var good []sinks.Op
		for i, o := range ops {
			switch {
			case bad(o):
				failed[i] = fault.Poison(errDown)
			case d == 3 && w.draw(2) == 0:
				failed[i] = errDown
			default:
				good = append(good, o)
			}
		}
		if err := s.Store.Apply(ctx, good); err != nil {
			return err
		}
		if len(failed) > 0 {
			return &sinks.ApplyError{Failed: failed}
		}
		return nil
	}
}

// TestTheLawHoldsInAnyWeather lets writers come and go while the store and the log fail. At each commit everything below it must
// be stored, acknowledged or in the dead letters (see stack.committed); at rest the store must hold exactly what was published,
// could be stored and was not acknowledged.
func TestTheLawHoldsInAnyWeather(t *testing.T) {
	t.Parallel()
	seeds := 1000
	if testing.Short() {
		seeds = 100
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { weathered(t, uint64(seed)) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func weathered(t *testing.T, seed uint64) {
	const parts = 2
	s := newStack(t, parts)
	r := rand.New(rand.NewPCG(seed, 1))
	w := &weather{rand: rand.New(rand.NewPCG(seed, 2))}
	s.store.set(w.store(s.store))
	l := testLimits
	l.Hold, l.Drain = time.Duration(r.IntN(3))*500*time.Millisecond, time.Duration(1+r.IntN(4))*time.Second
	l.Records, l.Fetch = 1+r.IntN(20), 1+r.IntN(10)
	writers := []*process{s.writer(l, w.log)}
	var published []event.Published
	want := map[string][]string{}
	gone := map[event.ID]bool{}
	malformed := 0
	ack := func(m event.Published) { s.ack("c", m); gone[m.ID] = true }
	for range 20 + r.IntN(30) {
		switch r.IntN(12) {
		case 0, 1, 2, 3:
			payload := fmt.Sprint(len(published))
			if r.IntN(8) == 0 {
				payload = "bad"
			}
			published = append(published, s.publish(fmt.Sprintf("t/%d", r.IntN(4)), payload))
		case 4, 5:
			if len(published) > 0 {
				ack(published[len(published)-1])
			}
		case 6:
			if len(published) > 0 {
				m := published[r.IntN(len(published))]
				if r.IntN(2) == 0 {
					s.put(m) // repeated
				} else {
					ack(m)
				}
			}
		case 7:
			malformed++
			s.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{Key: []byte(fmt.Sprint(r.IntN(9))), Value: []byte("?"), Time: time.Now()}})
		case 8:
			s.cluster.Rebalance(writerGroup)
		case 9:
			i := r.IntN(len(writers))
			if r.IntN(2) == 0 {
				writers[i].kill() // no time to drain
			}
			_ = writers[i].stop() // what was held is read again
			writers = slices.Delete(writers, i, i+1)
			if len(writers) == 0 || r.IntN(2) == 0 {
				writers = append(writers, s.writer(l, w.log))
			}
		default:
			time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
		}
	}
	w.mu.Lock()
	w.fine = true
	w.mu.Unlock()
	if len(writers) == 0 {
		s.writer(l, nil)
	}
	time.Sleep(5 * time.Minute)
	dead := map[string]int{}
	for _, d := range s.dead() {
		dead[string(d.Value)]++
	}
	bad := 0
	for _, m := range published {
		switch {
		case string(m.Payload) == "bad":
			if !gone[m.ID] {
				bad++
			}
		case !gone[m.ID]:
			want[m.Topic.String()] = append(want[m.Topic.String()], string(m.Payload))
		}
	}
	if dead["?"] < malformed || dead["bad"] < bad {
		t.Errorf("dead letters %v, want at least %d malformed and %d rejected", dead, malformed, bad)
	}
	for i := range 4 {
		topic := fmt.Sprintf("t/%d", i)
		if diff := cmp.Diff(want[topic], s.store.payloads(t, topic)); diff != "" {
			t.Errorf("%s at rest:\n%s", topic, diff)
		}
	}
	for p := range parts {
		if at, end := s.writerAt(p), s.cluster.Span(s.messages(p)).End; at != end && end > 0 {
			t.Errorf("partition %d is committed to %d of %d", p, at, end)
		}
	}
}
