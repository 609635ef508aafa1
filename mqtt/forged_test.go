package mqtt_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// Ten thousand messages on the topic of EMQX's rule events that are forged or broken: no panic, each is refused with a reason or is
// an event that Kafka can hold.
func TestTenThousandForgedRuleEventsInventNothing(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("testdata", "emqx-4.4.19", "rule-republish.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var good []string
	for line := range strings.Lines(string(text)) {
		var packet struct{ Payload string }
		if err := json.Unmarshal([]byte(line), &packet); err != nil {
			t.Fatal(err)
		}
		good = append(good, packet.Payload)
	}
	odd := []any{nil, true, -1, 3, 1e300, "", "\x00", "a/#/b", "+", "undefined", []any{}, map[string]any{"a": []any{1}}}
	r, d := rand.New(rand.NewPCG(7, 17)), emqx(t)
	counts, events := map[mqtt.Counter]int{}, 0
	for i := range 10_000 {
		b := []byte(good[r.IntN(len(good))])
		if i%2 == 0 {
			for range 1 + r.IntN(4) {
				b[r.IntN(len(b))] = byte(r.IntN(256))
			}
			b = b[:len(b)-r.IntN(2)*r.IntN(len(b))]
		} else {
			var fields map[string]any
			if err := json.Unmarshal(b, &fields); err != nil {
				t.Fatal(err)
			}
			for k := range fields {
				switch n := r.IntN(900); {
				case n < 300:
					fields[k] = odd[r.IntN(len(odd))]
				case n == 300:
					fields[k] = strings.Repeat("x", 70_000) // longer than MQTT can carry
				}
			}
			if b, err = json.Marshal(fields); err != nil {
				t.Fatal(err)
			}
		}
		got, err := d.Decode(mqtt.Packet{Topic: "restante/events", Payload: b})
		if err != nil {
			why, ok := errors.AsType[*mqtt.Refusal](err)
			if !ok || len(got) > 0 {
				t.Fatalf("%.300q: %v, %v", b, got, err)
			}
			counts[why.Counter]++
			continue
		}
		events++
		if why := readable(got[0]); why != "" {
			t.Fatalf("%.300q became %.300v, which cannot be read again: %s", b, got[0], why)
		}
	}
	t.Logf("10,000 messages: %d events, refused %v", events, counts)
	if counts[mqtt.CountRefusedJSON] < 1000 {
		t.Errorf("refused %v", counts)
	}
}

// Ten thousand publishes of any MQTT 5 broker, many of which claim to be a replay, a fetch or an answer: no panic; each is refused with
// a reason, or is just what the packet says, and nobody's ack.
func TestTenThousandForgedPacketsInventNothing(t *testing.T) {
	t.Parallel()
	d := plain(t)
	d.Answers = answers(t, keyA)
	marked := d.Secret.Properties("dev", "t/1", outgo(t, "t/1", "x"))
	r := rand.New(rand.NewPCG(7, 19))
	pick := func(texts ...string) string { return texts[r.IntN(len(texts))] }
	spoil := func(text string) string {
		b := []byte(text)
		for range r.IntN(3) {
			if len(b) == 0 {
				break
			}
			switch i := r.IntN(len(b)); r.IntN(3) {
			case 0:
				b = b[:i]
			case 1:
				b = append(b[:i:i], append([]byte{byte(r.IntN(256))}, b[i:]...)...)
			default:
				b[i] = byte(r.IntN(256))
			}
		}
		return string(b)
	}
	counts, published, subscribed := map[mqtt.Counter]int{}, 0, 0
	for range 10_000 {
		p := mqtt.Packet{
			Topic:   spoil(pick("t/1", "offline/fetch/dev", "offline/fetch/a%2Fb", "offline/ack/dev", "offline/dev/t/1", "", "t/#", "$SYS/x", "a/+/b")),
			Payload: []byte(spoil(pick("x", "t/#", "$share/g/t", "#/", "", "000660E2BFC3B3B2F49E000001AD0001"))),
			QoS:     event.QoS(r.IntN(3)), Retain: r.IntN(2) == 0, Expiry: time.Duration(r.IntN(3)) * time.Second,
		}
		for _, u := range marked {
			if r.IntN(2) == 0 {
				p.Properties.User = append(p.Properties.User, event.UserProperty{Key: u.Key, Value: spoil(u.Value)})
			}
		}
		if r.IntN(2) == 0 {
			p.Properties.CorrelationData = []byte(spoil("000660E2BFC3B3B2F49E000001AD0001.AAAAAAAAAAAAAAAAAAAAAA.t/1"))
		}
		got, err := d.Decode(p)
		if err != nil {
			why, ok := errors.AsType[*mqtt.Refusal](err)
			if !ok || len(got) > 0 {
				t.Fatalf("%+v: %v, %v", p, got, err)
			}
			if _, _, ok := d.Secret.Verify(p.Topic, p.Payload, p.Properties.User); why.Counter == mqtt.CountReplay && !ok {
				t.Fatalf("%+v is taken for a replay", p)
			}
			counts[why.Counter]++
			continue
		}
		if len(got) != 1 {
			t.Fatalf("%+v became %v", p, got)
		}
		switch message, is := got[0].(event.Published); {
		case is:
			published++
			if message.Topic.String() != p.Topic || string(message.Payload) != string(p.Payload) || message.QoS != p.QoS || message.Retain != p.Retain {
				t.Fatalf("%+v became %+v", p, message)
			}
		default:
			subscribed++
			fetch, is := got[0].(event.Subscribed)
			if client, _, ok := d.Fetch.Original(p.Topic); !is || !ok || fetch.Client != client || fetch.Filter.String() != string(p.Payload) {
				t.Fatalf("%+v became %+v", p, got[0])
			}
		}
		if why := readable(got[0]); why != "" && utf8.ValidString(strings.Join(texts(p.Properties), "")) {
			t.Fatalf("%+v became %v, which cannot be read again: %s", p, got[0], why)
		}
	}
	t.Logf("10,000 packets: %d publishes, %d subscribes, refused %v", published, subscribed, counts)
	if published < 1000 || subscribed < 100 || counts[mqtt.CountRefusedTopic] < 100 || counts[mqtt.CountRefusedFilter] < 100 || counts[mqtt.CountRefusedAnswer] < 100 {
		t.Error("some ways were hardly tried")
	}
}

func texts(p event.Properties) []string {
	var out []string
	for _, u := range p.User {
		out = append(out, u.Key, u.Value)
	}
	return out
}
