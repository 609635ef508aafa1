package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

// intake is an Ingest on the stack's log, whose partitions can be slow.
type intake struct {
	*pipeline.Ingest
	s        *stack
	producer pipeline.Producer
	client   *fakelog.Client

	mu    sync.Mutex
	slow  map[string]time.Duration // by topic: how long a batch takes to land
	ctx   context.Context          //nolint:containedctx // of Run, for the test
	end   context.CancelFunc
	kill  context.CancelFunc
	ended chan struct{}
}

func startIngest(s *stack) *intake {
	in := &intake{s: s, client: s.cluster.Client(), slow: make(map[string]time.Duration), ended: make(chan struct{})}
	in.client.Landing = func(tp pipeline.TP, _ int) (time.Duration, int) {
		in.mu.Lock()
		defer in.mu.Unlock()
		return in.slow[tp.Topic], 1
	}
	in.producer = in.client.Producer()
	in.Ingest = pipeline.NewIngest(pipeline.Ingest{
		Producer: in.producer, Topics: topics, Rules: s.rules, Minter: s.minter, MaxPayload: 100,
		Metrics: s.metrics, Log: quiet, Now: time.Now,
	})
	var work context.Context
	in.ctx, in.end = context.WithCancel(context.Background())
	work, in.kill = context.WithCancel(context.Background())
	go func() { // ends with ctx
		defer close(in.ended)
		if err := in.Run(in.ctx, work); err != nil {
			s.t.Error(err)
		}
	}()
	s.t.Cleanup(func() {
		in.end()
		<-in.ended
		in.kill()
	})
	return in
}

func (in *intake) slowDown(topic string, d time.Duration) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.slow[topic] = d
}

func (in *intake) accept(t *testing.T, e event.Event) pipeline.Receipt {
	t.Helper()
	r, err := in.Accept(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (in *intake) message(topic, payload string) event.Published {
	return event.Published{Topic: eventtest.Topic(in.s.t, topic), Sender: "pub", QoS: 1, Payload: []byte(payload)}
}

func (in *intake) session(client event.ClientID) event.Subscribed {
	return event.Subscribed{Client: client, Filter: eventtest.Filter(in.s.t, "t/1"), QoS: 1}
}

func isDone(r pipeline.Receipt) bool {
	synctest.Wait()
	select {
	case <-r.Done():
		return true
	default:
		return false
	}
}

// held counts the records of a topic, over all its partitions.
func (s *stack) held(topic string, parts int) int {
	n := 0
	for i := range parts {
		n += len(s.cluster.Records(pipeline.TP{Topic: topic, Part: i}))
	}
	return n
}

func TestAReceiptIsDoneWhenTheEventIsDurable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		in.slowDown(topics.Messages, 10*time.Second)
		r := in.accept(t, in.message("t/1", "a"))
		time.Sleep(9 * time.Second)
		if isDone(r) {
			t.Error("done before it is durable")
		}
		s.counter(counterOf(t, s.metrics.IngestUnacked), 1, "un-acked")
		time.Sleep(2 * time.Second)
		if !isDone(r) || r.Err() != nil || s.held(topics.Messages, 1) != 1 {
			t.Error("not done although it is durable")
		}
		s.counter(counterOf(t, s.metrics.IngestUnacked), 0, "un-acked")
		e, err := event.Decode(event.Messages, s.cluster.Records(s.messages(0))[0].Wire)
		if err != nil || e.Meta().ID.IsZero() || e.Meta().At.IsZero() {
			t.Errorf("%v, %v: without an id or a time", e, err)
		}
	})
}

func TestTheCopyOfAnAckFollowsItsOriginal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		in.slowDown(topics.Messages, 10*time.Second)
		in.slowDown(topics.Sessions, 10*time.Second)
		r := in.accept(t, event.Acked{Topic: eventtest.Topic(t, "t/1"), Client: "c", Message: s.head().ID, Replayed: true})
		var seen []string
		for range 3 {
			seen = append(seen, fmt.Sprint(s.held(topics.Messages, 1), s.held(topics.Sessions, 1), isDone(r)))
			time.Sleep(11 * time.Second)
		}
		if diff := cmp.Diff([]string{"0 0 false", "1 0 false", "1 1 true"}, seen); diff != "" {
			t.Error(diff)
		}
		r = in.accept(t, event.Acked{Topic: eventtest.Topic(t, "t/1"), Client: "c", Message: s.head().ID})
		time.Sleep(30 * time.Second)
		if !isDone(r) || s.held(topics.Messages, 1) != 2 || s.held(topics.Sessions, 1) != 1 {
			t.Error("the ack of a live delivery in queue mode goes to messages only")
		}
	})
}

func TestAWatchedAckGoesToBothTopics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1, ruleSets(t)["pubsub"]...)
		in := startIngest(s)
		in.accept(t, event.Acked{Topic: eventtest.Topic(t, "t/1"), Client: "c", Message: s.head().ID})
		time.Sleep(time.Second)
		if s.held(topics.Messages, 1) != 1 || s.held(topics.Sessions, 1) != 1 {
			t.Error("the ack of a pub/sub topic goes to messages and sessions")
		}
	})
}

func TestASessionEventFollowsEveryEarlierMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 4)
		in := startIngest(s)
		in.accept(t, in.session("before"))
		time.Sleep(time.Second)
		in.slowDown(topics.Messages, time.Hour) // the partition stalls
		m := in.accept(t, in.message("t/1", "a"))
		first := in.accept(t, in.session("c"))
		second := in.accept(t, in.session("d"))
		time.Sleep(59 * time.Minute)
		if isDone(m) || isDone(first) || s.held(topics.Sessions, 1) != 1 {
			t.Errorf("%d session events are in the log before the message", s.held(topics.Sessions, 1))
		}
		time.Sleep(2 * time.Minute)
		if !isDone(m) || !isDone(first) || !isDone(second) {
			t.Error("something is still not durable")
		}
		var order []string
		for _, r := range s.cluster.Records(pipeline.TP{Topic: topics.Sessions}) {
			order = append(order, string(r.Key))
		}
		if diff := cmp.Diff([]string{"before", "c", "d"}, order); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWhatIsNotWantedIsCountedAndAcknowledged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		own := in.message("t/1", "a replay of ours")
		own.Sender = "restante-replay-0"
		qos0 := in.message("t/1", "a")
		qos0.QoS = 0
		for name, c := range map[string]struct {
			event  event.Event
			reason string
		}{
			"no rule":                  {in.message("u/1", "a"), "no_rule"},
			"QoS 0":                    {qos0, "qos0"},
			"a message of ours":        {own, "own_client"},
			"a subscribe of ours":      {in.session("restante-ingest-0"), "own_client"},
			"an ack of ours":           {event.Acked{Topic: eventtest.Topic(t, "t/1"), Client: "restante-x", Message: s.head().ID}, "own_client"},
			"a disconnect of ours":     {event.Disconnected{Client: "restante-x"}, "own_client"},
			"what the source refuses":  {nil, "invalid"},
			"another that it refuses ": {nil, "own_client"},
		} {
			before := counterOf(t, s.metrics.IngestDropped.WithLabelValues(c.reason))
			if c.event == nil {
				in.Refuse(c.reason)
			} else if r, err := in.Accept(t.Context(), c.event); r != nil || err != nil {
				t.Errorf("%s: %v, %v; want neither receipt nor error", name, r, err)
			}
			s.counter(counterOf(t, s.metrics.IngestDropped.WithLabelValues(c.reason))-before, 1, name)
		}
		time.Sleep(time.Second)
		if n := s.held(topics.Messages, 1) + s.held(topics.Sessions, 1); n != 0 {
			t.Errorf("%d of them are in the log", n)
		}
	})
}

func TestAnOversizeMessageIsWholeInTheDeadLetters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		ok := in.accept(t, in.message("t/1", fmt.Sprintf("%100d", 1)))
		over := in.accept(t, in.message("t/1", fmt.Sprintf("%101d", 1)))
		time.Sleep(time.Second)
		if !isDone(ok) || !isDone(over) || s.held(topics.Messages, 1) != 1 || len(s.dead()) != 1 {
			t.Fatalf("%d messages, %d dead letters; want 1 and 1", s.held(topics.Messages, 1), len(s.dead()))
		}
		d := s.dead()[0]
		if len(d.Value) != 101 || string(d.Key) != "t/1" || header(d, pipeline.HeaderDeadReason) != "oversize" ||
			header(d, pipeline.HeaderDeadBy) != "ingest" || header(d, pipeline.HeaderDeadTopic) != topics.Messages ||
			header(d, pipeline.HeaderDeadError) != "payload of 101 bytes is over the limit of 100" || header(d, "ce_id") == "" {
			t.Errorf("dead letter %v", d)
		}
	})
}

func TestAnAppendThatFailsIsAnErrorOfAccept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		in.client.Hook = func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpAppend {
				return fakelog.Verdict{Err: errDown}
			}
			return fakelog.Verdict{}
		}
		if r, err := in.Accept(t.Context(), in.message("t/1", "a")); !errors.Is(err, errDown) || r != nil {
			t.Errorf("%v, %v", r, err)
		}
		// The session event is appended later: its receipt tells.
		r := in.accept(t, in.session("c"))
		time.Sleep(time.Second)
		if !isDone(r) || !errors.Is(r.Err(), errDown) {
			t.Error("the receipt of a session event that was not appended tells no error")
		}
	})
}

func TestAtTheEndWhatWasTakenIsDurable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 2)
		in := startIngest(s)
		in.slowDown(topics.Messages, 3*time.Second)
		in.slowDown(topics.Sessions, 3*time.Second)
		var taken []pipeline.Receipt
		for i := range 10 {
			taken = append(taken, in.accept(t, in.message(fmt.Sprintf("t/%d", i), "a")), in.accept(t, in.session("c")))
		}
		in.end()
		<-in.ended
		for i, r := range taken {
			if !isDone(r) || r.Err() != nil {
				t.Errorf("event %d was taken and is not durable", i)
			}
		}
		if n, m := s.held(topics.Messages, 2), s.held(topics.Sessions, 1); n != 10 || m != 10 {
			t.Errorf("%d messages and %d session events are in the log, want 10 and 10", n, m)
		}
		if _, err := in.Accept(t.Context(), in.session("c")); err == nil {
			t.Error("something was taken after the end")
		}
	})
}

func TestWhatIsInsideAcceptAtTheEndIsTakenOrRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		in.client.Hook = func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpAppend && c.TP.Topic == topics.Messages {
				time.Sleep(5 * time.Second)
			}
			return fakelog.Verdict{}
		}
		fate := make(chan error, 1)
		go func() {
			r, err := in.Accept(t.Context(), event.Acked{Topic: eventtest.Topic(t, "t/1"), Client: "c", Message: s.head().ID, Replayed: true})
			if err == nil {
				err = pipeline.Wait(t.Context(), r)
			}
			fate <- err
		}()
		time.Sleep(time.Second)
		in.end()
		<-in.ended
		if err := <-fate; err != nil || s.held(topics.Sessions, 1) != 1 {
			t.Errorf("%v, %d in sessions; want it durable", err, s.held(topics.Sessions, 1))
		}
	})
}

func TestWhenTimeIsOverWhatIsLeftIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		in := startIngest(s)
		in.slowDown(topics.Messages, time.Hour)
		m := in.accept(t, in.message("t/1", "a"))
		c := in.accept(t, in.session("c"))
		in.end()
		time.Sleep(20 * time.Second)
		in.kill()
		<-in.ended
		if isDone(m) {
			t.Error("a message is acknowledged that is not durable")
		}
		if !isDone(c) || c.Err() == nil {
			t.Error("a session event that will never be appended is not refused")
		}
	})
}
