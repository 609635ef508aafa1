package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// retainRules store, delete and look up the retained messages below r.
func retainRules(t *testing.T) []pipeline.Rule {
	t.Helper()
	f := eventtest.Filter(t, "r/#")
	return append(queueRules(t, "t/#", nil),
		pipeline.Rule{Hook: pipeline.MessagePublish, Topic: f, Action: pipeline.OnMessageRetain, Sink: "s"},
		pipeline.Rule{Hook: pipeline.MessagePublish, Topic: f, Action: pipeline.OnRetainDelete, Sink: "s"},
		pipeline.Rule{Hook: pipeline.SessionSubscribed, Topic: f, Action: pipeline.OnRetainLookup, Sink: "s"})
}

// retaining is a story of a broker that retains nothing.
func retaining(t *testing.T, change func(*pipeline.Replayer), tell func(t *testing.T, s *stack, b *broker)) {
	t.Helper()
	story(t, retainRules(t), func(r *pipeline.Replayer) {
		r.Sinks["s"].Tail.Retained = true
		if change != nil {
			change(r)
		}
	}, tell)
}

// retain appends a retained publish, which an empty payload makes a deletion.
func (s *stack) retain(topic, payload string) event.Published {
	e := event.Published{Head: s.head(), Topic: eventtest.Topic(s.t, topic), Sender: "pub", QoS: 1, Retain: true, Payload: []byte(payload)}
	s.put(e)
	return e
}

// store applies an event as the writers do, and leaves their commit where it is.
func (s *stack) apply(e event.Event) {
	s.t.Helper()
	if err := s.store.Store.Apply(context.Background(), s.rules.ForSink("s")(e).Ops); err != nil {
		s.t.Fatal(err)
	}
}

// commit says that the writers have stored everything so far.
func (s *stack) commit() {
	s.cluster.Reset(writerGroup, s.messages(0), s.cluster.Span(s.messages(0)).End)
}

// took are the outcomes of lookups and messages, without zeros.
func (s *stack) took() map[string]int {
	out := map[string]int{}
	for _, o := range []string{"complete", "empty", "partial", "aborted"} {
		if n := int(counterOf(s.t, s.metrics.Retained.WithLabelValues(o))); n > 0 {
			out["lookup "+o] = n
		}
	}
	for _, o := range []string{"sent", "expired", "error", "live"} {
		if n := int(counterOf(s.t, s.metrics.RetainedSent.WithLabelValues(o))); n > 0 {
			out["message "+o] = n
		}
	}
	if n := counterOf(s.t, s.metrics.RetainedActive); n != 0 {
		s.t.Errorf("%v lookups of retained messages are active at rest", n)
	}
	return out
}

// TestTheNewestRetainedMessageOfStoreAndTailIsHandedOver: the later message wins by its id wherever the two stand, and so does a
// deletion.
func TestTheNewestRetainedMessageOfStoreAndTailIsHandedOver(t *testing.T) {
	t.Parallel()
	retaining(t, nil, func(t *testing.T, s *stack, b *broker) {
		for _, topic := range []string{"r/stored", "r/replaced", "r/deleted", "r/late", "r/late-delete"} {
			s.apply(s.retain(topic, topic+" 1"))
		}
		gone := s.head()
		s.apply(s.retain("r/late", "r/late 2"))
		s.apply(s.retain("r/late-delete", "r/late-delete 2"))
		s.apply(s.retain("r/gone", "x"))
		s.apply(s.retain("r/gone", ""))
		s.commit()
		time.Sleep(time.Minute)                         // beyond what is looked at below the commit
		s.apply(s.retain("r/replaced", "r/replaced 2")) // stored already, and in the tail too
		s.retain("r/deleted", "")
		s.retain("r/fresh", "r/fresh 1")
		s.retain("r/brief", "x")
		s.retain("r/brief", "")
		// Two ingest processes inverted these behind a later message of the store.
		s.put(event.Published{Head: gone, Topic: eventtest.Topic(t, "r/late"), QoS: 1, Retain: true, Payload: []byte("elder")})
		s.put(event.Published{Head: gone, Topic: eventtest.Topic(t, "r/late-delete"), QoS: 1, Retain: true, Payload: []byte{}})
		s.put(event.Published{Head: s.head(), Topic: eventtest.Topic(t, "r/plain"), QoS: 1, Payload: []byte("not retained")})
		s.subscribe("c", "r/+")
		time.Sleep(5 * time.Second)
		same(t, []string{"r/fresh 1", "r/late 2", "r/late-delete 2", "r/replaced 2", "r/stored 1"}, b.payloads("c"))
		same(t, map[string]int{"lookup complete": 1, "message sent": 5}, s.took())
		s.settled(t)
	})
}

// TestADeletionBelowTheCommitIsSeenInTheTail: an elder message that two ingest processes inverted behind it stands above the commit.
func TestADeletionBelowTheCommitIsSeenInTheTail(t *testing.T) {
	t.Parallel()
	retaining(t, nil, func(t *testing.T, s *stack, b *broker) {
		elder := s.head()
		s.apply(s.retain("r/1", ""))
		s.commit()
		s.put(event.Published{Head: elder, Topic: eventtest.Topic(t, "r/1"), QoS: 1, Retain: true, Payload: []byte("elder")})
		s.subscribe("c", "r/1")
		time.Sleep(5 * time.Second)
		same(t, []string(nil), b.payloads("c"))
		same(t, map[string]int{"lookup empty": 1}, s.took())
	})
}

func TestRetainedMessagesAreMarkedAndNeedNoAck(t *testing.T) {
	t.Parallel()
	retaining(t, func(r *pipeline.Replayer) { r.Limits.Window = 2 }, func(t *testing.T, s *stack, b *broker) {
		b.behave(never)
		for i := range 23 { // pages of 5
			e := event.Published{
				Head: s.head(), Topic: eventtest.Topic(t, fmt.Sprintf("r/%02d", i)), QoS: event.QoS(i % 3), Retain: true, Payload: fmt.Append(nil, i),
			}
			s.put(e)
			if i%4 > 0 {
				s.apply(e)
			}
		}
		s.subscribe("c", "r/#")
		s.put(event.Subscribed{Head: s.head(), Client: "zero", Filter: eventtest.Filter(t, "r/#"), QoS: 0})
		time.Sleep(5 * time.Second)
		for client, most := range map[event.ClientID]event.QoS{"c": 1, "zero": 0} {
			same(t, numbers(23), b.payloads(client))
			n := 0
			for _, d := range b.deliveries() {
				if d.To != client {
					continue
				}
				n++
				if want := min(event.QoS((n-1)%3), most); d.QoS != want || !d.Retained || (d.Remaining == 0) != (n == 23) {
					t.Errorf("message %d for %s: %+v, want QoS %d, retained, and remaining 0 at the end only", n, client, d, want)
				}
			}
		}
		same(t, map[string]int{"lookup complete": 2, "message sent": 46}, s.took())
		s.settled(t) // although nothing was acknowledged
	})
}

func TestRetainHandlingIsObeyed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		handling byte
		known    event.Known
		no       bool // the source does not tell options
		want     []string
	}{
		"always":                              {0, event.No, false, []string{"a"}},
		"new only, new":                       {1, event.Yes, false, []string{"a"}},
		"new only, not new":                   {1, event.No, false, nil},
		"new only, unknown":                   {1, event.Unknown, false, []string{"a"}},
		"never":                               {2, event.Yes, false, nil},
		"options that the source cannot tell": {0, event.No, true, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			retaining(t, nil, func(t *testing.T, s *stack, b *broker) {
				s.apply(s.retain("r/1", "a"))
				e := event.Subscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "r/1"), QoS: 1, New: c.known}
				if !c.no {
					e.Options = &event.SubOptions{RetainHandling: c.handling}
				}
				s.put(e)
				time.Sleep(time.Second)
				same(t, c.want, b.payloads("c"))
				s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "retain_handling")), float64(1-len(c.want)), "skipped")
				s.settled(t)
			})
		})
	}
}

func TestEachSubscribeLooksUpAnew(t *testing.T) {
	t.Parallel()
	retaining(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.retain("r/1", "a")
		s.subscribe("c", "r/1")
		time.Sleep(time.Second)
		s.subscribe("c", "r/1")
		time.Sleep(time.Second)
		s.put(event.Subscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "$share/g/r/1"), QoS: 1})
		time.Sleep(time.Second)
		same(t, []string{"a", "a"}, b.payloads("c"))
		s.settled(t)
	})
}

// TestWhatExpiresOrComesLiveIsNotHandedOver: a message that is published after the subscribe reaches the subscriber live.
func TestWhatExpiresOrComesLiveIsNotHandedOver(t *testing.T) {
	t.Parallel()
	retaining(t, func(r *pipeline.Replayer) { r.Limits.Settle = 10 * time.Second }, func(t *testing.T, s *stack, b *broker) {
		e := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "r/1"), QoS: 1, Retain: true, Payload: []byte("short"), Expiry: time.Minute}
		s.put(e)
		late := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "r/3"), QoS: 1, Retain: true, Payload: []byte("late")}
		s.retain("r/2", "a")
		time.Sleep(time.Minute)
		s.subscribe("c", "r/+")
		time.Sleep(5 * time.Second)
		s.put(late)
		s.retain("r/4", "live")
		s.retain("r/2", "live")
		time.Sleep(time.Minute)
		same(t, []string{"a", "late"}, b.payloads("c"))
		same(t, map[string]int{"lookup complete": 1, "message sent": 2, "message expired": 1, "message live": 2}, s.took())
		s.settled(t)
	})
}

func TestALookupOfRetainedMessagesEndsWithItsSubscription(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *stack){
		"disconnect": func(_ *testing.T, s *stack) { s.disconnect("c") },
		"reconnect":  func(_ *testing.T, s *stack) { s.connect("c", event.Yes) },
		"unsubscribe": func(t *testing.T, s *stack) {
			s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "r/+")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			retaining(t, nil, func(t *testing.T, s *stack, b *broker) {
				b.answer = func(delivery) (pipeline.Outcome, error) { return pipeline.Outcome{}, errDown }
				s.apply(s.retain("r/1", "a"))
				s.subscribe("c", "r/+")
				time.Sleep(time.Minute)
				if s.replayerAt() == s.sessionsEnd() {
					t.Error("committed before anything was handed over")
				}
				end(t, s)
				time.Sleep(10 * time.Second)
				b.mu.Lock()
				b.answer = nil
				b.mu.Unlock()
				time.Sleep(time.Minute)
				same(t, []string(nil), b.payloads("c"))
				same(t, map[string]int{"lookup aborted": 1}, s.took())
				s.settled(t)
			})
		})
	}
}

// TestTheNextOwnerRepeatsALookupOfRetainedMessages: what was not handed over is not committed.
func TestTheNextOwnerRepeatsALookupOfRetainedMessages(t *testing.T) {
	t.Parallel()
	retaining(t, nil, func(t *testing.T, s *stack, b *broker) {
		b.answer = func(d delivery) (pipeline.Outcome, error) {
			if d.Payload == "b" {
				return pipeline.Outcome{}, errDown
			}
			return pipeline.Outcome{}, nil
		}
		s.apply(s.retain("r/1", "a"))
		s.apply(s.retain("r/2", "b"))
		s.subscribe("c", "r/+")
		time.Sleep(10 * time.Second)
		s.cluster.Rebalance(replayGroup)
		time.Sleep(10 * time.Second)
		b.mu.Lock()
		b.answer = nil
		b.mu.Unlock()
		time.Sleep(time.Minute)
		same(t, []string{"a", "a", "b"}, b.payloads("c"))
		s.settled(t)
	})
}

func TestAStuckClientHoldsNoPlaceAndIsGivenUpAtLast(t *testing.T) {
	t.Parallel()
	var stuck stuckFor
	retaining(t, func(r *pipeline.Replayer) {
		r.Limits.Active = 1
		stuck.Publisher, stuck.client = r.Publisher, "stuck"
		r.Publisher = &stuck
	}, func(t *testing.T, s *stack, b *broker) {
		s.apply(s.retain("r/1", "a"))
		s.subscribe("stuck", "r/1")
		s.subscribe("c", "r/1")
		time.Sleep(31 * time.Second) // the ack time-out
		same(t, []string{"a"}, b.payloads("c"))
		time.Sleep(20 * time.Minute)
		same(t, map[string]int{"lookup complete": 1, "lookup partial": 1, "message sent": 1}, s.took())
		s.settled(t)
	})
}

// stuckFor takes nothing for one client.
type stuckFor struct {
	pipeline.Publisher
	client event.ClientID
}

func (p *stuckFor) Publish(ctx context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	if to != p.client {
		return p.Publisher.Publish(ctx, to, m)
	}
	<-ctx.Done()
	return pipeline.Outcome{}, context.Cause(ctx)
}

func TestARetainedMessageThatCannotBeDeliveredHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	retaining(t, nil, func(t *testing.T, s *stack, b *broker) {
		b.answer = func(d delivery) (pipeline.Outcome, error) {
			switch d.Payload {
			case "0":
				return pipeline.Outcome{}, fault.Poison(errors.New("too large"))
			case "1":
				return pipeline.Outcome{}, pipeline.ErrExpired
			}
			return pipeline.Outcome{NoSubscriber: d.To == "gone"}, nil
		}
		for i := range 4 {
			s.apply(s.retain(fmt.Sprintf("r/%d", i), fmt.Sprint(i)))
		}
		s.subscribe("c", "r/+")
		time.Sleep(time.Second)
		same(t, []string{"2", "3"}, b.payloads("c"))
		same(t, map[string]int{"lookup complete": 1, "message sent": 2, "message error": 1, "message expired": 1}, s.took())
		s.subscribe("gone", "r/+")
		time.Sleep(time.Second)
		same(t, 1, s.took()["lookup partial"])
		s.settled(t)
	})
}

// TestALaggingWriterHidesNoRetainedMessage: a tail that cannot be read to its end means a look more.
func TestALaggingWriterHidesNoRetainedMessage(t *testing.T) {
	t.Parallel()
	retaining(t, func(r *pipeline.Replayer) { r.Sinks["s"].Tail.Budget = 2000 }, func(t *testing.T, s *stack, b *broker) {
		s.apply(s.retain("r/1", "stored"))
		s.apply(s.retain("r/2", "only"))
		s.commit()
		for i := range 5100 {
			s.publish("t/noise", fmt.Sprint(i))
		}
		s.retain("r/1", "last")
		s.subscribe("c", "r/+")
		time.Sleep(time.Minute)
		same(t, []string{"stored", "only"}, b.payloads("c"))
		s.writer(testLimits, nil) // it catches up
		time.Sleep(30 * time.Second)
		same(t, []string{"stored", "only", "last"}, b.payloads("c"))
		same(t, map[string]int{"lookup complete": 1, "message sent": 3}, s.took())
		s.settled(t)
	})
}
