package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

func TestAWorkerHoldsThenWritesThenCommits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.writer(testLimits, nil)
		time.Sleep(time.Second)
		s.publish("t/1", "a")
		time.Sleep(990 * time.Millisecond)
		if got := s.store.asked(); len(got) > 0 || s.writerAt(0) >= 0 {
			t.Fatalf("before the hold is over %d batches were written and %d is committed", len(got), s.writerAt(0))
		}
		s.counter(testutil.ToFloat64(s.metrics.Buffered.WithLabelValues("s")), 1, "records held")
		time.Sleep(20 * time.Millisecond)
		if diff := cmp.Diff([]string{"a"}, s.store.payloads(t, "t/1")); diff != "" || s.writerAt(0) != 1 {
			t.Errorf("after the hold committed %d, want 1; stored:\n%s", s.writerAt(0), diff)
		}
		s.counter(testutil.ToFloat64(s.metrics.Buffered.WithLabelValues("s")), 0, "records held")
		s.counter(testutil.ToFloat64(s.metrics.BufferedBytes.WithLabelValues("s")), 0, "bytes held")
	})
}

func TestAWorkerWritesAtOnceWhenItHoldsTooMuch(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*pipeline.Limits){
		"records": func(l *pipeline.Limits) { l.Records = 3 },
		"bytes":   func(l *pipeline.Limits) { l.Bytes = 600 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				l := testLimits
				l.Hold = time.Hour
				change(&l)
				s.writer(l, nil)
				s.publish("t/1", "a")
				s.publish("t/1", "b")
				time.Sleep(time.Minute)
				if s.writerAt(0) >= 0 {
					t.Fatal("written below the bound")
				}
				s.publish("t/1", "c")
				time.Sleep(time.Millisecond)
				if s.writerAt(0) != 3 {
					t.Errorf("committed %d at the bound, want 3", s.writerAt(0))
				}
			})
		})
	}
}

func TestNothingReadNothingCommitted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 2)
		w := s.writer(testLimits, nil)
		time.Sleep(time.Minute)
		s.cluster.Rebalance(writerGroup)
		time.Sleep(time.Minute)
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		if got := s.commitsSoFar(); len(got) > 0 {
			t.Errorf("commits %v", got)
		}
	})
}

func TestTheEndOfAGenerationFlushesAndCommits(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*stack, *process){
		"rebalance": func(s *stack, _ *process) { s.cluster.Rebalance(writerGroup) },
		"stop": func(s *stack, p *process) {
			if err := p.stop(); err != nil {
				s.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				w := s.writer(testLimits, nil)
				time.Sleep(time.Second)
				s.publish("t/1", "a")
				time.Sleep(100 * time.Millisecond)
				end(s, w)
				time.Sleep(time.Millisecond)
				if s.writerAt(0) != 1 || len(s.store.payloads(t, "t/1")) != 1 {
					t.Errorf("committed %d, stored %v; want both at once", s.writerAt(0), s.store.payloads(t, "t/1"))
				}
			})
		})
	}
}

func TestWhatIsNotDrainedInTimeIsNotCommittedAndReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.store.set(func(context.Context, []sinks.Op, func() error) error { return errDown })
		w := s.writer(testLimits, nil)
		time.Sleep(time.Second)
		s.publish("t/1", "a")
		time.Sleep(time.Minute)
		began := time.Now()
		if err := w.stop(); err == nil {
			t.Error("the process ended without an error although it held something")
		}
		if d := time.Since(began); d < testLimits.Drain || d > testLimits.Drain+time.Second {
			t.Errorf("drained for %v, want %v", d, testLimits.Drain)
		}
		if s.writerAt(0) >= 0 {
			t.Fatalf("committed %d", s.writerAt(0))
		}
		s.counter(testutil.ToFloat64(s.metrics.Undrained.WithLabelValues("writer")), 1, "undrained")
		s.counter(testutil.ToFloat64(s.metrics.Stalled.WithLabelValues("s")), 0, "stalled")
		s.counter(testutil.ToFloat64(s.metrics.Buffered.WithLabelValues("s")), 0, "held")
		s.store.set(nil)
		s.writer(testLimits, nil)
		time.Sleep(time.Minute)
		if s.writerAt(0) != 1 || len(s.store.payloads(t, "t/1")) != 1 {
			t.Errorf("the next owner committed %d and stored %v", s.writerAt(0), s.store.payloads(t, "t/1"))
		}
	})
}

func TestAFencedWorkerDropsWhatItHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		var fence atomic.Bool
		s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpCommit && fence.Load() {
				return fakelog.Verdict{Err: pipeline.ErrFenced}
			}
			return fakelog.Verdict{}
		})
		time.Sleep(time.Second)
		fence.Store(true)
		s.publish("t/1", "a")
		time.Sleep(1500 * time.Millisecond)
		if s.writerAt(0) >= 0 {
			t.Fatal("committed")
		}
		s.counter(testutil.ToFloat64(s.metrics.Buffered.WithLabelValues("s")), 1, "held by the next generation")
		fence.Store(false)
		time.Sleep(10 * time.Second)
		if s.writerAt(0) != 1 {
			t.Errorf("the next generation committed %d, want 1", s.writerAt(0))
		}
		s.counter(testutil.ToFloat64(s.metrics.Undrained.WithLabelValues("writer")), 0, "undrained: it belongs to another owner")
	})
}

func TestACommitOfUnknownFateIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tries := 0
		s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpCommit {
				if tries++; tries < 4 {
					return fakelog.Verdict{Err: errDown, Done: tries == 2}
				}
			}
			return fakelog.Verdict{}
		})
		s.publish("t/1", "a")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if tries != 4 || s.writerAt(0) != 1 || len(s.store.asked()) != 1 {
			t.Errorf("%d tries, committed %d, written %d times; want 4, 1, 1", tries, s.writerAt(0), len(s.store.asked()))
		}
	})
}

func TestAFrozenOwnerAsksBeforeItWrites(t *testing.T) {
	t.Parallel()
	for name, op := range map[string]string{"in a fetch that then succeeds": fakelog.OpFetch, "while it waits": fakelog.OpFetched} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				var freeze atomic.Bool
				thaw := make(chan struct{})
				w := s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
					if c.Op == op && freeze.Load() {
						<-thaw
					}
					return fakelog.Verdict{}
				})
				time.Sleep(5 * time.Second)
				freeze.Store(true)
				time.Sleep(2 * time.Second)
				w.client.Expel(time.Hour) // it learns nothing of that
				m := s.publish("t/1", "a")
				// Another owner stores the message, a client acknowledges it, and both are committed.
				s.ack("c", m)
				s.cluster.Reset(writerGroup, s.messages(0), 2)
				time.Sleep(time.Minute)
				freeze.Store(false)
				close(thaw)
				time.Sleep(10 * time.Second)
				if got := s.store.asked(); len(got) > 0 {
					t.Errorf("it wrote %d batches without having asked", len(got))
				}
				w.cancel()
			})
		})
	}
}

func TestAnIdleOwnerGoesOnAfterItHasAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.writer(testLimits, nil)
		s.publish("t/1", "a")
		time.Sleep(time.Hour)
		s.publish("t/1", "b")
		time.Sleep(2 * time.Second)
		if diff := cmp.Diff([]string{"0@1", "0@1", "0@2"}, s.commitsSoFar()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAWorkerSitsThroughAnHourWithoutItsStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		began := time.Now()
		s.store.set(func(_ context.Context, _ []sinks.Op, apply func() error) error {
			if time.Since(began) < time.Hour {
				return errDown
			}
			return apply()
		})
		joins := 0
		s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpJoined {
				joins++
			}
			return fakelog.Verdict{}
		})
		var want []string
		for i := range 59 {
			want = append(want, fmt.Sprint(i))
			s.publish("t/1", fmt.Sprint(i))
			time.Sleep(time.Minute)
			if got := s.commitsSoFar(); len(got) > 0 {
				t.Fatalf("committed %v while the store is down", got)
			}
		}
		time.Sleep(2 * time.Minute)
		if diff := cmp.Diff(want, s.store.payloads(t, "t/1")); diff != "" {
			t.Error(diff)
		}
		synctest.Wait()
		if s.writerAt(0) != 59 || joins != 1 {
			t.Errorf("committed %d in %d generations, want 59 in 1", s.writerAt(0), joins)
		}
	})
}

func TestAFatalErrorOfTheStoreEndsTheProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 3)
		s.store.set(func(context.Context, []sinks.Op, func() error) error { return fault.Fatal(errors.New("no table")) })
		w := s.writer(testLimits, nil)
		s.publish("t/1", "a")
		<-w.done
		if !fault.IsFatal(w.err) {
			t.Errorf("ended with %v, want the fatal error", w.err)
		}
		if got := s.commitsSoFar(); len(got) > 0 {
			t.Errorf("committed %v", got)
		}
	})
}

func TestAWorkerBeginsAtTheFirstRecordWhenNothingIsCommitted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		for i := range 5 {
			s.publish("t/1", fmt.Sprint(i))
		}
		s.cluster.Retain(s.messages(0), 3)
		failures := 3
		s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if (c.Op == fakelog.OpSpans || c.Op == fakelog.OpFetch) && failures > 0 {
				failures--
				return fakelog.Verdict{Err: errDown}
			}
			return fakelog.Verdict{}
		})
		time.Sleep(10 * time.Second)
		got := s.store.payloads(t, "t/1")
		slices.Sort(got)
		if diff := cmp.Diff([]string{"3", "4"}, got); diff != "" || s.writerAt(0) != 5 {
			t.Errorf("committed %d; stored:\n%s", s.writerAt(0), diff)
		}
		s.broken = nil // what retention took cannot be stored
	})
}
