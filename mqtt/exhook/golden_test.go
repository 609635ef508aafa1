package exhook_test

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
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/sourcetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	capture = "testdata/emqx-4.4.19.jsonl"
	golden  = "testdata/emqx-4.4.19.golden"
)

func readCapture(t testing.TB) []captured {
	t.Helper()
	data, err := os.ReadFile(capture)
	if err != nil {
		t.Fatal(err)
	}
	var out []captured
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var c captured
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// line shows an event as it would stand in Kafka. What ingest fills in is left out.
func line(e event.Event) string {
	w := event.Encode(e, e.Routes()[0], time.Unix(0, 0))
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", e.Routes()[0].Kind, w.Key)
	for _, h := range w.Headers {
		if h.Key == "ce_specversion" || h.Key == "ce_id" && e.Meta().ID.IsZero() || h.Key == "ce_time" && e.Meta().At.IsZero() {
			continue
		}
		fmt.Fprintf(&b, " %s=%s", h.Key, h.Value)
	}
	if len(w.Value) > 0 {
		fmt.Fprintf(&b, " value=%q", w.Value)
	}
	return b.String()
}

// What a real EMQX 4.4.19 called, sent over TCP under each service name, gives the same events in the same order.
func TestCapturedCallsGiveTheirEvents(t *testing.T) {
	t.Parallel()
	calls := readCapture(t)
	got := map[string]string{}
	for _, service := range exhook.Services {
		j := &sourcetest.Journal{}
		h := serve(t, exhook.Config{}, j)
		b := dial(t, h, nil)
		for i, c := range calls {
			request := encodeObj(t, requests[c.Hook], object(t, requests[c.Hook], c.Req))
			answer, err := b.call(service, c.Hook, request)
			if err != nil {
				t.Fatalf("%s %s, line %d: %v", service, c.Hook, i+1, err)
			}
			want := []byte{}
			if c.Hook == "OnMessagePublish" {
				want = []byte{1 << 3, 1} // field 1, IGNORE
			}
			if diff := cmp.Diff(want, answer); diff != "" {
				t.Fatalf("%s %s, line %d: the answer differs (-want +got):\n%s", service, c.Hook, i+1, diff)
			}
		}
		var lines strings.Builder
		for _, e := range j.Events() {
			fmt.Fprintln(&lines, line(e))
		}
		got[service] = lines.String()
		if n := h.tally.Counts(); len(n) > 0 {
			t.Errorf("%s: refused something: %v\n%s", service, n, h.tally.Log())
		}
	}
	first := got[exhook.Services[0]]
	if *update {
		if err := os.WriteFile(golden, []byte(first), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range exhook.Services {
		if diff := cmp.Diff(string(want), got[service]); diff != "" {
			t.Errorf("%s: events differ (-want +got):\n%s", service, diff)
		}
	}
}
