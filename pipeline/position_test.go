package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// keepsPositions lets the replayer write to the store that it reads.
func keepsPositions(r *pipeline.Replayer) {
	at := r.Sinks["s"]
	at.Positions = storing(at.Store.(sinks.Writer), r.Metrics)
	r.Sinks["s"] = at
}

// telling runs a test of pub/sub on t/# in a bubble.
func telling(t *testing.T, change func(*pipeline.Rule), tell func(t *testing.T, s *stack, b *broker)) {
	t.Helper()
	story(t, pubsubRules(t, change, "t/#"), keepsPositions, tell)
}

// positions are the rows of a client, their ids as payloads of the messages given, "-" for another.
func (s *stack) positions(client event.ClientID, of ...event.Published) map[string]string {
	rows, err := s.store.Positions(context.Background(), client)
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]string{}
	for _, r := range rows {
		out[r.Topic] = "-"
		for _, m := range of {
			if m.ID == r.Message {
				out[r.Topic] = string(m.Payload)
			}
		}
	}
	return out
}

// acks appends the ack of a live delivery, as ingest does in pub/sub.
func (s *stack) acks(client event.ClientID, m event.Published) {
	s.put(event.Acked{Head: s.head(), Topic: m.Topic, Client: client, Message: m.ID, Watched: true})
}

func (s *stack) leaves(client event.ClientID) {
	s.put(event.Disconnected{Head: s.head(), Client: client, Reason: "normal"})
	time.Sleep(5 * time.Second)
}

func TestEverySubscriberGetsEveryMessageOnce(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "before")
		for _, c := range []event.ClientID{"a", "b"} {
			s.subscribe(c, "t/#")
			time.Sleep(5 * time.Second)
			s.leaves(c)
		}
		for i := range 42 {
			s.keep(fmt.Sprintf("t/%d", i%2), fmt.Sprint(i))
		}
		for _, c := range []event.ClientID{"a", "b", "a", "b"} {
			s.subscribe(c, "t/#")
			time.Sleep(5 * time.Second)
			s.leaves(c)
		}
		for _, c := range []event.ClientID{"a", "b"} {
			got := b.payloads(c)
			slices.Sort(got)
			want := numbers(42)
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s:\n%s", c, diff)
			}
		}
		if got := s.store.payloads(t, "t/1"); len(got) != 22 {
			t.Errorf("%d messages of t/1 are stored, want all 22", len(got))
		}
		s.settled(t)
	})
}

func TestASliceOfPubsubGoesOnWhereTheLastEnded(t *testing.T) {
	t.Parallel()
	for name, skew := range map[string]time.Duration{"one clock": 0, "many clocks": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			change := func(r *pipeline.Replayer) {
				keepsPositions(r)
				r.Limits.Slice, r.Limits.ClockSkew = 10, skew
			}
			story(t, pubsubRules(t, func(r *pipeline.Rule) {
				if r.Action == pipeline.OnMessageFetchForPubsub {
					r.First = pipeline.FirstAll
				}
			}, "t/#"), change, func(t *testing.T, s *stack, b *broker) {
				for i := range 42 {
					s.keep("t/1", fmt.Sprint(i))
				}
				b.behave(func(delivery) time.Duration { return 100 * time.Millisecond })
				s.subscribe("c", "t/#")
				time.Sleep(time.Minute)
				if diff := cmp.Diff(numbers(42), b.payloads("c")); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(map[string]int{"complete": 1, "continued": 4}, s.outcomes()); diff != "" {
					t.Error(diff)
				}
				s.settled(t)
			})
		})
	}
}

func TestWhatAFirstSubscribeGets(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first time.Duration
		want  []string
	}{"none": {0, nil}, "a window": {time.Hour, []string{"late"}}, "all": {pipeline.FirstAll, []string{"early", "late"}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			telling(t, func(r *pipeline.Rule) {
				if r.Action == pipeline.OnMessageFetchForPubsub {
					r.First = c.first
				}
			}, func(t *testing.T, s *stack, b *broker) {
				s.keep("t/1", "early")
				time.Sleep(2 * time.Hour)
				s.keep("t/1", "late")
				time.Sleep(time.Minute)
				s.subscribe("c", "t/+")
				time.Sleep(5 * time.Second)
				if diff := cmp.Diff(c.want, b.payloads("c")); diff != "" {
					t.Error(diff)
				}
				s.leaves("c")
				s.keep("t/2", "away")
				s.subscribe("c", "t/+")
				time.Sleep(5 * time.Second)
				if diff := cmp.Diff(append(slices.Clone(c.want), "away"), b.payloads("c")); diff != "" {
					t.Errorf("the second time:\n%s", diff)
				}
			})
		})
	}
}

func TestAnAckIsCommittedOnlyAfterItsPositionIsStored(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, _ *broker) {
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		s.store.set(func(context.Context, []sinks.Op, func() error) error { return errors.New("away") })
		m := s.publish("t/1", "a")
		before := s.sessionsEnd()
		s.acks("c", m)
		for range 10 {
			s.put(event.Connected{Head: s.head(), Client: "other"})
		}
		time.Sleep(time.Minute)
		if at := s.replayerAt(); at != before {
			t.Errorf("committed %d while the position of the ack at %d was not stored", at, before)
		}
		s.counter(counterOf(t, s.metrics.PositionsWaiting), 1, "clients whose positions wait")
		s.store.set(nil)
		time.Sleep(10 * time.Second)
		if diff := cmp.Diff(map[string]string{"t/1": "a"}, s.positions("c", m)); diff != "" {
			t.Error(diff)
		}
		s.counter(counterOf(t, s.metrics.PositionsWaiting), 0, "clients whose positions wait")
		s.settled(t)
	})
}

func TestAMarkHoldsLiveAcksBackUntilAReplayHasCaughtUp(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		s.leaves("c")
		missed := s.keep("t/1", "missed")
		b.behave(never)
		s.subscribe("c", "t/1")
		time.Sleep(time.Second)
		s.leaves("c")
		s.counter(counterOf(t, s.metrics.PositionMarks.WithLabelValues("set")), 2, "marks set, at the first subscribe and now")
		live := s.keep("t/1", "live")
		s.acks("c", live)
		time.Sleep(5 * time.Second)
		if got := s.positions("c", missed, live)["t/1"]; got != "-" {
			t.Errorf("a live ack moved the position to %q over what is left", got)
		}
		b.behave(nil)
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff([]string{"missed", "missed"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		last := s.keep("t/1", "last")
		s.acks("c", last)
		time.Sleep(5 * time.Second)
		if got := s.positions("c", last)["t/1"]; got != "last" {
			t.Errorf("after the catch-up a live ack moved the position to %q", got)
		}
		s.counter(counterOf(t, s.metrics.PositionMarks.WithLabelValues("set")), 2, "marks set")
		s.counter(counterOf(t, s.metrics.PositionMarks.WithLabelValues("cleared")), 2, "marks cleared")
		s.settled(t)
	})
}

func TestAPositionStaysBehindTheAck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ skew, settle, want time.Duration }{
		"many clocks":              {3 * time.Second, 0, 6 * time.Second},
		"late events":              {0, 10 * time.Second, 10 * time.Second},
		"late events, many clocks": {3 * time.Second, 10 * time.Second, 13 * time.Second}, // one that is late may have been dated by a clock that is behind
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story(t, pubsubRules(t, nil, "t/#"), func(r *pipeline.Replayer) {
				keepsPositions(r)
				r.Limits.ClockSkew, r.Limits.Settle = c.skew, c.settle
			}, func(t *testing.T, s *stack, _ *broker) {
				s.subscribe("c", "t/1")
				time.Sleep(time.Minute)
				m := s.keep("t/1", "a")
				time.Sleep(time.Hour) // it acknowledges late, and meanwhile another message may have come with an earlier id
				s.acks("c", m)
				time.Sleep(5 * time.Second)
				id, _, err := s.store.Acked(context.Background(), "c", "t/1")
				if behind := m.ID.Time().Sub(id.Time()); err != nil || behind != c.want {
					t.Errorf("the position is %v behind the message (%v), want %v", behind, err, c.want)
				}
			})
		})
	}
}

func TestAnUnsubscribeForgetsWhatNoOtherSubscriptionHas(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		unsubscribe := func(filter string) {
			s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, filter)})
			time.Sleep(5 * time.Second)
		}
		texts := func() string { // but for marks
			all := slices.Sorted(maps.Keys(s.positions("c")))
			return strings.Join(slices.DeleteFunc(all, func(s string) bool { return strings.HasSuffix(s, "/#/open") }), " ")
		}
		for _, f := range []string{"t/1", "t/+"} {
			s.subscribe("c", f)
			time.Sleep(time.Second)
		}
		s.acks("c", s.keep("t/2", "x"))
		time.Sleep(5 * time.Second)
		for _, step := range []struct{ filter, want string }{
			{"", "t/+ t/1 t/1/#/own t/2"},
			{"t/#", "t/+ t/1 t/1/#/own t/2"}, // it has not subscribed to that
			{"t/+", "t/1 t/1/#/own"},
			{"t/1", ""},
		} {
			if step.filter != "" {
				unsubscribe(step.filter)
			}
			if got := texts(); got != step.want {
				t.Errorf("after unsubscribing from %q: %q, want %q", step.filter, got, step.want)
			}
		}
		s.leaves("c")
		s.keep("t/1", "missed")
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		if got := b.payloads("c"); len(got) > 0 {
			t.Errorf("a first subscribe got %v", got)
		}
		s.settled(t)
	})
}

func TestTheAckOfWhoNeverSubscribedMakesNoPosition(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, _ *broker) {
		s.acks("c", s.keep("t/1", "x"))
		time.Sleep(5 * time.Second)
		if got := s.positions("c"); len(got) > 0 {
			t.Errorf("positions: %v", got)
		}
		s.settled(t)
	})
}

func TestTwoRulesOfOneSubscribeHavePositionsOfTheirOwn(t *testing.T) {
	t.Parallel()
	story(t, pubsubRules(t, nil, "t/#", "u/#"), keepsPositions, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "#")
		time.Sleep(5 * time.Second)
		s.leaves("c")
		s.keep("t/1", "t")
		s.keep("u/1", "u")
		b.behave(func(d delivery) time.Duration {
			if d.Payload == "u" {
				return -1
			}
			return 0
		})
		s.subscribe("c", "#")
		time.Sleep(time.Second)
		s.leaves("c")
		b.behave(nil)
		time.Sleep(15 * time.Minute)
		s.subscribe("c", "#")
		time.Sleep(5 * time.Second)
		all := b.payloads("c") // the two replays run beside each other
		slices.Sort(all)
		if diff := cmp.Diff([]string{"t", "u", "u"}, all); diff != "" {
			t.Error(diff)
		}
		if got := slices.Sorted(maps.Keys(s.positions("c"))); !slices.Contains(got, "#/#/in/t/#") || !slices.Contains(got, "#/#/in/u/#") || slices.Contains(got, "#") {
			t.Errorf("rows: %q", got)
		}
	})
}

func TestAPositionThatTheStoreRefusesStopsNobody(t *testing.T) {
	t.Parallel()
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.store.set(func(_ context.Context, ops []sinks.Op, apply func() error) error {
			bad := map[int]error{}
			for i, o := range ops {
				if strings.Contains(o.Row(), "t/bad") {
					bad[i] = fault.Poison(errors.New("too long"))
				}
			}
			if err := apply(); err != nil || len(bad) == 0 {
				return err
			}
			return &sinks.ApplyError{Failed: bad}
		})
		s.subscribe("c", "t/bad")
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		s.leaves("c")
		s.keep("t/1", "x")
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff([]string{"x"}, b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		s.counter(counterOf(t, s.metrics.Positions.WithLabelValues("refused")), 1, "rows refused")
		s.settled(t)
	})
}

func TestAStoreThatCannotBeWrittenEndsTheReplayer(t *testing.T) {
	t.Parallel()
	var p *process
	telling(t, nil, func(t *testing.T, s *stack, b *broker) {
		s.store.set(func(context.Context, []sinks.Op, func() error) error { return fault.Fatal(errors.New("access denied")) })
		p = s.replayer(b, nil, keepsPositions)
		s.subscribe("c", "t/1")
		time.Sleep(2 * time.Minute) // whichever of the two has the partition, and then the other
		if err := p.stop(); !fault.IsFatal(err) || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("the replayer ended with %v", err)
		}
		if at := s.replayerAt(); at > 0 {
			t.Errorf("it committed %d", at)
		}
	})
}

func TestTextsOfPositionsAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ filter, rule, want string }{
		{"t/1", "t/#", "t/1"},
		{"t/+", "#", "t/+"},
		{"#", "t/#", "#/#/in/t/#"},
		{"a/#", "+/b", "a/#/#/in/+/b"},
		{"$SYS/x", "$SYS/#", "$SYS/x"},
	} {
		text, same := pipeline.Scoped(eventtest.Filter(t, c.filter), eventtest.Filter(t, c.rule))
		if text != c.want || !same {
			t.Errorf("%s by %s: %q, read the same: %v; want %q", c.filter, c.rule, text, same, c.want)
		}
	}
}

func TestAFilterThatCoversAnotherMatchesAllItsTopics(t *testing.T) {
	t.Parallel()
	level := rapid.SampledFrom([]string{"a", "b", "+", "", "$s"})
	text := rapid.Custom(func(t *rapid.T) string {
		levels := rapid.SliceOfN(level, 1, 4).Draw(t, "levels")
		if rapid.Bool().Draw(t, "#") {
			levels[len(levels)-1] = "#"
		}
		return strings.Join(levels, "/")
	}).Filter(func(s string) bool { return s != "" })
	topic := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "", "$s"}), 1, 5).Draw(t, "topic"), "/")
	}).Filter(func(s string) bool { return s != "" })
	covered := 0
	rapid.Check(t, func(rt *rapid.T) {
		f, g := eventtest.Filter(t, text.Draw(rt, "f")), eventtest.Filter(t, text.Draw(rt, "g"))
		if !pipeline.Covers(f, g) {
			return
		}
		covered++
		for range 20 {
			if x := eventtest.Topic(t, topic.Draw(rt, "topic")); g.Match(x) && !f.Match(x) {
				rt.Fatalf("%q is said to cover %q, which matches %q", f, g, x)
			}
		}
	})
	if covered == 0 {
		t.Error("no filter covered another")
	}
	for _, pair := range [][2]string{{"#", "a/b"}, {"a/#", "a"}, {"a/#", "a/+/c"}, {"a/+", "a/b"}, {"+/+", "a/+"}} {
		if !pipeline.Covers(eventtest.Filter(t, pair[0]), eventtest.Filter(t, pair[1])) {
			t.Errorf("%q does not cover %q", pair[0], pair[1])
		}
	}
}
