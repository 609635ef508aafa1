package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestReadyMeansThatClientsAreServed(t *testing.T) {
	t.Parallel()
	admin, broker := ports.Addr(t), ports.Addr(t)
	p := e2etest.Start(t, "restante", "up", "-d", t.TempDir(), "--listen", broker, "--admin", admin)
	e2etest.AwaitReady(t, admin)
	c, err := mqtttest.Dial(t.Context(), broker, mqtttest.Options{ID: "at once", Version: mqtttest.V5})
	if err != nil {
		t.Fatalf("ready, but: %v", err)
	}
	defer c.Cut()
	e2etest.Send(t, c, "t/1", "one")
	e2etest.More(t, c, "t/1")
	e2etest.Receive(t, c, 1)
	for _, path := range []string{"/livez", "/readyz"} {
		if status, body := e2etest.Get(t, admin, path); status != http.StatusOK {
			t.Errorf("%s: %d: %s", path, status, body)
		}
	}
	_, body := e2etest.Get(t, admin, "/readyz")
	wants(t, "readyz", body, "kafka", "sink local", "sources", "group restante.replayer", "group restante.writer.local")
	p.Stop()
	if status, _ := e2etest.Get(t, admin, "/livez"); status != 0 {
		t.Errorf("livez after the end: %d", status)
	}
}

func TestMetricsAreWellFormedAndMove(t *testing.T) {
	t.Parallel()
	s := startUp(t, t.TempDir())
	_, body := e2etest.Get(t, s.at.Admin, "/metrics")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	moved := func(name string, want float64, labels ...string) {
		t.Helper()
		var got float64
		e2etest.Await(t, fmt.Sprintf("%s %v at %v", name, labels, want), func() bool {
			got = e2etest.Metric(t, s.at.Admin, name, labels...)
			return got >= want
		})
		if got != want {
			t.Errorf("%s %v is %v, want %v", name, labels, got, want)
		}
	}
	if !strings.Contains(body, `restante_replay_requests_total{outcome="aborted"`) || !strings.Contains(body, `restante_dlq_records_total{component="writer"`) {
		t.Errorf("counters that have not moved are missing:\n%s", body)
	}

	e2etest.Publish(t, s.at.mqtt(), "t/1", "one", "two")
	e2etest.AwaitRows(t, s.at.database(), 2)
	moved("restante_ingest_events_total", 2, `event="mqtt.message.publish"`)
	moved("restante_replay_requests_total", 0, `outcome="complete"`)
	c := e2etest.Subscribe(t, s.at.mqtt(), "device", "t/1")
	e2etest.Receive(t, c, 2)
	moved("restante_replay_messages_total", 2, `outcome="acked"`)
	moved("restante_replay_requests_total", 1, `outcome="complete"`)
	e2etest.AwaitRows(t, s.at.database(), 0)

	before := e2etest.Metric(t, s.at.Admin, "restante_writer_elided_total")
	e2etest.Publish(t, s.at.mqtt(), "t/1", "live")
	e2etest.Receive(t, c, 1)
	moved("restante_writer_elided_total", before+1)

	e2etest.Subscribe(t, s.at.mqtt(), "late", "t/1")
	moved("restante_replay_requests_total", 1, `outcome="empty"`)
	zero := e2etest.Dial(t, s.at.mqtt(), "zero")
	if _, err := zero.Subscribe(t.Context(), 0, "t/1"); err != nil {
		t.Fatal(err)
	}
	moved("restante_messages_dropped_total", 1, `component="replayer"`, `reason="qos0"`)
}

func TestLogsHoldNoPayloadAndNoPassword(t *testing.T) {
	t.Parallel()
	const payload, password, secret = "PAYLOAD-MARKER-17", "PASSWORD-MARKER-17", "SECRET-MARKER-17-LONG-ENOUGH"
	dir, addr := t.TempDir(), ports.Addr(t)
	users := filepath.Join(dir, "users")
	if err := os.WriteFile(users, []byte("device:"+password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := writeConfig(t, fmt.Sprintf(`
sources: {devices: {type: embedded, listen: %q, users_file: %q}}
delivery: {secret: %s}
log: {level: debug}
`, addr, users, secret))
	s := startUp(t, filepath.Join(dir, "data"), "-c", config)
	dial := func(id, password string) (*mqtttest.Client, error) {
		return mqtttest.Dial(t.Context(), addr, mqtttest.Options{ID: id, Version: mqtttest.V5, Username: "device", Password: password})
	}
	if _, err := dial("wrong", password+"x"); err == nil {
		t.Error("a wrong password was taken")
	}
	if _, err := mqtttest.Dial(t.Context(), addr, mqtttest.Options{ID: "nobody", Version: mqtttest.V5}); err == nil {
		t.Error("no password was taken")
	}
	c, err := dial("device", password)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Cut()
	e2etest.Send(t, c, "t/1", payload)
	e2etest.Send(t, c, "t/1", strings.Repeat(payload, 20_000)) // a dead letter
	e2etest.AwaitRows(t, s.at.database(), 1)
	e2etest.More(t, c, "t/1")
	e2etest.Receive(t, c, 1)
	e2etest.Send(t, c, "t/1", payload+" live")
	e2etest.Receive(t, c, 1)
	if err := c.Publish(t.Context(), e2etest.Message("t/1", strings.Repeat(payload, 80_000))); err == nil {
		t.Error("a packet over the limit was taken")
	}
	s.Stop()
	for _, marker := range []string{payload, password, secret} {
		if text := s.Out() + s.Log(); strings.Contains(text, marker) {
			t.Errorf("%q is in the log:\n%.3000s", marker, text[max(0, strings.Index(text, marker)-500):])
		}
	}
	wants(t, "log", s.Log(), `"level":"DEBUG"`, "over ingest.max_payload")
}
