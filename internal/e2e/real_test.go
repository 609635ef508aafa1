package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
)

// world is the world of one test on real servers. On those that it shares with others it keeps to names of its own.
type world struct {
	*setup
	name   string // the prefix of topics, groups and tables, and the keyspace
	copies int    // of each partition
	parts  int    // of messages, and of sessions
	source string // YAML: the source, on the broker's address; "" = the embedded broker
	sinks  string // YAML: what stands below sinks
	rules  string // YAML: the list
	more   string // YAML: other keys
}

const realProcesses = `
kafka:
  brokers: %[1]q
  names: {topics: %[2]s, groups: %[2]s}
  messages: {partitions: %[3]d, replication: %[4]d}
  sessions: {partitions: %[3]d}
  dead: {partitions: 1}
sources: {devices: %[11]s}
sinks:%[6]s
rules:%[7]s
replayer: {%[12]s}
delivery: {to: topic, evidence: broker, secret_file: %[8]q, mqtt: {url: "mqtt://%[5]s"}}
admin: {listen: %[9]q}
%[10]s
`

// newWorld names a world on the Kafka that tests share, or on that of the addresses. Nothing runs, nothing is migrated.
func newWorld(t *testing.T, kafka string) *world {
	t.Helper()
	w := &world{
		setup: &setup{t: t, dir: t.TempDir(), kafka: kafka, broker: ports.Addr(t), admin: map[string]string{}},
		name:  stack.Unique(t), copies: 1, parts: partitions,
	}
	if kafka == "" {
		w.kafka = stack.Shared(t, stack.Kafka)
	}
	w.write("secret", "the key that marks the replays\n")
	w.configure = func(admin string) string {
		source, replayer := w.source, "settle: 2s, resume_delay: 200ms"
		if source == "" {
			source, replayer = fmt.Sprintf("{type: embedded, listen: %q, node: emqx@127.0.0.1}", w.broker), "clock_skew: 0s"
		}
		return fmt.Sprintf(realProcesses, w.kafka, w.name, w.parts, w.copies, w.broker, w.sinks, w.rules, filepath.Join(w.dir, "secret"), admin, w.more,
			source, replayer)
	}
	return w
}

// cassandra adds a sink of that name on the server.
func (w *world) cassandra(sink, address, keyspace, more string) {
	w.sinks += fmt.Sprintf("\n  %s: {type: cassandra, hosts: %q, keyspace: %s, user: %s, password: %s%s}", sink, address, keyspace, stack.User, stack.Password, more)
}

// dynamodb adds a sink of that name on the server.
func (w *world) dynamodb(sink, endpoint, prefix, more string) {
	w.sinks += fmt.Sprintf("\n  %s: {type: dynamodb, region: us-west-2, endpoint: %q, access_key_id: AKIAU5IM2XOC7AQWG7HK, secret_access_key: none%s}", sink, endpoint, more)
	if prefix != "" {
		w.sinks = strings.TrimSuffix(w.sinks, "}") + ", table_prefix: " + prefix + "}"
	}
}

// offline adds a rule that saves the offline messages of t/# in the sink.
func (w *world) offline(sink string) {
	w.rules += fmt.Sprintf("\n  - {topic: \"t/#\", action: save_offline_messages, sink: %s, wildcards: true}", sink)
}

// migrate makes topics and tables. On a machine that is busy with other servers' starts that may take more than one attempt.
func (w *world) migrate() {
	w.t.Helper()
	var err error
	defer func() {
		if err != nil {
			w.t.Log(err)
		}
	}()
	e2etest.Await(w.t, "topics and tables are made", func() bool {
		err = migrateAll(w.t.Context(), w.config("migrate"))
		return err == nil
	})
}

// group is the consumer group of a sink's writers.
func (w *world) group(sink string) string { return w.name + ".writer." + sink }

// client is a plain client of Kafka.
func (w *world) client() *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(strings.Split(w.kafka, ",")...), Timeout: time.Minute}
}

// ends are the end offsets of the partitions of a topic, messages or sessions, and the committed ones of a group; -1 = none.
func (w *world) ends(ctx context.Context, topic, group string) (ends, committed map[int]int64, err error) {
	topic = w.name + "." + topic
	requests := make([]kafka.OffsetRequest, w.parts)
	parts := make([]int, w.parts)
	for i := range w.parts {
		requests[i], parts[i] = kafka.LastOffsetOf(i), i
	}
	offsets, err := w.client().ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: requests}})
	if err != nil {
		return nil, nil, err
	}
	done, err := w.client().OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: parts}})
	if err != nil {
		return nil, nil, err
	}
	ends, committed = map[int]int64{}, map[int]int64{}
	err = done.Error
	for _, p := range offsets.Topics[topic] {
		ends[p.Partition] = p.LastOffset
		err = errors.Join(err, p.Error)
	}
	for _, p := range done.Topics[topic] {
		committed[p.Partition] = p.CommittedOffset
		err = errors.Join(err, p.Error)
	}
	return ends, committed, err
}

// awaitCommitted waits until the writers of the sink have committed all of both topics.
func (w *world) awaitCommitted(sink string) {
	w.t.Helper()
	var ends, committed map[int]int64
	defer func() {
		if w.t.Failed() {
			w.t.Logf("sink %s: ends %v, committed %v", sink, ends, committed)
		}
	}()
	for _, topic := range []string{"messages", "sessions"} {
		e2etest.Await(w.t, "all "+topic+" committed for "+sink, func() bool {
			var err error
			if ends, committed, err = w.ends(w.t.Context(), topic, w.group(sink)); err != nil {
				return false
			}
			for part, end := range ends {
				if end > 0 && committed[part] < end {
					return false
				}
			}
			return true
		})
	}
}

// stored is a message as a store shows it.
type stored struct{ Topic, Payload string }

// book is what a plain consumer of mqtt.messages makes of it.
type book struct {
	published map[string]stored // by message id
	acked     map[string]bool
}

// waiting are the messages that no client has acknowledged: what a store must hold, by message id.
func (b book) waiting() map[string]stored {
	out := maps.Clone(b.published)
	for id := range b.acked {
		delete(out, id)
	}
	return out
}

func (w *world) book() book {
	w.t.Helper()
	const patience = 2 * time.Minute // for the next record
	var ends map[int]int64
	e2etest.Await(w.t, "the end offsets of messages", func() bool {
		var err error
		ends, _, err = w.ends(w.t.Context(), "messages", w.group("nobody"))
		return err == nil
	})
	b := book{map[string]stored{}, map[string]bool{}}
	for part, end := range ends {
		if end == 0 {
			continue
		}
		r := kafka.NewReader(kafka.ReaderConfig{
			Brokers: strings.Split(w.kafka, ","), Topic: w.name + ".messages", Partition: part, MaxWait: 100 * time.Millisecond, QueueCapacity: 5000,
		})
		for next := int64(0); next < end; {
			ctx, cancel := context.WithTimeout(w.t.Context(), patience)
			m, err := r.ReadMessage(ctx)
			cancel()
			if err != nil {
				w.t.Fatalf("read messages/%d at %d of %d: %v", part, next, end, err)
			}
			next = m.Offset + 1
			switch header(m, "ce_type") {
			case "mqtt.message.publish":
				if len(m.Value) == 0 && header(m, "ce_retain") == "1" {
					continue // it removes a retained message, and is stored by nobody
				}
				b.published[header(m, "ce_id")] = stored{string(m.Key), string(m.Value)}
			case "mqtt.message.acked":
				b.acked[header(m, "ce_msgid")] = true
			}
		}
		if err := r.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	return b
}

// plainStore looks into a store as any other program could.
type plainStore interface {
	// messages are the rows of mqtt_msg that a subscriber would get, by message id.
	messages(ctx context.Context) (map[string]stored, error)
	// dump is all rows of all tables, each row as text.
	dump(ctx context.Context) (map[string][]string, error)
}

// awaitStored waits until the store holds exactly these messages, each once.
func awaitStored(t *testing.T, s plainStore, want map[string]stored) {
	t.Helper()
	var got map[string]stored
	var err error
	defer func() {
		if t.Failed() {
			missing, extra := 0, 0
			for id := range want {
				if _, ok := got[id]; !ok {
					missing++
				}
			}
			for id := range got {
				if _, ok := want[id]; !ok {
					extra++
				}
			}
			t.Logf("%d rows, want %d: %d are missing, %d too many (last error: %v)", len(got), len(want), missing, extra, err)
		}
	}()
	e2etest.Await(t, "the store holds what it must", func() bool {
		got, err = s.messages(t.Context())
		return err == nil && cmp.Equal(got, want)
	})
}

// payloads are those of the messages. A payload that stands in two of them fails the test: it was published once.
func payloads(t *testing.T, ms map[string]stored) map[string]bool {
	t.Helper()
	out := make(map[string]bool, len(ms))
	for id, m := range ms {
		if out[m.Payload] {
			t.Errorf("%q stands in two rows, one of them %s", m.Payload, id)
		}
		out[m.Payload] = true
	}
	return out
}

// promised checks that every message that had its PUBACK is among those of the book, and gives how many are.
func promised(t *testing.T, b book, acked map[string]bool) {
	t.Helper()
	have := payloads(t, b.published)
	lost := 0
	for p := range acked {
		if !have[p] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d messages that had their PUBACK are not in Kafka", lost, len(acked))
	}
}

// soaking reports whether the long figures are wanted.
func soaking() bool { return os.Getenv("RESTANTE_SOAK") != "" }

// long is how long an outage takes: the second in a soak.
func long(short, soak time.Duration) time.Duration {
	if soaking() {
		return soak
	}
	return short
}

// times checks that a process wrote texts to its log, on one line, exactly so many times.
func times(t *testing.T, p *e2etest.Process, n int, texts ...string) {
	t.Helper()
	if got := said(p, texts...); got != n {
		t.Errorf("the log says %q %d times, want %d", texts, got, n)
	}
}

// onceAMinute checks that a process wrote texts to its log, on one line, and again once a minute at most.
func onceAMinute(t *testing.T, p *e2etest.Process, texts ...string) {
	t.Helper()
	if got, most := said(p, texts...), 1+int(p.Age()/time.Minute); got < 1 || got > most {
		t.Errorf("the log says %q %d times, want 1 to %d", texts, got, most)
	}
}

// said is how many lines of a process's log have all the texts.
func said(p *e2etest.Process, texts ...string) int {
	got := 0
line:
	for line := range strings.Lines(p.Log()) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue line
			}
		}
		got++
	}
	return got
}

// outage skips a test that stops servers under load for a while, unless it is asked for: several of them need a quiet machine.
func outage(t *testing.T) {
	t.Helper()
	if os.Getenv("RESTANTE_OUTAGES") == "" && os.Getenv("RESTANTE_SOAK") == "" {
		t.Skip("stops servers under load: make outages runs it, with RESTANTE_SOAK=1 for long")
	}
}
