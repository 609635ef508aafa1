package webhook_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/mqtt/webhook"
)

var update = flag.Bool("update", false, "write the golden files anew")

// captured is when the captures were made.
var captured = time.UnixMilli(1795377900000)

func lines(t testing.TB, file string) []map[string]json.RawMessage {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]json.RawMessage
	for scan := bufio.NewScanner(bytes.NewReader(data)); scan.Scan(); {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(scan.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// line shows an event as it would stand in Kafka.
func line(e event.Event) string {
	w := event.Encode(e, e.Routes()[0], captured)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", e.Routes()[0].Kind, w.Key)
	for _, h := range w.Headers {
		if h.Key != "ce_specversion" {
			fmt.Fprintf(&b, " %s=%s", h.Key, h.Value)
		}
	}
	if len(w.Value) > 0 {
		fmt.Fprintf(&b, " value=%q", w.Value)
	}
	return b.String()
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("events differ (-want +got):\n%s", diff)
	}
}

// story posts bodies one by one and shows what became of each.
func story(t *testing.T, format webhook.Format, bodies []string, headers func(i int) []string) string {
	t.Helper()
	j := &sourcetest.Journal{}
	s := serve(t, webhook.Config{Format: format}, j)
	var b strings.Builder
	for i, body := range bodies {
		before, counts := len(j.Events()), s.tally.Counts()
		r := s.post(body, headers(i)...)
		fmt.Fprintf(&b, "%d", r.status)
		for _, e := range j.Events()[before:] {
			fmt.Fprintf(&b, " %s", line(e))
		}
		for k, n := range s.tally.Counts() {
			if n > counts[k] {
				fmt.Fprintf(&b, " counted as %s", k)
			}
		}
		if format == webhook.VerneMQ {
			fmt.Fprintf(&b, " answered %s", r.body)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func none(int) []string { return nil }

// What a real EMQX 4.4.19 with emqx_web_hook posted gives the same events in the same order.
func TestPostsOfARealEMQXPluginAreRead(t *testing.T) {
	t.Parallel()
	var bodies []string
	for _, l := range lines(t, "testdata/emqx-4.4.19.jsonl") {
		bodies = append(bodies, string(l["body"]))
	}
	golden(t, "testdata/emqx-4.4.19.golden", story(t, webhook.EMQXWebhook, bodies, none))
}

// What a real EMQX 4.4.19's rules gave, posted, gives the events that it gives over MQTT.
func TestRuleEventsOfARealEMQXAreRead(t *testing.T) {
	t.Parallel()
	var bodies []string
	for _, l := range lines(t, "../testdata/emqx-4.4.19/rule-republish.jsonl") {
		var text string
		if err := json.Unmarshal(l["payload"], &text); err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, text)
	}
	golden(t, "testdata/rules-4.4.19.golden", story(t, webhook.EMQXRule, bodies, none))
	j := &sourcetest.Journal{}
	s := serve(t, webhook.Config{}, j)
	if r := s.post("[" + strings.Join(bodies, ",") + "]"); r.status != 200 {
		t.Errorf("all of them at once: %d %s", r.status, r.body)
	}
	one := &sourcetest.Journal{}
	s = serve(t, webhook.Config{}, one)
	for _, body := range bodies {
		s.post(body)
	}
	var singly, together []string
	for _, e := range one.Events() {
		singly = append(singly, line(e))
	}
	for _, e := range j.Events() {
		together = append(together, line(e))
	}
	if diff := cmp.Diff(singly, together); diff != "" || len(singly) == 0 {
		t.Errorf("a batch gives other events than its items (-singly +together):\n%s", diff)
	}
}

// The bodies are written after the plugin's source, not captured.
func TestVerneMQsHooksAreRead(t *testing.T) {
	t.Parallel()
	calls := [][2]string{
		{"on_register", `{"peer_addr":"10.0.0.9","peer_port":4711,"mountpoint":"","client_id":"dev1","username":"u1"}`},
		{"on_register_m5", `{"peer_addr":"10.0.0.9","peer_port":4711,"mountpoint":"","client_id":"dev2","username":null,"properties":{"p_session_expiry_interval":60}}`},
		{"on_register", `{"mountpoint":"","client_id":"restante-ingest-0-0","username":"r"}`},
		{"on_subscribe", `{"username":"u1","mountpoint":"","client_id":"dev1","topics":[{"topic":"t/#","qos":1},{"topic":"$share/g/jobs","qos":2},{"topic":"no","qos":128}]}`},
		{"on_subscribe", `{"username":"u1","mountpoint":"","client_id":"dev1","topics":[["a/+",0]]}`},
		{"on_subscribe_m5", `{"username":"u1","mountpoint":"","client_id":"dev2","topics":[{"topic":"t/1","qos":1,"no_local":true,"rap":true,"retain_handling":"send_if_new_sub"}],"properties":{}}`},
		{"on_unsubscribe", `{"username":"u1","mountpoint":"","client_id":"dev1","topics":["t/#","a/+"]}`},
		{"on_unsubscribe_m5", `{"username":"u1","mountpoint":"","client_id":"dev2","topics":["t/1"],"properties":[]}`},
		{"on_publish", `{"username":"u1","mountpoint":"","client_id":"dev1","qos":1,"topic":"t/1","payload":"AP/+","retain":true}`},
		{"on_publish_m5", `{"username":null,"mountpoint":"","client_id":"dev2","qos":2,"topic":"t/2","payload":"","retain":false,"properties":{"p_user_property":[{"key":"aw==","val":"dg=="}],` +
			`"p_content_type":"text/plain","p_response_topic":"re/1","p_correlation_data":"c1","p_message_expiry_interval":60,"p_payload_format_indicator":"utf8"}}`},
		{"on_publish", `{"mountpoint":"tenant","client_id":"dev1","qos":1,"topic":"t/1","payload":"","retain":false}`},
		{"on_publish", `{"mountpoint":"","client_id":"restante-replay-x-0","qos":1,"topic":"t/1","payload":"","retain":false}`},
		{"on_publish", `{"mountpoint":"","client_id":"dev1","qos":1,"topic":"t/1","payload":"no base64","retain":false}`},
		{"on_client_wakeup", `{"mountpoint":"","client_id":"dev1"}`},
		{"on_client_offline", `{"mountpoint":"","client_id":"dev1"}`},
		{"on_client_gone", `{"mountpoint":"","client_id":"dev2"}`},
		{"on_deliver", `{"mountpoint":"","client_id":"dev2","topic":"t/1"}`},
		{"auth_on_register", `{"mountpoint":"","client_id":"dev2","password":"open sesame"}`},
	}
	var bodies []string
	for _, c := range calls {
		bodies = append(bodies, c[1])
	}
	got := story(t, webhook.VerneMQ, bodies, func(i int) []string { return []string{"vernemq-hook", calls[i][0]} })
	golden(t, "testdata/vernemq.golden", got)
}
