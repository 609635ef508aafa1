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
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

func TestPubackEvidenceLogsTheAckThatDeletes(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Evidence = pipeline.EvidencePuback }, func(t *testing.T, s *stack, b *broker) {
		b.behave(never)
		s.writer(testLimits, nil)
		for i := range 5 {
			s.keep("t/1", fmt.Sprint(i))
		}
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff(numbers(5), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if got := s.store.payloads(t, "t/1"); len(got) > 0 {
			t.Errorf("still stored: %v", got)
		}
		if diff := cmp.Diff(map[string]int{"complete": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestATailOverTheBudgetMeansASecondPass(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		b := newBroker(s)
		s.replayer(b, nil, func(r *pipeline.Replayer) { r.Sinks["s"].Tail.Budget = 2000 })
		time.Sleep(time.Second)
		s.keep("t/1", "stored")
		for i := range 5100 {
			s.publish("t/noise", fmt.Sprint(i))
		}
		s.publish("t/1", "last")
		s.subscribe("c", "t/1")
		time.Sleep(2900 * time.Millisecond)
		if got := b.payloads("c"); len(got) > 0 {
			t.Errorf("%v were sent before the replay's patience was over", got)
		}
		time.Sleep(time.Minute)
		if diff := cmp.Diff([]string{"stored"}, b.payloads("c")); diff != "" {
			t.Errorf("what can be read:\n%s", diff)
		}
		if s.replayerAt() == s.sessionsEnd() {
			t.Error("the subscribe is committed although the tail was not read to its end")
		}
		s.writer(testLimits, nil) // it catches up
		time.Sleep(30 * time.Second)
		if diff := cmp.Diff([]string{"stored", "last"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestACommitBetweenTheReadingsOfARoundLosesNothing(t *testing.T) {
	t.Parallel()
	for _, op := range []string{fakelog.OpSpans, fakelog.OpCommitted, fakelog.OpOpen, fakelog.OpFetch} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				b := newBroker(s)
				var armed atomic.Bool
				commit := func() {
					for _, r := range s.cluster.Records(s.messages(0)) {
						e, err := event.Decode(event.Messages, r.Wire)
						if err != nil {
							t.Error(err)
						}
						if err := s.store.Store.Apply(t.Context(), s.rules.ForSink("s")(e).Ops); err != nil {
							t.Error(err)
						}
					}
					s.cluster.Reset(writerGroup, s.messages(0), s.cluster.Span(s.messages(0)).End)
				}
				s.replayer(b, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
					if c.Op == op && (c.TP.Topic == topics.Messages || op == fakelog.OpCommitted) && armed.CompareAndSwap(true, false) {
						commit()
					}
					return fakelog.Verdict{}
				}, nil)
				time.Sleep(time.Second)
				for i := range 3 {
					s.publish("t/1", fmt.Sprint(i))
				}
				armed.Store(true)
				s.subscribe("c", "t/1")
				time.Sleep(time.Second)
				if armed.Load() {
					t.Fatalf("no %s was made", op)
				}
				if diff := cmp.Diff(numbers(3), b.payloads("c")); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}
