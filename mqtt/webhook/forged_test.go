package webhook_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/mqtt/webhook"
)

// garble makes something of a good body that is none: cut off, bytes changed, values of another kind, or made up.
func garble(r *rand.Rand, good string) string {
	switch r.IntN(6) {
	case 0:
		return good[:r.IntN(len(good))]
	case 1:
		b := []byte(good)
		for range 1 + r.IntN(4) {
			b[r.IntN(len(b))] = byte(r.IntN(256))
		}
		return string(b)
	case 2:
		return strings.Repeat("[", r.IntN(200)) + good
	case 3:
		b := make([]byte, r.IntN(300))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		return string(b)
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(good), &fields); err != nil {
		return good
	}
	odd := []any{nil, true, -1, 3, 1e300, "", "\x00", "a/#/b", "+", "undefined", []any{}, map[string]any{"a": []any{1}}, "$share//x"}
	for k := range fields {
		switch n := r.IntN(400); {
		case n < 200:
			fields[k] = odd[r.IntN(len(odd))]
		case n == 200:
			fields[k] = strings.Repeat("x", 70_000) // longer than MQTT can carry
		}
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return good
	}
	return string(text)
}

// valid says why an event cannot stand in Kafka; "" when it can.
func valid(e event.Event) string {
	w := event.Encode(e, e.Routes()[0], captured)
	if _, err := event.Decode(e.Routes()[0].Kind, w); err != nil {
		return err.Error()
	}
	return ""
}

// Ten thousand requests that are wrong in some way, to each format: no panic; each is either refused and counted, or what is taken of
// it can be read again from Kafka; and whatever has not the token is not heard at all.
func TestTenThousandForgedRequestsInventNothing(t *testing.T) {
	t.Parallel()
	good := map[webhook.Format][]string{
		webhook.EMQXRule: {publish(someID, "t/1"), `{"event":"session.subscribed","clientid":"c","topic":"t/#","qos":1,"timestamp":1795376856413}`},
		webhook.EMQXWebhook: {
			`{"action":"message_publish","ts":1795377811463,"topic":"t/1","retain":true,"qos":1,"payload":"aGk=","node":"n","from_client_id":"p"}`,
			`{"action":"session_subscribed","topic":"t/#","opts":{"rh":0,"rap":0,"qos":1,"nl":0,"is_new":true},"clientid":"c"}`,
			`{"action":"client_disconnected","reason":"normal","disconnected_at":1795377811565,"connected_at":1795377810650,"clientid":"c"}`,
		},
		webhook.VerneMQ: {
			`{"mountpoint":"","client_id":"c","qos":1,"topic":"t/1","payload":"aGk=","retain":true,"properties":{"p_message_expiry_interval":60}}`,
			`{"mountpoint":"","client_id":"c","topics":[{"topic":"t/#","qos":1}]}`,
		},
	}
	hooks := []string{"on_publish", "on_publish_m5", "on_subscribe", "on_subscribe_m5", "on_unsubscribe", "on_register", "on_client_gone", "", "auth_on_publish", "\t"}
	for format, bodies := range good {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			j := &sourcetest.Journal{}
			s := open(t, webhook.Config{Format: format, Token: secret, MaxBody: 100_000})
			h := s.Handler(j.Accept)
			r := rand.New(rand.NewPCG(7, uint64(len(format))))
			const requests = 10_000
			statuses, took := map[int]int{}, 0
			for i := range requests {
				body, token := garble(r, bodies[r.IntN(len(bodies))]), "Bearer "+secret
				if i%10 == 0 {
					token = fmt.Sprintf("Bearer %s%d", secret[:r.IntN(len(secret))], i)
				}
				before := s.tally.Counts()
				request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
				request.Header.Set("Authorization", token)
				request.Header.Set("vernemq-hook", hooks[r.IntN(len(hooks))])
				answer := httptest.NewRecorder()
				h.ServeHTTP(answer, request)
				got := answer.Code
				statuses[got]++
				counts, events := 0, j.Since(took)
				for k, n := range s.tally.Counts() {
					if k != mqtt.CountForged {
						counts += n - before[k]
					}
				}
				took += len(events)
				switch {
				case got == http.StatusOK && counts+len(events) == 0, got != http.StatusOK && counts == 0:
					t.Fatalf("%.500q was answered %d with neither an event nor a count", body, got)
				case i%10 == 0 && (got != http.StatusUnauthorized || len(events) > 0):
					t.Fatalf("without the token: %d, %v", got, events)
				}
				for _, e := range events {
					if why := valid(e); why != "" {
						t.Fatalf("%.500q became %.500v, which cannot be read again: %s", body, e, why)
					}
				}
			}
			t.Logf("%d requests: answered %v, %d events taken, counted %v", requests, statuses, took, s.tally.Counts())
			if statuses[http.StatusBadRequest] < requests/4 {
				t.Errorf("only %d were refused", statuses[http.StatusBadRequest])
			}
		})
	}
}

func FuzzBody(f *testing.F) {
	f.Add(publish(someID, "t/1"), "on_publish")
	f.Add(`[{"action":"session_subscribed","topic":"t/#","opts":{"qos":1},"clientid":"c"}]`, "")
	f.Add(`{"client_id":"c","topics":[["t",1]]}`, "on_subscribe")
	j := &sourcetest.Journal{}
	var servers []*server
	for _, format := range []webhook.Format{webhook.EMQXRule, webhook.EMQXWebhook, webhook.VerneMQ} {
		servers = append(servers, serve(f, webhook.Config{Format: format}, j))
	}
	f.Fuzz(func(t *testing.T, body, hook string) {
		for _, s := range servers {
			before := j.Count()
			got := s.post(body, "vernemq-hook", hook)
			for _, e := range j.Since(before) {
				if why := valid(e); why != "" {
					t.Fatalf("%.500v cannot be read again: %s", e, why)
				}
			}
			if got.status >= 500 {
				t.Fatalf("answered %d", got.status)
			}
		}
	})
}
