package trace_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/trace"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var topics = pipeline.Topics{Messages: "mqtt.messages", Sessions: "mqtt.sessions", Dead: "mqtt.dead"}

const (
	group        = "restante.writer.s"
	parts        = 3
	sessionParts = 2
)

// world is a log and a store, in a bubble.
type world struct {
	t       *testing.T
	cluster *fakelog.Cluster
	store   *memory.Store
	plan    pipeline.Planner
	minter  *event.Minter
}

func newWorld(t *testing.T) *world {
	t.Helper()
	rules := pipeline.Rule{Action: pipeline.SaveOfflineMessages, Topic: eventtest.Filter(t, "t/#"), Sink: "s", TTL: 2 * time.Hour}.Expand()
	rules = append(rules, pipeline.Rule{Hook: pipeline.MessagePublish, Action: pipeline.OnMessageStore, Topic: eventtest.Filter(t, "h/#"), Sink: "s"})
	compiled, err := pipeline.Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		t: t, store: &memory.Store{}, plan: compiled.ForSink("s"), minter: &event.Minter{Node: 1, Now: time.Now},
		cluster: fakelog.New(fakelog.Config{Partitions: map[string]int{topics.Messages: parts, topics.Sessions: sessionParts, topics.Dead: 1}}),
	}
}

func (w *world) head() event.Head {
	return event.Head{ID: w.minter.Mint(), Source: "restante/test", At: time.Now()}
}

// put appends an event to all its topics.
func (w *world) put(e event.Event) {
	for _, r := range e.Routes() {
		w.cluster.Put(pipeline.Outgoing{Topic: topics.Of(r.Kind), Wire: event.Encode(e, r, time.Now())})
	}
}

func (w *world) publish(topic string) event.Published {
	w.t.Helper()
	e := event.Published{Head: w.head(), Topic: eventtest.Topic(w.t, topic), Sender: "pub", QoS: 1, Payload: []byte("hello")}
	w.put(e)
	return e
}

func (w *world) ack(m event.Published, client event.ClientID, replay bool) {
	w.put(event.Acked{Head: w.head(), Topic: m.Topic, Client: client, Message: m.ID, Replayed: replay})
}

// write does to the store what an event asks of it.
func (w *world) write(e event.Event) {
	w.t.Helper()
	if err := w.store.Apply(w.t.Context(), w.plan(e).Ops); err != nil {
		w.t.Fatal(err)
	}
}

// commit commits all of the log for the writers.
func (w *world) commit() {
	for n := range parts {
		tp := pipeline.TP{Topic: topics.Messages, Part: n}
		w.cluster.Reset(group, tp, w.cluster.Span(tp).End)
	}
}

func (w *world) tracer(change func(*trace.Tracer)) *trace.Tracer {
	t := &trace.Tracer{
		Log: w.cluster.Client().Log(), Topics: topics, Parts: parts, SessionParts: sessionParts, DeadParts: 1, Partition: fakelog.Partition,
		Sinks: []trace.Sink{{Name: "s", Group: group, Plan: w.plan, Store: w.store}}, Hold: time.Second, Now: time.Now, Patience: time.Minute,
	}
	if change != nil {
		change(t)
	}
	return t
}

// message are the kinds of the lines about a message, and the last line's sentence.
func (w *world) message(m event.Published, change func(*trace.Tracer)) (kinds []string, last string) {
	w.t.Helper()
	lines, _, err := w.tracer(change).Message(w.t.Context(), m.ID, event.Topic{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range lines {
		if l.Message != m.ID && l.What != trace.DeadLetter {
			w.t.Errorf("a line about another message: %+v", l)
		}
		kinds, last = append(kinds, string(l.What)), l.Says
	}
	return kinds, last
}

func (w *world) want(what string, m event.Published, says string, kinds ...string) {
	w.t.Helper()
	got, last := w.message(m, nil)
	if diff := cmp.Diff(kinds, got); diff != "" || !strings.Contains(last, says) {
		w.t.Errorf("%s: the last line says %q, want %q; kinds (-want +got):\n%s", what, last, says, diff)
	}
}

func TestTheFateOfAMessageIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stored := w.publish("t/1")
		w.write(stored)
		w.commit()
		w.want("stored", stored, "it waits for a client, until 2000-01-01T02:00:00Z", "published", "stored")

		waits := w.publish("t/1")
		w.want("not committed", waits, "it waits for them", "published", "not stored")

		elided := w.publish("t/2")
		time.Sleep(500 * time.Millisecond)
		w.ack(elided, "dev", false)
		removed := w.publish("t/2")
		time.Sleep(time.Minute)
		w.ack(removed, "dev", true)
		history, other := w.publish("h/1"), w.publish("x/1")
		missing, buried, expired := w.publish("t/3"), w.publish("t/4"), w.publish("t/5")
		w.commit()
		w.want("elided", elided, "dev has acknowledged it 500ms after its publish: elided, or removed again", "published", "acked", "not stored")
		w.want("removed", removed, "dev has acknowledged it: it was removed", "published", "replay acked", "not stored")
		w.want("history", history, "as history", "published", "not stored")
		w.want("of no rule", other, "no rule of the sink stores it", "published", "not stored")
		w.want("missing", missing, "nobody has acknowledged it", "published", "missing")

		d := &pipeline.DeadLetters{
			Producer: w.cluster.Client().Producer(), Topic: topics.Dead, Group: group, Component: "writer", Backoff: pipeline.DefaultBackoff,
			Metrics: pipeline.NewMetrics(prometheus.NewRegistry(), []string{group}, []string{"s"}), Log: slog.New(slog.DiscardHandler),
		}
		tp := pipeline.TP{Topic: topics.Messages, Part: fakelog.Partition("t/4", parts)}
		time.Sleep(time.Second)
		records := w.cluster.Records(tp)
		at := slices.IndexFunc(records, func(r pipeline.Record) bool { return string(r.Key) == "t/4" })
		if err := errors.Join(d.Bury(t.Context(), records[at], pipeline.ReasonRejected, errors.New("too long")), d.Producer.Close(t.Context())); err != nil {
			t.Fatal(err)
		}
		w.want("buried", buried, "it is in the dead letters", "published", "dead letter", "not stored")

		time.Sleep(3 * time.Hour)
		w.want("expired", expired, "it has expired at 2000-01-01T02:", "published", "not stored")

		kinds, last := w.message(missing, func(t *trace.Tracer) { t.Since = time.Now().Add(-time.Minute) })
		if len(kinds) > 0 || last != "" {
			t.Errorf("before --since: %q", kinds)
		}
		lines, _, err := w.tracer(func(t *trace.Tracer) { t.Since = time.Now().Add(-time.Minute) }).Message(t.Context(), stored.ID, stored.Topic)
		if err != nil || len(lines) != 1 || lines[0].What != trace.NotStored { // it has expired since
			t.Errorf("by its topic alone: %v: %+v", err, lines)
		}
	})
}

// TestAReplayIsFoundByTheNameThatTheBrokerGaveIt: its ack tells of that name alone.
func TestAReplayIsFoundByTheNameThatTheBrokerGaveIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m, n := w.publish("t/1"), w.publish("t/1")
		for _, m := range []event.Published{m, n} {
			time.Sleep(time.Second)
			name := w.minter.Mint()
			w.put(event.Replayed{Head: w.head(), Topic: m.Topic, Client: "dev", Message: m.ID, BrokerID: name})
			time.Sleep(time.Second)
			w.put(event.Acked{Head: w.head(), Topic: m.Topic, Client: "dev", BrokerID: name, Replayed: true})
			w.put(event.Dropped{Head: w.head(), Topic: m.Topic, Client: "dev", Message: m.ID, Reason: "queue_full"})
		}
		w.want("replayed", m, "", "published", "replayed", "replay acked", "dropped", "not stored")
	})
}

func TestTheStoryOfAClientIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := eventtest.Filter(t, "t/#")
		for i, client := range []event.ClientID{"dev", "other"} {
			w.put(event.Connected{Head: w.head(), Client: client, SessionPresent: event.No, Node: "n1"})
			w.put(event.Subscribed{Head: w.head(), Client: client, Filter: f, QoS: 1})
			w.put(event.Subscribed{Head: w.head(), Client: client, Filter: eventtest.Filter(t, "u"), QoS: 2})
			time.Sleep(time.Second)
			m := w.publish(fmt.Sprintf("t/%d", i))
			w.ack(m, client, true)
			time.Sleep(time.Second)
			w.put(event.Published{Head: w.head(), Topic: m.Topic, Sender: client, QoS: 0, Payload: []byte("mine"), Retain: true, Expiry: time.Minute})
			time.Sleep(time.Second)
			w.put(event.Unsubscribed{Head: w.head(), Client: client, Filter: eventtest.Filter(t, "u")})
			w.put(event.ReplayContinued{Head: w.head(), Client: client, Filter: f, QoS: 1, Bound: m.ID, Slice: 1, Rule: "s t/#"})
			time.Sleep(time.Second)
			w.put(event.Disconnected{Head: w.head(), Client: client, Reason: "normal"})
			time.Sleep(time.Second)
		}
		w.put(event.Subscribed{Head: w.head(), Client: "anew", Filter: f, QoS: 1})
		w.put(event.Connected{Head: w.head(), Client: "anew", CleanStart: event.Yes}) // it has nothing any more
		w.put(event.Subscribed{Head: w.head(), Client: "kept", Filter: f, QoS: 1})
		w.put(event.Connected{Head: w.head(), Client: "kept", SessionPresent: event.Yes})
		op := sinks.PutClient{Client: "dev", Up: sinks.ClientUp{Node: "n1", OnlineAt: time.Now(), Stamp: time.Now().UnixMicro()}}
		stored := sinks.PutSub{Client: "dev", Filter: eventtest.Filter(t, "stored"), QoS: 1, Stamp: 1}
		gone := sinks.PutSub{Client: "dev", Filter: eventtest.Filter(t, "u"), QoS: 1, Stamp: 1} // its deletion is not written yet
		if err := w.store.Apply(t.Context(), []sinks.Op{op, stored, gone}); err != nil {
			t.Fatal(err)
		}
		lines, cut, err := w.tracer(nil).Client(t.Context(), "dev")
		if err != nil || cut {
			t.Fatal(cut, err)
		}
		var got []string
		for _, l := range lines {
			if l.Client != "dev" {
				t.Errorf("a line of another client: %+v", l)
			}
			got = append(got, string(l.What)+": "+l.Says)
		}
		want := []string{
			"connected: new session on n1", "subscribed: t/# at QoS 1", "subscribed: u at QoS 2", "replay acked: ",
			"published: QoS 0, 4 bytes, retained, expires after 1m0s", "unsubscribed: u", "continued: t/# by rule s t/#, slice 2", "disconnected: normal",
			"state: online since 2000-01-01T00:00:10Z on n1",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		lines, cut, err = w.tracer(func(t *trace.Tracer) { t.Most = 2 }).Client(t.Context(), "dev")
		if err != nil || !cut || len(lines) != 2 || lines[0].What != trace.Disconnected || lines[1].What != trace.State {
			t.Errorf("the newest two: %v, %v: %+v", cut, err, lines)
		}

		texts := func(all []trace.Subscription, err error) (out []string) {
			if err != nil {
				t.Error(err)
			}
			for _, s := range all {
				out = append(out, fmt.Sprintf("%s %s %d %s", s.Client, s.Filter, s.QoS, s.Sink))
			}
			return out
		}
		if diff := cmp.Diff([]string{"dev stored 1 s", "dev t/# 1 "}, texts(w.tracer(nil).Subscriptions(t.Context(), "dev"))); diff != "" {
			t.Errorf("subscriptions (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"dev t/# 1 ", "kept t/# 1 ", "other t/# 1 "}, texts(w.tracer(nil).Subscribers(t.Context(), f))); diff != "" {
			t.Errorf("subscribers (-want +got):\n%s", diff)
		}
		if got := texts(w.tracer(nil).Subscriptions(t.Context(), "anew")); len(got) > 0 {
			t.Errorf("a new session has %q", got)
		}
		if got := texts(w.tracer(nil).Subscribers(t.Context(), eventtest.Filter(t, "u"))); len(got) > 0 {
			t.Errorf("who has unsubscribed is still there: %q", got)
		}
	})
}
