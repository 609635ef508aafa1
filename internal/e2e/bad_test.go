package e2e

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/internal/e2e/e2etest"
)

// write appends a record to a partition as any other program could.
func (s *setup) append(topic string, partition int, m kafka.Message) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), e2etest.Patience)
	defer cancel()
	conn, err := kafka.DialLeader(ctx, "tcp", s.kafka, topic, partition)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.WriteMessages(m); err != nil {
		s.t.Fatal(err)
	}
}

func TestARecordThatIsNotOursGoesWholeToTheDeadLettersAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	all := s.startAll("ingest", "writer", "replayer")
	foreign := kafka.Message{Key: []byte("a key"), Value: []byte(`{"not":"ours"}`), Headers: []kafka.Header{{Key: "theirs", Value: []byte{0xff, 0x00}}}}
	forged := kafka.Message{Key: []byte("t/1"), Value: []byte("x"), Headers: []kafka.Header{
		{Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_type", Value: []byte("mqtt.message.publish")}, {Key: "ce_id", Value: []byte("no id")},
	}}
	for part := range partitions {
		s.append("mqtt.messages", part, foreign)
		s.append("mqtt.messages", part, forged)
		s.append("mqtt.sessions", part, foreign)
	}
	e2etest.Publish(t, s.broker, "t/1", "one")
	e2etest.Publish(t, s.broker, "t/2", "two")
	e2etest.AwaitRows(t, s.database, 2)
	for _, topic := range []string{"t/1", "t/2"} {
		e2etest.Receive(t, e2etest.Subscribe(t, s.broker, "device of "+topic, topic), 1)
	}
	e2etest.AwaitRows(t, s.database, 0)

	type origin struct{ topic, by string }
	const writer, replayer = "restante.writer.history", "restante.replayer"
	want := map[origin]int{{"mqtt.messages", writer}: 2 * partitions, {"mqtt.sessions", writer}: partitions, {"mqtt.sessions", replayer}: partitions}
	var got map[origin]int
	e2etest.Await(t, "all dead letters", func() bool {
		got = map[origin]int{}
		for _, m := range s.records("mqtt.dead") {
			got[origin{header(m, "restante_dead_topic"), header(m, "restante_dead_by")}]++
		}
		return cmp.Equal(got, want)
	})
	for _, m := range s.records("mqtt.dead") {
		sent := foreign
		if string(m.Key) == "t/1" {
			sent = forged
		}
		if string(m.Key) != string(sent.Key) || string(m.Value) != string(sent.Value) || !cmp.Equal(m.Headers[:len(sent.Headers)], sent.Headers) {
			t.Errorf("dead letter is not whole: key %q, value %q, headers %q", m.Key, m.Value, m.Headers)
		}
		if header(m, "restante_dead_reason") != "malformed" || header(m, "restante_dead_error") == "" || header(m, "restante_dead_partition") == "" || header(m, "restante_dead_offset") == "" {
			t.Errorf("dead letter does not say why: %q", m.Headers)
		}
	}
	e2etest.Await(t, "the writer counts its dead letters", func() bool { // a while after they are there
		return e2etest.Metric(t, s.admin["writer"], "restante_dlq_records_total", `reason="malformed"`) == 3*partitions
	})
	for _, p := range all {
		if p.Ended() {
			t.Error("a process has ended")
		}
	}
}

func TestAnOversizedMessageIsAcknowledgedAndKeptWholeAsADeadLetter(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.startAll("ingest", "writer", "replayer")
	over := strings.Repeat("x", 256<<10+1)
	e2etest.Publish(t, s.broker, "t/big", over, over[1:])
	e2etest.AwaitRows(t, s.database, 1) // the one at the limit
	dead := s.records("mqtt.dead")
	if len(dead) != 1 {
		t.Fatalf("%d dead letters, want 1", len(dead))
	}
	if m := dead[0]; string(m.Value) != over || string(m.Key) != "t/big" || header(m, "restante_dead_reason") != "oversize" || header(m, "ce_type") != "mqtt.message.publish" || header(m, "ce_sender") == "" {
		t.Errorf("dead letter: key %q, %d bytes, headers %q", m.Key, len(m.Value), m.Headers)
	}
	got := e2etest.Receive(t, e2etest.Subscribe(t, s.broker, "device", "t/big"), 1)[0]
	if string(got.Payload) != over[1:] {
		t.Errorf("got %d bytes, want the message at the limit", len(got.Payload))
	}
}

// durableKafka is a Kafka that keeps its data when it is closed and started again.
func (s *setup) durableKafka() *kfake.Cluster {
	s.t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(filepath.Join(s.dir, "kafka")), kfake.SyncWrites(),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(context.Background(), network, s.kafka)
		}))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

func (s *setup) notReady(process, because string) {
	s.t.Helper()
	e2etest.Await(s.t, process+" answers", func() bool {
		status, _ := e2etest.Get(s.t, s.admin[process], "/livez")
		return status == http.StatusOK
	})
	var body string
	e2etest.Await(s.t, process+" says why it is not ready: "+because, func() bool {
		var status int
		status, body = e2etest.Get(s.t, s.admin[process], "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, because)
	})
}

func TestAnUnreachableKafkaIsWaitedForAtTheStartAndInTheMiddle(t *testing.T) {
	t.Parallel()
	s := newSetupWithoutKafka(t)
	cluster := s.durableKafka()
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	cluster.Close()
	all := map[string]*e2etest.Process{}
	for _, name := range []string{"ingest", "writer", "replayer"} {
		all[name] = s.begin(name)
	}
	for name, p := range all {
		s.notReady(name, "refused")
		p.AwaitLog(`"msg":"not there yet, will retry"`)
	}
	cluster = s.durableKafka()
	for _, name := range []string{"ingest", "writer", "replayer"} {
		e2etest.AwaitReady(t, s.admin[name])
	}
	e2etest.Publish(t, s.broker, "t/1", "1: stored")
	e2etest.AwaitRows(t, s.database, 1)

	cluster.Close()
	c := e2etest.Dial(t, s.broker, "publisher")
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	err := c.Publish(short, e2etest.Message("t/1", "2: without an answer"))
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while Kafka is away the publisher got %v, want no answer", err)
	}
	s.durableKafka()
	e2etest.Send(t, c, "t/1", "3: answered again")
	e2etest.AwaitAll(t, s.broker, "device", "t/1", map[string]bool{"1: stored": true, "2: without an answer": true, "3: answered again": true})
	e2etest.AwaitRows(t, s.database, 0)
}

func TestAnUnreachableBrokerIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.startAll("writer")
	replayer := s.begin("replayer") // the broker that it delivers to is in ingest
	s.notReady("replayer", "delivery")
	replayer.AwaitLog("refused")
	ingest := s.start("ingest")
	e2etest.AwaitReady(t, s.admin["replayer"])
	e2etest.Publish(t, s.broker, "t/1", "one", "two")
	e2etest.Receive(t, e2etest.Subscribe(t, s.broker, "device", "t/1"), 2)

	ingest.Kill()
	s.notReady("replayer", "delivery")
	s.start("ingest")
	e2etest.AwaitReady(t, s.admin["replayer"])
	e2etest.Publish(t, s.broker, "t/2", "three")
	e2etest.Receive(t, e2etest.Subscribe(t, s.broker, "device", "t/2"), 1)
}

func TestAMissingTopicEndsAProcessWithWhatToDo(t *testing.T) {
	t.Parallel()
	s := newSetupWithoutKafka(t)
	startKafka(t, s.kafka)
	for _, name := range []string{"ingest", "writer"} {
		p := s.begin(name)
		if code := p.Code(); code != 1 {
			t.Errorf("%s: exit code %d, want 1", name, code)
		}
		if !strings.Contains(p.Log(), `topic mqtt.messages is missing: run \"restante migrate\"`) {
			t.Errorf("%s does not say what to do: %s", name, p.Log())
		}
	}
}

func TestAFaultyConfigurationEndsEachProcessAtOnce(t *testing.T) {
	t.Parallel()
	s := newSetupWithoutKafka(t)
	for _, name := range []string{"ingest", "writer", "replayer"} {
		file := s.write("bad.yaml", "kafka: {brokers: \"127.0.0.1:1\", messages: {partitons: 3}}\nwriter: {hold: soon}\n")
		p := e2etest.Start(t, name, "-config", file)
		if code := p.Code(); code != 2 {
			t.Errorf("%s: exit code %d, want 2", name, code)
		}
		for _, want := range []string{name + ": ", "2 faults", "kafka.messages.partitons", "partitions", "line 1", "writer.hold", "line 2"} {
			if !strings.Contains(p.Log(), want) {
				t.Errorf("%s does not say %q: %s", name, want, p.Log())
			}
		}
	}
}
