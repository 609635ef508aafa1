package pipeline_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// t0 is the time of the messages and events of the tables.
var t0 = time.UnixMilli(1_700_000_000_000)

func compile(t testing.TB, rules ...pipeline.Rule) *pipeline.Rules {
	t.Helper()
	r, err := pipeline.Compile(rules, "restante-")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// queueRules are the three rules of save_offline_messages.
func queueRules(t testing.TB, filter string, change func(*pipeline.Rule)) []pipeline.Rule {
	t.Helper()
	r := pipeline.Rule{Topic: eventtest.Filter(t, filter), Action: pipeline.SaveOfflineMessages, Sink: "s"}
	if change != nil {
		change(&r)
	}
	return r.Expand()
}

func ruleSets(t testing.TB) map[string][]pipeline.Rule {
	t.Helper()
	one := func(h pipeline.Hook, topic string, a pipeline.Action) pipeline.Rule {
		r := pipeline.Rule{Hook: h, Action: a, Sink: "s"}
		if topic != "" {
			r.Topic = eventtest.Filter(t, topic)
		}
		return r
	}
	return map[string][]pipeline.Rule{
		"queue":               queueRules(t, "t/#", nil),
		"queue ttl 1h":        queueRules(t, "t/#", func(r *pipeline.Rule) { r.TTL = time.Hour }),
		"queue wildcards":     queueRules(t, "t/#", func(r *pipeline.Rule) { r.Wildcards = new(true) }),
		"queue newest 5 2h":   queueRules(t, "t/#", func(r *pipeline.Rule) { r.MaxReturned, r.TimeRange = 5, 2*time.Hour }),
		"queue addressee":     queueRules(t, "t/#", func(r *pipeline.Rule) { r.Addressee = "t/{clientid}/#" }),
		"queue addressee +":   queueRules(t, "t/#", func(r *pipeline.Rule) { r.Addressee = "t/+/{clientid}" }),
		"queue ignore dash-*": queueRules(t, "t/#", func(r *pipeline.Rule) { r.IgnoreClients = []string{"dash-*", "a*b*c", "x[1]?"} }),
		"queue and history": append(queueRules(t, "t/#", nil),
			one(pipeline.MessagePublish, "t/+", pipeline.OnMessageStore)),
		"queue and retained": append(queueRules(t, "t/#", nil),
			one(pipeline.MessagePublish, "#", pipeline.OnMessageRetain), one(pipeline.MessagePublish, "#", pipeline.OnRetainDelete),
			one(pipeline.SessionSubscribed, "#", pipeline.OnRetainLookup)),
		"pubsub": {
			one(pipeline.MessagePublish, "t/#", pipeline.OnMessagePublish),
			one(pipeline.SessionSubscribed, "t/#", pipeline.OnMessageFetchForPubsub),
			one(pipeline.MessageAcked, "t/#", pipeline.OnMessageAckedForPubsub),
			one(pipeline.SessionUnsubscribed, "t/#", pipeline.OnAckedDelete),
		},
		"clients": {
			one(pipeline.ClientConnected, "", pipeline.OnClientConnected), one(pipeline.ClientDisconnected, "", pipeline.OnClientDisconnected),
			one(pipeline.SessionCreated, "", pipeline.OnSubscribeLookup),
		},
		"clients lookup always": {one(pipeline.ClientConnected, "", pipeline.OnSubscribeLookup)},
		"fetch on connect": append(queueRules(t, "t/#", nil),
			pipeline.Rule{Hook: pipeline.ClientConnected, Action: pipeline.OnMessageFetchForQueue, Sink: "s", Delay: 10 * time.Second}),
		"subs": {
			one(pipeline.SessionSubscribed, "#", pipeline.OnSubscribeStore), one(pipeline.SessionUnsubscribed, "#", pipeline.OnUnsubscribeDelete),
		},
	}
}

// at is the head of an event ms after t0; the id has a µs of its own.
func at(ms, micros int64) event.Head {
	when := t0.Add(time.Duration(ms) * time.Millisecond)
	return event.Head{ID: event.IDOf(when.UnixMicro()+micros, 7, 1), Source: "restante/test", At: when}
}

func planTable(t testing.TB) []struct {
	rules, name string
	event       event.Event
} {
	t.Helper()
	publish := func(topic, payload string, qos event.QoS, retain bool, expiry time.Duration) event.Published {
		return event.Published{
			Head: at(0, 5), Topic: eventtest.Topic(t, topic), Sender: "pub", QoS: qos, Retain: retain, Payload: []byte(payload), Expiry: expiry,
		}
	}
	ack := func(client event.ClientID, topic string, ms, micros int64) event.Acked {
		return event.Acked{Head: at(ms, micros), Topic: eventtest.Topic(t, topic), Client: client, Message: at(0, 5).ID}
	}
	subscribe := func(client event.ClientID, filter string, qos event.QoS) event.Subscribed {
		return event.Subscribed{Head: at(1000, 1), Client: client, Filter: eventtest.Filter(t, filter), QoS: qos}
	}
	early := at(0, 0).At
	type row = struct {
		rules, name string
		event       event.Event
	}
	rows := []row{
		{"queue", "publish at QoS 1", publish("t/1", "a", 1, false, 0)},
		{"queue", "publish at QoS 2 keeps its QoS", publish("t/1", "a", 2, false, 0)},
		{"queue", "publish at QoS 0", publish("t/1", "a", 0, false, 0)},
		{"queue", "publish elsewhere", publish("u/1", "a", 1, false, 0)},
		{"queue", "publish below $", publish("$SYS/1", "a", 1, false, 0)},
		{"queue", "empty payload", publish("t/1", "", 1, false, 0)},
		{"queue", "retained", publish("t/1", "a", 1, true, 0)},
		{"queue", "retained and empty is not stored", publish("t/1", "", 1, true, 0)},
		{"queue", "message expiry", publish("t/1", "a", 1, false, time.Minute)},
		{"queue ttl 1h", "no expiry", publish("t/1", "a", 1, false, 0)},
		{"queue ttl 1h", "earlier expiry", publish("t/1", "a", 1, false, time.Minute)},
		{"queue ttl 1h", "later expiry", publish("t/1", "a", 1, false, 2*time.Hour)},
		{"queue", "ack is stamped with its own µs", ack("c", "t/1", 2000, 9)},
		{"queue", "ack minted before its message is stamped T+1", ack("c", "t/1", -2000, 9)},
		{"queue", "ack by one of ours", ack("restante-replay-0", "t/1", 2000, 9)},
		{"queue", "ack that knows the broker's id only", event.Acked{Head: at(1, 1), Topic: eventtest.Topic(t, "t/1"), Client: "c", BrokerID: at(0, 9).ID}},
		{"queue", "ack elsewhere", ack("c", "u/1", 2000, 9)},
		{"queue ignore dash-*", "ack by an ignored client", ack("dash-board/1", "t/1", 2000, 9)},
		{"queue ignore dash-*", "ack by another ignored client", ack("a-b-b-c", "t/1", 2000, 9)},
		{"queue ignore dash-*", "a pattern holds for the whole id", ack("my-dash-1", "t/1", 2000, 9)},
		{"queue ignore dash-*", "only * is special", ack("x1y", "t/1", 2000, 9)},
		{"queue ignore dash-*", "brackets and ? stand for themselves", ack("x[1]?", "t/1", 2000, 9)},
		{"queue addressee", "ack by the addressee", ack("dev 1", "t/dev 1/up", 2000, 9)},
		{"queue addressee", "ack by an encoded addressee", ack("a/b+c#d", "t/a%2Fb%2Bc%23d/up", 2000, 9)},
		{"queue addressee", "ack by another", ack("dev2", "t/dev 1/up", 2000, 9)},
		{"queue addressee", "# takes its parent", ack("dev2", "t/dev1", 2000, 9)},
		{"queue addressee", "a topic for nobody in particular", ack("dev2", "t", 2000, 9)},
		{"queue addressee", "an empty level is nobody's", ack("dev2", "t//x", 2000, 9)},
		{"queue addressee +", "ack by the addressee behind +", ack("dev1", "t/x/dev1", 2000, 9)},
		{"queue addressee +", "ack by another behind +", ack("dev2", "t/x/dev1", 2000, 9)},
		{"queue addressee +", "a longer topic does not fit", ack("dev2", "t/x/dev1/y", 2000, 9)},
		{"queue and history", "store makes history no pending less", publish("t/1", "a", 1, false, 0)},
		{"queue and history", "store takes QoS 0", publish("t/1", "a", 0, false, 0)},
		{"queue and history", "an ack is not elidable", ack("c", "t/1", 2000, 9)},
		{"queue and history", "outside the history", publish("t/1/2", "a", 1, false, 0)},
		{"queue and retained", "retained message", publish("t/1", "a", 1, true, 0)},
		{"queue and retained", "retained at QoS 0", publish("t/1", "a", 0, true, 0)},
		{"queue and retained", "retained and empty deletes", publish("t/1", "", 1, true, 0)},
		{"queue and retained", "not retained", publish("u/1", "a", 1, false, 0)},
		{"queue and retained", "subscribe", subscribe("c", "t/1", 1)},
		{"queue and retained", "subscribe at QoS 0 still looks up what is retained", subscribe("c", "t/1", 0)},
		{"queue", "subscribe", subscribe("c", "t/1", 1)},
		{"queue", "subscribe at QoS 0", subscribe("c", "t/1", 0)},
		{"queue", "subscribe shared", subscribe("c", "$share/g/t/1", 1)},
		{"queue", "subscribe with a wildcard", subscribe("c", "t/+", 1)},
		{"queue", "subscribe elsewhere", subscribe("c", "u/1", 1)},
		{"queue", "subscribe by one of ours", subscribe("restante-x", "t/1", 1)},
		{"queue wildcards", "subscribe with a wildcard", subscribe("c", "#", 2)},
		{"queue addressee", "a wildcard replays by default", subscribe("dev1", "t/#", 1)},
		{"queue newest 5 2h", "subscribe", subscribe("c", "t/1", 1)},
		{"queue wildcards", "a slice goes on", event.ReplayContinued{
			Head: at(1, 1), Client: "c", Filter: eventtest.Filter(t, "t/#"), QoS: 1, Bound: at(9, 9).ID, Subscribe: 3, Slice: 1, Rule: "s t/#",
		}},
		{"queue", "alias", event.Replayed{Head: at(1, 1), Topic: eventtest.Topic(t, "t/1"), Client: "c", Message: at(0, 1).ID, BrokerID: at(0, 2).ID}},
		{"queue", "dropped", event.Dropped{Head: at(1, 1), Topic: eventtest.Topic(t, "t/1"), Client: "c", Message: at(0, 1).ID, Reason: "queue_full"}},
		{"pubsub", "publish is never elidable", publish("t/1", "a", 1, false, 0)},
		{"pubsub", "subscribe", subscribe("c", "t/1", 1)},
		{"pubsub", "wildcards by default", subscribe("c", "t/#", 1)},
		{"pubsub", "ack moves the position at the event's µs", ack("c", "t/1", 2000, 9)},
		{"pubsub", "unsubscribe", event.Unsubscribed{Head: at(3, 3), Client: "c", Filter: eventtest.Filter(t, "t/#")}},
		{"subs", "subscribe", subscribe("c", "$share/g/t/1", 2)},
		{"subs", "unsubscribe", event.Unsubscribed{Head: at(3, 3), Client: "c", Filter: eventtest.Filter(t, "t/#")}},
		{"clients", "connected", event.Connected{Head: at(5, 5), Client: "c", ConnectedAt: early, Node: "n1", SessionPresent: event.Yes}},
		{"clients", "connected at an unknown time", event.Connected{Head: at(5, 5), Client: "c", SessionPresent: event.No}},
		{"clients", "session unknown", event.Connected{Head: at(5, 5), Client: "c", ConnectedAt: early}},
		{"clients lookup always", "session present", event.Connected{Head: at(5, 5), Client: "c", SessionPresent: event.Yes}},
		{"fetch on connect", "unknown session", event.Connected{Head: at(5, 5), Client: "c"}},
		{"fetch on connect", "resumed session", event.Connected{Head: at(5, 5), Client: "c", CleanStart: event.No, SessionPresent: event.Yes}},
		{"fetch on connect", "new session", event.Connected{Head: at(5, 5), Client: "c", SessionPresent: event.No}},
		{"fetch on connect", "clean start", event.Connected{Head: at(5, 5), Client: "c", CleanStart: event.Yes}},
		{"fetch on connect", "our own client", event.Connected{Head: at(5, 5), Client: "restante-replay-0"}},
		{"queue and retained", "subscribe that wants nothing retained", event.Subscribed{
			Head: at(1000, 1), Client: "c", Filter: eventtest.Filter(t, "t/1"), Options: &event.SubOptions{RetainHandling: 2},
		}},
		{"clients", "disconnected", event.Disconnected{Head: at(9, 9), Client: "c", Reason: "takenover", ConnectedAt: early, DisconnectedAt: early.Add(time.Second)}},
		{"clients", "disconnected without connectedat", event.Disconnected{Head: at(9, 9), Client: "c", Reason: "normal"}},
	}
	for _, reason := range []string{"discarded", "takeovered", "takenover"} {
		rows = append(rows, row{"clients", "disconnected without connectedat, " + reason, event.Disconnected{Head: at(9, 9), Client: "c", Reason: reason}})
	}
	return rows
}

// micros writes a stamp as its distance from t0.
func micros(stamp int64) string { return fmt.Sprintf("t0%+dµs", stamp-t0.UnixMicro()) }

func describeMessage(m sinks.Message) string {
	s := fmt.Sprintf("%s %s qos%d %q from %s", m.Topic, micros(m.ID.Micros()), m.QoS, m.Payload, m.Sender)
	if m.Retain {
		s += " retain"
	}
	if !m.Expires.IsZero() {
		s += fmt.Sprintf(" expires t0+%s", m.Expires.Sub(t0))
	}
	return s
}

func describeOp(o sinks.Op) string {
	switch o := o.(type) {
	case sinks.PutMessage:
		if o.History {
			return "put history " + describeMessage(o.Message)
		}
		return "put message " + describeMessage(o.Message)
	case sinks.DeleteMessage:
		return fmt.Sprintf("delete message %s %s @ %s", o.Topic, micros(o.ID.Micros()), micros(o.Stamp))
	case sinks.PutAcked:
		return fmt.Sprintf("put acked %s %s %s @ %s", o.Client, o.Topic, micros(o.Message.Micros()), micros(o.Stamp))
	case sinks.DeleteAcked:
		return fmt.Sprintf("delete acked %s %s @ %s", o.Client, o.Topic, micros(o.Stamp))
	case sinks.PutRetained:
		return "put retained " + describeMessage(o.Message)
	case sinks.DeleteRetained:
		return fmt.Sprintf("delete retained %s @ %s", o.Topic, micros(o.Stamp))
	case sinks.PutClient:
		if o.Up.Stamp != 0 {
			return fmt.Sprintf("put client %s up node %q t0%+v @ %s", o.Client, o.Up.Node, o.Up.OnlineAt.Sub(t0), micros(o.Up.Stamp))
		}
		return fmt.Sprintf("put client %s down t0%+v @ %s", o.Client, o.Down.OfflineAt.Sub(t0), micros(o.Down.Stamp))
	case sinks.PutSub:
		return fmt.Sprintf("put sub %s %s qos%d @ %s", o.Client, o.Filter, o.QoS, micros(o.Stamp))
	case sinks.DeleteSub:
		return fmt.Sprintf("delete sub %s %s @ %s", o.Client, o.Filter, micros(o.Stamp))
	}
	return fmt.Sprintf("unknown %T", o)
}

func describePlan(p pipeline.Plan) []string {
	var out []string
	for _, o := range p.Ops {
		out = append(out, describeOp(o))
	}
	if p.Elidable && len(p.Ops) > 0 {
		out = append(out, "elidable")
	}
	for _, r := range p.Replays {
		out = append(out, fmt.Sprintf("replay %s %s by rule %q to %s qos%d newest %d range %s",
			r.Mode, r.Filter, r.Rule, r.Client, r.QoS, r.MaxReturned, r.TimeRange))
	}
	for _, x := range p.Positions {
		out = append(out, fmt.Sprintf("position %s %s %s @ %s", x.Client, x.Topic, micros(x.Message.Micros()), micros(x.Stamp)))
	}
	for _, x := range p.Forgets {
		out = append(out, fmt.Sprintf("forget %s %s @ %s", x.Client, x.Filter, micros(x.Stamp)))
	}
	for _, x := range p.Resubscribes {
		out = append(out, "resubscribe "+string(x.Client))
	}
	for _, x := range p.CatchUps {
		out = append(out, fmt.Sprintf("catch up %s of sink %s after %s", x.Rule, x.Sink, x.Delay))
	}
	if p.Skipped != "" {
		out = append(out, "skipped: "+p.Skipped)
	}
	if len(out) == 0 {
		out = append(out, "nothing")
	}
	return out
}

func TestPlansAreWhatTheGoldenFileSays(t *testing.T) {
	t.Parallel()
	sets := ruleSets(t)
	var b strings.Builder
	for _, row := range planTable(t) {
		fmt.Fprintf(&b, "%s: %s: %s\n", row.rules, event.TypeOf(row.event), row.name)
		for _, line := range describePlan(compile(t, sets[row.rules]...).ForSink("s")(row.event)) {
			fmt.Fprintf(&b, "\t%s\n", line)
		}
	}
	path := filepath.Join("testdata", "plans.golden")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("plans differ (-want +got); go test -update writes them anew:\n%s", diff)
	}
}

func TestAPlanIsPure(t *testing.T) {
	t.Parallel()
	sets := ruleSets(t)
	for _, row := range planTable(t) {
		rules := compile(t, sets[row.rules]...)
		first := describePlan(rules.Plan(row.event))
		for range 3 {
			if diff := cmp.Diff(rules.Plan(row.event), rules.ForSink("s")(row.event),
				cmp.AllowUnexported(event.ID{}, event.Topic{}, event.Filter{}), cmpopts.IgnoreFields(pipeline.Replay{}, "Excludes"), cmpopts.IgnoreFields(pipeline.CatchUp{}, "Replay")); diff != "" {
				t.Errorf("%s: %s: the plan of all sinks and that of the only one differ:\n%s", row.rules, row.name, diff)
			}
			if diff := cmp.Diff(first, describePlan(rules.Plan(row.event))); diff != "" {
				t.Errorf("%s: %s: a second plan differs:\n%s", row.rules, row.name, diff)
			}
		}
	}
}

func TestAReplaySelectsWhatIsPendingAndAddressed(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		rules          []pipeline.Rule
		client, filter string
		yes, no        []string
	}{
		"the rule's topics only": {
			queueRules(t, "t/#", func(r *pipeline.Rule) { r.Wildcards = new(true) }), "c", "#",
			[]string{"t", "t/1", "t/1/2"},
			[]string{"u/1", "$SYS/x"},
		},
		"+ takes one level": {
			queueRules(t, "t/#", func(r *pipeline.Rule) { r.Wildcards = new(true) }), "c", "t/+",
			[]string{"t/1", "t/"},
			[]string{"t", "t/1/2"},
		},
		"the addressee's": {
			queueRules(t, "t/#", func(r *pipeline.Rule) { r.Addressee = "t/{clientid}/#" }), "a/b", "t/#",
			[]string{"t/a%2Fb/x", "t"},
			[]string{"t/a/b", "t/c/x"},
		},
		"only what is stored as pending": {
			[]pipeline.Rule{
				{Hook: pipeline.MessagePublish, Topic: eventtest.Filter(t, "t/#"), Action: pipeline.OnMessagePublish, Sink: "s"},
				{Hook: pipeline.MessagePublish, Topic: eventtest.Filter(t, "#"), Action: pipeline.OnMessageStore, Sink: "s"},
				{Hook: pipeline.SessionSubscribed, Topic: eventtest.Filter(t, "#"), Action: pipeline.OnMessageFetchForQueue, Sink: "s", Wildcards: new(true)},
			},
			"c", "#",
			[]string{"t/1"},
			[]string{"u/1"},
		},
		"of its own sink": {
			[]pipeline.Rule{
				{Hook: pipeline.MessagePublish, Topic: eventtest.Filter(t, "#"), Action: pipeline.OnMessagePublish, Sink: "other"},
				{Hook: pipeline.SessionSubscribed, Topic: eventtest.Filter(t, "#"), Action: pipeline.OnMessageFetchForQueue, Sink: "s"},
			},
			"c", "t/1",
			nil,
			[]string{"t/1"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := compile(t, c.rules...).Plan(event.Subscribed{Head: at(0, 0), Client: event.ClientID(c.client), Filter: eventtest.Filter(t, c.filter), QoS: 1})
			if len(p.Replays) != 1 {
				t.Fatalf("got %d replays, want 1", len(p.Replays))
			}
			for _, s := range c.yes {
				if !p.Replays[0].Selects(eventtest.Topic(t, s)) {
					t.Errorf("%q is not selected", s)
				}
			}
			for _, s := range c.no {
				if p.Replays[0].Selects(eventtest.Topic(t, s)) {
					t.Errorf("%q is selected", s)
				}
			}
		})
	}
}

func TestOneSinksPlanHoldsNothingOfAnother(t *testing.T) {
	t.Parallel()
	rules := compile(t, append(queueRules(t, "t/#", nil), queueRules(t, "t/#", func(r *pipeline.Rule) { r.Sink = "b" })...)...)
	if diff := cmp.Diff([]string{"b", "s"}, rules.Sinks()); diff != "" {
		t.Error(diff)
	}
	e := event.Published{Head: at(0, 0), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte{}}
	for sink, want := range map[string]int{"s": 1, "b": 1, "c": 0} {
		if got := len(rules.ForSink(sink)(e).Ops); got != want {
			t.Errorf("sink %s: %d ops, want %d", sink, got, want)
		}
	}
	if got := len(rules.Plan(e).Ops); got != 2 {
		t.Errorf("all sinks: %d ops, want 2", got)
	}
}
