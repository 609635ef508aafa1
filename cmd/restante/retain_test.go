package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mqtttest"
)

// TestRetainedMessagesOutliveTheBroker: the store keeps them, the newest of each topic, and hands them to each subscriber with their
// flag, whether they are written yet or not.
func TestRetainedMessagesOutliveTheBroker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broker := ports.Addr(t)
	config := filepath.Join(dir, "restante.yaml")
	text := fmt.Sprintf(`
sources: {devices: {type: embedded, listen: %q}}
sinks: {local: {type: sqlite, path: %q}}
rules:
  - {topic: "t/#", action: save_offline_messages, sink: local}
  - {on: message.publish, topic: "#", do: [on_message_retain, on_retain_delete], sink: local}
  - {on: session.subscribed, topic: "#", do: on_retain_lookup, sink: local}
delivery: {to: direct, broker_retains: false}
admin: {listen: ""}
`, broker, filepath.Join(dir, "messages.db"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := func() *e2etest.Process {
		p := e2etest.Start(t, "restante", "up", "-d", filepath.Join(dir, "data"), "-c", config)
		p.AwaitOut(broker)
		return p
	}
	retain := func(topic, payload string, qos event.QoS) {
		pub := e2etest.Dial(t, broker, "pub")
		defer pub.Disconnect()
		if err := pub.Publish(t.Context(), mqtttest.Message{Topic: topic, QoS: qos, Retain: true, Payload: []byte(payload)}); err != nil {
			t.Fatal(err)
		}
	}
	p := begin()
	for i, m := range [][2]string{{"r/1", "old"}, {"r/1", "one"}, {"r/2", "gone"}, {"r/2", ""}, {"r/3/x", "three"}} {
		retain(m[0], m[1], event.QoS(1+i%2))
	}
	look := func(when, filter string, want ...string) {
		t.Helper()
		c := e2etest.Subscribe(t, broker, "dev", filter)
		defer c.Disconnect()
		got := e2etest.Receive(t, c, len(want))
		if diff := cmp.Diff(want, e2etest.Payloads(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
		for _, m := range got {
			if !m.Retain || m.QoS != 1 {
				t.Errorf("%s: %+v, want it with the flag, at QoS 1", when, m)
			}
		}
		e2etest.Quiet(t, c, 300*time.Millisecond)
	}
	look("before it is written", "r/#", "one", "three")
	p.Stop()
	p = begin()
	look("after a restart", "r/+", "one")
	retain("r/1", "two", 1)
	look("after the next", "#", "two", "three")
	p.Stop()
}
