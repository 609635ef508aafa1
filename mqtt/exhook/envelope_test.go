package exhook_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/pipeline"
)

const (
	stored = "000660E2BFC3B3B2F49E000000010001" // the id of the message that is replayed
	given  = someID                             // the id that the broker gave to the replay
)

func secretOf(t testing.TB, key string) mqtt.Secret {
	t.Helper()
	s, err := mqtt.NewSecret([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func envelopes(t testing.TB) exhook.Config {
	t.Helper()
	return exhook.Config{
		Secret: secretOf(t, "a key of some length"), Envelope: true,
		Own: func(c event.ClientID) bool { return c == "restante-replay-x-0" },
	}
}

// seal is the topic of an envelope for client a/b.
func seal(t testing.TB, key, topic, payload string) string {
	t.Helper()
	sealed, err := secretOf(t, key).Seal(mqtt.Envelope{Message: eventtest.ID(t, stored), Client: "a/b", Topic: eventtest.Topic(t, topic)}, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return sealed.String()
}

// valued reads the answer to a publish.
func valued(t testing.TB, answer []byte) *exhookpb.ValuedResponse {
	t.Helper()
	var v exhookpb.ValuedResponse
	if err := proto.Unmarshal(answer, &v); err != nil {
		t.Fatal(err)
	}
	return &v
}

func ack(t testing.TB, id, topic, receiver string) []byte {
	t.Helper()
	return encode(t, "OnMessageAcked", obj{"clientinfo": who(receiver), "message": obj{
		"id": id, "qos": uint64(1), "from": "restante-replay-x-0", "topic": topic, "timestamp": someMS, "node": "n1",
	}})
}

func TestAnEnvelopeIsAnsweredWithItsTopicOnceItsAliasIsDurable(t *testing.T) {
	t.Parallel()
	r := sourcetest.Held()
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return r, nil }}
	h := serve(t, envelopes(t), j)
	b := dial(t, h, nil)
	answered := make(chan []byte, 1)
	go func() {
		answered <- b.mustCall("OnMessagePublish", publish(t, "restante-replay-x-0", seal(t, "a key of some length", "t/1", "x")))
	}()
	sourcetest.Eventually(t, "the alias is taken", func() bool { return len(j.Events()) == 1 })
	select {
	case <-answered:
		t.Fatal("answered while the alias was not durable")
	case <-time.After(50 * time.Millisecond):
	}
	r.Complete()
	v := valued(t, <-answered)
	m := v.GetMessage()
	if v.GetType() != exhookpb.ValuedResponse_STOP_AND_RETURN || string(m.GetTopic()) != "t/1" || string(m.GetPayload()) != "x" ||
		m.GetQos() != 1 || len(m.GetHeaders()) > 0 {
		t.Errorf("answered %v", v)
	}
	want := []event.Event{event.Replayed{
		Head: event.Head{Source: "restante/emqx/n1"}, Topic: eventtest.Topic(t, "t/1"), Client: "a/b", Message: eventtest.ID(t, stored), BrokerID: eventtest.ID(t, given),
	}}
	if diff := cmp.Diff(want, j.Events(), same); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if n := h.tally.Counts(); len(n) > 0 {
		t.Errorf("counted %v", n)
	}
}

var same = cmp.Options{cmp.Comparer(func(a, b event.ID) bool { return a == b }), cmp.Comparer(func(a, b event.Topic) bool { return a == b })}

// TestAnAckOfAReplayFindsItsMessageOrNamesTheBrokersID: the second when another server has opened the envelope.
func TestAnAckOfAReplayFindsItsMessageOrNamesTheBrokersID(t *testing.T) {
	t.Parallel()
	template, err := mqtt.ParseTemplate(mqtt.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		delivered string
		template  mqtt.Template
	}{"on its topic": {"t/1", mqtt.Template{}}, "on a topic of its own": {"offline/a%2Fb/t/1", template}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := envelopes(t)
			cfg.Template = c.template
			one, two := &sourcetest.Journal{}, &sourcetest.Journal{}
			first, second := dial(t, serve(t, cfg, one), nil), dial(t, serve(t, cfg, two), nil)
			answer := first.mustCall("OnMessagePublish", publish(t, "restante-replay-x-0", seal(t, "a key of some length", c.delivered, "x")))
			if got := string(valued(t, answer).GetMessage().GetTopic()); got != c.delivered {
				t.Errorf("delivered on %q, want %q", got, c.delivered)
			}
			first.mustCall("OnMessageAcked", ack(t, given, c.delivered, "a/b"))
			second.mustCall("OnMessageAcked", ack(t, given, c.delivered, "a/b"))
			want := event.Acked{Head: event.Head{Source: "restante/emqx/n1"}, Topic: eventtest.Topic(t, "t/1"), Client: "a/b", Replayed: true, Message: eventtest.ID(t, stored)}
			if diff := cmp.Diff([]event.Event{want}, one.Events()[1:], same); diff != "" {
				t.Errorf("who opened it (-want +got):\n%s", diff)
			}
			want.Message, want.BrokerID = event.ID{}, eventtest.ID(t, given)
			if diff := cmp.Diff([]event.Event{want}, two.Events(), same); diff != "" {
				t.Errorf("another (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAnEnvelopeThatIsNotInTheLogIsHeldBack: nobody gets it, the call does not fail, and it can be sent again.
func TestAnEnvelopeThatIsNotInTheLogIsHeldBack(t *testing.T) {
	t.Parallel()
	for name, judge := range map[string]func(context.Context, int, event.Event) (pipeline.Receipt, error){
		"not taken": func(context.Context, int, event.Event) (pipeline.Receipt, error) { return nil, errors.New("away") },
		"not durable": func(context.Context, int, event.Event) (pipeline.Receipt, error) {
			return sourcetest.Durable(errors.New("away")), nil
		},
		"too slow": func(context.Context, int, event.Event) (pipeline.Receipt, error) { return sourcetest.Held(), nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := envelopes(t)
			cfg.Budget = 100 * time.Millisecond
			h := serve(t, cfg, &sourcetest.Journal{Judge: judge})
			b := dial(t, h, nil)
			v := valued(t, b.mustCall("OnMessagePublish", publish(t, "restante-replay-x-0", seal(t, "a key of some length", "t/1", "x"))))
			if v.GetType() != exhookpb.ValuedResponse_STOP_AND_RETURN || v.GetMessage().GetHeaders()["allow_publish"] != "false" {
				t.Errorf("answered %v", v)
			}
			if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountHeld: 1}, h.tally.Counts()); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAForgedEnvelopeIsPublishedToNobody(t *testing.T) {
	t.Parallel()
	good := seal(t, "a key of some length", "t/1", "x")
	for name, c := range map[string]struct{ from, topic string }{
		"from a device":         {"device", good},
		"with another key":      {"restante-replay-x-0", seal(t, "another key of a length", "t/1", "x")},
		"with another payload":  {"restante-replay-x-0", seal(t, "a key of some length", "t/1", "y")},
		"with another topic":    {"restante-replay-x-0", good + "/2"},
		"with too few levels":   {"restante-replay-x-0", "$offline/x"},
		"with a wrong MAC":      {"restante-replay-x-0", "$offline/!" + good[len("$offline/")+1:]},
		"of nothing in the end": {"restante-replay-x-0", "$offline/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := &sourcetest.Journal{}
			h := serve(t, envelopes(t), j)
			v := valued(t, dial(t, h, nil).mustCall("OnMessagePublish", publish(t, c.from, c.topic)))
			if v.GetType() != exhookpb.ValuedResponse_STOP_AND_RETURN || v.GetMessage().GetHeaders()["allow_publish"] != "false" {
				t.Errorf("answered %v", v)
			}
			if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountForged: 1}, h.tally.Counts()); diff != "" || len(j.Events()) > 0 {
				t.Errorf("took %v, counted (-want +got):\n%s", j.Events(), diff)
			}
		})
	}
}

func TestEnvelopesAreAskedForBesideTheRulesTopics(t *testing.T) {
	t.Parallel()
	template, err := mqtt.ParseTemplate(mqtt.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	cfg := envelopes(t)
	cfg.Template = template
	cfg.Hooks = []exhook.Hook{{Name: pipeline.MessagePublish, Topics: []string{"t/#"}}, {Name: pipeline.MessageAcked}}
	h := serve(t, cfg, &sourcetest.Journal{})
	var got exhookpb.LoadedResponse
	if err := proto.Unmarshal(dial(t, h, nil).mustCall("OnProviderLoaded", nil), &got); err != nil {
		t.Fatal(err)
	}
	topics := map[string][]string{}
	for _, hook := range got.GetHooks() {
		topics[hook.GetName()] = hook.GetTopics()
	}
	if diff := cmp.Diff(map[string][]string{"message.publish": {"$offline/#", "t/#"}, "message.acked": nil}, topics); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
