package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

// api is the part of EMQX 5's HTTP API that subscribes a client.
type api struct {
	b    *ruleBroker
	away atomic.Bool
	made atomic.Int32
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, secret, _ := r.BasicAuth()
	var s struct {
		Topic string
		QoS   byte
	}
	cl, ok := a.b.server.Clients.Get(r.PathValue("client"))
	switch err := json.NewDecoder(r.Body).Decode(&s); {
	case a.away.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
	case key != "key" || secret != "secret":
		w.WriteHeader(http.StatusUnauthorized)
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"code":"CLIENTID_NOT_FOUND","message":"Client ID not found"}`))
	default:
		a.made.Add(1)
		sub := packets.Subscription{Filter: s.Topic, Qos: s.QoS}
		a.b.server.Topics.Subscribe(cl.ID, sub)
		cl.State.Subscriptions.Add(s.Topic, sub)
		a.b.OnSubscribed(cl, packets.Packet{Filters: packets.Subscriptions{sub}}, []byte{s.QoS})
		_, _ = fmt.Fprintf(w, `{"clientid":%q,"topic":%q,"qos":%d}`, cl.ID, s.Topic, s.QoS)
	}
}

const lookupProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
  session_timeout: 12s
  rebalance_timeout: 12s
shutdown: {drain: 6500ms}
sources: {emqx: {type: mqtt, url: "mqtt://%[3]s", decode: emqx}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules:
  - {topic: "t/#", action: save_offline_messages, sink: history, wildcards: true}
  - {on: session.subscribed, topic: "#", do: on_subscribe_store, sink: history}
  - {on: session.created, do: on_subscribe_lookup, sink: history}
replayer: {settle: 1s}
delivery:
  secret_file: %[5]q
  mqtt: {url: "mqtt://%[3]s"}
  api: {type: emqx, version: 5, url: %[7]q, key: key, secret: secret, timeout: 1m}
admin: {listen: %[6]q}
`

// TestSubscriptionsComeBackThroughTheAPI: also when EMQX's API is away while the client connects, and the replayer is killed then.
func TestSubscriptionsComeBackThroughTheAPI(t *testing.T) {
	t.Parallel()
	a := &api{}
	mux := http.NewServeMux()
	mux.Handle("POST /api/v5/clients/{client}/subscribe", a)
	server := httptest.NewServer(mux)
	defer server.Close()
	s := newSetupWithoutKafka(t)
	s.configure = func(admin string) string {
		return fmt.Sprintf(lookupProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, server.URL)
	}
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	a.b = startRuleBroker(t, s.broker, "t/#")
	all := s.startAll("ingest", "writer", "replayer")

	c := e2etest.Subscribe(t, s.broker, "device/1", "t/1")
	e2etest.Await(t, "the subscription is stored", func() bool {
		_, rows := e2etest.Table(t, s.database, "mqtt_sub")
		return len(rows) == 1
	})
	a.b.leave(c, "device/1")
	e2etest.Publish(t, s.broker, "t/1", "one", "two")

	a.away.Store(true)
	c = e2etest.DialWith(t, s.broker, mqtttest.Options{ID: "device/1", Version: mqtttest.V5})
	all["replayer"].AwaitLog("HTTP 503")
	all["replayer"].Kill()
	replayer := s.begin("replayer")
	a.away.Store(false)
	got := e2etest.Receive(t, c, 2)
	if diff := cmp.Diff([]string{"one", "two"}, e2etest.Payloads(got)); diff != "" {
		t.Errorf("replay (-want +got):\n%s", diff)
	}
	if err := e2etest.Replays(got); err != nil {
		t.Error(err)
	}
	e2etest.Publish(t, s.broker, "t/1", "live")
	if live := e2etest.Receive(t, c, 1); string(live[0].Payload) != "live" {
		t.Errorf("live: %+v", live)
	}
	e2etest.AwaitReady(t, s.admin["replayer"])
	e2etest.Await(t, "one lookup has restored something", func() bool {
		return e2etest.Metric(t, s.admin["replayer"], "restante_lookup_requests_total", `outcome="restored"`) == 1
	})
	if n := a.made.Load(); n != 1 {
		t.Errorf("%d subscriptions were made, want 1", n)
	}
	e2etest.AwaitRows(t, s.database, 0)
	replayer.Stop()
	all["writer"].Stop()
	all["ingest"].Stop()
}
