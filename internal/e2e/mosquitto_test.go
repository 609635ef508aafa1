package e2e

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mochitest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const plainProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
sources: {plant: {type: mqtt, url: "mqtt://%[3]s", decode: %[7]s, connections: 1}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history, wildcards: true}]
replayer: {settle: 2s, resume_delay: 200ms}
delivery: {to: %[8]s, evidence: %[9]s, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// plainSetup starts the three processes beside a broker that tells them nothing but what is published there.
func plainSetup(t *testing.T, broker, decode, to, evidence string) *setup {
	t.Helper()
	s := newSetupWithoutKafka(t)
	s.broker = broker
	s.configure = func(admin string) string {
		return fmt.Sprintf(plainProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, decode, to, evidence)
	}
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	s.startAll("ingest", "writer", "replayer")
	return s
}

// answer publishes what a replay asks its client for, to the topic that it names or, for a forger, to another.
func answer(t *testing.T, c *mqtttest.Client, replay mqtttest.Message, to string) {
	t.Helper()
	m := e2etest.Message(to, "")
	m.Properties = event.Properties{CorrelationData: replay.Properties.CorrelationData}
	if err := c.Publish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// tellStory publishes while nobody is there, and then lets device-1 come: it gets what it missed, and the rows go by the evidence.
func (s *setup) tellStory(fetch bool, evidence string, filters ...string) {
	t := s.t
	t.Helper()
	missed := []string{"one", "\x00\xff\xfe", "three"}
	e2etest.Publish(t, s.broker, "t/1", missed...)
	e2etest.AwaitRows(t, s.database, len(missed))
	c := e2etest.Subscribe(t, s.broker, "device-1", filters...)
	if fetch {
		e2etest.Send(t, c, "offline/fetch/device-1", "t/1")
	}
	got := e2etest.Receive(t, c, len(missed))
	if diff := cmp.Diff(missed, e2etest.Payloads(got)); diff != "" {
		t.Errorf("replay (-want +got):\n%s", diff)
	}
	if err := e2etest.Replays(got); err != nil {
		t.Error(err)
	}
	if evidence == "app" {
		s.answerAll(c, got)
	}
	e2etest.AwaitRows(t, s.database, 0)
	e2etest.Quiet(t, c, 3*time.Second) // the last look after settle sends nothing again
	c.Disconnect()

	e2etest.Publish(t, s.broker, "t/1", "later")
	e2etest.AwaitRows(t, s.database, 1)
	c = e2etest.Subscribe(t, s.broker, "device-1", filters...)
	if fetch {
		e2etest.Send(t, c, "offline/fetch/device-1", "t/1")
	}
	if got = e2etest.Receive(t, c, 1); string(got[0].Payload) != "later" {
		t.Errorf("the second time: %q", e2etest.Payloads(got))
	}
	if evidence == "app" {
		answer(t, c, got[0], got[0].Properties.ResponseTopic)
	}
	e2etest.AwaitRows(t, s.database, 0)
	want := map[string][]string{"t/1": append(missed, "later")}
	if diff := cmp.Diff(want, published(s.records("mqtt.messages"))); diff != "" {
		t.Errorf("publishes in Kafka (-want +got):\n%s", diff)
	}
}

// answerAll answers each replay. Before it nothing has gone, whatever the broker acknowledged; another device's word counts nothing.
func (s *setup) answerAll(c *mqtttest.Client, got []mqtttest.Message) {
	t := s.t
	t.Helper()
	forger := e2etest.Dial(t, s.broker, "device-2")
	for _, m := range got {
		if m.Properties.ResponseTopic != "offline/ack/device-1" || len(m.Properties.CorrelationData) == 0 {
			t.Fatalf("asks for an answer on %q with %q", m.Properties.ResponseTopic, m.Properties.CorrelationData)
		}
		answer(t, forger, m, "offline/ack/device-2")
	}
	e2etest.Await(t, "the forged answers are counted", func() bool {
		return e2etest.Metric(t, s.admin["ingest"], "restante_mqtt_events_total", `kind="refused_answer"`) == float64(len(got))
	})
	time.Sleep(1500 * time.Millisecond) // longer than the writer holds anything back
	e2etest.AwaitRows(t, s.database, len(got))
	for _, m := range got {
		answer(t, c, m, m.Properties.ResponseTopic)
	}
}

// TestMosquittoTellsTheStory: beside the real broker, configured as its page says; what wakes the replay is the line of its log, or the
// device's fetch; what ends it is the device's answer, or the broker's PUBACK.
func TestMosquittoTellsTheStory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ decode, evidence string }{{"mosquitto", "puback"}, {"plain", "app"}, {"plain", "puback"}} {
		t.Run(c.decode+", "+c.evidence, func(t *testing.T) {
			t.Parallel()
			broker := stack.Mosquitto(t, onPage(t, "```\n# mosquitto.conf\n"))
			s := plainSetup(t, broker, c.decode, "topic", c.evidence)
			s.tellStory(c.decode == "plain", c.evidence, "t/1")
		})
	}
	t.Run("as its page says word for word", func(t *testing.T) {
		t.Parallel()
		s := newSetupWithoutKafka(t)
		s.broker = stack.Mosquitto(t, onPage(t, "```\n# mosquitto.conf\n"))
		places := strings.NewReplacer(
			"kafka-1:9092", s.kafka, "mosquitto:1883", s.broker, "/var/lib/restante/history.db", s.database,
			"/run/secrets/replay", filepath.Join(s.dir, "secret"), "/run/secrets/mqtt", s.write("password", "as mosquitto asks for none"),
		)
		s.configure = func(admin string) string {
			return places.Replace(onPage(t, "```yaml\n")) + fmt.Sprintf("admin: {listen: %q}\n", admin)
		}
		startKafka(t, s.kafka)
		if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
			t.Fatal(err)
		}
		s.startAll("ingest", "writer", "replayer")
		s.tellStory(false, "app", "t/#")
	})
}

// TestAnyBrokerTellsTheStory: another MQTT 5 broker, which tells nothing at all: the fetch topic, a topic for each client, and answers.
func TestAnyBrokerTellsTheStory(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"prefix", "topic"} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			filters := []string{"t/1"}
			if to == "prefix" {
				filters = append(filters, "offline/device-1/#")
			}
			broker := startPlainBroker(t)
			s := plainSetup(t, broker, "plain", to, "app")
			s.tellStory(true, "app", filters...)
		})
	}
}

// TestHiveMQTellsTheStory: a broker of another make, each way to deliver with each evidence. Its jars are many, so a soak runs it.
func TestHiveMQTellsTheStory(t *testing.T) {
	t.Parallel()
	if !soaking() {
		t.Skip("loads 100 MB of another broker: RESTANTE_SOAK=1 runs it")
	}
	for _, to := range []string{"topic", "prefix"} {
		for _, evidence := range []string{"puback", "app"} {
			t.Run(to+", "+evidence, func(t *testing.T) { // one after another: each has a broker of its own
				filters := []string{"t/1"}
				if to == "prefix" {
					filters = append(filters, "offline/device-1/#")
				}
				s := plainSetup(t, stack.Own(t, stack.HiveMQ).Address(), "plain", to, evidence)
				s.tellStory(true, evidence, filters...)
			})
		}
	}
}

// anybody lets everybody do everything.
type anybody struct{ mochi.HookBase }

func (anybody) Provides(hook byte) bool {
	return hook == mochi.OnConnectAuthenticate || hook == mochi.OnACLCheck
}

func (anybody) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (anybody) OnACLCheck(*mochi.Client, string, bool) bool              { return true }

// startPlainBroker runs a broker without a hook that tells us anything until the test ends.
func startPlainBroker(t *testing.T) (addr string) {
	t.Helper()
	addr = ports.Addr(t)
	caps := mochi.NewDefaultServerCapabilities()
	caps.Compatibilities.NoInheritedPropertiesOnAck = true // what it sends otherwise is no MQTT 5
	b := mochi.New(&mochi.Options{Capabilities: caps, Logger: slog.New(slog.DiscardHandler)})
	if err := b.AddHook(new(anybody), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.AddListener(mochitest.Listener(b, e2etest.Listen(t, addr))); err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() }) // the test is over
	return addr
}

// onPage is the block of the page on Mosquitto that begins so.
func onPage(t *testing.T, begins string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/brokers/mosquitto.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), begins)
	lines, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatalf("the page holds no block that begins with %q", begins)
	}
	return lines
}
