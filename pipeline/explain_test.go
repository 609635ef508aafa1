package pipeline_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// explained is what a subscribe would get by one rule.
type explained struct {
	pipeline.Explained
	Skipped string
	Topics  map[string]pipeline.ExplainedTopic
}

// explain asks what a subscribe at QoS 1 would get now, by each rule.
func (s *stack) explain(client event.ClientID, filter string, change func(*pipeline.Replayer, *pipeline.Explaining)) []explained {
	c := s.cluster.Client()
	tail := s.tail(c, func(t *pipeline.Tail) { t.Retained = s.rules.LooksUpRetained("s") })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tail.Run(ctx) }) // it returns nil
	defer wg.Wait()
	defer cancel()
	var all []explained
	e := event.Subscribed{Head: s.head(), Client: client, Filter: eventtest.Filter(s.t, filter), QoS: 1}
	for _, f := range s.rules.Fetches(e) {
		at := explained{Skipped: f.Skipped, Topics: map[string]pipeline.ExplainedTopic{}}
		r := &pipeline.Replayer{
			Reader: c.Log(), Topics: topics, Group: replayGroup, Plan: s.rules.Plan, Sinks: map[string]pipeline.ReplaySink{"s": {Store: s.store, Tail: tail}},
			Minter: s.minter, Limits: testReplays, Backoff: pipeline.DefaultBackoff, Metrics: newMetrics(), Log: quiet, Now: time.Now,
		}
		x := pipeline.Explaining{Found: func(t pipeline.ExplainedTopic) error {
			if _, twice := at.Topics[t.Topic.String()]; twice {
				s.t.Errorf("%s is told twice", t.Topic)
			}
			at.Topics[t.Topic.String()] = t
			return nil
		}}
		if change != nil {
			change(r, &x)
		}
		if f.Skipped == "" {
			var err error
			if at.Explained, err = r.Explain(ctx, f.Replay, e, x); err != nil {
				s.t.Fatal(err)
			}
		}
		all = append(all, at)
	}
	return all
}

// TestWhatIsExplainedIsReplayed: whatever has happened before, a subscribe gets as much of each topic as was said just before it.
func TestWhatIsExplainedIsReplayed(t *testing.T) {
	t.Parallel()
	fetches := func(change func(*pipeline.Rule)) func(*pipeline.Rule) {
		return func(r *pipeline.Rule) {
			if r.Action == pipeline.OnMessageFetchForQueue || r.Action == pipeline.OnMessageFetchForPubsub {
				change(r)
			}
		}
	}
	queue := func(change func(*pipeline.Rule)) []pipeline.Rule {
		return queueRules(t, "t/#", func(r *pipeline.Rule) {
			r.Wildcards = new(true)
			change(r)
		})
	}
	worlds := map[string][]pipeline.Rule{
		"queue":              queue(func(*pipeline.Rule) {}),
		"addressee":          queue(func(r *pipeline.Rule) { r.Addressee = "t/{clientid}" }),
		"max_returned_count": queue(func(r *pipeline.Rule) { r.MaxReturned = 4 }),
		"time_range":         queue(func(r *pipeline.Rule) { r.TimeRange = 11 * time.Second }),
		"pubsub":             pubsubRules(t, nil, "t/#"),
		"pubsub first all":   pubsubRules(t, fetches(func(r *pipeline.Rule) { r.First = pipeline.FirstAll }), "t/#"),
		"pubsub first 1m":    pubsubRules(t, fetches(func(r *pipeline.Rule) { r.First = time.Minute }), "t/#"),
	}
	var mu sync.Mutex
	left, sent := map[pipeline.LeftOut]int{}, 0
	t.Run("worlds", func(t *testing.T) {
		for name, rules := range worlds {
			for seed := range uint64(12) {
				t.Run(fmt.Sprintf("%s %d", name, seed), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						s := newStack(t, 1, rules...)
						b := newBroker(s)
						old := s.replayer(b, nil, keepsPositions)
						rng := rand.New(rand.NewPCG(seed, 3))
						limits := testLimits
						limits.Hold = 5 * time.Second // part of what there is lies behind the store
						s.writer(limits, nil)
						var all []event.Published
						what := func(n int) {
							topic, payload := fmt.Sprintf("t/%d", rng.IntN(3)), fmt.Sprint(n)
							switch rng.IntN(9) {
							case 0, 1, 2, 3:
								all = append(all, s.publish(topic, payload))
							case 4:
								e := event.Published{Head: s.head(), Topic: eventtest.Topic(t, topic), QoS: 1, Payload: []byte(payload), Expiry: time.Duration(1+rng.IntN(90)) * time.Second}
								s.put(e)
								all = append(all, e)
							case 5, 6:
								if len(all) > 0 {
									s.acks("1", all[rng.IntN(len(all))])
								}
							case 7:
								s.subscribe("1", []string{"t/#", "t/1", "t/+"}[rng.IntN(3)])
								time.Sleep(10 * time.Second)
								s.put(event.Disconnected{Head: s.head(), Client: "1", Reason: "normal"})
								time.Sleep(500 * time.Millisecond)
							case 8:
								time.Sleep(time.Duration(rng.IntN(20))*time.Second + 300*time.Millisecond)
							}
						}
						for n := range 30 {
							what(n)
						}
						for n := range 6 { // some that are stored and acknowledged, and one that has just died
							all = append(all, s.publish("t/1", fmt.Sprint("late ", n)))
							time.Sleep(3 * time.Second)
						}
						s.put(event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("dies"), Expiry: 2 * time.Second})
						time.Sleep(2500 * time.Millisecond)
						what(100)
						if err := old.stop(); err != nil { // what is acknowledged now, the next owner hears
							t.Error(err)
						}
						s.acks("1", all[len(all)-6])
						s.publish("t/1", "last")
						filter := []string{"t/#", "t/1", "t/+"}[rng.IntN(3)]
						records := len(s.cluster.Records(s.messages(0))) + int(s.sessionsEnd())
						x := s.explain("1", filter, nil)[0]
						if now := len(s.cluster.Records(s.messages(0))) + int(s.sessionsEnd()); now != records {
							t.Errorf("an explanation appended something: there are %d records, and were %d", now, records)
						}
						before := len(b.deliveries())
						s.subscribe("1", filter)
						s.replayer(b, nil, keepsPositions)
						time.Sleep(20 * time.Second)
						want, got := map[string]int{}, map[string]int{}
						for _, d := range b.deliveries()[before:] {
							want[d.Topic]++
						}
						mu.Lock()
						defer mu.Unlock()
						for topic, e := range x.Topics {
							if e.Excluded == "" && e.Messages > 0 {
								got[topic] = e.Messages
							}
							sent += e.Messages
							for why, n := range e.Left {
								left[why] += n
							}
						}
						if diff := cmp.Diff(want, got); diff != "" || !x.Complete {
							t.Errorf("subscribe to %s (-replayed +explained):\n%s", filter, diff)
						}
					})
				})
			}
		}
	})
	t.Logf("%d messages; left out: %v", sent, left)
	for _, why := range []pipeline.LeftOut{pipeline.LeftAcked, pipeline.LeftExpired, pipeline.LeftPosition, pipeline.LeftAge, pipeline.LeftCount} {
		if left[why] == 0 {
			t.Errorf("nothing was left out because of %s: that shows nothing", why)
		}
	}
	if sent == 0 {
		t.Error("nothing was sent: that shows nothing")
	}
}

func TestEachReasonIsNamed(t *testing.T) {
	t.Parallel()
	rules := queueRules(t, "t/#", func(r *pipeline.Rule) {
		r.Wildcards, r.MaxReturned, r.TimeRange, r.Addressee = new(true), 2, time.Hour, "t/{clientid}/#"
	})
	story(t, rules, nil, func(t *testing.T, s *stack, _ *broker) {
		s.keep("t/dev", "too old")
		time.Sleep(2 * time.Hour)
		dies := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/dev"), QoS: 1, Payload: []byte("dies"), Expiry: time.Minute}
		s.keep("t/dev", "one too many")
		acked := s.keep("t/dev", "acknowledged")
		s.keep("t/dev", "12345")
		s.put(dies)
		s.keep("t/other", "for another")
		time.Sleep(2 * time.Minute)
		s.publish("t/dev/x", "123")
		s.ack("dev", acked)
		x := s.explain("dev", "#", nil)[0]
		dev := x.Topics["t/dev"]
		if diff := cmp.Diff(map[pipeline.LeftOut]int{pipeline.LeftAge: 1, pipeline.LeftCount: 1, pipeline.LeftAcked: 1}, dev.Left); diff != "" {
			t.Errorf("left out (-want +got):\n%s", diff)
		}
		if dev.Messages != 1 || dev.Bytes != 5 || dev.Excluded != "" || dev.Oldest != dev.Newest || dev.Oldest.IsZero() {
			t.Errorf("of t/dev: %+v", dev)
		}
		if deep := x.Topics["t/dev/x"]; deep.Messages != 1 || deep.Bytes != 3 {
			t.Errorf("of t/dev/x: %+v", deep)
		}
		if other := x.Topics["t/other"]; other.Excluded != pipeline.ExcludedAddressee || other.Messages != 1 {
			t.Errorf("of t/other: %+v", other)
		}
		for filter, why := range map[string]string{"$share/g/t/#": pipeline.SkipShared} {
			if x := s.explain("dev", filter, nil)[0]; x.Skipped != why {
				t.Errorf("%s: skipped because of %q, want %q", filter, x.Skipped, why)
			}
		}
		if x := s.explain("restante-1", "t/#", nil)[0]; x.Skipped != pipeline.SkipIgnoredClient {
			t.Errorf("our own connection: skipped because of %q", x.Skipped)
		}
		few := s.explain("dev", "#", func(r *pipeline.Replayer, x *pipeline.Explaining) { x.Most = 1; r.Limits.Page = 1 })[0].Topics["t/other"]
		if few.AtLeast || few.Messages != 1 {
			t.Errorf("one of one: %+v", few)
		}
		s.keep("t/other", "one more")
		if few = s.explain("dev", "#", func(_ *pipeline.Replayer, x *pipeline.Explaining) { x.Most = 1 })[0].Topics["t/other"]; !few.AtLeast || few.Messages != 1 {
			t.Errorf("one of two: %+v", few)
		}
	})
}

// TestNothingIsCountedTwice: what lies behind the store and below a floor as well.
func TestNothingIsCountedTwice(t *testing.T) {
	t.Parallel()
	story(t, queueRules(t, "t/#", func(r *pipeline.Rule) { r.TimeRange = time.Hour }), nil, func(t *testing.T, s *stack, _ *broker) {
		s.publish("t/1", "too old")
		time.Sleep(2 * time.Hour)
		s.publish("t/1", "new")
		x := s.explain("dev", "t/1", nil)[0].Topics["t/1"]
		if diff := cmp.Diff(map[pipeline.LeftOut]int{pipeline.LeftAge: 1}, x.Left); diff != "" || x.Messages != 1 {
			t.Errorf("%d messages; left out (-want +got):\n%s", x.Messages, diff)
		}
	})
}

func TestRetainedMessagesAreExplained(t *testing.T) {
	t.Parallel()
	rules := []pipeline.Rule{
		{Hook: pipeline.MessagePublish, Action: pipeline.OnMessageRetain, Sink: "s", Topic: eventtest.Filter(t, "#")},
		{Hook: pipeline.MessagePublish, Action: pipeline.OnRetainDelete, Sink: "s", Topic: eventtest.Filter(t, "#")},
		{Hook: pipeline.SessionSubscribed, Action: pipeline.OnRetainLookup, Sink: "s", Topic: eventtest.Filter(t, "#")},
	}
	story(t, rules, nil, func(t *testing.T, s *stack, _ *broker) {
		for i, p := range []string{"12345", "", "1", "dies"} {
			e := event.Published{Head: s.head(), Topic: eventtest.Topic(t, []string{"r/1", "r/2", "r/2", "r/3"}[i]), QoS: 1, Retain: true, Payload: []byte(p)}
			if p == "dies" {
				e.Expiry = time.Minute
			}
			s.put(e)
			if i == 0 { // one is in the store, the others are behind it
				if err := s.store.Store.Apply(t.Context(), []sinks.Op{sinks.PutRetained{Message: sinks.Message{ID: e.ID, Topic: e.Topic, QoS: 1, Retain: true, Payload: e.Payload, Arrived: e.At}}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(2 * time.Minute)
		x := s.explain("dev", "r/#", nil)[0]
		got := map[string]int{}
		for topic, e := range x.Topics {
			got[topic] = e.Bytes
		}
		if diff := cmp.Diff(map[string]int{"r/1": 5, "r/2": 1, "r/3": 0}, got); diff != "" || x.Topics["r/3"].Left[pipeline.LeftExpired] != 1 || !x.Complete {
			t.Errorf("retained (-want +got):\n%s%+v", diff, x)
		}
	})
}

// TestWhatLiesBeyondTheBudgetIsSaidToBeMissing: an explanation is not complete where a replay would have to look again.
func TestWhatLiesBeyondTheBudgetIsSaidToBeMissing(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, _ *broker) {
		const n = 6000 // nobody writes, and one fetch does not give all
		for range n {
			s.publish("t/1", strings.Repeat("x", 200))
		}
		if x := s.explain("dev", "t/1", nil)[0]; x.Complete || x.Topics["t/1"].Messages == 0 || x.Topics["t/1"].Messages >= n {
			t.Errorf("complete: %v, %d messages", x.Complete, x.Topics["t/1"].Messages)
		}
	})
}

func TestAnExplanationGivesUp(t *testing.T) {
	t.Parallel()
	story(t, nil, nil, func(t *testing.T, s *stack, _ *broker) {
		tail := s.tail(s.cluster.Client(), nil) // nobody runs it, so it never answers
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		r := &pipeline.Replayer{
			Reader: s.cluster.Client().Log(), Topics: topics, Group: replayGroup, Plan: s.rules.Plan,
			Sinks:  map[string]pipeline.ReplaySink{"s": {Store: brokenReader{}, Tail: tail}},
			Minter: s.minter, Limits: testReplays, Backoff: pipeline.DefaultBackoff, Metrics: newMetrics(), Log: quiet, Now: time.Now, GiveUp: 10 * time.Second,
		}
		var wg sync.WaitGroup
		wg.Go(func() { _ = tail.Run(ctx) }) // it returns nil
		defer wg.Wait()
		defer cancel()
		e := event.Subscribed{Head: s.head(), Client: "dev", Filter: eventtest.Filter(t, "t/#"), QoS: 1}
		_, err := r.Explain(ctx, s.rules.Fetches(e)[0].Replay, e, pipeline.Explaining{Found: func(pipeline.ExplainedTopic) error { return nil }})
		if err == nil || ctx.Err() != nil {
			t.Errorf("it did not give up: %v", err)
		}
	})
}

// brokenReader is a store that cannot be reached.
type brokenReader struct{ sinks.Reader }

func (brokenReader) Topics(context.Context, event.Filter, event.Topic, int) ([]event.Topic, error) {
	return nil, context.DeadlineExceeded
}
