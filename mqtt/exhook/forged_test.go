package exhook_test

import (
	"math/rand/v2"
	"testing"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
)

// Ten thousand calls that are forged or broken in some way, over the wire: no panic, each is answered or fails, what is refused is
// counted with a reason, and what is taken can stand in Kafka.
func TestTenThousandForgedCallsInventNothing(t *testing.T) {
	t.Parallel()
	j := &journal{}
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
	for c, n := range h.tally.all() {
		if c != mqtt.CountForged {
			refused += n
		}
	}
	for _, e := range j.taken() {
		taken++
		e = named(t, e)
		for _, route := range e.Routes() {
			if _, err := event.Decode(route.Kind, event.Encode(e, route, e.Meta().At)); err != nil {
				t.Fatalf("%#v cannot be read back: %v", e, err)
			}
		}
	}
	t.Logf("%d calls: %d failed, %d events taken, counted %v", calls, failed, taken, h.tally.all())
	if taken+refused != calls {
		t.Errorf("%d events and %d refusals are not the %d calls", taken, refused, calls)
	}
	if refused < calls/4 || failed == 0 {
		t.Errorf("only %d were refused, %d failed", refused, failed)
	}
}
