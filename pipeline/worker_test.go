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

	"github.com/restante/restante/event"
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

// unknownMajor is a record of a newer schema.
func unknownMajor(topic, key string) pipeline.Outgoing {
	return pipeline.Outgoing{Topic: topic, Wire: event.Wire{
		Key: []byte(key), Value: []byte{}, Headers: []event.Header{{Key: "ce_dataschema", Value: []byte("urn:restante:event:2")}}, Time: time.Now(),
	}}
}

func TestAnUnknownSchemaMajorStopsThePartition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		w := s.writer(testLimits, nil)
		time.Sleep(time.Second)
		s.publish("t/1", "a")
		s.cluster.Put(unknownMajor(topics.Messages, "t/1"))
		s.publish("t/1", "b")
		time.Sleep(time.Millisecond)
		stopped := s.metrics.Stopped.WithLabelValues(writerGroup, "schema_major")
		if s.writerAt(0) != 1 || len(s.store.payloads(t, "t/1")) != 1 {
			t.Errorf("committed %d, stored %v; want what lies before it, at once", s.writerAt(0), s.store.payloads(t, "t/1"))
		}
		time.Sleep(time.Hour)
		s.counter(testutil.ToFloat64(stopped), 1, "stopped")
		if s.writerAt(0) != 1 || len(s.dead()) > 0 {
			t.Errorf("committed %d, %d dead letters; want it to stand still", s.writerAt(0), len(s.dead()))
		}
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		s.counter(testutil.ToFloat64(stopped), 0, "stopped at the end")
	})
}

func TestAGapStopsThePartition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		for i := range 10 {
			s.publish("t/1", fmt.Sprint(i))
		}
		s.cluster.Reset(writerGroup, s.messages(0), 2)
		s.cluster.Retain(s.messages(0), 5)
		w := s.writer(testLimits, nil)
		time.Sleep(time.Hour)
		s.counter(testutil.ToFloat64(s.metrics.Stopped.WithLabelValues(writerGroup, "gap")), 1, "stopped")
		if s.writerAt(0) != 2 || len(s.store.asked()) > 0 {
			t.Errorf("committed %d, %d batches written", s.writerAt(0), len(s.store.asked()))
		}
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAMalformedRecordIsWholeInTheDeadLettersBeforeTheCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.writer(testLimits, nil)
		s.publish("t/1", "a")
		s.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{
			Key: []byte("k"), Value: []byte("v"), Headers: []event.Header{{Key: "x", Value: []byte("y")}}, Time: time.Now(),
		}})
		s.publish("t/1", "b")
		time.Sleep(2 * time.Second)
		if s.writerAt(0) != 3 || len(s.dead()) != 1 {
			t.Fatalf("committed %d with %d dead letters, want 3 with 1", s.writerAt(0), len(s.dead()))
		}
		d := s.dead()[0]
		if string(d.Key) != "k" || string(d.Value) != "v" {
			t.Errorf("key %q, value %q", d.Key, d.Value)
		}
		got := map[string]string{}
		for _, h := range d.Headers {
			got[h.Key] = string(h.Value)
		}
		want := map[string]string{
			"x": "y", pipeline.HeaderDeadReason: "malformed", pipeline.HeaderDeadTopic: topics.Messages, pipeline.HeaderDeadPartition: "0",
			pipeline.HeaderDeadOffset: "1", pipeline.HeaderDeadBy: writerGroup,
			pipeline.HeaderDeadError: `malformed event: ce_specversion: "", want "1.0"`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		s.counter(testutil.ToFloat64(s.metrics.DeadLetters.WithLabelValues("writer", "malformed")), 1, "dead letters")
	})
}

func TestPoisonIsWholeInTheDeadLettersAndTheRestIsStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.store.set(func(_ context.Context, ops []sinks.Op, apply func() error) error {
			if holds(ops, "bad") {
				return fault.Poison(errors.New("too long"))
			}
			return apply()
		})
		s.writer(testLimits, nil)
		for _, p := range []string{"a", "bad", "b", "c"} {
			s.publish("t/1", p)
		}
		time.Sleep(2 * time.Second)
		if diff := cmp.Diff([]string{"a", "b", "c"}, s.store.payloads(t, "t/1")); diff != "" || s.writerAt(0) != 4 {
			t.Errorf("committed %d; stored:\n%s", s.writerAt(0), diff)
		}
		if d := s.dead(); len(d) != 1 || string(d[0].Value) != "bad" || header(d[0], pipeline.HeaderDeadReason) != "sink_rejected" {
			t.Errorf("dead letters: %v", d)
		}
	})
}

func TestAWorkerWaitsForTheDeadLetters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		began := time.Now()
		w := s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpAppend && time.Since(began) < 10*time.Minute {
				return fakelog.Verdict{Err: errDown}
			}
			return fakelog.Verdict{}
		})
		s.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{Key: []byte("k"), Value: []byte("v"), Time: time.Now()}})
		time.Sleep(9 * time.Minute)
		if s.writerAt(0) >= 0 {
			t.Fatal("committed without its dead letter")
		}
		time.Sleep(2 * time.Minute)
		if s.writerAt(0) != 1 || len(s.dead()) != 1 {
			t.Errorf("committed %d with %d dead letters", s.writerAt(0), len(s.dead()))
		}
		if err := w.stop(); err != nil {
			t.Error(err)
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

func TestOnlineTrafficIsElided(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		l := testLimits
		l.MarkAfter, l.ClockSkew = 40*time.Second, time.Second
		s.writer(l, nil)
		pair := func(topic string) {
			m := s.publish(topic, "x")
			time.Sleep(100 * time.Millisecond)
			s.ack("c", m)
			time.Sleep(3 * time.Second)
		}
		pair("t/early")
		s.counter(s.elided(), 0, "elided before the mark")
		early := len(s.store.asked())
		if early == 0 {
			t.Error("not written before the mark")
		}
		time.Sleep(40 * time.Second)
		pair("t/late")
		s.counter(s.elided(), 1, "elided")
		if n := len(s.store.asked()); n != early || s.writerAt(0) != 4 {
			t.Errorf("written %d times after the mark, committed %d; want 0 and 4", n-early, s.writerAt(0))
		}
		m := s.publish("t/slow", "x")
		time.Sleep(3 * time.Second)
		s.ack("c", m)
		time.Sleep(3 * time.Second)
		s.counter(s.elided(), 1, "elided: the ack came after the hold")
		if got := s.store.payloads(t, "t/slow"); len(got) > 0 {
			t.Errorf("still stored: %v", got)
		}
	})
}

func TestAMarkThatCannotBeReadOnlyDelaysElision(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		began, asked := time.Now(), 0
		s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpSpans && time.Since(began) > 0 {
				if asked++; time.Since(began) < time.Minute {
					return fakelog.Verdict{Err: errDown}
				}
			}
			return fakelog.Verdict{}
		})
		time.Sleep(time.Millisecond)
		s.cluster.Reset(writerGroup, s.messages(0), 0)
		s.cluster.Rebalance(writerGroup)
		m := s.publish("t/1", "a")
		s.ack("c", m)
		time.Sleep(2 * time.Second)
		s.counter(s.elided(), 0, "elided without a mark")
		if s.writerAt(0) != 2 {
			t.Errorf("committed %d without a mark, want 2", s.writerAt(0))
		}
		time.Sleep(time.Minute)
		m = s.publish("t/1", "b")
		s.ack("c", m)
		time.Sleep(2 * time.Second)
		s.counter(s.elided(), 1, "elided with a mark")
		synctest.Wait()
		if asked > 30 {
			t.Errorf("the mark was asked for %d times in a minute", asked)
		}
	})
}

func TestTheMemoryIsFilledFromBelowTheCommit(t *testing.T) {
	t.Parallel()
	for name, unread := range map[string]bool{"read": false, "read only after a while, which is waited for": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				// The owner before has stored the message; its clock, or the broker's, is ahead.
				m := event.Published{
					Head:  event.Head{ID: event.FirstIDAt(time.Now().Add(5 * time.Second)), Source: "x", At: time.Now()},
					Topic: topicOf(t, "t/1"), QoS: 1, Payload: []byte("a"),
				}
				s.put(m)
				if err := s.store.Store.Apply(t.Context(), s.rules.ForSink("s")(m).Ops); err != nil {
					t.Fatal(err)
				}
				s.cluster.Reset(writerGroup, s.messages(0), 1)
				began := time.Now()
				s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
					if unread && c.Op == fakelog.OpFetch && c.Offset == 0 && time.Since(began) < 20*time.Second {
						return fakelog.Verdict{Err: errDown}
					}
					return fakelog.Verdict{}
				})
				time.Sleep(100 * time.Millisecond)
				s.put(m) // repeated
				s.ack("c", m)
				time.Sleep(3 * time.Second)
				if unread {
					if at := s.writerAt(0); at != 1 {
						t.Errorf("committed %d before the memory was filled, want 1", at)
					}
					time.Sleep(30 * time.Second)
				}
				if got := s.store.payloads(t, "t/1"); len(got) > 0 {
					t.Errorf("an acknowledged message is still stored: %v", got)
				}
				s.counter(s.elided(), 0, "elided")
			})
		})
	}
}

func TestAnEmptyFetchBelowTheCommitIsNotTakenForAnEmptyLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		m := event.Published{
			Head:  event.Head{ID: event.FirstIDAt(time.Now().Add(5 * time.Second)), Source: "x", At: time.Now()},
			Topic: topicOf(t, "t/1"), QoS: 1, Payload: []byte("a"),
		}
		s.put(m)
		if err := s.store.Store.Apply(t.Context(), s.rules.ForSink("s")(m).Ops); err != nil {
			t.Fatal(err)
		}
		s.cluster.Reset(writerGroup, s.messages(0), 1)
		p := s.start(nil, func(ctx, work context.Context, c *fakelog.Client) error {
			return pipeline.Consume(ctx, work, c.Group(writerGroup, topics.Messages), quiet,
				func(ctx, work context.Context, g pipeline.Generation, tp pipeline.TP, from int64) error {
					w := &pipeline.Worker{
						TP: tp, Kind: event.Messages, From: from, Group: writerGroup, Generation: g, Reader: mute{c.Log(), 1}, Plan: s.rules.ForSink("s"),
						Storing: storing(s.store, s.metrics), Limits: testLimits, Metrics: s.metrics, Log: quiet, Now: time.Now,
					}
					return w.Run(ctx, work)
				})
		})
		time.Sleep(10 * time.Second)
		s.put(m)
		time.Sleep(time.Second)
		s.ack("c", m)
		time.Sleep(5 * time.Second)
		if got := s.store.payloads(t, "t/1"); len(got) > 0 {
			t.Errorf("an acknowledged message is still stored: %v", got)
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
}

// mute is a log whose brokers do not answer for what lies below an offset: fetches wait and give nothing.
type mute struct {
	pipeline.Log
	below int64
}

func (m mute) Open(ctx context.Context, tp pipeline.TP, from int64) (pipeline.Stream, error) {
	if from < m.below {
		return silence{}, nil
	}
	return m.Log.Open(ctx, tp, from)
}

type silence struct{}

func (silence) Fetch(ctx context.Context, _ int, wait time.Duration) ([]pipeline.Record, error) {
	if err := pipeline.Sleep(ctx, wait); err != nil {
		return nil, err
	}
	return nil, nil
}

func (silence) Position() int64 { return 0 }
func (silence) Close() error    { return nil }

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
