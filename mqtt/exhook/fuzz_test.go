package exhook_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/sourcetest"
)

var hooks = []string{
	"OnClientConnected", "OnClientDisconnected", "OnSessionSubscribed", "OnSessionUnsubscribed", "OnMessagePublish", "OnMessageAcked",
	"OnMessageDropped",
}

// Whatever bytes come as a request: they are refused and counted, or make one event that Kafka gives back as it was.
func FuzzRequests(f *testing.F) {
	for _, c := range readCapture(f) {
		for i, hook := range hooks {
			if hook == c.Hook {
				f.Add(byte(i), encodeObj(f, requests[hook], object(f, requests[hook], c.Req)))
			}
		}
	}
	f.Add(byte(4), encode(f, "OnMessagePublish", obj{
		"message": message(nil), "user_props": []obj{{"name": "k", "value": "\xff"}}, "props": []obj{{"name": "Message-Expiry-Interval", "value": "4294967295"}},
	}))
	f.Fuzz(func(t *testing.T, which byte, request []byte) {
		counted := map[mqtt.Counter]int{}
		hook := hooks[int(which)%len(hooks)]
		e, err := exhook.Translate(hook, request, func(c mqtt.Counter) { counted[c]++ })
		if err != nil {
			if e != nil {
				t.Fatalf("%s: an event and a refusal: %v, %v", hook, e, err)
			}
			return
		}
		if x, ok := e.(event.Published); ok == e.Meta().ID.IsZero() || ok && x.Payload == nil {
			t.Fatalf("%s: an id or a payload that the broker did not tell: %#v", hook, e)
		}
		e = named(t, e)
		for _, r := range e.Routes() {
			again, err := event.Decode(r.Kind, event.Encode(e, r, e.Meta().At))
			if err != nil {
				t.Fatalf("%s: %#v cannot be read back: %v", hook, e, err)
			}
			if diff := cmp.Diff(e, again, equal); diff != "" {
				t.Fatalf("%s: comes back differently (-want +got):\n%s", hook, diff)
			}
		}
	})
}

// named gives an event what ingest gives it.
func named(t *testing.T, e event.Event) event.Event {
	t.Helper()
	h := event.Head{ID: event.IDOf(1, 2, 3), Source: e.Meta().Source, At: time.UnixMilli(int64(someMS))}
	switch x := e.(type) {
	case event.Published:
		return x
	case event.Acked:
		x.Head = h
		return x
	case event.Dropped:
		x.Head = h
		return x
	case event.Subscribed:
		x.Head = h
		return x
	case event.Unsubscribed:
		x.Head = h
		return x
	case event.Connected:
		x.Head = h
		return x
	case event.Disconnected:
		x.Head = h
		return x
	case event.Replayed, event.ReplayContinued:
		t.Fatalf("the broker cannot tell of %T", e)
	}
	return e
}

// Calls with requests that are broken here and there: none ends the server, none makes two events, each refusal is counted.
func TestBrokenRequestsDoNotEndTheServer(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{}
	h := serve(t, exhook.Config{}, j)
	b := dial(t, h, nil)
	const calls = 600
	failed := 0
	for i := range calls {
		hook := hooks[i%len(hooks)]
		bad := all(t)[hook]
		bad[(i*7)%len(bad)] ^= byte(1 + i%255)
		if i%4 == 0 {
			bad = bad[:len(bad)-i%5]
		}
		if _, err := b.call(exhook.Services[i%3], hook, bad); err != nil {
			failed++
		}
	}
	counts := h.tally.Counts()
	refused := 0
	for _, n := range counts {
		refused += n
	}
	if took := len(j.Events()); took+refused != calls || failed > counts[mqtt.CountRefusedRequest] {
		t.Errorf("%d calls: %d failed, took %d, refused %d: %v", calls, failed, took, refused, counts)
	}
	if len(counts) < 3 {
		t.Errorf("the noise tells nothing: %v", counts)
	}
	b.mustCall("OnMessagePublish", publish(t, "pub", "t/1"))
}
