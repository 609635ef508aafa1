package pipeline_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// TestAWildcardReturnsTheNewestOfAllItsTopics: the limit is one of the replay, whichever topics the newest are of, in store and tail.
func TestAWildcardReturnsTheNewestOfAllItsTopics(t *testing.T) {
	t.Parallel()
	rules := queueRules(t, "t/#", func(r *pipeline.Rule) { r.MaxReturned, r.Wildcards = 7, new(true) })
	story(t, rules, func(r *pipeline.Replayer) { r.Limits.Settle, r.Limits.Slice = 10*time.Second, 3 }, func(t *testing.T, s *stack, b *broker) {
		var all []string
		for i := range 40 {
			topic := fmt.Sprintf("t/%d", i*i%6)
			if all = append(all, fmt.Sprint(i)); i%8 != 0 {
				s.keep(topic, fmt.Sprint(i))
			} else {
				s.apply(s.publish(topic, fmt.Sprint(i)))
			}
		}
		fresh := s.publish("t/9", "fresh")
		acked := s.publish("t/3", "acked")
		s.ack("c", acked)
		s.subscribe("c", "t/+")
		time.Sleep(time.Minute)
		got := b.deliveries()
		slices.SortFunc(got, func(a, b delivery) int { return a.id.Compare(b.id) })
		var payloads []string
		for _, d := range got {
			payloads = append(payloads, d.Payload)
		}
		same(t, append(all[34:], string(fresh.Payload)), payloads)
		s.counter(counterOf(t, s.metrics.ReplayMessages.WithLabelValues("left_out")), 34, "left out")
		same(t, map[string]int{"complete": 1}, s.outcomes())
		s.settled(t)
	})
}

// TestWhatALimitLeavesOutIsCounted: once a replay, and not what the time range leaves out.
func TestWhatALimitLeavesOutIsCounted(t *testing.T) {
	t.Parallel()
	rules := queueRules(t, "t/#", func(r *pipeline.Rule) { r.MaxReturned, r.TimeRange = 3, time.Hour })
	story(t, rules, func(r *pipeline.Replayer) { r.Limits.Settle = 10 * time.Second }, func(t *testing.T, s *stack, b *broker) {
		s.writer(testLimits, nil)
		s.publish("t/1", "too old")
		time.Sleep(2 * time.Hour)
		for i := range 20 {
			s.publish("t/1", fmt.Sprint(i))
		}
		time.Sleep(5 * time.Second) // the writer stores them
		s.subscribe("c", "t/1")
		time.Sleep(time.Minute)
		same(t, []string{"17", "18", "19"}, b.payloads("c"))
		s.counter(counterOf(t, s.metrics.ReplayMessages.WithLabelValues("left_out")), 17, "left out")
		same(t, append([]string{"too old"}, numbers(17)...), s.store.payloads(t, "t/1"))
		s.subscribe("c", "t/1") // they are there for the next subscribe
		time.Sleep(time.Minute)
		same(t, []string{"14", "15", "16"}, b.payloads("c")[3:])
		s.counter(counterOf(t, s.metrics.ReplayMessages.WithLabelValues("left_out")), 17+14, "left out")
		s.settled(t)
	})
}

// TestAnExpiredMessageTakesNoPlaceOfTheNewest: neither its own expiry nor the rule's ttl.
func TestAnExpiredMessageTakesNoPlaceOfTheNewest(t *testing.T) {
	t.Parallel()
	rules := queueRules(t, "t/#", func(r *pipeline.Rule) { r.MaxReturned, r.TTL = 2, 10*time.Minute })
	story(t, rules, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "too old")
		time.Sleep(9 * time.Minute)
		s.keep("t/1", "a")
		s.keep("t/1", "b")
		for range 3 { // in the tail
			s.put(event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("x"), Expiry: time.Minute})
		}
		time.Sleep(2 * time.Minute)
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		same(t, []string{"a", "b"}, b.payloads("c"))
		s.settled(t)
	})
}

// TestHistoryIsNeverReplayed: what on_message_store keeps is there for whoever reads the store, from the store and from the tail.
func TestHistoryIsNeverReplayed(t *testing.T) {
	t.Parallel()
	rules := append(queueRules(t, "t/#", func(r *pipeline.Rule) { r.Wildcards = new(true) }),
		pipeline.Rule{Hook: pipeline.MessagePublish, Topic: eventtest.Filter(t, "h/#"), Action: pipeline.OnMessageStore, Sink: "s"},
		pipeline.Rule{Hook: pipeline.SessionSubscribed, Topic: eventtest.Filter(t, "h/#"), Action: pipeline.OnMessageFetchForQueue, Sink: "s", Wildcards: new(true)})
	story(t, rules, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("h/1", "stored")
		s.publish("h/1", "fresh")
		s.keep("t/1", "pending")
		s.subscribe("c", "#")
		s.subscribe("c", "h/1")
		time.Sleep(time.Second)
		same(t, []string{"pending"}, b.payloads("c"))
		s.settled(t)
	})
}
