package pipeline_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// stuck is a publisher whose first call returns only when it is let go, cancelled or not: a write into a dead connection.
type stuck struct {
	pipeline.Publisher
	first chan struct{} // holds one token
	let   chan struct{}
}

func (p *stuck) Publish(ctx context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	o, err := p.Publisher.Publish(ctx, to, m)
	select {
	case <-p.first:
		<-p.let
	default:
	}
	return o, err
}

func TestAnEarlierConnectionKeepsNothingFromTheNextOne(t *testing.T) {
	t.Parallel()
	p := &stuck{}
	change := func(r *pipeline.Replayer) { p.Publisher, r.Publisher = r.Publisher, p }
	var got []string
	story(t, nil, change, func(t *testing.T, s *stack, b *broker) {
		p.first, p.let = make(chan struct{}, 1), make(chan struct{})
		p.first <- struct{}{}
		s.keep("t/1", "a")
		s.keep("t/1", "b")
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		b.behave(nil)
		s.put(event.Connected{Head: s.head(), Client: "c", ConnectedAt: time.Now()})
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		got = b.payloads("c")
		close(p.let)
		time.Sleep(5 * time.Second)
		s.settled(t)
	})
	if diff := cmp.Diff([]string{"a", "a", "b"}, got); diff != "" {
		t.Errorf("the first connection got one message and acked none (-want +got):\n%s", diff)
	}
}

func TestWhatAnotherReplayGaveUpIsSentByTheOneThatIsLeft(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "a")
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		s.subscribe("c", "t/+")
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"a"}, b.payloads("c")); diff != "" {
			t.Errorf("while it is on its way (-want +got):\n%s", diff)
		}
		b.behave(nil)
		s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "t/1")})
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"a", "a"}, b.payloads("c")); diff != "" {
			t.Errorf("after its replay was cancelled (-want +got):\n%s", diff)
		}
		s.settled(t)
	})
}

// The window is full when the second replay wants to send what the first has on its way: it has looked before the ack came.
func TestAMessageAckedWhileAnotherReplayWaitsForRoomIsNotSentAgain(t *testing.T) {
	t.Parallel()
	story(t, nil, func(r *pipeline.Replayer) { r.Limits.Window = 1 }, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "a")
		s.keep("t/1", "b")
		b.behave(func(delivery) time.Duration { return time.Second })
		s.subscribe("c", "t/1")
		s.subscribe("c", "t/+")
		time.Sleep(10 * time.Second)
		if diff := cmp.Diff([]string{"a", "b"}, b.payloads("c")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		s.settled(t)
	})
}

// late is a publisher whose first call takes a second before anything is sent.
type late struct {
	pipeline.Publisher
	first chan struct{} // holds one token
}

func (p *late) Publish(ctx context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	select {
	case <-p.first:
		time.Sleep(time.Second)
	default:
	}
	return p.Publisher.Publish(ctx, to, m)
}

// Two subscriptions of a client match the topic, and the replay of one is slow with its first message.
func TestATopicKeepsItsOrderUnderTwoReplays(t *testing.T) {
	t.Parallel()
	p := &late{}
	change := func(r *pipeline.Replayer) { p.Publisher, r.Publisher = r.Publisher, p }
	story(t, nil, change, func(t *testing.T, s *stack, b *broker) {
		p.first = make(chan struct{}, 1)
		p.first <- struct{}{}
		for i := range 10 {
			s.keep("t/1", fmt.Sprint(i))
		}
		s.subscribe("c", "t/1")
		time.Sleep(300 * time.Millisecond)
		s.subscribe("c", "t/+")
		time.Sleep(10 * time.Second)
		if diff := cmp.Diff(numbers(10), b.payloads("c")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		s.settled(t)
	})
}
