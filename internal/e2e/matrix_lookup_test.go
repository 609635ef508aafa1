package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const matrixLookup = `
kafka:
  brokers: %[1]q
  names: {topics: %[2]s, groups: %[2]s}
  messages: {partitions: %[3]d, replication: 1}
  sessions: {partitions: %[3]d}
  dead: {partitions: 1}
sources: {emqx: {type: mqtt, url: "mqtt://%[4]s", decode: emqx}}
sinks:%[5]s
rules:
  - {topic: "t/#", action: save_offline_messages, sink: store}
  - {on: session.subscribed, topic: "#", do: on_subscribe_store, sink: store}
  - {on: session.created, do: on_subscribe_lookup, sink: store}
replayer: {settle: 1s}
delivery:
  secret_file: %[6]q
  mqtt: {url: "mqtt://%[4]s"}
  api: {type: emqx, version: 5, url: %[8]q, key: key, secret: secret, timeout: 1m}
admin: {listen: %[7]q}
`

// lookup is the action that needs a broker which subscribes clients: it has a world of its own.
func (m *matrix) lookup(open func(*testing.T, *world) looker) {
	t := m.t
	a := &api{}
	mux := http.NewServeMux()
	mux.Handle("POST /api/v5/clients/{client}/subscribe", a)
	server := httptest.NewServer(mux)
	defer server.Close()
	w := newWorld(t, "")
	l := &matrix{world: w}
	l.look = open(t, w)
	w.configure = func(admin string) string {
		return fmt.Sprintf(matrixLookup, w.kafka, w.name, partitions, w.broker, w.sinks, filepath.Join(w.dir, "secret"), admin, server.URL)
	}
	w.migrate()
	a.b = startRuleBroker(t, w.broker, "t/#")
	all := w.startAll("ingest", "writer", "replayer")

	c := e2etest.Subscribe(t, w.broker, "device", "t/1")
	l.row("mqtt_sub", 1, map[string]string{"clientid": "device", "topic": "t/1", "qos": "1"})
	a.b.leave(c, "device")
	e2etest.Publish(t, w.broker, "t/1", "one")
	c = e2etest.DialWith(t, w.broker, mqtttest.Options{ID: "device", Version: mqtttest.V5})
	l.gets(c, "t/1", "one")
	l.row("mqtt_msg", 0, nil)
	if n := a.made.Load(); n != 1 {
		t.Errorf("%d subscriptions were made, want 1", n)
	}
	m.cell("on_subscribe_lookup", "1 subscribed")
	for _, p := range all {
		p.Stop()
	}
}
