package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/exhook/exhooktest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const heldProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
sources: {emqx: {type: exhook, listen: %[7]q, budget: 15s}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
replayer: {resume_delay: 200ms, window: 1000, rate: {client: 10}}
delivery: {to: topic, evidence: broker, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
%[8]s
`

// TestAReplayIsHeldBackWhileKafkaIsAway: first Kafka takes no more writes, so that the replayer goes on with what it had begun, then it is
// gone. Nobody gets a replay whose ack nobody could map; when Kafka is back it comes again.
func TestAReplayIsHeldBackWhileKafkaIsAway(t *testing.T) {
	t.Parallel()
	for _, spooled := range []bool{true, false} {
		t.Run(map[bool]string{true: "with a spool", false: "without a spool"}[spooled], func(t *testing.T) {
			t.Parallel()
			s := newSetupWithoutKafka(t)
			hooks, more := ports.Addr(t), ""
			if spooled {
				more = fmt.Sprintf("ingest: {spool: {path: %q, size: 128MiB}}", filepath.Join(s.dir, "spool"))
			}
			s.configure = func(admin string) string {
				return fmt.Sprintf(heldProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, hooks, more)
			}
			cluster := s.durableKafka()
			if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
				t.Fatal(err)
			}
			broker := exhooktest.Start(t, exhooktest.Options{
				Servers: []string{hooks}, Version: 2, Listen: s.broker, RequestTimeout: time.Minute, AutoReconnect: 100 * time.Millisecond,
			})
			all := s.startAll("ingest", "writer", "replayer")
			e2etest.Await(t, "ingest is loaded", func() bool { return slices.Min(broker.Loads()) > 0 })
			spy := e2etest.Subscribe(t, s.broker, "spy", "$offline/#", "$offline/+/+/+/t/1")

			const stored = 60
			var payloads []string
			for i := range stored {
				payloads = append(payloads, fmt.Sprintf("%03d", i))
			}
			e2etest.Publish(t, s.broker, "t/1", payloads...)
			e2etest.AwaitRows(t, s.database, stored)
			device := e2etest.DialWith(t, s.broker, mqtttest.Options{ID: "device", Version: mqtttest.V5, ManualAck: true})
			e2etest.More(t, device, "t/1")
			got := e2etest.Receive(t, device, 3)
			cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				return nil, errors.New("no writes"), true // the connection is cut
			})
			held := func() float64 {
				return e2etest.Metric(t, s.admin["ingest"], "restante_mqtt_events_total", `"held_envelope"`)
			}
			e2etest.Await(t, "a replay is held back", func() bool { return held() > 0 })
			if spooled { // what is published now is kept, in its order
				e2etest.Publish(t, s.broker, "t/1", "while away")
				payloads = append(payloads, "while away")
			}
			cluster.Close() // for the replayer too
			time.Sleep(time.Second)
			s.durableKafka()

			// All of them come, and nothing is gone before its ack.
			ids := map[string]string{} // of replays, by payload
			seen, copies := map[string]bool{}, 0
			take := func(m mqtttest.Message) {
				t.Helper()
				payload, id := string(m.Payload), m.User("offline-msgid")
				if m.Topic != "t/1" || ids[payload] != "" && id != "" && ids[payload] != id {
					t.Errorf("%q came on %s with offline-msgid %q, before with %q", payload, m.Topic, id, ids[payload])
				}
				if seen[payload] {
					copies++
				}
				seen[payload] = true
				ids[payload] = id
			}
			for _, m := range got {
				take(m)
			}
			for len(seen) < len(payloads) {
				m := e2etest.Receive(t, device, 1)[0]
				take(m)
				got = append(got, m)
			}
			e2etest.AwaitRows(t, s.database, len(payloads))
			for _, m := range got {
				if err := device.Ack(m); err != nil {
					t.Fatal(err)
				}
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			rest := make(chan int)
			go func() { // ends with the context: copies that were under way before the acks
				n := 0
				defer func() { rest <- n }()
				for {
					m, err := device.Receive(ctx)
					if err != nil {
						return
					}
					n++
					_ = device.Ack(m) // the connection lasts as long as the test
				}
			}()
			e2etest.AwaitRows(t, s.database, 0)
			stop()
			t.Logf("%v replays were held back; %d copies came before the acks and %d after the first", held(), copies, <-rest)

			// After the acks nothing comes twice.
			device.Disconnect()
			e2etest.Quiet(t, e2etest.Subscribe(t, s.broker, "device", "t/1"), 2*time.Second)
			e2etest.Quiet(t, e2etest.Subscribe(t, s.broker, "other", "t/1"), time.Second)
			e2etest.Quiet(t, spy, 0)
			if broker.Puzzled() != 0 {
				t.Errorf("%d answers puzzled the broker", broker.Puzzled())
			}
			for _, name := range []string{"replayer", "writer", "ingest"} {
				all[name].Stop()
			}
		})
	}
}
