package mqtt_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
)

var update = flag.Bool("update", false, "write the golden files anew")

// captured is when the captures were made.
var captured = time.UnixMilli(1795376900000)

func ownClient(c event.ClientID) bool {
	return strings.HasPrefix(string(c), "restante-") || strings.HasPrefix(string(c), "monitor")
}

func emqx(t testing.TB) mqtt.EMQX {
	t.Helper()
	secret, err := mqtt.NewSecret([]byte(keyA))
	if err != nil {
		t.Fatal(err)
	}
	return mqtt.EMQX{
		Source: "restante/emqx", Minter: &event.Minter{Node: 3, Now: func() time.Time { return captured }}, Secret: secret,
		Own: ownClient, Template: template(t, mqtt.DefaultTemplate), Events: []event.Filter{eventtest.Filter(t, "restante/events")},
	}
}

// describe is an event as it stands in Kafka, on one line.
func describe(e event.Event) string {
	w := event.Encode(e, e.Routes()[0], captured)
	var b strings.Builder
	for _, h := range w.Headers {
		if h.Key != "ce_specversion" {
			fmt.Fprintf(&b, " %s=%q", strings.TrimPrefix(h.Key, "ce_"), h.Value)
		}
	}
	return fmt.Sprintf("%q%s %q", w.Key, b.String(), w.Value)
}

func TestEventsOfARealEMQXAreRead(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"rule-republish", "events-topics", "presence"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join("testdata", "emqx-4.4.19", name)
			f, err := os.Open(path + ".jsonl")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }() // read only
			d := emqx(t)
			var got strings.Builder
			for lines := bufio.NewScanner(f); lines.Scan(); {
				var line struct{ Topic, Payload string }
				if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
					t.Fatal(err)
				}
				events, err := d.Decode(mqtt.Packet{Topic: line.Topic, Payload: []byte(line.Payload)})
				var r *mqtt.Refusal
				switch {
				case errors.As(err, &r):
					fmt.Fprintf(&got, "%s: %s: %v\n", line.Topic, r.Counter, err)
				case err != nil || len(events) != 1:
					t.Fatalf("%s: %v, %v", line.Topic, events, err)
				default:
					fmt.Fprintf(&got, "%s: %s\n", line.Topic, describe(events[0]))
				}
			}
			if *update {
				if err := os.WriteFile(path+".golden", []byte(got.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("(-golden +got):\n%s", diff)
			}
		})
	}
}

func rule(t testing.TB, fields map[string]any) mqtt.Packet {
	t.Helper()
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return mqtt.Packet{Topic: "restante/events", Payload: b}
}

func TestABinaryPayloadComesThroughBase64(t *testing.T) {
	t.Parallel()
	binary := []byte{0, 0xff, 0xfe, 'b'}
	events, err := emqx(t).Decode(rule(t, map[string]any{
		"event": "message.publish", "topic": "t/1", "qos": 1, "clientid": "c", "id": "000660E2BFC3B3B2F49E000001AD0001",
		"payload": "\ufffd", "payload_b64": base64.StdEncoding.EncodeToString(binary),
	}))
	if err != nil {
		t.Fatal(err)
	}
	p, ok := events[0].(event.Published)
	if !ok || string(p.Payload) != string(binary) || p.ID.String() != "000660E2BFC3B3B2F49E000001AD0001" {
		t.Errorf("got %+v", events[0])
	}
}

// TestAnAckFindsItsMessage: that of a replay by the property that our own publisher has set, any other by the broker's id.
func TestAnAckFindsItsMessage(t *testing.T) {
	t.Parallel()
	const original, broker = "000660E2BFC3B3B2F49E000001AD0001", "000660E2BFC50721A1B2C3D4E5F60001"
	props := func(id string) map[string]any {
		return map[string]any{"User-Property-Pairs": []map[string]string{{"key": "offline-msgid", "value": id}, {"key": "offline-msgid", "value": broker}}}
	}
	for sentence, c := range map[string]struct {
		topic, from string
		props       any
		want        string
	}{
		"a live message":                     {"t/1", "pub", nil, "t/1 " + broker + " live"},
		"a live message without properties":  {"t/1", "pub", "undefined", "t/1 " + broker + " live"},
		"a replay":                           {"t/1", "restante-replayer-1", props(original), "t/1 " + original + " replayed"},
		"a replay by the object":             {"t/1", "restante-replayer-1", map[string]any{"User-Property": map[string]string{"offline-msgid": original}}, "t/1 " + original + " replayed"},
		"a replay under a prefix":            {"offline/c/t/1", "restante-replayer-1", props(original), "t/1 " + original + " replayed"},
		"a device that names another's id":   {"t/1", "evil", props(original), "t/1 " + broker + " live"},
		"a device that names another prefix": {"offline/c/t/1", "evil", props(original), "offline/c/t/1 " + broker + " live"},
		"a replay whose rule selects little": {"t/1", "restante-replayer-1", nil, string(mqtt.CountUnmappedAck)},
		"a replay with a bad id":             {"t/1", "restante-replayer-1", props("x"), string(mqtt.CountUnmappedAck)},
	} {
		events, err := emqx(t).Decode(rule(t, map[string]any{
			"event": "message.acked", "topic": c.topic, "clientid": "c", "from_clientid": c.from, "id": broker, "pub_props": c.props,
		}))
		var got string
		if r, ok := errors.AsType[*mqtt.Refusal](err); ok {
			got = string(r.Counter)
		} else if err != nil {
			t.Fatalf("%s: %v", sentence, err)
		} else if a, ok := events[0].(event.Acked); ok {
			got = fmt.Sprintf("%s %s %s", a.Topic, a.Message, map[bool]string{true: "replayed", false: "live"}[a.Replayed && a.Watched])
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", sentence, got, c.want)
		}
	}
}

func TestEMQXRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	d := emqx(t)
	replay := d.Secret.Properties("c", "t/1", outgo(t, "t/1", "x"))
	var pairs []map[string]string
	for _, u := range replay {
		pairs = append(pairs, map[string]string{"key": u.Key, "value": u.Value})
	}
	publish := map[string]any{"event": "message.publish", "topic": "t/1", "qos": 1, "clientid": "c", "payload": "x"}
	with := func(base map[string]any, name string, value any) mqtt.Packet {
		m := maps.Clone(base)
		if m[name] = value; value == nil {
			delete(m, name)
		}
		return rule(t, m)
	}
	subscribe := map[string]any{"event": "session.subscribed", "topic": "t/#", "qos": 1, "clientid": "c"}
	for sentence, c := range map[string]struct {
		packet mqtt.Packet
		want   mqtt.Counter
	}{
		"no JSON":                              {mqtt.Packet{Topic: "restante/events", Payload: []byte("hello")}, mqtt.CountRefusedJSON},
		"an array":                             {mqtt.Packet{Topic: "restante/events", Payload: []byte("[]")}, mqtt.CountRefusedJSON},
		"nothing":                              {mqtt.Packet{Topic: "restante/events", Payload: []byte{}}, mqtt.CountRefusedJSON},
		"no event":                             {with(publish, "event", nil), mqtt.CountRefusedJSON},
		"a publish without payload":            {with(publish, "payload", nil), mqtt.CountRefusedJSON},
		"a payload in bad base64":              {with(publish, "payload_b64", "%"), mqtt.CountRefusedJSON},
		"a publish to a wildcard":              {with(publish, "topic", "t/+"), mqtt.CountRefusedTopic},
		"a QoS of 3":                           {with(publish, "qos", 3), mqtt.CountRefusedJSON},
		"a replay of ours":                     {with(publish, "pub_props", map[string]any{"User-Property-Pairs": pairs}), mqtt.CountReplay},
		"our client without mark":              {with(publish, "clientid", "restante-x"), mqtt.CountOwnRefused},
		"our own subscribe":                    {with(subscribe, "clientid", "restante-x"), mqtt.CountOwnEvent},
		"an event of a rule that feeds itself": {with(publish, "topic", "restante/events"), mqtt.CountOwnEvent},
		"an event dropped on its way to us": {
			with(map[string]any{"event": "delivery.dropped", "reason": "queue_full", "topic": "restante/events"}, "clientid", "restante-x"), mqtt.CountGap,
		},
		"a subscribe by nobody": {with(subscribe, "clientid", nil), mqtt.CountRefusedJSON},
		"a bad filter":          {with(subscribe, "topic", "t/#/x"), mqtt.CountRefusedFilter},
		"a subscribe at QoS 3":  {with(subscribe, "qos", 3), mqtt.CountRefusedJSON},
		"a delivery":            {with(publish, "event", "message.delivered"), mqtt.CountIgnored},
	} {
		events, err := d.Decode(c.packet)
		r, ok := errors.AsType[*mqtt.Refusal](err)
		if len(events) > 0 || !ok || r.Counter != c.want {
			t.Errorf("%s: got %v, %v; want a refusal as %s", sentence, events, err, c.want)
		}
	}
}

// FuzzEMQX: whatever comes, nothing panics, and what is made of it can be written to Kafka and read again.
func FuzzEMQX(f *testing.F) {
	for _, name := range []string{"rule-republish", "events-topics", "presence"} {
		b, err := os.ReadFile(filepath.Join("testdata", "emqx-4.4.19", name+".jsonl"))
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var packet struct{ Topic, Payload string }
			if err := json.Unmarshal([]byte(line), &packet); err != nil {
				f.Fatal(err)
			}
			f.Add(packet.Topic, []byte(packet.Payload))
		}
	}
	d := emqx(f)
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		events, err := d.Decode(mqtt.Packet{Topic: topic, Payload: payload})
		if err != nil {
			if _, ok := errors.AsType[*mqtt.Refusal](err); !ok || len(events) > 0 {
				t.Fatalf("%v, %v", events, err)
			}
			return
		}
		for _, e := range events {
			w := event.Encode(e, e.Routes()[0], captured)
			for _, h := range w.Headers {
				if !utf8.Valid(h.Value) {
					t.Fatalf("header %s of %v is no text", h.Key, e)
				}
			}
			if _, err := event.Decode(e.Routes()[0].Kind, w); err != nil {
				t.Fatalf("%+v cannot be read again: %v", e, err)
			}
		}
	})
}
