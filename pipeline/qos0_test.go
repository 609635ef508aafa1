package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// atQoS0 is a story in which subscribes at QoS 0 get what q says.
func atQoS0(t *testing.T, q pipeline.QoS0, rules []pipeline.Rule, change func(*pipeline.Replayer), tell func(t *testing.T, s *stack, b *broker)) {
	t.Helper()
	story(t, rules, change, func(t *testing.T, s *stack, b *broker) {
		b.behave(never)
		tell(t, s, b)
	}, func(s *stack) { s.rules = s.rules.WithQoS0(q) })
}

func (s *stack) subscribeAt(client event.ClientID, filter string, qos event.QoS, known event.Known) {
	s.put(event.Subscribed{Head: s.head(), Client: client, Filter: eventtest.Filter(s.t, filter), QoS: qos, New: known})
}

// TestASubscribeAtQoS0GetsWhatTheConfigurationSays: with skip nothing, with repeat all that is stored each time, with once what the
// broker takes, which is removed.
func TestASubscribeAtQoS0GetsWhatTheConfigurationSays(t *testing.T) {
	t.Parallel()
	all := append(numbers(25), numbers(25)...)
	for q, c := range map[pipeline.QoS0]struct {
		got, left []string
		outcomes  map[string]int
		skipped   float64
	}{
		pipeline.QoS0Skip:   {nil, numbers(25), map[string]int{}, 2},
		"":                  {nil, numbers(25), map[string]int{}, 2},
		pipeline.QoS0Repeat: {all, numbers(25), map[string]int{"complete": 2}, 0},
		pipeline.QoS0Once:   {numbers(25), nil, map[string]int{"continued": 2, "complete": 1, "empty": 1}, 0},
	} {
		t.Run(string(q), func(t *testing.T) {
			t.Parallel()
			atQoS0(t, q, nil, func(r *pipeline.Replayer) {
				r.Limits.Window, r.Limits.Slice, r.Limits.ResumeDelay = 3, 10, time.Hour
			}, func(t *testing.T, s *stack, b *broker) {
				s.writer(testLimits, nil)
				for i := range 25 {
					s.publish("t/1", fmt.Sprint(i))
				}
				time.Sleep(5 * time.Second)                                    // the writer stores them
				for _, known := range []event.Known{event.Unknown, event.No} { // a broker keeps nothing at QoS 0
					s.subscribeAt("c", "t/1", 0, known)
					time.Sleep(5 * time.Second)
				}
				same(t, c.got, b.payloads("c"))
				for _, d := range b.deliveries() {
					if d.QoS != 0 || d.Confirm != (q == pipeline.QoS0Once) {
						t.Fatalf("sent %+v", d)
					}
				}
				same(t, c.left, s.store.payloads(t, "t/1"))
				same(t, c.outcomes, s.outcomes())
				s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "qos0")), c.skipped, "skipped")
				s.settled(t)
			})
		})
	}
}

// TestOnceKeepsWhatTheBrokerDidNotTake: nobody was there, or the replayer ended before it could note it.
func TestOnceKeepsWhatTheBrokerDidNotTake(t *testing.T) {
	t.Parallel()
	atQoS0(t, pipeline.QoS0Once, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.writer(testLimits, nil)
		for i := range 4 {
			s.publish("t/1", fmt.Sprint(i))
		}
		time.Sleep(5 * time.Second)
		b.answer = func(d delivery) (pipeline.Outcome, error) {
			return pipeline.Outcome{NoSubscriber: d.Payload == "2"}, nil
		}
		s.subscribeAt("c", "t/1", 0, event.Yes)
		time.Sleep(5 * time.Second)
		same(t, []string{"2", "3"}, s.store.payloads(t, "t/1"))
		same(t, map[string]int{"partial": 1}, s.outcomes())
		s.settled(t)
	})
}

// TestARepeatTakesNothingFromAReplayThatCounts: a message that went out at QoS 0 is not delivered for the other subscription of the client.
func TestARepeatTakesNothingFromAReplayThatCounts(t *testing.T) {
	t.Parallel()
	atQoS0(t, pipeline.QoS0Repeat, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.writer(testLimits, nil)
		s.publish("t/1", "a")
		time.Sleep(5 * time.Second)
		b.behave(func(d delivery) time.Duration {
			if d.QoS == 0 {
				return -1
			}
			return 0
		})
		s.subscribeAt("c", "t/1", 0, event.Yes)
		s.subscribeAt("c", "t/+", 1, event.Yes)
		time.Sleep(5 * time.Second)
		same(t, []string(nil), s.store.payloads(t, "t/1"))
		n := 0
		for _, d := range b.deliveries() {
			n += int(d.QoS)
		}
		same(t, 1, n)
		s.settled(t)
	})
}

// TestASubscribeAtAnotherQoSEndsTheReplayOfTheFilter: it takes the place of the subscription, and what goes out at QoS 0 is never
// acknowledged. The replay must neither go on nor hold up those of other filters.
func TestASubscribeAtAnotherQoSEndsTheReplayOfTheFilter(t *testing.T) {
	t.Parallel()
	for q, c := range map[pipeline.QoS0]struct {
		sent     map[event.QoS]int // of topic t/1
		left     []string          // of that
		outcomes map[string]int
	}{
		pipeline.QoS0Skip:   {map[event.QoS]int{1: 1}, numbers(3), map[string]int{"aborted": 1, "complete": 1}},
		pipeline.QoS0Repeat: {map[event.QoS]int{1: 1, 0: 3}, numbers(3), map[string]int{"aborted": 1, "complete": 2}},
		pipeline.QoS0Once:   {map[event.QoS]int{1: 1, 0: 3}, nil, map[string]int{"aborted": 1, "complete": 2}},
	} {
		t.Run(string(q), func(t *testing.T) {
			t.Parallel()
			atQoS0(t, q, nil, func(r *pipeline.Replayer) { r.Limits.Window = 1 }, func(t *testing.T, s *stack, b *broker) {
				s.writer(testLimits, nil)
				for i := range 3 {
					s.publish("t/1", fmt.Sprint(i))
				}
				s.publish("t/2", "other")
				time.Sleep(5 * time.Second)
				b.behave(func(d delivery) time.Duration {
					if d.Topic == "t/1" {
						return -1
					}
					return 0
				})
				s.subscribeAt("c", "t/1", 1, event.Yes)
				time.Sleep(time.Second)
				s.subscribeAt("c", "t/1", 0, event.Unknown)
				s.subscribeAt("c", "t/2", 1, event.Yes)
				time.Sleep(10 * time.Second)
				sent := map[event.QoS]int{}
				for _, d := range b.deliveries() {
					if d.Topic == "t/1" {
						sent[d.QoS]++
					}
				}
				same(t, c.sent, sent)
				same(t, c.left, s.store.payloads(t, "t/1"))
				same(t, []string(nil), s.store.payloads(t, "t/2"))
				same(t, c.outcomes, s.outcomes())
				s.settled(t)
			})
		})
	}
}
