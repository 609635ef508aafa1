package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
)

// BenchmarkSubscribeToFirstStored is the time from SUBSCRIBE to the message that waited in Cassandra or DynamoDB, by way of
// ingest, replayer and a real Kafka, for a client that is connected already. Three systems take turns: one whose store holds
// nothing else, one with ten thousand messages for other topics, and one with RESTANTE_BENCH_STORED (100000) of them.
func BenchmarkSubscribeToFirstStored(b *testing.B) {
	b.Run("Cassandra", func(b *testing.B) { benchStored(b, cassandraSink) })
	b.Run("DynamoDB", func(b *testing.B) { benchStored(b, dynamoDBSink) })
}

func cassandraSink(b *testing.B) string {
	b.Helper()
	return fmt.Sprintf("{type: cassandra, hosts: [%q], keyspace: %s, user: %s, password: %s, write_timeout: 30s, read_timeout: 30s}",
		stack.Shared(b, stack.Cassandra), stack.Unique(b), stack.User, stack.Password)
}

func dynamoDBSink(b *testing.B) string {
	b.Helper()
	return fmt.Sprintf("{type: dynamodb, region: us-west-2, endpoint: %q, access_key_id: restante, secret_access_key: secret, table_prefix: %s_, request_timeout: 30s}",
		stack.Shared(b, stack.DynamoDB), stack.Unique(b))
}

func benchStored(b *testing.B, sink func(*testing.B) string) {
	b.Helper()
	const (
		p50, p99, slower = 50, 250, 1.3
		waiting          = 200 // subscribers of each system
	)
	others := []int{0, 10_000, fromEnv(b, "RESTANTE_BENCH_STORED", 100_000)}
	all := make([]*fleet, len(others))
	for i := range all {
		all[i] = startFleet(b, sink(b))
	}
	for i, f := range all {
		f.store(b, others[i])
	}
	took := make([][]time.Duration, len(all))
	turn := 0
	for b.Loop() {
		for _, f := range all {
			f.publish(b, turn, waiting)
		}
		for n := range waiting {
			for i := range all {
				i = (i + n) % len(all) // nobody is always first
				took[i] = append(took[i], all[i].collect(b, fmt.Sprintf("late-%d-%d", turn, n), waitingTopic(turn, n), func() {}))
			}
		}
		turn++
	}
	for i, n := range others {
		name := fmt.Sprintf(" beside %d", n)
		for _, q := range []struct {
			name      string
			of, limit float64
		}{{"p50", 0.5, p50}, {"p99", 0.99, p99}} {
			atMost(b, q.name+name, millis(quantile(took[i], q.of)), "ms", q.limit)
		}
		if i > 0 {
			atMost(b, "p50"+name+" against none", millis(median(took[i]))/millis(median(took[0])), "×", slower)
		}
	}
}

// fleet is ingest with its broker, a writer and a replayer, each a process of its own, with one sink and names of its own.
type fleet struct {
	system
	log *backlog // the topic of messages
}

const fleetConfig = `
kafka:
  brokers: [%[1]s]
  names: {topics: %[2]s, groups: %[2]s}
  messages: {partitions: %[3]d, replication: 1}
  sessions: {partitions: %[3]d}
  dead: {partitions: 1}
sources: {devices: {type: embedded, listen: %[4]q}}
sinks: {%[5]s: %[6]s}
rules: [{topic: "#", action: save_offline_messages, sink: %[5]s, ttl: 168h}]
replayer: {clock_skew: 0s}
delivery: {to: topic, evidence: broker, secret: a key for the marks of the replays, mqtt: {url: "mqtt://%[4]s"}}
admin: {listen: %[7]q}
`

// startFleet makes the topics and tables, and starts the processes. They are stopped with the benchmark.
func startFleet(b *testing.B, sink string) *fleet {
	b.Helper()
	dir, name, brokers := b.TempDir(), stack.Unique(b), brokersOf(b)
	f := &fleet{system: system{mqtt: ports.Addr(b)}}
	f.log = &backlog{client: openKafka(b, brokers, name+".messages"), brokers: brokers, topic: name + ".messages", group: name + ".writer." + sinkName}
	b.Cleanup(f.log.client.Close)
	config := func(command string) (file, admin string) {
		file, admin = filepath.Join(dir, command+".yaml"), ports.Addr(b)
		text := fmt.Sprintf(fleetConfig, quoted(brokers), name, partitions, f.mqtt, sinkName, sink, admin)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		return file, admin
	}
	file, _ := config("migrate")
	if out, err := exec.CommandContext(b.Context(), build(b, "restante"), "migrate", "-c", file).CombinedOutput(); err != nil {
		b.Fatalf("restante migrate: %v\n%s", err, out)
	}
	var ready []string
	for _, command := range []string{"ingest", "writer", "replayer"} {
		file, admin := config(command)
		start(b, build(b, command), "-config", file)
		ready = append(ready, admin)
	}
	for _, admin := range ready {
		awaitReady(b, admin)
	}
	return f
}

func waitingTopic(turn, n int) string { return fmt.Sprintf("waiting/%d/%d", turn, n) }

// publish publishes the messages that subscribers are to get, and waits until they are stored.
func (f *fleet) publish(b *testing.B, turn, waiting int) {
	b.Helper()
	sender := f.connect(b, "sender")
	defer sender.Close()
	var sent errgroup.Group
	sent.SetLimit(16)
	for n := range waiting {
		sent.Go(func() error { return sender.Publish(b.Context(), waitingTopic(turn, n), 1, payload) })
	}
	if err := sent.Wait(); err != nil {
		b.Fatal(err)
	}
	f.log.awaitWritten(b)
}

// store has the writer store so many messages for other topics.
func (f *fleet) store(b *testing.B, n int) {
	b.Helper()
	const topics, some = 1000, 10_000
	for from := 0; from < n; from += some {
		events := messagesFor(b, min(some, n-from))
		for i, e := range events {
			m := e.(event.Published)
			m.Topic = eventtest.Topic(b, fmt.Sprintf("other/%d/%d", (from+i)%10, (from+i)%topics))
			events[i] = m
		}
		f.log.append(b, events)
	}
	f.log.awaitWritten(b)
}

// awaitWritten waits until the writer has committed all that the log has.
func (k *backlog) awaitWritten(b *testing.B) {
	b.Helper()
	const silence = time.Minute
	log := k.client.Log("")
	last, since := int64(-1), time.Now()
	for {
		left, sum := int64(0), int64(0)
		for part := range partitions {
			spans, err := log.Spans(b.Context(), k.topic, part)
			if err != nil {
				b.Fatal(err)
			}
			at, err := log.Committed(b.Context(), k.group, k.topic, part)
			if err != nil {
				b.Fatal(err)
			}
			sum += max(at[part], 0)
			left += spans[part].End - max(at[part], spans[part].First)
		}
		if left == 0 {
			return
		}
		if sum > last {
			last, since = sum, time.Now()
		}
		if time.Since(since) > silence {
			b.Fatalf("the writer commits nothing any more; it has %d records left", left)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
