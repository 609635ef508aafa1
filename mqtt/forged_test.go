package mqtt_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
