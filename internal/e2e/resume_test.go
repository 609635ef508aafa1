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

const resumeProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
sources: {emqx: {type: mqtt, url: "mqtt://%[3]s", decode: emqx}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules:
  - {topic: "t/#", action: save_offline_messages, sink: history, wildcards: true}
  - {on: client.connected, do: on_message_fetch_for_queue, delay: %[7]s, wildcards: true, sink: history}
  - {on: session.subscribed, topic: "#", do: on_subscribe_store, sink: history}
replayer: {settle: 1s, resume_delay: 2s}
delivery: {secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// TestAResumedSessionGetsWhatDidNotFitIntoItsQueue: the broker kept 10 of 50 messages for it, and it gets each of the 50 once.
func TestAResumedSessionGetsWhatDidNotFitIntoItsQueue(t *testing.T) {
	t.Parallel()
	s := newSetupWithoutKafka(t)
	const delay = 15 * time.Second // by then all acks of the broker's queue are in the log, on a slow machine too
	s.configure = func(admin string) string {
		return fmt.Sprintf(resumeProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, delay)
	}
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	b := startRuleBroker(t, s.broker, "t/#")
	const device, kept, count = "device-1", 10, 50
	limit := func(queues map[string]int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.queues = queues
	}
	limit(map[string]int{device: kept})
	s.startAll("ingest", "writer", "replayer")

	keep := mqtttest.Options{ID: device, Version: mqtttest.V5, KeepSession: true, SessionExpiry: time.Hour}
	c := e2etest.DialWith(t, s.broker, keep)
	e2etest.More(t, c, "t/+")
	e2etest.Await(t, "the subscription is stored", func() bool {
		_, rows := e2etest.Table(t, s.database, "mqtt_sub")
		return len(rows) == 1
	})
	c.Disconnect()
	var want []string
	for i := range count {
		want = append(want, fmt.Sprintf("%02d", i))
	}
	e2etest.Publish(t, s.broker, "t/1", want...)
	e2etest.AwaitRows(t, s.database, count)
	limit(nil)

	c = e2etest.DialWith(t, s.broker, keep)
	if !c.SessionPresent {
		t.Error("the broker has not kept the session")
	}
	first := e2etest.Receive(t, c, kept)
	queued := slices.Sorted(slices.Values(e2etest.Payloads(first))) // this broker resends in no order
	if diff := cmp.Diff(want[:kept], queued); diff != "" {
		t.Errorf("of the broker's queue (-want +got):\n%s", diff)
	}
	if slices.ContainsFunc(first, func(m mqtttest.Message) bool { return m.User("offline-msgid") != "" }) {
		t.Error("a replay came before the broker's own queue")
	}
	rest := e2etest.Receive(t, c, count-kept)
	if diff := cmp.Diff(want[kept:], e2etest.Payloads(rest)); diff != "" {
		t.Errorf("of the catch-up (-want +got):\n%s", diff)
	}
	if err := e2etest.Replays(rest); err != nil {
		t.Error(err)
	}
	e2etest.AwaitRows(t, s.database, 0)
	e2etest.Quiet(t, c, 3*time.Second)
}
