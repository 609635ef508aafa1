package exhook_test

import (
	"math/rand/v2"
	"testing"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
	"github.com/restante/restante/mqtt/sourcetest"
)

// Ten thousand calls that are forged or broken in some way, over the wire: no panic, each is answered or fails, what is refused is
// counted with a reason, and what is taken can stand in Kafka.
func TestTenThousandForgedCallsInventNothing(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{}
	h := serve(t, exhook.Config{}, j)
	b := dial(t, h, nil)
	good := all(t)
	r := rand.New(rand.NewPCG(7, 13))
	const calls = 10_000
	failed := 0
	for range calls {
		hook := hooks[r.IntN(len(hooks))]
		from := hooks[r.IntN(len(hooks))]
		if r.IntN(3) > 0 {
			from = hook // else the request of another hook
		}
		request := append([]byte{}, good[from]...)
		for range r.IntN(5) {
			switch i := r.IntN(len(request) + 1); r.IntN(3) {
			case 0:
				request = request[:i]
			case 1:
				request = append(request[:i:i], append([]byte{byte(r.IntN(256))}, request[i:]...)...)
			default:
				if i < len(request) {
					request[i] = byte(r.IntN(256))
				}
			}
		}
		if _, err := b.call(exhook.Services[r.IntN(3)], hook, request); err != nil {
			failed++
		}
	}
	taken, refused := 0, 0
	for c, n := range h.tally.Counts() {
		if c != mqtt.CountForged {
			refused += n
		}
	}
	for _, e := range j.Events() {
		taken++
		e = named(t, e)
		for _, route := range e.Routes() {
			if _, err := event.Decode(route.Kind, event.Encode(e, route, e.Meta().At)); err != nil {
				t.Fatalf("%#v cannot be read back: %v", e, err)
			}
		}
	}
	t.Logf("%d calls: %d failed, %d events taken, counted %v", calls, failed, taken, h.tally.Counts())
	if taken+refused != calls {
		t.Errorf("%d events and %d refusals are not the %d calls", taken, refused, calls)
	}
	if refused < calls/4 || failed == 0 {
		t.Errorf("only %d were refused, %d failed", refused, failed)
	}
}

// Ten thousand envelopes that no replayer of ours has sealed: each is answered, published to nobody, counted with a reason, and none
// makes an alias, by which an ack could delete a message.
func TestTenThousandForgedEnvelopesAreOpenedForNobody(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{}
	h := serve(t, envelopes(t), j)
	b := dial(t, h, nil)
	const envelopes, own = 10_000, "restante-replay-x-0"
	good := seal(t, "a key of some length", "t/1", "x")
	r := rand.New(rand.NewPCG(7, 23))
	for i := range envelopes {
		from, topic, id := own, good, someID
		switch text := []byte(good); i % 5 {
		case 0:
			from = []string{"device", "", "restante-replay", "restante-replay-x-00", "\xff", own + "\x00"}[r.IntN(6)]
		case 1:
			id = []string{"", "x", someID[:31] + "-", someID + "0", "000660E2BFC3B3B2F49E00000001000G"}[r.IntN(5)]
		case 2:
			topic = good[:len("$offline/")+r.IntN(len(good)-len("$offline/"))]
		case 3:
			at := len("$offline/") + r.IntN(len(text)-len("$offline/"))
			text[at] ^= byte(1 + r.IntN(255))
			topic = string(text)
		default:
			topic = good + []string{"/", "/2", "x", "/#", "\x00"}[r.IntN(5)]
		}
		answer := b.mustCall("OnMessagePublish", encode(t, "OnMessagePublish", obj{"message": obj{
			"id": id, "qos": uint64(1), "from": from, "topic": topic, "payload": "x", "timestamp": someMS, "node": "n1",
		}}))
		if v := valued(t, answer); v.GetType() != exhookpb.ValuedResponse_STOP_AND_RETURN || v.GetMessage().GetHeaders()["allow_publish"] != "false" {
			t.Fatalf("%q from %q with id %q is answered with %v", topic, from, id, v)
		}
	}
	counted := h.tally.Counts()
	t.Logf("counted %v", counted)
	if len(j.Events()) > 0 {
		t.Errorf("took %v", j.Events())
	}
	if counted[mqtt.CountForged] != envelopes*4/5 || counted[mqtt.CountRefusedID] != envelopes/5 {
		t.Errorf("counted %v, want %d and %d", counted, envelopes*4/5, envelopes/5)
	}
}
