package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

func TestADropThatIsToldInMidReplayComesWithThatReplay(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		lost := s.keep("t/1", "lost")
		s.acks("c", s.keep("t/1", "had"))
		time.Sleep(5 * time.Second)
		s.leaves("c")
		for i := range 40 {
			s.keep("t/1", fmt.Sprint(i))
		}
		b.behave(func(delivery) time.Duration { return time.Second })
		s.subscribe("c", "t/1")
		time.Sleep(1500 * time.Millisecond) // some are acknowledged, and others will be
		s.put(event.Dropped{Head: s.head(), Topic: lost.Topic, Client: "c", Message: lost.ID, Reason: "queue_full"})
		time.Sleep(time.Minute)
		if diff := cmp.Diff(append(numbers(40), "lost", "had"), b.payloads("c")); diff != "" { // and what came after it
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestADroppedDeliveryComesWithTheNextSubscribe(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "t/#")
		time.Sleep(5 * time.Second)
		var all []event.Published
		for i := range 4 {
			all = append(all, s.keep("t/1", fmt.Sprint(i)))
		}
		s.acks("c", all[0])
		s.put(event.Dropped{Head: s.head(), Topic: all[1].Topic, Client: "c", Message: all[1].ID, Reason: "queue_full"})
		s.acks("c", all[2])
		time.Sleep(5 * time.Second)
		s.put(event.Dropped{Head: s.head(), Topic: all[0].Topic, Client: "stranger", Message: all[0].ID, Reason: "queue_full"})
		s.acks("c", all[3])
		s.leaves("c")
		s.subscribe("c", "t/#")
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff([]string{"1"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if got := s.positions("stranger"); len(got) > 0 {
			t.Errorf("who never subscribed has positions: %v", got)
		}
		s.settled(t)
	})
}

// takesAWhile is a store that is slow to answer.
type takesAWhile struct{ sinks.Reader }

func (s takesAWhile) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	found, err := s.Reader.Messages(ctx, q)
	return found, errors.Join(err, pipeline.Sleep(ctx, time.Second))
}

func TestADropBehindTheLastLookOfAReplayIsNotForgotten(t *testing.T) {
	t.Parallel()
	story(t, pubsubRules(t, nil, "t/#"), func(r *pipeline.Replayer) {
		keepsPositions(r)
		at := r.Sinks["s"]
		at.Store = takesAWhile{at.Store}
		r.Sinks["s"] = at
		r.Limits.ClockSkew = 2 * time.Second
	}, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "t/1")
		time.Sleep(500 * time.Millisecond) // the replay has looked, and waits for the answer
		lost := s.keep("t/1", "lost")      // it belongs to the replay too, whose mark stands beyond it
		s.put(event.Dropped{Head: s.head(), Topic: lost.Topic, Client: "c", Message: lost.ID, Reason: "queue_full"})
		time.Sleep(time.Minute)
		s.acks("c", s.keep("t/1", "live"))
		time.Sleep(15 * time.Minute) // what was acknowledged is forgotten with the client
		s.leaves("c")
		s.subscribe("c", "t/1")
		time.Sleep(15 * time.Second)
		if diff := cmp.Diff([]string{"lost", "live"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

func TestALateDropLowersThePosition(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "t/#")
		time.Sleep(5 * time.Second)
		lost, had := s.keep("t/1", "lost"), s.keep("t/1", "had")
		s.acks("c", had)
		time.Sleep(15 * time.Minute) // what was acknowledged is forgotten with the client
		s.put(event.Dropped{Head: s.head(), Topic: lost.Topic, Client: "c", Message: lost.ID, Reason: "queue_full"})
		s.acks("c", s.keep("t/1", "live"))
		s.leaves("c")
		s.subscribe("c", "t/#")
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff([]string{"lost", "had"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
	})
}
