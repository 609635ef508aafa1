package pipeline_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

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
					Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("a"),
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
			Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("a"),
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
