package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

func counterOf(t testing.TB, c prometheus.Collector) float64 {
	t.Helper()
	return testutil.ToFloat64(c)
}

// numbers are "0" to n-1 as text.
func numbers(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// story runs a test of the replayer in a bubble.
func story(t *testing.T, rules []pipeline.Rule, change func(*pipeline.Replayer), tell func(t *testing.T, s *stack, b *broker), prepare ...func(*stack)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1, rules...)
		for _, p := range prepare {
			p(s)
		}
		b := newBroker(s)
		s.replayer(b, nil, change)
		time.Sleep(time.Second)
		b.began = time.Now()
		tell(t, s, b)
	})
}

func TestStoredAndFreshMessagesAreReplayedOnceOldestFirst(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		var both []event.Published
		for i := range 20 {
			both = append(both, s.keep("t/1", fmt.Sprint(i)))
		}
		s.cluster.Reset(writerGroup, s.messages(0), 15) // 15 to 19 are stored, and in the tail too
		for i := range 10 {
			s.publish("t/1", fmt.Sprint(20+i))
		}
		s.ack("c", both[17])
		s.subscribe("c", "t/1")
		s.publish("t/1", "after the subscribe")
		time.Sleep(5 * time.Second)
		want := slices.DeleteFunc(numbers(30), func(p string) bool { return p == "17" })
		if diff := cmp.Diff(want, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]int{"complete": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestARefillingWriterChangesNothing(t *testing.T) {
	t.Parallel()
	for name, delay := range map[string]time.Duration{"quick": 0, "2 s a batch": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
				s.store.set(func(ctx context.Context, _ []sinks.Op, apply func() error) error {
					if err := pipeline.Sleep(ctx, delay); err != nil {
						return err
					}
					return apply()
				})
				l := testLimits
				l.Hold = 100 * time.Millisecond
				s.writer(l, nil)
				for i := range 50 {
					topic := fmt.Sprintf("t/%d", i)
					for j := range i % 4 {
						s.publish(topic, fmt.Sprint(j))
						time.Sleep(50 * time.Millisecond)
					}
					client := event.ClientID(fmt.Sprint("c", i))
					s.subscribe(client, topic)
					time.Sleep(time.Second)
					if diff := cmp.Diff(numbers(i%4), b.payloads(client)); diff != "" {
						t.Fatalf("client %d:\n%s", i, diff)
					}
				}
				time.Sleep(time.Minute)
				for i := range 50 {
					if got := s.store.payloads(t, fmt.Sprintf("t/%d", i)); len(got) > 0 {
						t.Errorf("still stored of topic %d: %v", i, got)
					}
				}
				s.settled(t)
			})
		})
	}
}

// Half of what the client takes at a time is for live messages.
func TestTheWindowIsHalfOfTheReceiveMaximum(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for _, c := range []struct {
			receive uint16
			want    int
		}{{8, 4}, {0, 16}, {1, 1}, {3, 1}, {20, 10}, {65535, 16}} {
			s.put(event.Connected{Head: s.head(), Client: "c", ConnectedAt: time.Now(), ReceiveMaximum: c.receive})
			for i := range 40 {
				s.keep("t/1", fmt.Sprint(i))
			}
			b.peak()
			b.behave(func(delivery) time.Duration { return 100 * time.Millisecond })
			s.subscribe("c", "t/1")
			time.Sleep(time.Minute)
			synctest.Wait()
			if most := b.peak(); most != c.want {
				t.Errorf("up to %d messages were un-acked at a receive maximum of %d, want %d", most, c.receive, c.want)
			}
		}
		s.settled(t)
	})
}

// The window gets narrow while messages are on their way, which a connection that was taken over has left.
func TestAWindowThatGetsNarrowStaysSo(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 60 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(func(delivery) time.Duration { return 2 * time.Second })
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		if most := b.peak(); most != 16 {
			t.Fatalf("%d messages were un-acked, want 16", most)
		}
		// It comes late, from another node: the replay goes on.
		s.put(event.Connected{Head: event.Head{ID: s.minter.Mint(), Source: "restante/test", At: time.Now().Add(-time.Minute)}, Client: "c", ReceiveMaximum: 8})
		time.Sleep(3 * time.Second)
		b.peak()
		time.Sleep(time.Minute)
		synctest.Wait()
		if most := b.peak(); most > 4 {
			t.Errorf("up to %d messages were un-acked, want 4", most)
		}
		if diff := cmp.Diff(numbers(60), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestTheWindowIsNeverExceeded(t *testing.T) {
	t.Parallel()
	for _, window := range []int{1, 3, 16} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			t.Parallel()
			story(t, nil, func(r *pipeline.Replayer) { r.Limits.Window = window }, func(t *testing.T, s *stack, b *broker) {
				for i := range 40 {
					s.keep("t/1", fmt.Sprint(i))
					s.keep("t/2", fmt.Sprint(i))
				}
				b.behave(func(delivery) time.Duration { return 100 * time.Millisecond })
				s.subscribe("c", "t/1")
				s.subscribe("c", "t/2")
				time.Sleep(time.Minute)
				synctest.Wait()
				if most := b.peak(); most != window {
					t.Errorf("up to %d messages were un-acked, want %d", most, window)
				}
				if got := len(b.deliveries()); got != 80 {
					t.Errorf("%d were delivered, want 80", got)
				}
				s.settled(t)
			})
		})
	}
}

func TestRemainingIsZeroExactlyOnceAtTheEnd(t *testing.T) {
	t.Parallel()
	for _, topics := range []int{1, 3, 100} {
		t.Run(fmt.Sprint(topics), func(t *testing.T) {
			t.Parallel()
			story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
				const each = 12
				for i := range each {
					for n := range topics {
						s.keep(fmt.Sprintf("t/%03d", n), fmt.Sprint(i))
					}
				}
				s.subscribe("c", "t/+")
				time.Sleep(10 * time.Second)
				got := b.deliveries()
				if len(got) != each*topics {
					t.Fatalf("%d were delivered, want %d", len(got), each*topics)
				}
				for i, d := range got {
					if (d.Remaining == 0) != (i == len(got)-1) || d.Remaining < 0 || d.Remaining > len(got)-1-i {
						t.Errorf("message %d of %d says that %d follow", i+1, len(got), d.Remaining)
					}
				}
			})
		})
	}
}

func TestAFewMessagesAreCountedDown(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 4 {
			s.keep("t/1", fmt.Sprint(i))
		}
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		var got []int
		for _, d := range b.deliveries() {
			got = append(got, d.Remaining)
		}
		if diff := cmp.Diff([]int{3, 2, 1, 0}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAWildcardTakesTopicsInTurn(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for _, topic := range []string{"t/1", "t/2", "t/3", "t/4/x"} {
			for i := range 3 {
				s.keep(topic, fmt.Sprintf("%s#%d", topic, i))
			}
		}
		s.publish("t/0", "fresh") // in the tail only
		s.publish("t/9", "fresh")
		s.subscribe("c", "t/+")
		time.Sleep(time.Second)
		want := []string{"fresh", "t/1#0", "t/2#0", "t/3#0", "fresh", "t/1#1", "t/2#1", "t/3#1", "t/1#2", "t/2#2", "t/3#2"}
		if diff := cmp.Diff(want, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestManyTopicsOfStoreAndTailEachComeOnce(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 23 {
			topic := fmt.Sprintf("t/%02d", i)
			if i%3 != 0 {
				s.keep(topic, topic)
			}
		}
		at := s.writerAt(0)
		for i := range 23 {
			topic := fmt.Sprintf("t/%02d", i)
			if i%3 != 1 {
				s.publish(topic, topic+" fresh")
			}
		}
		s.cluster.Reset(writerGroup, s.messages(0), at)
		s.subscribe("c", "t/#")
		time.Sleep(5 * time.Second)
		var want []string
		for i := range 23 {
			topic := fmt.Sprintf("t/%02d", i)
			if i%3 != 0 {
				want = append(want, topic)
			}
			if i%3 != 1 {
				want = append(want, topic+" fresh")
			}
		}
		got := b.payloads("c")
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestTheNewestComeOldestFirst(t *testing.T) {
	t.Parallel()
	rules := queueRules(t, "t/#", func(r *pipeline.Rule) { r.MaxReturned = 7 })
	story(t, rules, func(r *pipeline.Replayer) { r.Limits.Settle, r.Limits.Slice = 10*time.Second, 3 }, func(t *testing.T, s *stack, b *broker) {
		for i := range 30 {
			s.keep("t/1", fmt.Sprint(i))
		}
		acked := s.publish("t/1", "acked")
		s.ack("c", acked)
		for i := range 3 {
			s.publish("t/1", fmt.Sprint(30+i))
		}
		s.subscribe("c", "t/1")
		time.Sleep(time.Minute)
		if diff := cmp.Diff([]string{"26", "27", "28", "29", "30", "31", "32"}, b.payloads("c")); diff != "" {
			t.Errorf("neither a later look nor a slice may go on below the newest 7:\n%s", diff)
		}
		s.settled(t)
	})
}

func TestFewerThanTheNewestLeaveRoomForLateOnes(t *testing.T) {
	t.Parallel()
	rules := queueRules(t, "t/#", func(r *pipeline.Rule) { r.MaxReturned = 7 })
	story(t, rules, func(r *pipeline.Replayer) { r.Limits.Settle = 10 * time.Second }, func(t *testing.T, s *stack, b *broker) {
		late := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("late")}
		s.keep("t/1", "a")
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		s.put(late)
		time.Sleep(time.Minute)
		if diff := cmp.Diff([]string{"a", "late"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTimeRangeAndExpiryLeaveOut(t *testing.T) {
	t.Parallel()
	rules := queueRules(t, "t/#", func(r *pipeline.Rule) { r.TimeRange, r.TTL = 2*time.Hour, 24*time.Hour })
	story(t, rules, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "too old")
		time.Sleep(3 * time.Hour)
		s.keep("t/1", "in range")
		e := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 2, Payload: []byte("expires"), Expiry: time.Minute}
		s.put(e)
		time.Sleep(2 * time.Minute)
		s.publish("t/1", "fresh")
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"in range", "fresh"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.counter(counterOf(t, s.metrics.ReplayMessages.WithLabelValues("expired")), 1, "expired")
	})
}

func TestTheQoSIsTheLowerOfTheTwo(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 3 {
			s.put(event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: event.QoS(i), Payload: fmt.Append(nil, i)})
		}
		for _, q := range []event.QoS{2, 1, 0} {
			b.behave(never)
			s.put(event.Subscribed{Head: s.head(), Client: event.ClientID(fmt.Sprint("c", q)), Filter: eventtest.Filter(t, "t/1"), QoS: q})
			time.Sleep(time.Second)
		}
		got := map[event.ClientID][]event.QoS{}
		for _, d := range b.deliveries() {
			got[d.To] = append(got[d.To], d.QoS)
		}
		if diff := cmp.Diff(map[event.ClientID][]event.QoS{"c2": {1, 2}, "c1": {1, 1}}, got); diff != "" {
			t.Error(diff)
		}
		s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "qos0")), 1, "skipped")
	})
}

func TestNobodyThereLeavesTheMessagesStored(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 5 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.answer = func(d delivery) (pipeline.Outcome, error) {
			return pipeline.Outcome{NoSubscriber: d.Payload == "2"}, nil
		}
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"0", "1"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]int{"partial": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
		s.writer(testLimits, nil)
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff([]string{"2", "3", "4"}, s.store.payloads(t, "t/1")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAPublishThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 5 {
			s.keep("t/1", fmt.Sprint(i))
		}
		began := time.Now()
		b.answer = func(d delivery) (pipeline.Outcome, error) {
			switch {
			case d.Payload == "1":
				return pipeline.Outcome{}, fault.Poison(errors.New("packet too large"))
			case d.Payload == "3":
				return pipeline.Outcome{}, pipeline.ErrExpired
			case time.Since(began) < 5*time.Minute:
				return pipeline.Outcome{}, errDown
			}
			return pipeline.Outcome{}, nil
		}
		s.subscribe("c", "t/1")
		time.Sleep(4 * time.Minute)
		if s.replayerAt() == s.sessionsEnd() {
			t.Error("committed before anything was delivered")
		}
		time.Sleep(2 * time.Minute)
		if diff := cmp.Diff([]string{"0", "2", "4"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}
