package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/exhook/exhooktest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const hookedProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
sources: {emqx: {type: exhook, listen: %[8]q, budget: 30s}} # no call fails where all else is slow
sinks: {history: {type: sqlite, path: %[4]q}}
rules:
  - sql: SELECT * FROM "t/#", "$events/session_subscribed", "$events/message_acked" WHERE topic =~ 't/#'
    action: save_offline_messages
    sink: history
    wildcards: true
delivery: {to: topic, evidence: %[7]s, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
writer: {hold: 200ms}
replayer: {resume_delay: 200ms}
admin: {listen: %[6]q}
`

// TestExHookTellsTheStory is the manual's page "save offline messages" on a broker that tells ingest by ExHook and nothing else.
func TestExHookTellsTheStory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		evidence string
		version  int
	}{
		{evidence: "puback", version: 1},
		{evidence: "broker", version: 1},
		{evidence: "broker", version: 2},
		{evidence: "broker", version: 3},
	} {
		t.Run(fmt.Sprint(c.evidence, " v", c.version), func(t *testing.T) {
			t.Parallel()
			s := newSetupWithoutKafka(t)
			hooks := ports.Addr(t)
			s.configure = func(admin string) string {
				return fmt.Sprintf(hookedProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, c.evidence, hooks)
			}
			startKafka(t, s.kafka)
			if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
				t.Fatal(err)
			}
			broker := exhooktest.Start(t, exhooktest.Options{
				Servers: []string{hooks}, Version: c.version, Listen: s.broker, RequestTimeout: time.Minute, AutoReconnect: 100 * time.Millisecond,
			})
			all := s.startAll("ingest", "writer", "replayer")
			broker.AwaitLoaded(1)
			spy := e2etest.Subscribe(t, s.broker, "spy", "$offline/#")

			// Offline messages are stored, and come in order when their client subscribes.
			binary := "\x00\xff\xfe"
			want := []string{"one", binary, "three"}
			e2etest.Publish(t, s.broker, "t/1", want...)
			e2etest.AwaitRows(t, s.database, 3)
			for _, row := range rowsOf(t, s.database) {
				if row["topic"] != "t/1" || row["qos"] != "1" || !strings.HasPrefix(row["sender"], "publisher-") || len(row["msgid"]) != 32 {
					t.Errorf("row %v", row)
				}
			}
			device := e2etest.Subscribe(t, s.broker, "device", "t/1")
			got := e2etest.Receive(t, device, 3)
			if diff := cmp.Diff(want, e2etest.Payloads(got)); diff != "" {
				t.Errorf("replay (-want +got):\n%s", diff)
			}
			if err := e2etest.Replays(got); err != nil {
				t.Error(err)
			}
			for _, m := range got {
				if m.Topic != "t/1" || m.QoS != 1 || m.Retain {
					t.Errorf("replayed %+v", m)
				}
			}
			e2etest.AwaitRows(t, s.database, 0)

			// A live message that its client has acknowledged is gone.
			e2etest.Publish(t, s.broker, "t/1", "live")
			want = append(want, "live")
			if live := e2etest.Receive(t, device, 1); string(live[0].Payload) != "live" || live[0].User("offline-msgid") != "" {
				t.Errorf("live: %+v", live)
			}
			e2etest.Quiet(t, device, time.Second)
			e2etest.AwaitRows(t, s.database, 0)
			device.Disconnect()

			// What is replayed is never stored again, whatever the version of the client that gets it.
			for round := range 10 {
				more := []string{fmt.Sprint("first of ", round), fmt.Sprint("second of ", round)}
				e2etest.Publish(t, s.broker, "t/1", more...)
				want = append(want, more...)
				e2etest.AwaitRows(t, s.database, 2)
				again := e2etest.DialWith(t, s.broker, mqtttest.Options{ID: "device", Version: []byte{mqtttest.V311, mqtttest.V5}[round%2]})
				e2etest.More(t, again, "t/1")
				if diff := cmp.Diff(more, e2etest.Payloads(e2etest.Receive(t, again, 2))); diff != "" {
					t.Errorf("round %d (-want +got):\n%s", round, diff)
				}
				e2etest.AwaitRows(t, s.database, 0)
				again.Disconnect()
			}

			// A replay that its client has not acknowledged stays stored only when the broker's word is the evidence.
			e2etest.Publish(t, s.broker, "t/1", "slow")
			want = append(want, "slow")
			e2etest.AwaitRows(t, s.database, 1)
			slow := e2etest.DialWith(t, s.broker, mqtttest.Options{ID: "device", ManualAck: true})
			e2etest.More(t, slow, "t/1")
			held := e2etest.Receive(t, slow, 1)[0]
			if c.evidence == "broker" {
				e2etest.Quiet(t, slow, time.Second)
				e2etest.AwaitRows(t, s.database, 1)
				if err := slow.Ack(held); err != nil {
					t.Fatal(err)
				}
			}
			e2etest.AwaitRows(t, s.database, 0)
			slow.Disconnect()

			// Ingest ends and starts again: the broker asks it once more for its hooks, and goes on.
			all["ingest"].Stop()
			all["ingest"] = s.start("ingest")
			broker.AwaitLoaded(2)
			e2etest.Publish(t, s.broker, "t/1", "after the restart")
			want = append(want, "after the restart")
			e2etest.AwaitRows(t, s.database, 1)
			late := e2etest.Subscribe(t, s.broker, "late", "t/#")
			if diff := cmp.Diff([]string{"after the restart"}, e2etest.Payloads(e2etest.Receive(t, late, 1))); diff != "" {
				t.Errorf("after the restart (-want +got):\n%s", diff)
			}
			e2etest.AwaitRows(t, s.database, 0)
			e2etest.Quiet(t, late, time.Second)
			e2etest.Quiet(t, spy, 0)
			if diff := cmp.Diff(map[string][]string{"t/1": want}, published(s.records("mqtt.messages"))); diff != "" {
				t.Errorf("publishes in Kafka (-want +got):\n%s", diff)
			}
			if broker.Failed() != 0 || broker.Puzzled() != 0 {
				t.Errorf("%d calls failed, %d answers puzzled the broker", broker.Failed(), broker.Puzzled())
			}
			for _, name := range []string{"replayer", "writer", "ingest"} {
				all[name].Stop()
			}
		})
	}
}

// hookedPair is a broker with two ingests behind one address.
type hookedPair struct {
	*setup
	broker  *exhooktest.Broker
	names   []string
	ingests []*e2etest.Process
}

// newHookedPair starts all of it: the broker has loaded both.
func newHookedPair(t *testing.T) *hookedPair {
	t.Helper()
	p := &hookedPair{setup: newSetupWithoutKafka(t), names: []string{"ingest-1", "ingest-2"}}
	hooks := map[string]string{} // by admin server
	p.configure = func(admin string) string {
		if hooks[admin] == "" {
			hooks[admin] = ports.Addr(t)
		}
		return fmt.Sprintf(hookedProcesses, p.kafka, partitions, p.setup.broker, p.database, filepath.Join(p.dir, "secret"), admin, "broker", hooks[admin])
	}
	startKafka(t, p.kafka)
	if err := migrateAll(t.Context(), p.config("migrate")); err != nil {
		t.Fatal(err)
	}
	var servers []string
	for _, name := range p.names {
		p.ingests = append(p.ingests, p.beginIngest(name))
		servers = append(servers, hooks[p.admin[name]])
	}
	p.broker = exhooktest.Start(t, exhooktest.Options{
		Servers: servers, Shared: true, Version: 2, Listen: p.setup.broker, RequestTimeout: time.Minute, AutoReconnect: 100 * time.Millisecond,
	})
	p.startAll("writer", "replayer")
	p.awaitLoaded(1)
	return p
}

func (p *hookedPair) beginIngest(name string) *e2etest.Process {
	p.t.Helper()
	return e2etest.Start(p.t, "ingest", "-config", p.config(name))
}

// awaitLoaded waits until the broker has loaded each ingest so often.
func (p *hookedPair) awaitLoaded(n int) {
	p.t.Helper()
	e2etest.Await(p.t, fmt.Sprintf("each ingest is loaded %d times", n), func() bool { return slices.Min(p.broker.Loads()) >= n })
}

// TestIngestsBehindOneAddressMapEachOthersAcks: a replay goes through the ingest of the replayer, its ack through that of the device.
func TestIngestsBehindOneAddressMapEachOthersAcks(t *testing.T) {
	t.Parallel()
	s := newHookedPair(t)
	addr := s.setup.broker
	const devices = 12
	want := map[string][]string{}
	round := func(payloads ...string) {
		t.Helper()
		for i := range devices {
			topic := fmt.Sprint("t/", i)
			e2etest.Publish(t, addr, topic, payloads...)
			want[topic] = append(want[topic], payloads...)
		}
		e2etest.AwaitRows(t, s.database, devices*len(payloads))
		for i := range devices {
			device := e2etest.Subscribe(t, addr, fmt.Sprint("device-", i), fmt.Sprint("t/", i))
			if diff := cmp.Diff(payloads, e2etest.Payloads(e2etest.Receive(t, device, len(payloads)))); diff != "" {
				t.Errorf("device %d (-want +got):\n%s", i, diff)
			}
			defer device.Disconnect()
		}
		e2etest.AwaitRows(t, s.database, 0)
	}
	round("one", "two", "three")
	round("four")
	if s.broker.Failed() != 0 || s.broker.Puzzled() != 0 {
		t.Errorf("%d calls failed, %d answers puzzled the broker", s.broker.Failed(), s.broker.Puzzled())
	}
	if own, foreign := acksFindTheirAliases(t, s.records("mqtt.sessions")); own == 0 || foreign == 0 || own+foreign != devices*4 {
		t.Errorf("%d acks with the message id and %d with the broker's, want %d and some of each", own, foreign, devices*4)
	}
	s.ingests[0].Kill() // the other one is told all from now on
	round("five", "six")
	e2etest.Quiet(t, e2etest.Subscribe(t, addr, "late", "t/#"), time.Second)
	if diff := cmp.Diff(want, published(s.records("mqtt.messages"))); diff != "" {
		t.Errorf("publishes in Kafka (-want +got):\n%s", diff)
	}
	s.ingests[1].Stop()
}

// TestAReplayIsDeletedWhenAllIngestsAreNewBeforeItsAck: what maps the ack to its message is in the log, and in no process that is gone.
func TestAReplayIsDeletedWhenAllIngestsAreNewBeforeItsAck(t *testing.T) {
	t.Parallel()
	s := newHookedPair(t)
	addr := s.setup.broker
	const devices = 6
	want := map[string][]string{}
	held := map[*mqtttest.Client]mqtttest.Message{}
	for i := range devices {
		topic := fmt.Sprint("t/", i)
		want[topic] = []string{fmt.Sprint("for ", i)}
		e2etest.Publish(t, addr, topic, want[topic]...)
	}
	e2etest.AwaitRows(t, s.database, devices)
	for i := range devices {
		device := e2etest.DialWith(t, addr, mqtttest.Options{ID: fmt.Sprint("device-", i), Version: mqtttest.V5, ManualAck: true})
		e2etest.More(t, device, fmt.Sprint("t/", i))
		m := e2etest.Receive(t, device, 1)[0]
		if string(m.Payload) != fmt.Sprint("for ", i) || m.Topic != fmt.Sprint("t/", i) || m.User("offline-msgid") == "" {
			t.Errorf("device %d has %+v", i, m)
		}
		held[device] = m
	}
	s.ingests[0].Kill()
	s.ingests[1].Stop()
	for i, name := range s.names {
		s.ingests[i] = s.beginIngest(name)
	}
	s.awaitLoaded(2)
	e2etest.AwaitRows(t, s.database, devices) // nobody has acknowledged
	failed := s.broker.Failed()               // some calls to those that were gone
	for device, m := range held {
		if err := device.Ack(m); err != nil {
			t.Fatal(err)
		}
	}
	e2etest.AwaitRows(t, s.database, 0)
	if s.broker.Failed() != failed || s.broker.Puzzled() != 0 {
		t.Errorf("%d calls failed, %d of them before; %d answers puzzled the broker", s.broker.Failed(), failed, s.broker.Puzzled())
	}
	if own, foreign := acksFindTheirAliases(t, s.records("mqtt.sessions")); own != 0 || foreign != devices {
		t.Errorf("%d acks with the message id and %d with the broker's, want %d of the latter: the ingests were new", own, foreign, devices)
	}
	for device := range held {
		e2etest.Quiet(t, device, 100*time.Millisecond)
	}
	if diff := cmp.Diff(want, published(s.records("mqtt.messages"))); diff != "" {
		t.Errorf("publishes in Kafka (-want +got):\n%s", diff)
	}
	for _, ingest := range s.ingests {
		ingest.Stop()
	}
}

// acksFindTheirAliases counts the acks of replays with the message id, of the ingest that has opened the envelope, and those with the
// broker's id alone, and checks that the alias stands before those.
func acksFindTheirAliases(t *testing.T, sessions []kafka.Message) (own, foreign int) {
	t.Helper()
	aliases := map[string]int{} // partitions by the broker's id
	for _, m := range sessions {
		id := header(m, "ce_brokerid")
		switch header(m, "ce_type") {
		case "mqtt.message.replayed":
			aliases[id] = m.Partition
		case "mqtt.message.acked":
			if part, ok := aliases[id]; id != "" && (!ok || part != m.Partition) {
				t.Errorf("no alias of %s stands before its ack in partition %d", id, m.Partition)
			}
			if id != "" {
				foreign++
			} else {
				own++
			}
		}
	}
	return own, foreign
}

// rowsOf are the rows of mqtt_msg by column.
func rowsOf(t *testing.T, database string) []map[string]string {
	t.Helper()
	columns, rows := e2etest.Table(t, database, "mqtt_msg")
	var out []map[string]string
	for _, row := range rows {
		m := map[string]string{}
		for i, c := range columns {
			m[c] = row[i]
		}
		out = append(out, m)
	}
	return out
}
