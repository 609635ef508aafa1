package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/restante/restante/internal/e2e/e2etest"
)

// decoded runs a command that must end well and reads its JSON.
func decoded(t *testing.T, into any, args ...string) {
	t.Helper()
	code, out, errs := call(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); code != 0 || err != nil {
		t.Fatalf("%q: exit code %d, %v: %s%s", args, code, err, out, errs)
	}
}

func kinds(lines []lineJSON) []string {
	var out []string
	for _, l := range lines {
		out = append(out, l.What)
	}
	return out
}

func TestUpIsExplainedTracedAndInspected(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := startUp(t, dir)
	at := []string{"--up", s.at.Kafka, "-d", dir}
	say := func(args ...string) string {
		t.Helper()
		code, out, errs := call(append(args, at...)...)
		if code != 0 {
			t.Errorf("%q: exit code %d: %s", args, code, errs)
		}
		return out
	}
	e2etest.Publish(t, s.at.mqtt(), "t/1", "12345", "123", "\x1b[31m")
	e2etest.Publish(t, s.at.mqtt(), "t/2", "waits")
	e2etest.AwaitRows(t, s.at.database(), 4)

	var x explainedJSON
	decoded(t, &x, append([]string{"explain", "device", "--filter", "t/1"}, at...)...)
	if r := x.Subscriptions[0].Rules; !x.Complete || len(r) != 1 || r[0].Messages != 3 || r[0].Bytes != 13 || r[0].Oldest == nil || r[0].Topics[0].Topic != "t/1" {
		t.Errorf("explained: %+v", x)
	}
	wants(t, "explain", say("explain", "device", "--filter", "t/1"), "client device, filter t/1 at QoS 1", "on_message_fetch_for_queue", "3 messages, 13 bytes", "t/1")
	wants(t, "explain shared", say("explain", "device", "--filter", "$share/g/t/1"), "nothing: a shared subscription")
	wants(t, "explain at QoS 0", say("explain", "device", "--filter", "t/1", "--qos", "0"), "nothing: a subscribe at QoS 0")
	if code, _, errs := call(append([]string{"explain", "device"}, at...)...); code != 1 || !strings.Contains(errs, "has no subscription") {
		t.Errorf("explain of nobody: exit code %d: %s", code, errs)
	}
	for _, args := range [][]string{{"explain", "d", "--filter", "a/#/b"}, {"explain"}, {"trace", "d", "--since", "soon"}, {"inspect", "topic", "a/#"}, {"explain", "d", "--sink", "none"}} {
		if code, _, errs := call(append(args, at...)...); code != 2 || errs == "" {
			t.Errorf("%q: exit code %d: %s", args, code, errs)
		}
	}

	c := e2etest.Subscribe(t, s.at.mqtt(), "device", "t/1")
	got := e2etest.Receive(t, c, 3)
	e2etest.AwaitRows(t, s.at.database(), 1)
	x = explainedJSON{}
	decoded(t, &x, append([]string{"explain", "device"}, at...)...)
	if subs := x.Subscriptions; len(subs) != 1 || subs[0].Filter != "t/1" || subs[0].Known != "log" || subs[0].Rules[0].Messages != 0 {
		t.Errorf("explained afterwards: %+v", x)
	}

	var traced tracedJSON
	id := got[0].User("offline-msgid")
	decoded(t, &traced, append([]string{"trace", id}, at...)...)
	if w := kinds(traced.Lines); !slices.Equal(w, []string{"published", "replay acked", "not stored"}) || traced.Lines[1].Client != "device" || *traced.Lines[0].Offset < 0 {
		t.Errorf("traced: %+v", traced)
	}
	wants(t, "trace", say("trace", id), "published", id, "t/1", "QoS 1, 5 bytes", "client device", "device has acknowledged it", "sink local")
	if text := say("trace", id, "--topic", "t/1"); strings.Count(text, "\n") != 3 {
		t.Errorf("traced by its topic:\n%s", text)
	}
	decoded(t, &traced, append([]string{"trace", "device"}, at...)...)
	if w := kinds(traced.Lines); !slices.Contains(w, "subscribed") || !slices.Contains(w, "connected") || !slices.Contains(w, "replay acked") {
		t.Errorf("traced client: %v", w)
	}
	few := tracedJSON{}
	decoded(t, &few, append([]string{"trace", "device", "--limit", "2"}, at...)...)
	if len(few.Lines) != 2 || !few.Cut {
		t.Errorf("two lines: %+v", few)
	}
	for _, nobody := range []string{"nobody", strings.Repeat("0", 31) + "1"} {
		if code, _, errs := call(append([]string{"trace", nobody}, at...)...); code != 1 || !strings.Contains(errs, "nothing is known") {
			t.Errorf("trace of %s: exit code %d: %s", nobody, code, errs)
		}
	}

	var topic heldTopicJSON
	decoded(t, &topic, append([]string{"inspect", "topic", "t/2"}, at...)...)
	if h := topic.Sinks[0]; h.Messages != 1 || h.Bytes != 5 || h.Oldest == nil || !slices.Contains(h.Actions, "on_message_publish") || h.Committed < 1 {
		t.Errorf("inspected topic: %+v", topic)
	}
	wants(t, "inspect topic", say("inspect", "topic", "t/2"), "topic t/2: partition ", "1 messages, 5 bytes")
	var client knownClientJSON
	decoded(t, &client, append([]string{"inspect", "client", "device"}, at...)...)
	if len(client.Subscriptions) != 1 || client.Subscriptions[0].Filter != "t/1" || client.End < 2 {
		t.Errorf("inspected client: %+v", client)
	}
	wants(t, "inspect client", say("inspect", "client", "device"), "subscribed to t/1 at QoS 1", "sink local: ")
	var sub subscriptionJSON
	decoded(t, &sub, append([]string{"inspect", "sub", "t/1"}, at...)...)
	if sub.Found != 1 || sub.Clients[0].Client != "device" || sub.Rules[0].Skipped != "" {
		t.Errorf("inspected subscription: %+v", sub)
	}
	wants(t, "inspect sub", say("inspect", "sub", "t/1"), "on_message_fetch_for_queue", ": fetches", "1 clients have it", "device")

	s.Stop()
	if code, _, errs := call(append([]string{"explain", "device", "--filter", "t/1"}, at...)...); code != 1 || !strings.Contains(errs, "refused") {
		t.Errorf("explain without Kafka: exit code %d: %s", code, errs)
	}
}
