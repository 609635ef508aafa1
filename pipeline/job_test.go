package pipeline_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// afters are when the client got a payload, rounded to seconds.
func (b *broker) afters(payload string) []int {
	var out []int
	for _, d := range b.deliveries() {
		if d.Payload == payload {
			out = append(out, int(d.After.Round(time.Second)/time.Second))
		}
	}
	return out
}

func TestAClientThatDoesNotAckIsParkedAndTriedAgainThenGivenUp(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "a")
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(45 * time.Second)
		s.counter(counterOf(t, s.metrics.ReplayParked.WithLabelValues("not_acking")), 1, "parked")
		s.counter(counterOf(t, s.metrics.ReplayActive), 0, "active while parked")
		time.Sleep(time.Hour)
		// 30 s for the ack, then pauses of 30 s, 2 min and 10 min, each followed by 30 s for the ack.
		if diff := cmp.Diff([]int{0, 60, 210, 840}, b.afters("a")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]int{"partial": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"a"}, s.store.payloads(t, "t/1")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestALateAckUnparksAndNothingComesTwice(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Limits.Window = 4 }, func(t *testing.T, s *stack, b *broker) {
		for i := range 10 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(50 * time.Second)
		b.behave(nil)
		for _, d := range b.deliveries() { // the client wakes up
			b.ack(d)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff(numbers(10), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]int{"complete": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestAMessageAckedWhileItsClientIsParkedIsNotSentAgain(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "a")
		s.keep("t/1", "b")
		b.behave(func(d delivery) time.Duration {
			if d.Payload == "b" {
				return 0
			}
			return -1
		})
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Minute)
		if got := b.afters("b"); len(got) != 1 {
			t.Errorf("an acknowledged message was sent at %v", got)
		}
		if got := b.afters("a"); len(got) < 2 {
			t.Errorf("an un-acked message was sent at %v only", got)
		}
	})
}

func TestWhatEndsAReplay(t *testing.T) {
	t.Parallel()
	head := func(s *stack, back time.Duration) event.Head {
		h := s.head()
		h.At = h.At.Add(-back)
		return h
	}
	cases := map[string]struct {
		then func(s *stack)
		ends bool
	}{
		"its client disconnects": {func(s *stack) {
			s.put(event.Disconnected{Head: s.head(), Client: "c", Reason: "normal"})
		}, true},
		"its connection ends": {func(s *stack) {
			s.put(event.Connected{Head: head(s, 30*time.Second), Client: "c", ConnectedAt: time.Now().Add(-30 * time.Second)})
			s.put(event.Disconnected{Head: s.head(), Client: "c", Reason: "normal", ConnectedAt: time.Now().Add(-30 * time.Second)})
		}, true},
		"another client disconnects": {func(s *stack) {
			s.put(event.Disconnected{Head: s.head(), Client: "d", Reason: "normal"})
		}, false},
		"an older connection ends": {func(s *stack) {
			s.put(event.Connected{Head: head(s, 30*time.Second), Client: "c", ConnectedAt: time.Now().Add(-30 * time.Second)})
			s.put(event.Disconnected{Head: s.head(), Client: "c", Reason: "takenover", ConnectedAt: time.Now().Add(-time.Hour)})
		}, false},
		"an older connection ends, of unknown time": {func(s *stack) {
			s.put(event.Disconnected{Head: s.head(), Client: "c", Reason: "takenover"})
		}, false},
		"a disconnect from before the subscribe is late": {func(s *stack) {
			s.put(event.Disconnected{Head: head(s, time.Minute), Client: "c", Reason: "normal"})
		}, false},
		"it unsubscribes": {func(s *stack) {
			s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(s.t, "t/1")})
		}, true},
		"it unsubscribes from something else": {func(s *stack) {
			s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(s.t, "t/+")})
		}, false},
		"it connects anew": {func(s *stack) {
			s.put(event.Connected{Head: s.head(), Client: "c", ConnectedAt: time.Now()})
		}, true},
		"the connect from before the subscribe is late": {func(s *stack) {
			s.put(event.Connected{Head: head(s, time.Minute), Client: "c", ConnectedAt: time.Now().Add(-time.Minute)})
		}, false},
	}
	for name, c := range cases {
		for how, slice := range map[string]int{"while it runs": 1000, "between two slices": 4} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				story(t, nil, func(r *pipeline.Replayer) { r.Limits.Window, r.Limits.Slice = 2, slice }, func(t *testing.T, s *stack, b *broker) {
					for i := range 20 {
						s.keep("t/1", fmt.Sprint(i))
					}
					b.behave(func(delivery) time.Duration { return 5 * time.Second })
					s.subscribe("c", "t/1")
					time.Sleep(6 * time.Second)
					if slice < 1000 {
						time.Sleep(3 * time.Second) // the acks that end the first slice are near
						b.behave(func(delivery) time.Duration { return 0 })
					}
					c.then(s)
					b.behave(func(delivery) time.Duration { return 0 })
					time.Sleep(time.Minute)
					got := b.payloads("c")
					if c.ends && len(got) > 6 {
						t.Errorf("it went on: %v", got)
					}
					if diff := cmp.Diff(numbers(20), got); !c.ends && diff != "" {
						t.Errorf("it did not go on as if nothing had been:\n%s", diff)
					}
					s.settled(t)
				})
			})
		}
	}
}

func TestASubscribeAfterTheEndBeginsANewReplay(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 3 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		s.put(event.Disconnected{Head: s.head(), Client: "c", Reason: "normal"})
		time.Sleep(time.Second)
		b.behave(nil)
		s.put(event.Connected{Head: s.head(), Client: "c", ConnectedAt: time.Now()})
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		if diff := cmp.Diff(append(numbers(3), numbers(3)...), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]int{"aborted": 1, "complete": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestTheSameFilterAgainRaisesTheBoundAndAddsAPass(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 3 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(func(delivery) time.Duration { return 10 * time.Second })
		s.subscribe("c", "t/1")
		time.Sleep(2 * time.Second)
		s.keep("t/1", "3") // dropped by the broker, say
		s.subscribe("c", "t/1")
		time.Sleep(2 * time.Second)
		s.put(event.Disconnected{Head: event.Head{ID: s.minter.Mint(), Source: "x", At: time.Now().Add(-3 * time.Second)}, Client: "c", Reason: "normal"})
		time.Sleep(time.Minute)
		if diff := cmp.Diff(numbers(4), b.payloads("c")); diff != "" {
			t.Errorf("the late disconnect is older than the second subscribe:\n%s", diff)
		}
		if diff := cmp.Diff(map[string]int{"complete": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestATopicOfTwoFiltersIsSentOnce(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		for i := range 10 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(func(delivery) time.Duration { return 100 * time.Millisecond })
		s.subscribe("c", "t/1")
		s.subscribe("c", "t/+")
		s.subscribe("c", "#")
		time.Sleep(time.Minute)
		got := b.payloads("c")
		slices.Sort(got)
		if diff := cmp.Diff(numbers(10), got); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestSlicesHandOnAndContinueExactly(t *testing.T) {
	t.Parallel()
	for name, topicCount := range map[string]int{"one topic": 1, "many topics": 7} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story(t, nil, func(r *pipeline.Replayer) { r.Limits.Slice = 10 }, func(t *testing.T, s *stack, b *broker) {
				var want []string
				for i := range 42 {
					s.keep(fmt.Sprintf("t/%d", i%topicCount), fmt.Sprint(i))
					want = append(want, fmt.Sprint(i))
				}
				b.behave(func(delivery) time.Duration { return 200 * time.Millisecond })
				s.subscribe("c", "t/+")
				time.Sleep(time.Minute)
				got := b.payloads("c")
				if topicCount > 1 {
					slices.Sort(got)
					slices.Sort(want)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(map[string]int{"complete": 1, "continued": 4}, s.outcomes()); diff != "" {
					t.Error(diff)
				}
				for i, d := range b.deliveries() {
					if (d.Remaining == 0) != (i == len(want)-1) {
						t.Errorf("message %d of %d says that %d follow", i+1, len(want), d.Remaining)
					}
				}
				s.settled(t)
			})
		})
	}
}

func TestASliceGoesOnWhenRulesWerePutInAnotherOrder(t *testing.T) {
	t.Parallel()
	before := queueRules(t, "t/#", nil)
	after := append(queueRules(t, "u/#", nil), before...)
	change := func(r *pipeline.Replayer) {
		r.Limits.Slice = 4
		old, now := r.Plan, compile(t, after...).Plan
		r.Plan = func(e event.Event) pipeline.Plan {
			if _, ok := e.(event.ReplayContinued); ok {
				return now(e)
			}
			return old(e)
		}
	}
	story(t, before, change, func(t *testing.T, s *stack, b *broker) {
		for i := range 6 {
			s.keep("t/1", fmt.Sprint(i))
		}
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff(numbers(6), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestASliceIsHandedOnOnlyWithItsWindowDrained(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Limits.Slice = 4 }, func(t *testing.T, s *stack, b *broker) {
		for i := range 6 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(50 * time.Second)
		if diff := cmp.Diff(numbers(4), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		b.ack(b.deliveries()[0])
		time.Sleep(time.Second)
		if got := s.outcomes(); len(got) > 0 {
			t.Fatalf("%v with three messages un-acked", got)
		}
		b.behave(nil)
		for _, d := range b.deliveries()[1:] {
			b.ack(d)
		}
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff(numbers(6), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestReplaysBeyondTheLimitAreParkedAndReadingGoesOn(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Limits.Active, r.Limits.Window = 2, 1 }, func(t *testing.T, s *stack, b *broker) {
		for i := range 10 {
			for j := range 3 {
				s.keep(fmt.Sprintf("t/%d", i), fmt.Sprint(j))
			}
		}
		b.behave(func(delivery) time.Duration { return time.Second })
		for i := range 10 {
			s.subscribe(event.ClientID(fmt.Sprint("c", i)), fmt.Sprintf("t/%d", i))
		}
		time.Sleep(500 * time.Millisecond)
		s.counter(counterOf(t, s.metrics.ReplayActive), 2, "active")
		s.counter(counterOf(t, s.metrics.ReplayParked.WithLabelValues("admission")), 8, "parked")
		time.Sleep(time.Minute) // each ack stands behind all subscribes in the partition
		if got := len(b.deliveries()); got != 30 {
			t.Errorf("%d were delivered, want 30", got)
		}
		s.settled(t)
	})
}

func TestParkedClientsDoNotKeepOthersOut(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Limits.Active, r.Limits.Settle = 2, 10*time.Second }, func(t *testing.T, s *stack, b *broker) {
		b.behave(func(d delivery) time.Duration {
			if d.To == "good" {
				return 0
			}
			return -1
		})
		for i := range 2 {
			s.keep(fmt.Sprintf("t/%d", i), "x")
			s.subscribe(event.ClientID(fmt.Sprint("bad", i)), fmt.Sprintf("t/%d", i))
		}
		s.keep("t/good", "x")
		time.Sleep(40 * time.Second)
		s.subscribe("good", "t/good")
		time.Sleep(time.Second)
		if len(b.payloads("good")) != 1 {
			t.Error("two parked clients keep a third one out")
		}
	})
}

func TestALastLookFollowsAfterSettle(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Limits.Settle, r.Limits.ClockSkew = 10*time.Second, 2*time.Second }, func(t *testing.T, s *stack, b *broker) {
		late := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("late")}
		again := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("later")}
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		s.subscribe("c", "t/1")
		time.Sleep(4 * time.Second)
		s.put(late)
		time.Sleep(3 * time.Second) // 12 s after the first subscribe, 7 s after the second
		s.put(again)
		time.Sleep(30 * time.Second)
		if diff := cmp.Diff([]string{"late", "later"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestASubscribeThatComesWhileAClientIsBeingGivenUpIsServed(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "a")
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(14*time.Minute + 10*time.Second) // sent for the last time: 30 s for each ack, and 30 s, 2 min, 10 min between
		s.subscribe("c", "t/1")
		b.behave(nil)
		time.Sleep(3 * time.Minute)
		got := b.payloads("c")
		if len(got) != 5 {
			t.Errorf("sent %d times, want four times to the silent client and once more for its later subscribe", len(got))
		}
		s.settled(t)
	})
}
