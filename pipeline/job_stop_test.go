package pipeline_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

func TestTheCommitIsTheLowestUnfinishedOffset(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "slow")
		s.keep("t/2", "quick")
		b.behave(func(d delivery) time.Duration {
			if d.Payload == "slow" {
				return 20 * time.Second
			}
			return 0
		})
		s.put(event.Unsubscribed{Head: s.head(), Client: "x", Filter: eventtest.Filter(t, "y")})
		s.subscribe("a", "t/1") // offset 1
		s.subscribe("b", "t/2")
		time.Sleep(10 * time.Second)
		if s.replayerAt() != 1 || s.sessionsEnd() != 4 {
			t.Errorf("committed %d of %d, want 1 of 4", s.replayerAt(), s.sessionsEnd())
		}
		time.Sleep(15 * time.Second)
		s.settled(t)
	})
}

func TestTheNextOwnerRepeatsWhatWasNotFinished(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 3 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		b.ack(b.deliveries()[0])
		time.Sleep(time.Second)
		b.behave(nil)
		s.cluster.Rebalance(replayGroup)
		time.Sleep(10 * time.Second)
		if diff := cmp.Diff([]string{"0", "1", "2", "1", "2"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]int{"aborted": 1, "complete": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestAMalformedSessionRecordIsBuriedAndAMajorStops(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "a")
		s.keep("t/2", "b")
		b.behave(func(delivery) time.Duration { return 5 * time.Second })
		s.cluster.Put(pipeline.Outgoing{Topic: topics.Sessions, Wire: event.Wire{Key: []byte("k"), Value: []byte("v"), Time: time.Now()}})
		s.subscribe("c", "t/1")
		s.cluster.Put(unknownMajor(topics.Sessions, "c"))
		s.subscribe("c", "t/2")
		time.Sleep(3 * time.Second)
		if d := s.dead(); len(d) != 1 || header(d[0], pipeline.HeaderDeadBy) != replayGroup {
			t.Errorf("dead letters: %v", d)
		}
		s.counter(counterOf(t, s.metrics.Stopped.WithLabelValues(replayGroup, "schema_major")), 1, "stopped")
		if s.replayerAt() != 1 {
			t.Errorf("committed %d, want 1: the replay behind it is not finished", s.replayerAt())
		}
		if diff := cmp.Diff([]string{"a"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAStandingPartitionStillCommitsWhatItFinishes(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Evidence = pipeline.EvidencePuback }, func(t *testing.T, s *stack, b *broker) {
		b.behave(never)
		s.keep("t/1", "a")
		began := time.Now()
		b.answer = func(delivery) (pipeline.Outcome, error) {
			if time.Since(began) < 10*time.Second {
				return pipeline.Outcome{}, errDown
			}
			return pipeline.Outcome{}, nil
		}
		s.subscribe("c", "t/1")
		s.cluster.Put(unknownMajor(topics.Sessions, "c"))
		time.Sleep(5 * time.Second)
		if s.replayerAt() >= 1 {
			t.Error("committed too early")
		}
		time.Sleep(20 * time.Second)
		if s.replayerAt() != 1 {
			t.Errorf("committed %d, want 1", s.replayerAt())
		}
	})
}

func TestASessionGapStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		b := newBroker(s)
		for range 4 {
			s.subscribe("c", "t/1")
		}
		tp := pipeline.TP{Topic: topics.Sessions}
		s.cluster.Reset(replayGroup, tp, 1)
		s.cluster.Retain(tp, 3)
		p := s.replayer(b, nil, nil)
		time.Sleep(time.Minute)
		s.counter(counterOf(t, s.metrics.Stopped.WithLabelValues(replayGroup, "gap")), 1, "stopped")
		if s.replayerAt() != 1 {
			t.Errorf("committed %d", s.replayerAt())
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAFencedOwnerEndsEvenWhenAReplayCannot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		b := newBroker(s)
		b.behave(never)
		var fence atomic.Bool
		joins := 0
		s.replayer(b, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			switch {
			case c.Op == fakelog.OpJoined:
				joins++
			case c.Op == fakelog.OpCommit && fence.CompareAndSwap(true, false):
				return fakelog.Verdict{Err: pipeline.ErrFenced}
			}
			return fakelog.Verdict{}
		}, nil)
		time.Sleep(time.Second)
		s.keep("t/1", "a")
		s.put(event.Unsubscribed{Head: s.head(), Client: "x", Filter: eventtest.Filter(t, "y")})
		s.subscribe("c", "t/1")
		fence.Store(true)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if joins != 2 {
			t.Errorf("joined %d times, want 2", joins)
		}
		if diff := cmp.Diff([]string{"a", "a"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestASubscribeThatIsReadAsItsOwnerEndsIsLeftToTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		b := newBroker(s)
		s.keep("t/1", "x")
		var first *process
		first = s.replayer(b, nil, func(r *pipeline.Replayer) {
			plan := r.Plan
			r.Plan = func(e event.Event) pipeline.Plan {
				if _, ok := e.(event.Subscribed); ok {
					first.cancel()
					time.Sleep(time.Second)
				}
				return plan(e)
			}
		})
		time.Sleep(time.Second)
		s.subscribe("c", "t/1")
		<-first.done
		if at := s.replayerAt(); at > 0 || len(b.deliveries()) > 0 {
			t.Errorf("committed %d, delivered %v", at, b.payloads("c"))
		}
		s.replayer(b, nil, nil)
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff([]string{"x"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}
