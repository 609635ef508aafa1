package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
)

const partitions = 3

// setup is the world of one test: a Kafka in this process, addresses, and a configuration for the processes.
type setup struct {
	t        *testing.T
	dir      string
	kafka    string
	broker   string
	database string
	admin    map[string]string // by process
	// configure writes the configuration of a process with that admin server; nil = that of processes.
	configure func(admin string) string
}

// A dead member keeps its partitions for the session time-out, so this is what a kill costs.
const processes = `
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
rules: [{topic: "t/#", action: save_offline_messages, sink: history, wildcards: true}]
replayer: {clock_skew: 0s}
delivery: {to: topic, evidence: broker, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// newSetup starts a Kafka and migrates. Nothing of ours runs yet.
func newSetup(t *testing.T) *setup {
	t.Helper()
	s := newSetupWithoutKafka(t)
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	return s
}

func newSetupWithoutKafka(t *testing.T) *setup {
	t.Helper()
	dir := t.TempDir()
	s := &setup{t: t, dir: dir, kafka: ports.Addr(t), broker: ports.Addr(t), database: filepath.Join(dir, "history.db"), admin: map[string]string{}}
	s.write("secret", "the key that marks the replays\n")
	return s
}

func startKafka(t *testing.T, addr string) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ListenFn(func(network, _ string) (net.Listener, error) {
		return (&net.ListenConfig{}).Listen(context.Background(), network, addr)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (s *setup) write(name, text string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// config writes the configuration of a process: all are the same but for the admin server.
func (s *setup) config(process string) string {
	s.t.Helper()
	if s.admin[process] == "" {
		s.admin[process] = ports.Addr(s.t)
	}
	if s.configure != nil {
		return s.write(process+".yaml", s.configure(s.admin[process]))
	}
	return s.write(process+".yaml", fmt.Sprintf(processes, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), s.admin[process]))
}

// start starts a process and waits until it is ready.
func (s *setup) start(process string) *e2etest.Process {
	s.t.Helper()
	p := s.begin(process)
	e2etest.AwaitReady(s.t, s.admin[process])
	return p
}

// begin starts a process.
func (s *setup) begin(process string) *e2etest.Process {
	s.t.Helper()
	return e2etest.Start(s.t, process, "-config", s.config(process))
}

// startAll starts processes beside each other and waits until all are ready.
func (s *setup) startAll(processes ...string) map[string]*e2etest.Process {
	s.t.Helper()
	all := map[string]*e2etest.Process{}
	for _, name := range processes {
		all[name] = s.begin(name)
	}
	for _, name := range processes {
		e2etest.AwaitReady(s.t, s.admin[name])
	}
	return all
}

func migrateAll(ctx context.Context, config string) error {
	c, err := app.Load(config, os.LookupEnv)
	if err != nil {
		return err
	}
	for name := range c.Sinks {
		if _, err := c.MigrateSink(ctx, name, false); err != nil {
			return err
		}
	}
	k, err := app.OpenKafka(ctx, c, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer k.Close()
	_, err = k.Migrate(ctx, c.Specs(), false)
	return err
}

// records reads a whole topic with a plain client: what anybody would see there.
func (s *setup) records(topic string) []kafka.Message {
	s.t.Helper()
	return readTopic(s.t, s.kafka, topic)
}

func readTopic(t *testing.T, broker, topic string) []kafka.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Patience)
	defer cancel()
	conn, err := kafka.DialContext(ctx, "tcp", broker)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	parts, err := conn.ReadPartitions(topic)
	if err != nil {
		t.Fatal(err)
	}
	var all []kafka.Message
	for _, part := range parts {
		leader, err := kafka.DialLeader(ctx, "tcp", broker, topic, part.ID)
		if err != nil {
			t.Fatal(err)
		}
		end, err := leader.ReadLastOffset()
		_ = leader.Close()
		if err != nil {
			t.Fatal(err)
		}
		if end == 0 {
			continue
		}
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker}, Topic: topic, Partition: part.ID, MaxWait: 100 * time.Millisecond})
		for next := int64(0); next < end; {
			m, err := r.ReadMessage(ctx)
			if err != nil {
				t.Fatalf("read %s/%d at %d of %d: %v", topic, part.ID, next, end, err)
			}
			all, next = append(all, m), m.Offset+1
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// header is the value of a record's header, "" when it has none.
func header(m kafka.Message, key string) string {
	for _, h := range m.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// published are the payloads of the publishes in mqtt.messages, by MQTT topic.
func published(ms []kafka.Message) map[string][]string {
	out := map[string][]string{}
	for _, m := range ms {
		if header(m, "ce_type") == "mqtt.message.publish" {
			out[string(m.Key)] = append(out[string(m.Key)], string(m.Value))
		}
	}
	return out
}
