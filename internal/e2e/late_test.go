package e2e

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/mqtt/mqtttest"
)

// hooks are all that a writer does for the sink.
func hooks(sink string) string {
	text := ""
	for _, rule := range []string{
		"on: client.connected, do: on_client_connected",
		"on: client.disconnected, do: on_client_disconnected",
		`on: session.subscribed, topic: "#", do: on_subscribe_store`,
		`on: session.unsubscribed, topic: "#", do: on_unsubscribe_delete`,
		`on: message.publish, topic: "#", do: [on_message_publish, on_message_retain, on_retain_delete]`,
		`on: message.acked, topic: "#", do: on_message_acked_for_queue`,
	} {
		text += "\n  - {" + rule + ", sink: " + sink + "}"
	}
	return text
}

// rewind sets the offsets of a group that has no member to the beginning.
func (w *world) rewind(group string) {
	w.t.Helper()
	topics := map[string][]kafka.OffsetCommit{}
	for _, topic := range []string{"messages", "sessions"} {
		for part := range partitions {
			topics[w.name+"."+topic] = append(topics[w.name+"."+topic], kafka.OffsetCommit{Partition: part})
		}
	}
	var last error
	e2etest.Await(w.t, "the offsets of "+group+" are set", func() bool {
		res, err := w.client().OffsetCommit(w.t.Context(), &kafka.OffsetCommitRequest{GroupID: group, GenerationID: -1, Topics: topics})
		if last = err; err != nil {
			return false
		}
		for _, parts := range res.Topics {
			for _, p := range parts {
				if p.Error != nil {
					last = p.Error
				}
			}
		}
		return last == nil
	})
	if last != nil {
		w.t.Fatal(last)
	}
}

// TestTheWholeLogAgainChangesNothing: every event written a second time, long after its messages were acknowledged.
func TestTheWholeLogAgainChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	address, endpoint := stack.Shared(t, stack.Cassandra), stack.Shared(t, stack.DynamoDB)
	w.cassandra("cassandra", address, w.name, "")
	w.dynamodb("dynamodb", endpoint, w.name+"_", "")
	w.rules = hooks("cassandra") + hooks("dynamodb") + `
  - {on: session.subscribed, topic: "#", do: on_message_fetch_for_queue, sink: cassandra}`
	w.migrate()
	looks := map[string]plainStore{"cassandra": lookCassandra(t, address, w.name), "dynamodb": lookDynamoDB(endpoint, w.name+"_")}
	all := w.startAll("ingest", "writer", "replayer")

	c := e2etest.Dial(t, w.broker, "publisher")
	publish := func(topic string, from, to int) {
		for i := from; i < to; i++ {
			e2etest.Send(t, c, topic, fmt.Sprintf("message %03d", i))
		}
	}
	publish("t/many", 0, 70) // more than stand in one item of DynamoDB's map
	publish("t/few", 0, 10)
	publish("t/nobody", 0, 3)
	for _, payload := range []string{"first", "second", ""} {
		for _, topic := range []string{"r/kept", "r/removed"} {
			if payload == "" && topic == "r/kept" {
				continue
			}
			if err := c.Publish(t.Context(), mqtttest.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Retain: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.awaitCommitted("cassandra")
	w.awaitCommitted("dynamodb")
	one := e2etest.Subscribe(t, w.broker, "one", "t/few")
	e2etest.Receive(t, one, 10)
	if _, err := one.Unsubscribe(t.Context(), "t/few"); err != nil {
		t.Fatal(err)
	}
	half := e2etest.DialWith(t, w.broker, mqtttest.Options{ID: "half", Version: mqtttest.V5, ManualAck: true})
	e2etest.More(t, half, "t/many")
	for range 40 {
		if err := half.Ack(e2etest.Receive(t, half, 1)[0]); err != nil {
			t.Fatal(err)
		}
	}
	publish("t/few", 10, 20) // for nobody, after the acks
	if err := half.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	half.Cut()
	one.Disconnect()
	all["replayer"].Stop()
	all["ingest"].Stop()
	b := w.book()
	if len(b.acked) != 50 {
		t.Fatalf("%d messages are acknowledged, want 50", len(b.acked))
	}

	before := map[string]map[string][]string{}
	for sink, look := range looks {
		w.awaitCommitted(sink)
		awaitStored(t, look, b.waiting())
	}
	all["writer"].Stop()
	for sink, look := range looks {
		var err error
		if before[sink], err = look.dump(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.rewind(w.group(sink))
	}
	w.start("writer")
	for sink, look := range looks {
		w.awaitCommitted(sink)
		after, err := look.dump(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows := 0
		for _, table := range before[sink] {
			rows += len(table)
		}
		t.Logf("%s: %d rows in %d tables", sink, rows, len(before[sink]))
		if d := cmp.Diff(before[sink], after); d != "" {
			t.Errorf("%s after the whole log once more (-before +after):\n%s", sink, d)
		}
	}
	if n := e2etest.Metric(t, w.admin["writer"], "restante_writer_elided_total"); n > 0 {
		t.Errorf("%v messages were elided: not all was written again", n)
	}
}
