package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mqtttest"
)

// TestAClientGetsItsSubscriptionsBack: what it subscribed to once is given to each new session of it, and what was stored meanwhile
// is replayed, also after the process and all sessions were gone.
func TestAClientGetsItsSubscriptionsBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broker := ports.Addr(t)
	config := filepath.Join(dir, "restante.yaml")
	text := fmt.Sprintf(`
sources: {devices: {type: embedded, listen: %q}}
sinks: {local: {type: sqlite, path: %q}}
rules:
  - {topic: "t/#", action: save_offline_messages, sink: local}
  - {on: session.subscribed, topic: "#", do: on_subscribe_store, sink: local}
  - {on: session.unsubscribed, topic: "#", do: on_unsubscribe_delete, sink: local}
  - {on: session.created, do: on_subscribe_lookup, sink: local}
delivery: {to: direct}
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
	p := begin()
	c := e2etest.Subscribe(t, broker, "dev", "t/1", "t/2", "t/3")
	if _, err := c.Unsubscribe(t.Context(), "t/2"); err != nil {
		t.Fatal(err)
	}
	c.Disconnect()
	for round, restart := range []bool{false, true} {
		if restart {
			p.Stop()
			p = begin()
		}
		for i := 1; i <= 3; i++ {
			e2etest.Publish(t, broker, fmt.Sprint("t/", i), fmt.Sprintf("%d of round %d", i, round))
		}
		c = e2etest.DialWith(t, broker, mqtttest.Options{ID: "dev", Version: mqtttest.V5})
		got := e2etest.Receive(t, c, 2)
		have := map[string]bool{}
		for _, m := range got {
			have[string(m.Payload)] = m.User("offline-msgid") != ""
		}
		want := map[string]bool{fmt.Sprintf("1 of round %d", round): true, fmt.Sprintf("3 of round %d", round): true}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("restart %t (-want +got):\n%s", restart, diff)
		}
		e2etest.Publish(t, broker, "t/3", "live")
		if got := e2etest.Receive(t, c, 1); string(got[0].Payload) != "live" || got[0].User("offline-msgid") != "" {
			t.Errorf("received %+v, want the live message", got[0])
		}
		e2etest.Quiet(t, c, 300*time.Millisecond)
		c.Disconnect()
	}
	p.Stop()
}
