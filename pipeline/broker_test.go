package pipeline_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

// delivery is one message that the broker was given for a client.
type delivery struct {
	To        event.ClientID
	Topic     string
	Payload   string
	QoS       event.QoS
	Remaining int
	Retained  bool
	Confirm   bool
	After     time.Duration // since the test began
	id        event.ID
	broker    event.ID // what the broker calls it, where it does
}

// broker is a broker whose clients acknowledge as the test wants it.
type broker struct {
	s     *stack
	began time.Time

	mu     sync.Mutex
	got    []delivery
	flight map[event.ClientID]int
	most   int // un-acked of one client at any time
	// ackAfter says how long after its delivery a client acknowledges, < 0 = never; nil = at once.
	ackAfter func(d delivery) time.Duration
	// answer is the broker's answer, nil = it takes everything.
	answer func(d delivery) (pipeline.Outcome, error)
	// renames has the broker give each replay an id of its own, by which it tells of the ack.
	renames bool
}

func newBroker(s *stack) *broker {
	return &broker{s: s, began: time.Now(), flight: make(map[event.ClientID]int)}
}

func (b *broker) Publish(_ context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := delivery{
		To: to, Topic: m.Topic.String(), Payload: string(m.Payload), QoS: m.QoS, Remaining: m.Remaining, Retained: m.Retained, Confirm: m.Confirm, After: time.Since(b.began), id: m.ID,
	}
	if b.answer != nil {
		if o, err := b.answer(d); err != nil || o.NoSubscriber {
			return o, err
		}
	}
	if b.renames {
		d.broker = b.s.head().ID
		b.s.put(event.Replayed{Head: b.s.head(), Topic: m.Topic, Client: to, Message: m.ID, BrokerID: d.broker})
	}
	b.got = append(b.got, d)
	b.flight[to]++
	b.most = max(b.most, b.flight[to])
	wait := time.Duration(0)
	if b.ackAfter != nil {
		wait = b.ackAfter(d)
	}
	if wait >= 0 {
		time.AfterFunc(wait, func() { b.ack(d) })
	}
	return pipeline.Outcome{}, nil
}

// ack lets the client acknowledge a delivery.
func (b *broker) ack(d delivery) {
	b.mu.Lock()
	b.flight[d.To]--
	b.mu.Unlock()
	e := event.Acked{Head: b.s.head(), Topic: eventtest.Topic(b.s.t, d.Topic), Client: d.To, Message: d.id, Replayed: true}
	if !d.broker.IsZero() {
		e.Message, e.BrokerID = event.ID{}, d.broker
	}
	b.s.put(e)
}

func (b *broker) deliveries() []delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

func (b *broker) behave(ackAfter func(delivery) time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ackAfter = ackAfter
}

// payloads are what the client got, in order.
func (b *broker) payloads(client event.ClientID) []string {
	var out []string
	for _, d := range b.deliveries() {
		if d.To == client {
			out = append(out, d.Payload)
		}
	}
	return out
}

// peak is the most un-acked messages of one client since the last call.
func (b *broker) peak() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	most := b.most
	b.most = 0
	return most
}

func never(delivery) time.Duration { return -1 }

// testReplays are limits without what only live sources need.
var testReplays = pipeline.ReplayLimits{
	Window: 16, Active: 100, Slice: 1000, AckTimeout: 30 * time.Second,
	Retry: []time.Duration{30 * time.Second, 2 * time.Minute, 10 * time.Minute},
	Reads: 64, ReadTarget: 100 * time.Millisecond,
	Page: 5, Patience: 3 * time.Second, PositionHold: time.Second, Lookups: 8, LookupPatience: 10 * time.Second, Drain: 10 * time.Second,
}

// replayer starts a replayer that delivers to b.
func (s *stack) replayer(b *broker, hook fakelog.Hook, change func(*pipeline.Replayer)) *process {
	return s.start(hook, func(ctx, work context.Context, c *fakelog.Client) error {
		tail := s.tail(c, nil)
		tctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = tail.Run(tctx) }) // it returns nil
		defer wg.Wait()
		defer cancel()
		producer := c.Producer()
		r := &pipeline.Replayer{
			Reader: c.Log(), Topics: topics, Group: replayGroup, Plan: s.rules.Plan,
			Sinks:     map[string]pipeline.ReplaySink{"s": {Store: s.store, Tail: tail}},
			Publisher: b, Producer: producer, Evidence: pipeline.EvidenceBroker, Minter: s.minter, Source: "restante/replayer",
			Limits: testReplays, Backoff: pipeline.DefaultBackoff, Metrics: s.metrics, Log: quiet, Now: time.Now,
			Dead: &pipeline.DeadLetters{
				Producer: producer, Topic: topics.Dead, Group: replayGroup, Component: "replayer", Backoff: pipeline.DefaultBackoff,
				Metrics: s.metrics, Log: quiet,
			},
		}
		if change != nil {
			change(r)
		}
		err := pipeline.Consume(ctx, work, c.Group(replayGroup, topics.Sessions), quiet, r.Own)
		_ = producer.Close(work)
		return err
	})
}

// keep publishes and stores, as if a writer had committed it.
func (s *stack) keep(topic, payload string) event.Published {
	m := s.publish(topic, payload)
	if err := s.store.Store.Apply(context.Background(), s.rules.ForSink("s")(m).Ops); err != nil {
		s.t.Fatal(err)
	}
	tp := s.messages(fakelog.Partition(topic, s.parts))
	s.cluster.Reset(writerGroup, tp, s.cluster.Span(tp).End)
	return m
}

func (s *stack) subscribe(client event.ClientID, filter string) {
	s.put(event.Subscribed{Head: s.head(), Client: client, Filter: eventtest.Filter(s.t, filter), QoS: 1})
}

func (s *stack) replayerAt() int64 {
	return s.cluster.Committed(replayGroup, pipeline.TP{Topic: topics.Sessions})
}

func (s *stack) sessionsEnd() int64 { return s.cluster.Span(pipeline.TP{Topic: topics.Sessions}).End }

// outcomes are how the replays ended, without zeros.
func (s *stack) outcomes() map[string]int {
	out := map[string]int{}
	for _, o := range []string{"complete", "partial", "empty", "aborted", "continued"} {
		if n := int(counterOf(s.t, s.metrics.ReplayRequests.WithLabelValues(o))); n > 0 {
			out[o] = n
		}
	}
	return out
}

// settled checks what must hold when all replays have ended: everything is committed, and no gauge is left.
func (s *stack) settled(t *testing.T) {
	t.Helper()
	time.Sleep(3 * time.Second)
	if s.replayerAt() != s.sessionsEnd() {
		t.Errorf("the replayer committed %d of %d", s.replayerAt(), s.sessionsEnd())
	}
	for name, g := range map[string]float64{
		"active": counterOf(t, s.metrics.ReplayActive), "un-acked": counterOf(t, s.metrics.ReplayUnacked),
		"parked for admission":  counterOf(t, s.metrics.ReplayParked.WithLabelValues("admission")),
		"parked for their acks": counterOf(t, s.metrics.ReplayParked.WithLabelValues("not_acking")),
	} {
		if g != 0 {
			t.Errorf("%v replays are %s at rest", g, name)
		}
	}
}
