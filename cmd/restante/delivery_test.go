package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mqtttest"
)

// whole is a stack in one process with a database of its own.
type whole struct {
	t                       *testing.T
	dir, broker, db, config string
}

func newWhole(t *testing.T, rules, more string) *whole {
	t.Helper()
	dir := t.TempDir()
	w := &whole{t: t, dir: dir, broker: ports.Addr(t), db: filepath.Join(dir, "messages.db"), config: filepath.Join(dir, "restante.yaml")}
	text := fmt.Sprintf("sources: {devices: {type: embedded, listen: %q}}\nsinks: {local: {type: sqlite, path: %q}}\nrules:\n%s\n"+
		"delivery: {to: direct}\nadmin: {listen: \"\"}\n%s\n", w.broker, w.db, rules, more)
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *whole) begin() *e2etest.Process {
	w.t.Helper()
	p := e2etest.Start(w.t, "restante", "up", "-d", filepath.Join(w.dir, "data"), "-c", w.config)
	p.AwaitOut(w.broker)
	return p
}

// TestAMessageComesBackWithAllItsProperties: out of the log, and out of the store after a restart, with what is left of its time.
func TestAMessageComesBackWithAllItsProperties(t *testing.T) {
	t.Parallel()
	w := newWhole(t, `  - {topic: "t/#", action: save_offline_messages, sink: local}`, "")
	p := w.begin()
	sent := mqtttest.Message{
		Topic: "t/1", QoS: 1, Payload: []byte("with all"), Expiry: time.Hour,
		Properties: event.Properties{
			ContentType: "application/x", ResponseTopic: "answer/here", CorrelationData: []byte{0, 255, 1}, PayloadFormat: 1,
			User: []event.UserProperty{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "3"}, {Key: "offline-msgid", Value: "mine"}},
		},
	}
	pub := e2etest.Dial(t, w.broker, "pub")
	if err := pub.Publish(t.Context(), sent); err != nil {
		t.Fatal(err)
	}
	pub.Disconnect()
	for _, round := range []string{"out of the log", "out of the store"} {
		if round == "out of the store" {
			p.Stop()
			p = w.begin()
		}
		time.Sleep(2 * time.Second) // of its time
		c := e2etest.DialWith(t, w.broker, mqtttest.Options{ID: "dev", Version: mqtttest.V5, ManualAck: true})
		e2etest.More(t, c, "t/1")
		got := e2etest.Receive(t, c, 1)[0]
		if string(got.Payload) != "with all" || got.QoS != 1 || got.Retain {
			t.Errorf("%s: %+v", round, got)
		}
		props := got.Properties
		own := slices.IndexFunc(props.User, func(u event.UserProperty) bool { return u.Key == "b" })
		if own < 4 || got.User("offline-msgid") == "mine" {
			t.Fatalf("%s: user properties %v", round, props.User)
		}
		props.User = props.User[own:]
		if diff := cmp.Diff(sent.Properties, props); diff != "" {
			t.Errorf("%s (-want +got):\n%s", round, diff)
		}
		if got.Expiry <= 0 || got.Expiry > time.Hour-time.Second {
			t.Errorf("%s: expiry %v, want what is left of an hour", round, got.Expiry)
		}
		c.Disconnect()
	}
	p.Stop()
}

// TestASubscribeAtQoS0IsServedOnce: what reached the connection is removed.
func TestASubscribeAtQoS0IsServedOnce(t *testing.T) {
	t.Parallel()
	w := newWhole(t, `  - {topic: "t/#", action: save_offline_messages, sink: local}`, "replayer: {qos0_subscribe: once}")
	p := w.begin()
	e2etest.Publish(t, w.broker, "t/1", "one", "two")
	c := e2etest.Dial(t, w.broker, "dev")
	if _, err := c.Subscribe(t.Context(), 0, "t/1"); err != nil {
		t.Fatal(err)
	}
	got := e2etest.Receive(t, c, 2)
	if diff := cmp.Diff([]string{"one", "two"}, e2etest.Payloads(got)); diff != "" || got[0].QoS != 0 || got[1].QoS != 0 {
		t.Errorf("%+v:\n%s", got, diff)
	}
	e2etest.AwaitRows(t, w.db, 0)
	late := e2etest.Subscribe(t, w.broker, "late", "t/1")
	e2etest.Quiet(t, late, 500*time.Millisecond)
	p.Stop()
}

// TestATakeOverLeavesTheClientOnline: the end of the older connection is told after the beginning of the newer one.
func TestATakeOverLeavesTheClientOnline(t *testing.T) {
	t.Parallel()
	w := newWhole(t, `  - {on: client.connected, do: on_client_connected, sink: local}
  - {on: client.disconnected, do: on_client_disconnected, sink: local}`, "")
	p := w.begin()
	defer p.Stop()
	// state is what the row of the client says, and since when.
	state := func() (online, since string) {
		columns, rows := e2etest.Table(t, w.db, "mqtt_client")
		for _, row := range rows {
			if row[slices.Index(columns, "clientid")] == "dev" {
				return row[slices.Index(columns, "state")], row[slices.Index(columns, "online_at")]
			}
		}
		return "", ""
	}
	first := e2etest.Dial(t, w.broker, "dev")
	e2etest.Await(t, "the client is online", func() bool { s, _ := state(); return s == "1" })
	_, before := state()
	c := e2etest.Dial(t, w.broker, "dev")
	e2etest.Await(t, "the newer connection is known", func() bool { _, since := state(); return since != before })
	first.Cut()
	time.Sleep(1500 * time.Millisecond) // longer than events are held
	if s, _ := state(); s != "1" {
		t.Errorf("state %q after the end of the older connection", s)
	}
	c.Disconnect()
	e2etest.Await(t, "the client is offline", func() bool { s, _ := state(); return s == "0" })
}
