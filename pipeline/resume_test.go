package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

const resumeDelay = 2 * time.Second

func waiting(r *pipeline.Replayer) { r.Limits.ResumeDelay = resumeDelay }

// TestASubscribeThatMayRepeatAnotherWaits: the broker hands over its own queue first, and what is acknowledged meanwhile is not replayed.
func TestASubscribeThatMayRepeatAnotherWaits(t *testing.T) {
	t.Parallel()
	unknown := event.Connected{}
	for name, c := range map[string]struct {
		connect *event.Connected
		known   event.Known
		qos     event.QoS
		waits   bool
		none    bool
	}{
		"nothing known":                      {connect: nil, waits: true},
		"nothing known of the session":       {connect: &unknown, waits: true},
		"kept session":                       {connect: &event.Connected{CleanStart: event.No}, waits: true},
		"resumed session":                    {connect: &event.Connected{SessionPresent: event.Yes}, waits: true},
		"clean start":                        {connect: &event.Connected{CleanStart: event.Yes}},
		"new session":                        {connect: &event.Connected{CleanStart: event.No, SessionPresent: event.No}},
		"new subscription":                   {connect: &unknown, known: event.Yes},
		"old subscription":                   {connect: &unknown, known: event.No, none: true},
		"old subscription in a new session":  {connect: &event.Connected{CleanStart: event.Yes}, known: event.No, none: true},
		"new subscription in a kept session": {connect: &event.Connected{SessionPresent: event.Yes}, known: event.Yes},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story(t, nil, waiting, func(t *testing.T, s *stack, b *broker) {
				live := s.keep("t/1", "live")
				s.keep("t/1", "left")
				if c.connect != nil {
					e := *c.connect
					e.Head, e.Client = s.head(), "c"
					s.put(e)
				}
				s.put(event.Subscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "t/1"), QoS: 1, New: c.known})
				time.Sleep(resumeDelay / 2)
				early := b.payloads("c")
				if c.waits {
					s.counter(counterOf(t, s.metrics.ReplayParked.WithLabelValues("resumed")), 1, "replays that wait")
				}
				s.ack("c", live)
				time.Sleep(time.Minute)
				switch {
				case c.none:
					same(t, []string(nil), b.payloads("c"))
					s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "not_new")), 1, "skipped")
				case c.waits:
					same(t, []string(nil), early)
					same(t, []string{"left"}, b.payloads("c"))
					if n, sum := observed(t, s.metrics.ReplayFirst); n != 1 || sum > 1 {
						t.Errorf("%d replays took %v s to begin: a wait that is configured counts for none", n, sum)
					}
				default:
					same(t, []string{"live", "left"}, early)
				}
				s.settled(t)
			})
		})
	}
}

// TestAnOldSubscriptionGetsWhatItsReplayLeft: a replay that the end of its connection cut short is the one case in which a broker that
// resumes the session does not hand over all.
func TestAnOldSubscriptionGetsWhatItsReplayLeft(t *testing.T) {
	t.Parallel()
	again := func(t *testing.T, s *stack) {
		t.Helper()
		s.connect("c", event.Yes)
		s.put(event.Subscribed{Head: s.head(), Client: "c", Filter: eventtest.Filter(t, "t/1"), QoS: 1, New: event.No})
		time.Sleep(time.Minute)
	}
	for name, c := range map[string]struct {
		change func(*pipeline.Replayer)
		end    func(*stack)
		sent   []string
	}{
		"disconnected":           {nil, func(s *stack) { s.disconnect("c") }, []string{"0", "1"}},
		"taken over":             {nil, func(*stack) {}, []string{"0", "1"}},
		"away for hours":         {nil, func(s *stack) { s.disconnect("c"); time.Sleep(5 * time.Hour) }, []string{"0", "1"}},
		"given up, not acked":    {nil, func(*stack) { time.Sleep(time.Hour) }, []string{"0", "1", "0", "1", "0", "1", "0", "1"}},
		"the process was killed": {nil, func(s *stack) { s.cluster.Rebalance(replayGroup); s.disconnect("c") }, []string{"0", "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story(t, nil, func(r *pipeline.Replayer) {
				waiting(r)
				r.Limits.Window = 2
			}, func(t *testing.T, s *stack, b *broker) {
				s.writer(testLimits, nil)
				for i := range 4 {
					s.publish("t/1", fmt.Sprint(i))
				}
				time.Sleep(5 * time.Second)
				b.behave(never)
				s.subscribe("c", "t/1")
				time.Sleep(10 * time.Second)
				c.end(s)
				b.behave(nil)
				before := b.payloads("c")
				same(t, c.sent, before)
				again(t, s)
				same(t, numbers(4), b.payloads("c")[len(before):])
				again(t, s) // and nothing is left then
				same(t, len(before)+4, len(b.payloads("c")))
				s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "not_new")), 1, "skipped")
				s.settled(t)
			})
		})
	}
}

const catchUpDelay = 10 * time.Second

// catchUpRules are a queue with stored subscriptions, and the catch-up on connect.
func catchUpRules(t *testing.T) []pipeline.Rule {
	t.Helper()
	f := eventtest.Filter(t, "#")
	return append(queueRules(t, "t/#", func(r *pipeline.Rule) { r.Wildcards = new(true) }),
		pipeline.Rule{Hook: pipeline.ClientConnected, Action: pipeline.OnMessageFetchForQueue, Sink: "s", Delay: catchUpDelay, Wildcards: new(true)},
		pipeline.Rule{Hook: pipeline.SessionSubscribed, Topic: f, Action: pipeline.OnSubscribeStore, Sink: "s"},
		pipeline.Rule{Hook: pipeline.SessionUnsubscribed, Topic: f, Action: pipeline.OnUnsubscribeDelete, Sink: "s"})
}

// stored says that the writers have come to the end of the sessions.
func (s *stack) sessionsStored() {
	s.cluster.Reset(writerGroup, pipeline.TP{Topic: topics.Sessions}, s.sessionsEnd())
}

// TestAResumedSessionGetsWhatTheBrokersQueueDidNotHold: nothing of what the client acknowledged meanwhile comes another time, and what
// is published after the connect comes live only.
func TestAResumedSessionGetsWhatTheBrokersQueueDidNotHold(t *testing.T) {
	t.Parallel()
	for name, present := range map[string]event.Known{"resumed": event.Yes, "unknown": event.Unknown} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story(t, catchUpRules(t), waiting, func(t *testing.T, s *stack, b *broker) {
				s.sub("c", "t/+", 1)
				s.sub("c", "t/1/#", 1)
				s.sub("c", "u/1", 1)
				s.sub("c", "t/0", 0)
				s.sub("other", "t/#", 1)
				s.writer(testLimits, nil)
				var all []event.Published
				for i := range 50 {
					all = append(all, s.publish("t/1", fmt.Sprint(i)))
				}
				time.Sleep(5 * time.Second) // the writer stores them: what it still held would go without a trace
				s.connect("c", present)
				s.sessionsStored()
				for _, m := range all[:10] { // the queue of the broker
					s.ack("c", m)
					time.Sleep(200 * time.Millisecond)
				}
				s.publish("t/1", "after the connect")
				time.Sleep(catchUpDelay - 3*time.Second)
				same(t, []string(nil), b.payloads("c"))
				time.Sleep(time.Minute)
				same(t, numbers(50)[10:], b.payloads("c"))
				same(t, []string(nil), b.payloads("other"))
				same(t, []string{"after the connect"}, s.store.payloads(t, "t/1"))
				s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "qos0")), 1, "subscriptions at QoS 0")
				s.settled(t)
			})
		})
	}
}

func TestANewSessionIsNotCaughtUp(t *testing.T) {
	t.Parallel()
	story(t, catchUpRules(t), waiting, func(t *testing.T, s *stack, b *broker) {
		s.sub("c", "t/1", 1)
		s.keep("t/1", "a")
		s.connect("c", event.No)
		s.put(event.Connected{Head: s.head(), Client: "c", CleanStart: event.Yes})
		s.put(event.Connected{Head: s.head(), Client: "restante-replay-1"})
		time.Sleep(time.Minute)
		same(t, []string(nil), b.payloads("c"))
		s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "new_session")), 2, "new sessions")
		s.settled(t)
	})
}

// TestACatchUpEndsWithItsConnection: while it waits, and when its replays run.
func TestACatchUpEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*stack){
		"disconnected":  func(s *stack) { s.disconnect("c") },
		"a new session": func(s *stack) { s.connect("c", event.No) },
		"unsubscribed": func(s *stack) {
			f, err := event.ParseFilter("t/1")
			if err != nil {
				panic(err)
			}
			s.put(event.Unsubscribed{Head: s.head(), Client: "c", Filter: f})
		},
	} {
		for when, wait := range map[string]time.Duration{"while it waits": time.Second, "while it replays": 15 * time.Second} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				story(t, catchUpRules(t), func(r *pipeline.Replayer) { r.Limits.Window = 1 }, func(t *testing.T, s *stack, b *broker) {
					b.behave(never)
					s.sub("c", "t/1", 1)
					s.keep("t/1", "a")
					s.keep("t/1", "b")
					s.connect("c", event.Yes)
					s.sessionsStored()
					time.Sleep(wait)
					if s.replayerAt() == s.sessionsEnd() {
						t.Error("the connect is committed before it was caught up")
					}
					end(s)
					time.Sleep(5 * time.Minute)
					want := []string{"a"}
					if wait < catchUpDelay {
						want = nil
					}
					same(t, want, b.payloads("c"))
					s.settled(t)
				})
			})
		}
	}
}

// TestTheNextOwnerCatchesUp: the connect was not committed, and its delay is not waited for from the beginning.
func TestTheNextOwnerCatchesUp(t *testing.T) {
	t.Parallel()
	story(t, catchUpRules(t), nil, func(t *testing.T, s *stack, b *broker) {
		s.sub("c", "t/1", 1)
		s.keep("t/1", "a")
		s.connect("c", event.Yes)
		s.sessionsStored()
		time.Sleep(catchUpDelay - 3*time.Second)
		s.cluster.Rebalance(replayGroup)
		time.Sleep(5 * time.Second)
		same(t, []string{"a"}, b.payloads("c"))
		s.settled(t)
	})
}

// TestACatchUpWaitsForTheWriters: a subscribe that stands before the connect may not be stored yet.
func TestACatchUpWaitsForTheWriters(t *testing.T) {
	t.Parallel()
	sessions := pipeline.TP{Topic: topics.Sessions}
	story(t, catchUpRules(t), nil, func(t *testing.T, s *stack, b *broker) {
		s.subscribe("c", "t/2")
		s.disconnect("c")
		before := s.sessionsEnd()
		s.cluster.Reset(writerGroup, sessions, 0)
		s.keep("t/2", "a")
		s.connect("c", event.Yes)
		time.Sleep(catchUpDelay + 5*time.Second)
		same(t, []string(nil), b.payloads("c"))
		s.sub("c", "t/2", 1)
		s.cluster.Reset(writerGroup, sessions, before)
		time.Sleep(time.Minute)
		same(t, []string{"a"}, b.payloads("c"))
		s.counter(counterOf(t, s.metrics.LookupEarly), 0, "early")
		s.settled(t)
	})
}

// TestALongCatchUpIsHandedOn: the rest goes through the log, where a rule on session.subscribed need not stand beside the one on
// client.connected.
func TestALongCatchUpIsHandedOn(t *testing.T) {
	t.Parallel()
	rules := catchUpRules(t)
	rules = append(rules[:1:1], rules[2:]...) // without the fetch at subscribe
	story(t, rules, func(r *pipeline.Replayer) { r.Limits.Slice = 10 }, func(t *testing.T, s *stack, b *broker) {
		s.writer(testLimits, nil)
		s.sub("c", "t/#", 1)
		for i := range 35 {
			s.publish("t/1", fmt.Sprint(i))
		}
		time.Sleep(5 * time.Second)
		s.connect("c", event.Yes)
		s.sessionsStored()
		time.Sleep(5 * time.Minute)
		same(t, numbers(35), b.payloads("c"))
		same(t, map[string]int{"continued": 3, "complete": 1}, s.outcomes())
		s.settled(t)
	})
}

// TestAStormOfResumedSessionsIsServed: 500 clients come at once, with eight lookups at a time.
func TestAStormOfResumedSessionsIsServed(t *testing.T) {
	t.Parallel()
	story(t, catchUpRules(t), nil, func(t *testing.T, s *stack, b *broker) {
		const clients = 500
		for i := range clients {
			c := event.ClientID(fmt.Sprintf("c%03d", i))
			s.sub(c, "t/"+string(c), 1)
		}
		for i := range clients {
			s.keep(fmt.Sprintf("t/c%03d", i), fmt.Sprint(i))
		}
		for i := range clients {
			s.connect(event.ClientID(fmt.Sprintf("c%03d", i)), event.Yes)
		}
		s.sessionsStored()
		time.Sleep(5 * time.Minute)
		for i := range clients {
			same(t, []string{fmt.Sprint(i)}, b.payloads(event.ClientID(fmt.Sprintf("c%03d", i))))
		}
		s.settled(t)
	})
}
