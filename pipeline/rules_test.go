package pipeline_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// faults are the texts of all faults that Compile finds.
func faults(t *testing.T, rules []pipeline.Rule) []string {
	t.Helper()
	_, err := pipeline.Compile(rules, "")
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is no join", err)
	}
	var out []string
	for _, e := range joined.Unwrap() {
		var r *pipeline.RuleError
		if !errors.As(e, &r) {
			t.Fatalf("%T is no RuleError", e)
		}
		if r.Unwrap() == nil {
			t.Errorf("%v wraps nothing", e)
		}
		out = append(out, e.Error())
	}
	return out
}

func TestCompileFindsEachFaultWithIndexAndField(t *testing.T) {
	t.Parallel()
	publish := pipeline.Rule{Hook: pipeline.MessagePublish, Topic: eventtest.Filter(t, "t/#"), Action: pipeline.OnMessagePublish, Sink: "s"}
	with := func(change func(*pipeline.Rule)) pipeline.Rule {
		r := publish
		change(&r)
		return r
	}
	fetch := func(a pipeline.Action, topic string) pipeline.Rule {
		return pipeline.Rule{Hook: pipeline.SessionSubscribed, Topic: eventtest.Filter(t, topic), Action: a, Sink: "s"}
	}
	cases := map[string]struct {
		rules []pipeline.Rule
		want  []string
	}{
		"nothing is wrong": {[]pipeline.Rule{publish}, nil},
		"unknown action": {
			[]pipeline.Rule{publish, with(func(r *pipeline.Rule) { r.Action = "on_fire" })},
			[]string{`rules[1].do: unknown action "on_fire"`},
		},
		"save_offline_messages must be expanded": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Action = pipeline.SaveOfflineMessages })},
			[]string{`rules[0].do: unknown action "save_offline_messages"`},
		},
		"wrong hook": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Hook = pipeline.MessageAcked })},
			[]string{`rules[0].on: on_message_publish cannot run on "message.acked", only on ["message.publish"]`},
		},
		"no topic, no sink: both are told": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Topic, r.Sink = event.Filter{}, "" })},
			[]string{`rules[0].topic: message.publish needs a topic filter; "#" for all`, "rules[0].sink: no sink is named"},
		},
		"shared": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Topic = eventtest.Filter(t, "$share/g/t/#") })},
			[]string{`rules[0].topic: "$share/g/t/#": a rule's filter cannot be shared`},
		},
		"negative": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.TTL = -time.Second })},
			[]string{"rules[0].ttl: ttl, time_range, delay and max_returned_count cannot be negative"},
		},
		"addressee without a client": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Addressee = "t/x" })},
			[]string{`rules[0].addressee: "t/x": want {clientid} as exactly one level`},
		},
		"addressee with two": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Addressee = "{clientid}/{clientid}" })},
			[]string{`rules[0].addressee: "{clientid}/{clientid}": want {clientid} as exactly one level`},
		},
		"addressee within a level": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Addressee = "t/dev-{clientid}" })},
			[]string{`rules[0].addressee: "t/dev-{clientid}": {clientid} must stand alone in its level`},
		},
		"addressee that is no filter": {
			[]pipeline.Rule{with(func(r *pipeline.Rule) { r.Addressee = "#/{clientid}" })},
			[]string{`rules[0].addressee: filter "#/x": '#' must be the last level`},
		},
		"queue and pub/sub on overlapping topics": {
			[]pipeline.Rule{publish, fetch(pipeline.OnMessageFetchForQueue, "t/+"), fetch(pipeline.OnMessageFetchForPubsub, "+/1")},
			[]string{`rules[2].do: contradicts rules[1]: on_message_fetch_for_pubsub on "+/1" and on_message_fetch_for_queue on "t/+": ` +
				`topics of sink "s" would be in queue and in pub/sub mode at once`},
		},
		"queue and pub/sub apart": {
			[]pipeline.Rule{fetch(pipeline.OnMessageFetchForQueue, "t/+"), fetch(pipeline.OnMessageFetchForPubsub, "u/#")}, nil,
		},
		"overlapping with different options": {
			[]pipeline.Rule{publish, with(func(r *pipeline.Rule) { r.Topic, r.TTL = eventtest.Filter(t, "#"), time.Hour })},
			[]string{`rules[1].do: contradicts rules[0]: on_message_publish on "#" and on "t/#" of sink "s" overlap but have different options`},
		},
		"overlapping on another sink": {
			[]pipeline.Rule{publish, with(func(r *pipeline.Rule) { r.Sink, r.TTL = "b", time.Hour })}, nil,
		},
		"overlapping with equal options": {
			[]pipeline.Rule{publish, with(func(r *pipeline.Rule) { r.Topic = eventtest.Filter(t, "#") })}, nil,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, faults(t, c.rules)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSaveOfflineMessagesStandsForThreeRules(t *testing.T) {
	t.Parallel()
	type bound struct {
		Hook   pipeline.Hook
		Action pipeline.Action
	}
	var got []bound
	for _, r := range queueRules(t, "t/#", func(r *pipeline.Rule) { r.TTL = time.Hour }) {
		if r.TTL != time.Hour || r.Sink != "s" {
			t.Errorf("%s: options are lost", r.Action)
		}
		got = append(got, bound{r.Hook, r.Action})
	}
	want := []bound{
		{pipeline.MessagePublish, pipeline.OnMessagePublish},
		{pipeline.SessionSubscribed, pipeline.OnMessageFetchForQueue},
		{pipeline.MessageAcked, pipeline.OnMessageAckedForQueue},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWantsIsWhatSomeRuleUses(t *testing.T) {
	t.Parallel()
	queue, pubsub := compile(t, ruleSets(t)["queue"]...), compile(t, ruleSets(t)["pubsub"]...)
	retained := compile(t, ruleSets(t)["queue and retained"]...)
	publish := func(topic string, qos event.QoS, retain bool) event.Event {
		return event.Published{Head: at(0, 0), Topic: eventtest.Topic(t, topic), QoS: qos, Retain: retain, Payload: []byte{}}
	}
	ack := func(topic string, replayed bool) event.Event {
		return event.Acked{Head: at(0, 0), Topic: eventtest.Topic(t, topic), Client: "c", Message: at(0, 0).ID, Replayed: replayed}
	}
	for name, c := range map[string]struct {
		rules *pipeline.Rules
		event event.Event
		want  bool
	}{
		"a publish":                          {queue, publish("t/1", 1, false), true},
		"a publish at QoS 0":                 {queue, publish("t/1", 0, false), false},
		"a publish elsewhere":                {queue, publish("u/1", 1, false), false},
		"a retained one at QoS 0":            {retained, publish("u/1", 0, true), true},
		"one that is not retained, at QoS 0": {retained, publish("u/1", 0, false), false},
		"an ack":                             {queue, ack("t/1", false), true},
		"an ack elsewhere":                   {queue, ack("u/1", false), false},
		"an ack of a replay, anywhere":       {queue, ack("u/1", true), true},
		"a subscribe, anywhere":              {queue, event.Subscribed{Filter: eventtest.Filter(t, "u/1")}, true},
	} {
		if got := c.rules.Wants(c.event); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if queue.Watches(eventtest.Topic(t, "t/1")) || !pubsub.Watches(eventtest.Topic(t, "t/1")) || pubsub.Watches(eventtest.Topic(t, "u/1")) {
		t.Error("only the acks of pub/sub topics are watched")
	}
}
