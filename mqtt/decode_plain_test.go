package mqtt_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
)

func plain(t testing.TB) mqtt.Plain {
	t.Helper()
	s, err := mqtt.NewSecret([]byte(keyA))
	if err != nil {
		t.Fatal(err)
	}
	return mqtt.Plain{
		Source: "restante/plain", Minter: &event.Minter{Node: 3, Now: time.Now}, Secret: s, Fetch: template(t, mqtt.DefaultFetchTopic),
	}
}

func TestPlainRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	d, m := plain(t), outgo(t, "a", "x")
	for sentence, c := range map[string]struct {
		packet mqtt.Packet
		want   mqtt.Counter
	}{
		"no topic":        {mqtt.Packet{}, mqtt.CountRefusedTopic},
		"a wildcard":      {mqtt.Packet{Topic: "a/+"}, mqtt.CountRefusedTopic},
		"a NUL":           {mqtt.Packet{Topic: "a\x00"}, mqtt.CountRefusedTopic},
		"an empty filter": {mqtt.Packet{Topic: "offline/fetch/c"}, mqtt.CountRefusedFilter},
		"a bad filter":    {mqtt.Packet{Topic: "offline/fetch/c", Payload: []byte("a/#/b")}, mqtt.CountRefusedFilter},
		"a replay of ours": {mqtt.Packet{
			Topic: "a", Payload: []byte("x"), Properties: event.Properties{User: d.Secret.Properties("c", "a", m)},
		}, mqtt.CountReplay},
	} {
		events, err := d.Decode(c.packet)
		var r *mqtt.Refusal
		if len(events) > 0 || !errors.As(err, &r) || r.Counter != c.want {
			t.Errorf("%s: got %v, %v; want a refusal as %s", sentence, events, err, c.want)
		}
		if errors.Is(err, mqtt.ErrOwn) != (c.want == mqtt.CountReplay) {
			t.Errorf("%s: %v", sentence, err)
		}
	}
}

func TestPlainTakesAForgedReplayAsAPublish(t *testing.T) {
	t.Parallel()
	d := plain(t)
	user := secretOf(t, keyB).Properties("c", "a", outgo(t, "a", "x"))
	events, err := d.Decode(mqtt.Packet{Topic: "a", Payload: []byte("x"), Properties: event.Properties{User: user}})
	if err != nil || len(events) != 1 {
		t.Fatalf("got %v, %v", events, err)
	}
	p, ok := events[0].(event.Published)
	if !ok {
		t.Fatalf("got %T", events[0])
	}
	if diff := cmp.Diff(user, p.Properties.User); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
}

func TestPlainMakesASubscribeOfAFetch(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]event.ClientID{
		"offline/fetch/dev": "dev", "offline/fetch/a%2Fb%2B%23%25": "a/b+#%", "offline/fetch/😀 x": "😀 x",
	} {
		events, err := plain(t).Decode(mqtt.Packet{Topic: topic, Payload: []byte("$share/g/t/+")})
		if err != nil || len(events) != 1 {
			t.Fatalf("%s: got %v, %v", topic, events, err)
		}
		s, ok := events[0].(event.Subscribed)
		if !ok || s.Client != want || s.Filter.String() != eventtest.Filter(t, "$share/g/t/+").String() || s.QoS != 1 {
			t.Errorf("%s: got %#v", topic, events[0])
		}
	}
}

func FuzzPlainDecode(f *testing.F) {
	f.Add("a/b", []byte("x"), "k", "v")
	f.Add("offline/fetch/c", []byte("t/#"), "", "")
	f.Add("offline/fetch/%2F", []byte("#/"), mqtt.PropMAC, "AAAAAAAAAAAAAAAAAAAAAA")
	d := plain(f)
	f.Fuzz(func(t *testing.T, topic string, payload []byte, key, value string) {
		events, err := d.Decode(mqtt.Packet{
			Topic: topic, Payload: payload, Properties: event.Properties{User: []event.UserProperty{{Key: key, Value: value}}},
		})
		var r *mqtt.Refusal
		switch {
		case err != nil && !errors.As(err, &r):
			t.Errorf("an error that is no refusal: %v", err)
		case (err == nil) != (len(events) == 1):
			t.Errorf("got %v, %v", events, err)
		}
		for _, e := range events {
			if e.Meta().ID.IsZero() || len(e.Routes()) == 0 {
				t.Errorf("event %v has no id or no route", e)
			}
		}
	})
}
