package e2e

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/sinks"
)

// planted is a difference of one message.
type planted struct{ Sink, Kind, Message string }

// audited runs restante audit and gives its exit code and what it found of messages, sorted.
func (w *world) audited(args ...string) (code int, found []planted) {
	w.t.Helper()
	code, out := w.restante(append([]string{"audit", "-o", "json", "-c", w.config("restante")}, args...)...)
	var report struct {
		Complete    bool
		Differences []planted
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || !report.Complete {
		w.t.Fatalf("audit: exit code %d, %v:\n%s", code, err, out)
	}
	slices.SortFunc(report.Differences, comparePlanted)
	return code, report.Differences
}

func comparePlanted(a, b planted) int {
	return slices.Compare([]string{a.Sink, a.Kind, a.Message}, []string{b.Sink, b.Kind, b.Message})
}

// store opens a sink as our processes do.
func (w *world) store(sink string) sinks.Store {
	w.t.Helper()
	c, err := app.Load(w.config("restante"), os.LookupEnv)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := c.OpenSink(w.t.Context(), sink, app.SinkParts{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return s
}

func (w *world) apply(s sinks.Store, op sinks.Op) {
	w.t.Helper()
	var err error
	e2etest.Await(w.t, "the store takes it", func() bool {
		err = s.Apply(w.t.Context(), []sinks.Op{op})
		return err == nil
	})
}

func TestAuditNamesWhatWasPlanted(t *testing.T) {
	t.Parallel()
	cassandra, dynamodb := stack.Shared(t, stack.Cassandra), stack.Shared(t, stack.DynamoDB)
	w := newWorld(t, "")
	w.cassandra("wide", cassandra, w.name, "")
	w.dynamodb("dynamo", dynamodb, w.name+"_", "")
	file := w.sqlite("local")
	names := []string{"dynamo", "local", "wide"}
	for _, s := range names {
		w.offline(s)
		w.rules += fmt.Sprintf("\n  - {on: message.publish, topic: \"r/#\", do: [on_message_retain, on_retain_delete], sink: %s}", s)
	}
	w.migrate()
	look := lookCassandra(t, cassandra, w.name)
	all := w.startAll("ingest", "writer", "replayer")
	for i := range 4 {
		for n := range 5 {
			e2etest.Publish(t, w.broker, fmt.Sprintf("t/%d", i), fmt.Sprintf("message %d-%d", i, n))
		}
	}
	c := e2etest.Dial(t, w.broker, "retains")
	for _, m := range []mqtttest.Message{
		{Topic: "r/1", Payload: []byte("before")}, {Topic: "r/1", Payload: []byte("after")}, {Topic: "r/2", Payload: []byte("gone")}, {Topic: "r/2"},
	} {
		m.QoS, m.Retain = 1, true
		if err := c.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if code, found := w.audited(); code != 0 || len(found) > 0 { // while it is written
		t.Errorf("exit code %d: %v", code, found)
	}
	e2etest.AwaitRows(t, file, 20)
	device := e2etest.Subscribe(t, w.broker, "device", "t/0")
	e2etest.Receive(t, device, 5)
	e2etest.AwaitRows(t, file, 15)
	for _, s := range names {
		w.awaitCommitted(s)
	}
	if code, found := w.audited(); code != 0 || len(found) > 0 {
		t.Errorf("exit code %d: %v", code, found)
	}
	for _, p := range all {
		p.Stop()
	}

	var messages []sinks.Message // of t/1 to t/3, as a store has them
	reader := w.store("local")
	for i := range 4 {
		topic, err := event.ParseTopic(fmt.Sprintf("t/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		ms, err := reader.Messages(t.Context(), sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now()), Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, ms...)
	}
	if len(messages) != 15 {
		t.Fatalf("%d messages are stored", len(messages))
	}
	gone := w.book().published
	for _, m := range messages {
		delete(gone, m.ID.String())
	}
	acked := slices.Sorted(maps.Keys(gone))[0]
	var want []planted
	var err error
	for i, sink := range names {
		s := w.store(sink)
		lost, other, forged := messages[3*i], messages[3*i+1], messages[3*i+2]
		w.apply(s, sinks.DeleteMessage{Topic: lost.Topic, ID: lost.ID, Stamp: lost.ID.Micros() + 1})
		want = append(want, planted{sink, "missing", lost.ID.String()})
		other.Payload = []byte("zzz: of two values of one stamp the larger one wins")
		w.apply(s, sinks.PutMessage{Message: other})
		want = append(want, planted{sink, "differs", other.ID.String()})
		forged.ID = event.IDOf(forged.ID.Micros()+1, 99, uint16(i))
		w.apply(s, sinks.PutMessage{Message: forged})
		want = append(want, planted{sink, "unknown", forged.ID.String()})

		forged.ID = event.IDOf(forged.ID.Micros()+1, 99, 100+uint16(i))
		forged.Retain = true
		if forged.Topic, err = event.ParseTopic("r/3"); err != nil {
			t.Fatal(err)
		}
		w.apply(s, sinks.PutRetained{Message: forged})
		want = append(want, planted{sink, "unknown", forged.ID.String()})

		back := messages[0]
		back.ID, back.Payload = mustID(t, acked), []byte(gone[acked].Payload)
		topic, err := event.ParseTopic(gone[acked].Topic)
		if err != nil {
			t.Fatal(err)
		}
		back.Topic = topic
		switch sink { // a tombstone stands in the way, so the row is written by hand
		case "local":
			db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?_pragma=busy_timeout(10000)")
			if err != nil {
				t.Fatal(err)
			}
			_, err = db.ExecContext(t.Context(), "insert into mqtt_msg values (?, ?, '2026-01-01 00:00:00.000+0000', ?, 1, 0, 'x')",
				topic.String(), acked, string(back.Payload))
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			if err != nil {
				t.Fatal(err)
			}
		case "wide":
			if _, err := look.query(t.Context(), fmt.Sprintf("INSERT INTO {}.mqtt_msg (topic, msgid, arrived, payload, qos, retain, sender) VALUES ('%s', '%s', 0, '%s', 1, 0, 'x')",
				topic, acked, back.Payload)); err != nil {
				t.Fatal(err)
			}
		default:
			w.apply(s, sinks.PutMessage{Message: back})
		}
		want = append(want, planted{sink, "undeleted", acked})
	}
	slices.SortFunc(want, comparePlanted)
	code, found := w.audited()
	if diff := cmp.Diff(want, found); diff != "" || code != 1 {
		t.Errorf("exit code %d; differences (-want +got):\n%s", code, diff)
	}
	code, found = w.audited("--sink", "local", "--topic", "t/0")
	if diff := cmp.Diff([]planted{{"local", "undeleted", acked}}, found); diff != "" || code != 1 {
		t.Errorf("exit code %d; differences of one topic (-want +got):\n%s", code, diff)
	}
	if code, found = w.audited("--until", "1h"); code != 0 || len(found) > 0 {
		t.Errorf("exit code %d for a time when nothing was: %v", code, found)
	}
	if code, out := w.restante("audit", "--sink", "nobody", "-c", w.config("restante")); code != 2 {
		t.Errorf("exit code %d for a sink that is not there:\n%s", code, out)
	}
}

func mustID(t *testing.T, s string) event.ID {
	t.Helper()
	id, err := event.ParseID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
