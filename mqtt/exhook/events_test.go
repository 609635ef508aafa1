package exhook_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/pipeline"
)

var equal = cmp.Options{
	cmp.Comparer(func(a, b event.ID) bool { return a == b }),
	cmp.Comparer(func(a, b event.Topic) bool { return a == b }),
	cmp.Comparer(func(a, b event.Filter) bool { return a == b }),
}

// message is a publish with some of its fields changed.
func message(change obj) obj {
	m := obj{"id": someID, "qos": uint64(1), "from": "pub", "topic": "t/1", "payload": "x", "timestamp": someMS, "node": "n1"}
	maps.Copy(m, change)
	return m
}

func TestEventsSayWhatTheBrokerSaid(t *testing.T) {
	t.Parallel()
	head := event.Head{Source: "restante/emqx/n1"}
	id, at := eventtest.ID(t, someID), time.UnixMilli(int64(someMS))
	published := func(change func(*event.Published)) event.Event {
		e := event.Published{
			Head: event.Head{ID: id, Source: head.Source, At: at}, Topic: eventtest.Topic(t, "t/1"), Sender: "pub", QoS: 1, Payload: []byte("x"),
		}
		change(&e)
		return e
	}
	subscribed := func(filter string) event.Event {
		return event.Subscribed{Head: head, Client: "c", Filter: eventtest.Filter(t, filter), QoS: 1, Options: &event.SubOptions{}}
	}
	tests := map[string]struct {
		hook    string
		request obj
		want    event.Event
		counts  map[mqtt.Counter]int
	}{
		"a publish": {"OnMessagePublish", obj{"message": message(nil)}, published(func(*event.Published) {}), nil},
		"an empty payload is none": {
			"OnMessagePublish",
			obj{"message": message(obj{"payload": ""})},
			published(func(e *event.Published) { e.Payload = []byte{} }), nil,
		},
		"a payload of any bytes": {
			"OnMessagePublish",
			obj{"message": message(obj{"payload": []byte{0, 0xff, 0xfe}})},
			published(func(e *event.Published) { e.Payload = []byte{0, 0xff, 0xfe} }), nil,
		},
		"a sender that has no name": {
			"OnMessagePublish", obj{"message": message(obj{"from": "bad \xff"})}, published(func(e *event.Published) { e.Sender = "" }), nil,
		},
		"a node that is no text": {
			"OnMessagePublish",
			obj{"message": message(obj{"node": "n\xff"})},
			published(func(e *event.Published) { e.Source = "restante/emqx/n\uFFFD" }), nil,
		},
		"properties of v3": {
			"OnMessagePublish", obj{
				"message":    message(nil),
				"user_props": []obj{{"name": "k", "value": "v"}, {"name": "k", "value": "w"}},
				"props": []obj{
					{"name": "Message-Expiry-Interval", "value": "60"},
					{"name": "Content-Type", "value": "text/plain"},
					{"name": "Response-Topic", "value": "r/1"},
					{"name": "Correlation-Data", "value": []byte{0xff, 1}},
					{"name": "Payload-Format-Indicator", "value": "1"},
					{"name": "Topic-Alias", "value": "3"},
				},
			}, published(func(e *event.Published) {
				e.Expiry = time.Minute
				e.Properties = event.Properties{
					User: []event.UserProperty{{Key: "k", Value: "v"}, {Key: "k", Value: "w"}}, ContentType: "text/plain", ResponseTopic: "r/1",
					CorrelationData: []byte{0xff, 1}, PayloadFormat: 1,
				}
			}), nil,
		},
		"an expiry that is none": {
			"OnMessagePublish",
			obj{"message": message(nil), "props": []obj{{"name": "Message-Expiry-Interval", "value": "soon"}}},
			published(func(*event.Published) {}), nil,
		},
		"a claim that is not ours": {
			"OnMessagePublish",
			obj{"message": message(nil), "user_props": []obj{{"name": mqtt.PropMAC, "value": "AAAA"}}},
			published(func(e *event.Published) {
				e.Properties.User = []event.UserProperty{{Key: mqtt.PropMAC, Value: "AAAA"}}
			}),
			map[mqtt.Counter]int{mqtt.CountForged: 1},
		},
		"an id that does not fit its time stays as it is": {
			"OnMessagePublish",
			obj{"message": message(obj{"timestamp": someMS + 86_400_000})},
			published(func(e *event.Published) { e.At = at.Add(24 * time.Hour) }), nil,
		},
		"without a time of its own a publish has that of its id": {
			"OnMessagePublish", obj{"message": message(obj{"timestamp": uint64(0)})}, published(func(*event.Published) {}), nil,
		},
		"an ack is the receiver's, with the id as it came": {
			"OnMessageAcked",
			obj{"clientinfo": who("c"), "message": message(obj{"timestamp": someMS + 86_400_000})},
			event.Acked{Head: head, Topic: eventtest.Topic(t, "t/1"), Client: "c", Message: id},
			nil,
		},
		"a drop is of the sender": {
			"OnMessageDropped",
			obj{"message": message(nil), "reason": "no_subscribers"},
			event.Dropped{Head: head, Topic: eventtest.Topic(t, "t/1"), Client: "pub", Message: id, Reason: "no_subscribers"},
			nil,
		},
		"a connection": {
			"OnClientConnected",
			obj{"clientinfo": who("c")},
			event.Connected{Head: head, Client: "c", ExpiryInterval: -1, Node: "n1", Username: "u"},
			nil,
		},
		"its end": {
			"OnClientDisconnected",
			obj{"clientinfo": who("c"), "reason": "keepalive_timeout"},
			event.Disconnected{Head: head, Client: "c", Reason: "keepalive_timeout"},
			nil,
		},
		"a subscription with its options": {
			"OnSessionSubscribed",
			obj{"clientinfo": who("c"), "topic": "a/+", "subopts": obj{"qos": uint64(2), "rh": uint64(1), "rap": uint64(1), "nl": uint64(1)}},
			event.Subscribed{
				Head: head, Client: "c", Filter: eventtest.Filter(t, "a/+"), QoS: 2,
				Options: &event.SubOptions{RetainHandling: 1, RetainAsPublished: true, NoLocal: true},
			},
			nil,
		},
		"a share beside its filter": {
			"OnSessionSubscribed",
			obj{"clientinfo": who("c"), "topic": "a/#", "subopts": obj{"qos": uint64(1), "share": "g1"}},
			subscribed("$share/g1/a/#"), nil,
		},
		"a share in its filter": {
			"OnSessionSubscribed",
			obj{"clientinfo": who("c"), "topic": "$share/g1/a/#", "subopts": obj{"qos": uint64(1)}},
			subscribed("$share/g1/a/#"), nil,
		},
		"an unsubscription": {
			"OnSessionUnsubscribed",
			obj{"clientinfo": who("c"), "topic": "$share/g1/a/#"},
			event.Unsubscribed{Head: head, Client: "c", Filter: eventtest.Filter(t, "$share/g1/a/#")},
			nil,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, service := range exhook.Services {
				j := &sourcetest.Journal{}
				h := serve(t, exhook.Config{}, j)
				if _, err := dial(t, h, nil).call(service, tc.hook, encode(t, tc.hook, tc.request)); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]event.Event{tc.want}, j.Events(), equal); diff != "" {
					t.Errorf("%s: event differs (-want +got):\n%s", service, diff)
				}
				if tc.counts == nil {
					tc.counts = map[mqtt.Counter]int{}
				}
				if diff := cmp.Diff(tc.counts, h.tally.Counts()); diff != "" {
					t.Errorf("%s: counts differ (-want +got):\n%s", service, diff)
				}
			}
		})
	}
}

func TestConfiguredNodeStandsForTheBrokers(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{}
	dial(t, serve(t, exhook.Config{Node: "emqx"}, j), nil).mustCall("OnClientConnected", all(t)["OnClientConnected"])
	want := event.Connected{Head: event.Head{Source: "restante/emqx/emqx"}, Client: "c", ExpiryInterval: -1, Node: "emqx", Username: "u"}
	if diff := cmp.Diff([]event.Event{want}, j.Events(), equal); diff != "" {
		t.Errorf("event differs (-want +got):\n%s", diff)
	}
}

// What can be no event is counted with its reason and answered; the next call is taken as ever.
func TestGarbageIsCountedAndAnswered(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 70_000)
	tests := map[string]struct {
		hook    string
		request obj
		want    mqtt.Counter
	}{
		"no message":              {"OnMessagePublish", obj{}, mqtt.CountRefusedTopic},
		"no topic":                {"OnMessagePublish", obj{"message": message(obj{"topic": ""})}, mqtt.CountRefusedTopic},
		"a wildcard as topic":     {"OnMessagePublish", obj{"message": message(obj{"topic": "a/#"})}, mqtt.CountRefusedTopic},
		"a topic that is no text": {"OnMessagePublish", obj{"message": message(obj{"topic": "a\xff"})}, mqtt.CountRefusedTopic},
		"a topic without end":     {"OnMessagePublish", obj{"message": message(obj{"topic": long})}, mqtt.CountRefusedTopic},
		"no id":                   {"OnMessagePublish", obj{"message": message(obj{"id": ""})}, mqtt.CountRefusedID},
		"an id that is none":      {"OnMessagePublish", obj{"message": message(obj{"id": "xyz"})}, mqtt.CountRefusedID},
		"an id too long":          {"OnMessagePublish", obj{"message": message(obj{"id": someID + "00"})}, mqtt.CountRefusedID},
		"no time at all": {
			"OnMessagePublish", obj{"message": message(obj{"id": "7FFFFFFFFFFFFFFF0000000000000001", "timestamp": ^uint64(0)})}, mqtt.CountRefusedID,
		},
		"a qos of 3":                  {"OnMessagePublish", obj{"message": message(obj{"qos": uint64(3)})}, mqtt.CountRefusedRequest},
		"an ack by nobody":            {"OnMessageAcked", obj{"clientinfo": who(""), "message": message(nil)}, mqtt.CountRefusedClient},
		"an ack of nothing":           {"OnMessageAcked", obj{"clientinfo": who("c"), "message": message(obj{"id": "0"})}, mqtt.CountRefusedID},
		"an ack on no topic":          {"OnMessageAcked", obj{"clientinfo": who("c")}, mqtt.CountRefusedTopic},
		"a drop of nobody's":          {"OnMessageDropped", obj{"message": message(obj{"from": ""})}, mqtt.CountRefusedClient},
		"a drop on no topic":          {"OnMessageDropped", obj{"message": message(obj{"topic": "+"})}, mqtt.CountRefusedTopic},
		"a drop of nothing":           {"OnMessageDropped", obj{"message": message(obj{"id": "-"})}, mqtt.CountRefusedID},
		"a connection of nobody":      {"OnClientConnected", obj{}, mqtt.CountRefusedClient},
		"a client id with NUL":        {"OnClientConnected", obj{"clientinfo": who("a\x00b")}, mqtt.CountRefusedClient},
		"a disconnection of nobody":   {"OnClientDisconnected", obj{"reason": "x"}, mqtt.CountRefusedClient},
		"a subscription of nobody":    {"OnSessionSubscribed", obj{"topic": "a"}, mqtt.CountRefusedClient},
		"a filter that is none":       {"OnSessionSubscribed", obj{"clientinfo": who("c"), "topic": "a/#/b"}, mqtt.CountRefusedFilter},
		"a share that is none":        {"OnSessionSubscribed", obj{"clientinfo": who("c"), "topic": "a", "subopts": obj{"share": "+"}}, mqtt.CountRefusedFilter},
		"a subscription at qos 9":     {"OnSessionSubscribed", obj{"clientinfo": who("c"), "topic": "a", "subopts": obj{"qos": uint64(9)}}, mqtt.CountRefusedRequest},
		"a retain handling of 3":      {"OnSessionSubscribed", obj{"clientinfo": who("c"), "topic": "a", "subopts": obj{"rh": uint64(3)}}, mqtt.CountRefusedRequest},
		"an unsubscription of nobody": {"OnSessionUnsubscribed", obj{"topic": "a"}, mqtt.CountRefusedClient},
		"an unsubscription of none":   {"OnSessionUnsubscribed", obj{"clientinfo": who("c")}, mqtt.CountRefusedFilter},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := &sourcetest.Journal{}
			h := serve(t, exhook.Config{}, j)
			b := dial(t, h, nil)
			answer := b.mustCall(tc.hook, encode(t, tc.hook, tc.request))
			if tc.hook == "OnMessagePublish" && string(answer) != "\x08\x01" {
				t.Errorf("answered % x, want IGNORE", answer)
			}
			if n := len(j.Events()); n > 0 {
				t.Errorf("took %v", j.Events())
			}
			if diff := cmp.Diff(map[mqtt.Counter]int{tc.want: 1}, h.tally.Counts()); diff != "" {
				t.Errorf("counts differ (-want +got):\n%s", diff)
			}
			b.mustCall("OnMessagePublish", publish(t, "pub", "t/1"))
			if n := len(j.Events()); n != 1 {
				t.Errorf("took %d afterwards, want 1", n)
			}
		})
	}
}

func TestRequestsThatCannotBeReadAreCounted(t *testing.T) {
	t.Parallel()
	h := serve(t, exhook.Config{MaxMessage: 1 << 10}, &sourcetest.Journal{})
	b := dial(t, h, nil)
	for _, hook := range []string{"OnMessagePublish", "OnProviderLoaded", "OnProviderUnloaded"} {
		if _, err := b.call(exhook.Services[0], hook, []byte{0x0a, 0x7f}); status.Code(err) != codes.Internal {
			t.Errorf("%s: got %v, want Internal", hook, err)
		}
	}
	large := encode(t, "OnMessagePublish", obj{"message": message(obj{"payload": make([]byte, 2<<10)})})
	if _, err := b.call(exhook.Services[0], "OnMessagePublish", large); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("too large: got %v, want ResourceExhausted", err)
	}
	if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountRefusedRequest: 3, mqtt.CountRefusedSize: 1}, h.tally.Counts()); diff != "" {
		t.Errorf("counts differ (-want +got):\n%s", diff)
	}
	b.mustCall("OnMessagePublish", publish(t, "pub", "t/1"))
}

func TestReplaysAreNotTakenForMessages(t *testing.T) {
	t.Parallel()
	secret, err := mqtt.NewSecret([]byte("sixteen bytes or more"))
	if err != nil {
		t.Fatal(err)
	}
	own := func(c event.ClientID) bool { return strings.HasPrefix(string(c), "restante-") }
	j := &sourcetest.Journal{}
	h := serve(t, exhook.Config{Secret: secret, Own: own}, j)
	b := dial(t, h, nil)
	var m pipeline.Outgo
	m.ID, m.Payload = eventtest.ID(t, someID), []byte("x")
	var marks []obj
	for _, p := range secret.Properties("c", "t/1", m) {
		marks = append(marks, obj{"name": p.Key, "value": p.Value})
	}
	b.mustCall("OnMessagePublish", encode(t, "OnMessagePublish", obj{"message": message(nil), "user_props": marks}))
	b.mustCall("OnMessageAcked", encode(t, "OnMessageAcked", obj{"clientinfo": who("c"), "message": message(obj{"from": "restante-replay-x-0"})}))
	if n := j.Events(); len(n) > 0 {
		t.Errorf("took %v", n)
	}
	// Copied onto another payload the mark proves nothing.
	b.mustCall("OnMessagePublish", encode(t, "OnMessagePublish", obj{"message": message(obj{"payload": "y"}), "user_props": marks}))
	if n := len(j.Events()); n != 1 {
		t.Errorf("took %d, want the forged one", n)
	}
	if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountReplay: 2, mqtt.CountForged: 1}, h.tally.Counts()); diff != "" {
		t.Errorf("counts differ (-want +got):\n%s", diff)
	}
}
