package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// api is the broker's way to subscribe clients. It tells the log of each subscription, as a broker does.
type api struct {
	s *stack

	mu     sync.Mutex
	calls  []string // "client filter@qos filter@qos", of those that were answered
	tried  int
	now    int
	most   int // calls at a time
	took   time.Duration
	answer func(event.ClientID) (pipeline.Resubscribed, error) // nil = all are taken
	silent bool                                                // tells the log of nothing
}

func (a *api) Resubscribe(ctx context.Context, client event.ClientID, subs []sinks.Sub) (pipeline.Resubscribed, error) {
	a.mu.Lock()
	a.tried++
	a.now++
	a.most = max(a.most, a.now)
	took, answer, silent := a.took, a.answer, a.silent
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.now--
	}()
	if err := pipeline.Sleep(ctx, took); err != nil {
		return pipeline.Resubscribed{}, err
	}
	var res pipeline.Resubscribed
	if answer != nil {
		var err error
		if res, err = answer(client); err != nil {
			return res, err
		}
	}
	call := string(client)
	for _, sub := range subs {
		call += fmt.Sprintf(" %s@%d", sub.Filter, sub.QoS)
		if !res.Gone && !silent {
			a.s.put(event.Subscribed{Head: a.s.head(), Client: client, Filter: sub.Filter, QoS: sub.QoS})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, call)
	return res, nil
}

func (a *api) answers(f func(event.ClientID) (pipeline.Resubscribed, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = f
}

func (a *api) answered() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

func (a *api) attempts() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tried
}

func away(event.ClientID) (pipeline.Resubscribed, error) {
	return pipeline.Resubscribed{}, errors.New("away")
}

func gone(event.ClientID) (pipeline.Resubscribed, error) {
	return pipeline.Resubscribed{Gone: true}, nil
}

// lookupRules are those of a queue, and the lookup on new sessions.
func lookupRules(t *testing.T, more ...pipeline.Rule) []pipeline.Rule {
	t.Helper()
	return append(append(queueRules(t, "t/#", nil), pipeline.Rule{Hook: pipeline.SessionCreated, Action: pipeline.OnSubscribeLookup, Sink: "s"}), more...)
}

// lookups is a story of a broker that can subscribe clients.
func lookups(t *testing.T, rules []pipeline.Rule, tell func(t *testing.T, s *stack, b *broker, a *api)) {
	t.Helper()
	a := &api{}
	story(t, rules, func(r *pipeline.Replayer) {
		r.Resubscriber = a
		r.Limits.Lookups, r.Limits.LookupPatience = 8, 10*time.Second
	}, func(t *testing.T, s *stack, b *broker) {
		a.s = s
		tell(t, s, b, a)
	})
}

// sub stores a subscription.
func (s *stack) sub(client event.ClientID, filter string, qos event.QoS) {
	s.t.Helper()
	op := sinks.PutSub{Client: client, Filter: eventtest.Filter(s.t, filter), QoS: qos, Stamp: s.minter.Mint().Micros()}
	if err := s.store.Store.Apply(context.Background(), []sinks.Op{op}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stack) connect(client event.ClientID, present event.Known) {
	s.put(event.Connected{Head: s.head(), Client: client, ConnectedAt: time.Now(), SessionPresent: present})
}

func (s *stack) disconnect(client event.ClientID) {
	s.put(event.Disconnected{Head: s.head(), Client: client, Reason: "normal"})
}

// found are how lookups ended and what became of the subscriptions, without zeros.
func (s *stack) found() map[string]int {
	out := map[string]int{}
	for _, o := range []string{"restored", "empty", "gone", "cancelled"} {
		if n := int(counterOf(s.t, s.metrics.Lookups.WithLabelValues(o))); n > 0 {
			out["lookup "+o] = n
		}
	}
	for _, o := range []string{"restored", "refused", "newer", "unreadable"} {
		if n := int(counterOf(s.t, s.metrics.LookupSubs.WithLabelValues(o))); n > 0 {
			out["subscription "+o] = n
		}
	}
	return out
}

func same(t *testing.T, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestANewSessionGetsItsStoredSubscriptionsBackOnce(t *testing.T) {
	t.Parallel()
	store := pipeline.Rule{Hook: pipeline.SessionSubscribed, Topic: eventtest.Filter(t, "#"), Action: pipeline.OnSubscribeStore, Sink: "s"}
	for name, present := range map[string]event.Known{"new": event.No, "unknown": event.Unknown} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lookups(t, lookupRules(t, store), func(t *testing.T, s *stack, b *broker, a *api) {
				s.keep("t/1", "a")
				s.keep("t/2", "of another")
				s.sub("c", "t/1", 1)
				s.sub("c", "$share/g/t/2", 2)
				s.sub("c", "u/+", 0)
				s.sub("d", "t/2", 1)
				s.connect("c", present)
				s.connect("nothing is stored of it", present)
				time.Sleep(time.Minute)
				same(t, []string{"c $share/g/t/2@2 t/1@1 u/+@0"}, a.answered())
				same(t, []string{"a"}, b.payloads("c"))
				same(t, map[string]int{"lookup restored": 1, "lookup empty": 1, "subscription restored": 3}, s.found())
				s.connect("c", present)
				time.Sleep(time.Minute)
				if n := len(a.answered()); n != 2 {
					t.Errorf("%d calls after the second connect, want 2", n)
				}
				s.settled(t)
			})
		})
	}
}

func TestAResumedSessionIsLeftAlone(t *testing.T) {
	t.Parallel()
	lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
		s.sub("c", "t/1", 1)
		s.connect("c", event.Yes)
		time.Sleep(time.Minute)
		same(t, 0, a.attempts())
		s.settled(t)
	})
}

func TestOurOwnClientsAreNotSubscribed(t *testing.T) {
	t.Parallel()
	lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
		s.sub("restante-replay-1", "t/1", 1)
		s.connect("restante-replay-1", event.No)
		time.Sleep(time.Minute)
		same(t, 0, a.attempts())
		s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", pipeline.SkipIgnoredClient)), 1, "skipped")
		s.settled(t)
	})
}

// TestALookupIsFinishedWhenTheBrokerHasIt: until then its connect is not committed, and what runs beside it goes on.
func TestALookupIsFinishedWhenTheBrokerHasIt(t *testing.T) {
	t.Parallel()
	lookups(t, lookupRules(t), func(t *testing.T, s *stack, b *broker, a *api) {
		a.answers(away)
		s.sub("c", "t/1", 1)
		s.keep("t/1", "a")
		s.keep("t/2", "b")
		s.connect("c", event.No)
		s.subscribe("d", "t/2")
		time.Sleep(time.Minute)
		same(t, []string{"b"}, b.payloads("d"))
		if at := s.replayerAt(); at > 0 {
			t.Errorf("committed %d while the broker could not be asked", at)
		}
		if n := a.attempts(); n < 10 || n > 30 {
			t.Errorf("%d attempts in a minute, want some with growing pauses", n)
		}
		a.answers(nil)
		time.Sleep(time.Minute)
		same(t, []string{"c t/1@1"}, a.answered())
		same(t, []string{"a"}, b.payloads("c"))
		s.settled(t)
	})
}

func TestTheNextOwnerRepeatsALookup(t *testing.T) {
	t.Parallel()
	lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
		a.answers(away)
		s.sub("c", "t/1", 1)
		s.connect("c", event.No)
		time.Sleep(10 * time.Second)
		s.cluster.Rebalance(replayGroup)
		time.Sleep(10 * time.Second)
		if at := s.replayerAt(); at > 0 {
			t.Errorf("committed %d although nothing was restored", at)
		}
		a.answers(nil)
		time.Sleep(time.Minute)
		same(t, []string{"c t/1@1"}, a.answered())
		s.settled(t)
	})
}

func TestALookupEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*stack){
		"disconnected": func(s *stack) { s.disconnect("c") },
		"disconnected before it began": func(s *stack) {
			s.connect("c", event.No)
			s.disconnect("c")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
				a.answers(away)
				s.sub("c", "t/1", 1)
				s.connect("c", event.No)
				time.Sleep(10 * time.Second)
				end(s)
				time.Sleep(time.Second)
				n := a.attempts()
				s.settled(t)
				a.answers(nil)
				time.Sleep(time.Minute)
				same(t, n, a.attempts())
			})
		})
	}
}

// TestWhatWasCutShortIsDoneInTheResumedSession: no session is created then, and so nothing else would restore it.
func TestWhatWasCutShortIsDoneInTheResumedSession(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		present event.Known
		left    bool // the client unsubscribed in between
		want    []string
	}{
		"resumed":                        {event.Yes, false, []string{"c t/1@1 t/2@1"}},
		"resumed, with one unsubscribed": {event.Yes, true, []string{"c t/2@1"}},
		"new":                            {event.No, true, []string{"c t/1@1 t/2@1"}},
	} {
		for how, disconnect := range map[string]bool{"disconnected": true, "taken over": false} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
					a.answers(away)
					s.sub("c", "t/1", 1)
					s.sub("c", "t/2", 1)
					s.connect("c", event.No)
					time.Sleep(10 * time.Second)
					if c.left {
						s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "t/1")})
					}
					if disconnect {
						s.disconnect("c")
					}
					time.Sleep(10 * time.Second)
					s.connect("c", c.present)
					a.answers(nil)
					time.Sleep(time.Minute)
					same(t, c.want, a.answered())
					same(t, 1, s.found()["lookup cancelled"])
					s.settled(t)
				})
			})
		}
	}
}

func TestTheClientsOwnWordIsNotOverwritten(t *testing.T) {
	t.Parallel()
	lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
		a.answers(away)
		for _, f := range []string{"t/1", "t/2", "t/3"} {
			s.sub("c", f, 1)
		}
		s.connect("c", event.No)
		time.Sleep(10 * time.Second)
		s.put(event.Subscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "t/1"), QoS: 2})
		s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "t/2")})
		time.Sleep(10 * time.Second)
		a.answers(nil)
		time.Sleep(time.Minute)
		same(t, []string{"c t/3@1"}, a.answered())
		same(t, map[string]int{"lookup restored": 1, "subscription restored": 1, "subscription newer": 2}, s.found())
		s.settled(t)
	})
}

func TestAStormOfConnectsWaitsItsTurn(t *testing.T) {
	t.Parallel()
	lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
		a.took, a.silent = 100*time.Millisecond, true
		const clients = 500
		var want []string
		for i := range clients {
			c := event.ClientID(fmt.Sprintf("c%03d", i))
			s.sub(c, "t/1", 1)
			s.connect(c, event.No)
			want = append(want, string(c)+" t/1@1")
		}
		time.Sleep(time.Minute)
		got := a.answered()
		slices.Sort(got)
		same(t, want, got)
		same(t, 8, a.most)
		s.settled(t)
	})
}

func TestABrokerThatKnowsNoSuchClientIsAskedAgain(t *testing.T) {
	t.Parallel()
	lookups(t, lookupRules(t), func(t *testing.T, s *stack, _ *broker, a *api) {
		a.answers(gone)
		s.sub("c", "t/1", 1)
		s.connect("c", event.No)
		time.Sleep(500 * time.Millisecond)
		same(t, 1, a.attempts())
		a.answers(nil)
		time.Sleep(time.Minute)
		same(t, 2, a.attempts())
		same(t, map[string]int{"lookup restored": 1, "subscription restored": 1}, s.found())
		a.answers(gone)
		s.connect("c", event.No)
		time.Sleep(time.Minute)
		same(t, 5, a.attempts())
		same(t, 1, s.found()["lookup gone"])
		s.settled(t)
	})
}

// TestALookupWaitsForTheWriters: a subscribe that stands before the connect may not be stored yet.
func TestALookupWaitsForTheWriters(t *testing.T) {
	t.Parallel()
	store := pipeline.Rule{Hook: pipeline.SessionSubscribed, Topic: eventtest.Filter(t, "#"), Action: pipeline.OnSubscribeStore, Sink: "s"}
	sessions := pipeline.TP{Topic: topics.Sessions}
	for name, c := range map[string]struct {
		after time.Duration // when the writer has come that far
		want  []string
		early float64
	}{
		"come after a while": {4 * time.Second, []string{"c t/1@1 t/2@1"}, 0},
		"come late":          {20 * time.Second, []string{"c t/1@1"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lookups(t, lookupRules(t, store), func(t *testing.T, s *stack, _ *broker, a *api) {
				a.silent = true
				s.sub("c", "t/1", 1)
				s.subscribe("c", "t/2")
				s.disconnect("c")
				before := s.sessionsEnd()
				s.cluster.Reset(writerGroup, sessions, before-1)
				s.connect("c", event.No)
				time.Sleep(c.after)
				if early := counterOf(t, s.metrics.LookupEarly); len(a.answered()) > 0 && early == 0 {
					t.Errorf("asked before the writers had come that far: %v", a.answered())
				}
				s.sub("c", "t/2", 1)
				s.cluster.Reset(writerGroup, sessions, before)
				time.Sleep(time.Minute)
				same(t, c.want, a.answered())
				s.counter(counterOf(t, s.metrics.LookupEarly), c.early, "early")
				s.settled(t)
			})
		})
	}
}

// odd is a store with rows that are no subscription.
type odd struct{ sinks.Reader }

func (o odd) Subs(context.Context, event.ClientID) ([]sinks.Sub, error) {
	f, err := event.ParseFilter("t/1")
	return []sinks.Sub{{}, {Filter: f, QoS: 1}, {Filter: f, QoS: 3}}, err
}

func TestRowsThatAreNoSubscriptionAreLeftOut(t *testing.T) {
	t.Parallel()
	a := &api{}
	story(t, lookupRules(t), func(r *pipeline.Replayer) {
		r.Resubscriber, r.Limits.Lookups = a, 1
		sink := r.Sinks["s"]
		sink.Store = odd{sink.Store}
		r.Sinks["s"] = sink
	}, func(t *testing.T, s *stack, _ *broker) {
		a.s = s
		a.answers(func(event.ClientID) (pipeline.Resubscribed, error) { return pipeline.Resubscribed{Refused: 1}, nil })
		s.connect("c", event.No)
		time.Sleep(time.Minute)
		same(t, []string{"c t/1@1"}, a.answered())
		same(t, map[string]int{"lookup restored": 1, "subscription refused": 1, "subscription unreadable": 2}, s.found())
		s.settled(t)
	})
}
