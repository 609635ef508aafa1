package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const pubsubProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
  session_timeout: 12s
  rebalance_timeout: 12s
shutdown: {drain: 6500ms}
sources: {devices: {type: embedded, listen: %[3]q}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules:
  - {on: message.publish, topic: "t/#", do: on_message_publish, sink: history}
  - {on: session.subscribed, topic: "t/#", do: on_message_fetch_for_pubsub, sink: history}
  - {on: message.acked, topic: "t/#", do: on_message_acked_for_pubsub, sink: history}
  - {on: session.unsubscribed, topic: "t/#", do: on_acked_delete, sink: history}
replayer: {clock_skew: 0s}
delivery: {to: prefix, evidence: broker, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// positionsOf are the rows of acked of a client, by their texts.
func (s *setup) positionsOf(client string) map[string]string {
	s.t.Helper()
	columns, rows := e2etest.Table(s.t, s.database, "acked")
	who, topic, id := slices.Index(columns, "clientid"), slices.Index(columns, "topic"), slices.Index(columns, "msgid")
	out := map[string]string{}
	for _, r := range rows {
		if r[who] == client {
			out[r[topic]] = r[id]
		}
	}
	return out
}

// comes connects a device and subscribes it to its replays and then to filters.
func (s *setup) comes(o mqtttest.Options, filters ...string) *mqtttest.Client {
	s.t.Helper()
	o.Version = mqtttest.V5
	c := e2etest.DialWith(s.t, s.broker, o)
	e2etest.More(s.t, c, append([]string{"offline/" + o.ID + "/#"}, filters...)...)
	return c
}

// TestEverySubscriberGetsEveryMessageOnce: two devices on one topic, each at its own pace, over a kill of the replayer.
func TestEverySubscriberGetsEveryMessageOnce(t *testing.T) {
	t.Parallel()
	s := newSetupWithoutKafka(t)
	s.configure = func(admin string) string {
		return fmt.Sprintf(pubsubProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin)
	}
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	all := s.startAll("ingest", "writer", "replayer")
	replayed := func(want ...string) func(c *mqtttest.Client, id string) {
		return func(c *mqtttest.Client, id string) {
			t.Helper()
			got := e2etest.Receive(t, c, len(want))
			if diff := cmp.Diff(want, e2etest.Payloads(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", id, diff)
			}
			if err := e2etest.Replays(got); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			for _, m := range got {
				if m.Topic != "offline/"+id+"/t/1" {
					t.Errorf("%s got %q on %s", id, m.Payload, m.Topic)
				}
			}
		}
	}
	quiet := func(c *mqtttest.Client) { e2etest.Quiet(t, c, 2*time.Second) }

	e2etest.Publish(t, s.broker, "t/1", "before anybody subscribed")
	one := s.comes(mqtttest.Options{ID: "one"}, "t/#")
	two := s.comes(mqtttest.Options{ID: "two"}, "t/1")
	quiet(one)
	e2etest.Publish(t, s.broker, "t/1", "live")
	for _, c := range []*mqtttest.Client{one, two} {
		if got := e2etest.Receive(t, c, 1); got[0].Topic != "t/1" || string(got[0].Payload) != "live" {
			t.Errorf("live: %+v", got)
		}
	}
	e2etest.Await(t, "the positions are stored", func() bool {
		one, two := s.positionsOf("one"), s.positionsOf("two")
		return one["t/1"] > one["t/#"] && one["t/1"] == two["t/1"] && one["t/#"] != ""
	})
	one.Disconnect()
	two.Disconnect()
	e2etest.Publish(t, s.broker, "t/1", "1", "2", "3")

	one = s.comes(mqtttest.Options{ID: "one"}, "t/#")
	replayed("1", "2", "3")(one, "one")
	two = s.comes(mqtttest.Options{ID: "two", ManualAck: true}, "t/1")
	silent := e2etest.Receive(t, two, 3)
	if err := two.Ack(silent[0]); err != nil { // and of the others it has no time to
		t.Fatal(err)
	}
	e2etest.Await(t, "the position of two is stored", func() bool { return s.positionsOf("two")["t/1"] >= silent[0].User("offline-msgid") })
	two.Cut()
	e2etest.Await(t, "the mark of two is stored", func() bool { return s.positionsOf("two")["t/1/#/open"] > silent[0].User("offline-msgid") })
	e2etest.Publish(t, s.broker, "t/1", "4")
	live := e2etest.Receive(t, one, 1)
	if string(live[0].Payload) != "4" || live[0].Topic != "t/1" {
		t.Errorf("live: %+v", live)
	}

	all["replayer"].Kill()
	all["replayer"] = s.begin("replayer")
	two = s.comes(mqtttest.Options{ID: "two"}, "t/1")
	replayed("2", "3", "4")(two, "two")
	one.Disconnect()
	one = s.comes(mqtttest.Options{ID: "one"}, "t/#")
	quiet(one)
	quiet(two)

	e2etest.AwaitReady(t, s.admin["replayer"])
	if _, err := one.Unsubscribe(t.Context(), "t/#"); err != nil {
		t.Fatal(err)
	}
	e2etest.Await(t, "the positions of one are gone", func() bool { return len(s.positionsOf("one")) == 0 })
	if n := e2etest.Metric(t, s.admin["replayer"], "restante_position_writes_total", `outcome="stored"`); n == 0 {
		t.Error("no position was counted")
	}
	if _, rows := e2etest.Table(t, s.database, "mqtt_msg"); len(rows) != 6 {
		t.Errorf("%d messages are stored, want all 6", len(rows))
	}
	e2etest.Await(t, "the mark of two is cleared", func() bool {
		return e2etest.Metric(t, s.admin["replayer"], "restante_position_marks_total", `change="cleared"`) == 1
	})
	all["replayer"].Stop()
	all["writer"].Stop()
	all["ingest"].Stop()
}
