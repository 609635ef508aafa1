package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/mqtt/mqtttest"
)

const matrixProcesses = `
kafka:
  brokers: %[1]q
  names: {topics: %[2]s, groups: %[2]s}
  messages: {partitions: %[3]d, replication: 1}
  sessions: {partitions: %[3]d}
  dead: {partitions: 1}
sources: {devices: {type: embedded, listen: %[4]q, node: emqx@127.0.0.1}}
sinks:%[5]s
rules:
  - {on: client.connected, do: on_client_connected, sink: store}
  - {on: client.disconnected, do: on_client_disconnected, sink: store}
  - {on: session.subscribed, topic: "#", do: on_subscribe_store, sink: store}
  - {on: session.unsubscribed, topic: "#", do: on_unsubscribe_delete, sink: store}
  - {on: message.publish, topic: "queue/#", do: on_message_publish, sink: store}
  - {on: session.subscribed, topic: "queue/#", do: on_message_fetch_for_queue, sink: store}
  - {on: message.acked, topic: "queue/#", do: on_message_acked_for_queue, sink: store}
  - {on: message.publish, topic: "pubsub/#", do: on_message_publish, sink: store}
  - {on: session.subscribed, topic: "pubsub/#", do: on_message_fetch_for_pubsub, first_subscribe: all, sink: store}
  - {on: message.acked, topic: "pubsub/#", do: on_message_acked_for_pubsub, sink: store}
  - {on: session.unsubscribed, topic: "pubsub/#", do: on_acked_delete, sink: store}
  - {on: message.publish, topic: "history/#", do: on_message_store, sink: store}
  - {on: message.publish, topic: "retained/#", do: [on_message_retain, on_retain_delete], sink: store}
  - {on: session.subscribed, topic: "retained/#", do: on_retain_lookup, sink: store}
replayer: {clock_skew: 0s}
delivery: {to: prefix, broker_retains: false, evidence: broker, secret_file: %[6]q, mqtt: {url: "mqtt://%[4]s"}}
admin: {listen: %[7]q}
`

// matrixActions are the actions of the design. Each has a cell for each store.
var matrixActions = []string{
	"on_client_connected", "on_client_disconnected", "on_subscribe_store", "on_unsubscribe_delete", "on_subscribe_lookup",
	"on_message_publish", "on_message_fetch_for_queue", "on_message_acked_for_queue", "on_message_store",
	"on_message_fetch_for_pubsub", "on_message_acked_for_pubsub", "on_acked_delete",
	"on_message_retain", "on_retain_lookup", "on_retain_delete",
}

// looker gives the rows of a table as any other program sees them, each column as text.
type looker func(t *testing.T, table string) []map[string]string

func matrixStores(t *testing.T) map[string]func(*testing.T, *world) looker {
	t.Helper()
	return map[string]func(*testing.T, *world) looker{
		"Cassandra": func(t *testing.T, w *world) looker {
			t.Helper()
			address := stack.Shared(t, stack.Cassandra)
			w.cassandra("store", address, w.name, "")
			plain := lookCassandra(t, address, w.name)
			return func(t *testing.T, table string) (out []map[string]string) {
				t.Helper()
				for _, row := range plain.rows(t, "SELECT * FROM {}."+strings.Replace(table, "mqtt_acked", "acked", 1)) {
					texts := map[string]string{}
					for name, v := range row {
						texts[name] = fmt.Sprint(v)
					}
					out = append(out, texts)
				}
				return out
			}
		},
		"DynamoDB": func(t *testing.T, w *world) looker {
			t.Helper()
			endpoint := stack.Shared(t, stack.DynamoDB)
			w.dynamodb("store", endpoint, w.name+"_", "")
			plain := lookDynamoDB(endpoint, w.name+"_")
			return func(t *testing.T, table string) (out []map[string]string) {
				t.Helper()
				for _, item := range plain.scan(t, table) {
					texts := map[string]string{}
					for name, v := range item {
						for _, text := range v { // one, by its type
							texts[name] = fmt.Sprint(text)
						}
					}
					if state, ok := texts["connect_state"]; ok {
						texts["state"] = state
					}
					out = append(out, texts)
				}
				return out
			}
		},
		"SQLite": func(t *testing.T, w *world) looker {
			t.Helper()
			w.database = filepath.Join(w.dir, "store.db")
			w.sinks = fmt.Sprintf("\n  store: {type: sqlite, path: %q}", w.database)
			return func(t *testing.T, table string) (out []map[string]string) {
				t.Helper()
				columns, rows := e2etest.Table(t, w.database, strings.Replace(table, "mqtt_acked", "acked", 1))
				for _, row := range rows {
					texts := map[string]string{}
					for i, text := range row {
						texts[columns[i]] = text
					}
					out = append(out, texts)
				}
				return out
			}
		},
	}
}

// matrix is the world of one store, and what its cells show.
type matrix struct {
	*world
	look looker

	mu    sync.Mutex
	cells map[string]string // by action
}

// cell is done when the test has not failed until it.
func (m *matrix) cell(action, shown string) {
	m.t.Helper()
	if !slices.Contains(matrixActions, action) {
		m.t.Fatalf("%s is no action", action)
	}
	if m.t.Failed() {
		shown = "FAILED"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cells[action] = shown
}

// row waits until exactly n rows of the table have these values, and gives the last of them.
func (m *matrix) row(table string, n int, with map[string]string) (found map[string]string) {
	m.t.Helper()
	var all []map[string]string
	defer func() {
		if m.t.Failed() {
			m.t.Logf("%s, where %d rows with %v are wanted: %v", table, n, with, all)
		}
	}()
	e2etest.Await(m.t, fmt.Sprintf("%s has %d rows with %v", table, n, with), func() bool {
		all = m.look(m.t, table)
		got := 0
	rows:
		for _, row := range all {
			for name, text := range with {
				if row[name] != text {
					continue rows
				}
			}
			got++
			found = row
		}
		return got == n
	})
	return found
}

func (m *matrix) dial(id string) *mqtttest.Client {
	m.t.Helper()
	c := e2etest.Dial(m.t, m.broker, id)
	e2etest.More(m.t, c, "offline/"+id+"/#")
	return c
}

func (m *matrix) publish(topic string, qos event.QoS, retain bool, payloads ...string) {
	m.t.Helper()
	p := e2etest.Dial(m.t, m.broker, "publisher")
	defer p.Disconnect()
	for _, payload := range payloads {
		if err := p.Publish(m.t.Context(), mqtttest.Message{Topic: topic, QoS: qos, Retain: retain, Payload: []byte(payload)}); err != nil {
			m.t.Fatal(err)
		}
	}
}

// gets are the next messages of a client, which must be these.
func (m *matrix) gets(c *mqtttest.Client, topic string, payloads ...string) []mqtttest.Message {
	m.t.Helper()
	got := e2etest.Receive(m.t, c, len(payloads))
	if diff := cmp.Diff(payloads, e2etest.Payloads(got)); diff != "" {
		m.t.Errorf("received (-want +got):\n%s", diff)
	}
	for _, msg := range got {
		if msg.Topic != topic {
			m.t.Errorf("received %q on %s, want it on %s", msg.Payload, msg.Topic, topic)
		}
	}
	return got
}

// TestMatrix is every action on every store, on the real Kafka: what the client saw, and the rows.
func TestMatrix(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	cells := map[string]map[string]string{} // by store
	stores := matrixStores(t)
	t.Cleanup(func() { // when all stores are through
		var b strings.Builder
		table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		names := []string{"Cassandra", "DynamoDB", "SQLite"}
		_, _ = fmt.Fprintf(table, "action\t%s\n", strings.Join(names, "\t")) // into memory
		for _, action := range matrixActions {
			line := action
			for _, store := range names {
				shown := cells[store][action]
				switch {
				case cells[store] == nil:
					shown = "not run"
				case shown == "":
					shown = "HOLE"
					t.Errorf("%s on %s has no cell", action, store)
				}
				line += "\t" + shown
			}
			_, _ = fmt.Fprintln(table, line)
		}
		_ = table.Flush()
		t.Logf("\n%s", b.String())
	})
	for store, open := range stores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			m := &matrix{world: w, cells: map[string]string{}}
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				cells[store] = m.cells
			}()
			m.look = open(t, w)
			w.configure = func(admin string) string {
				return fmt.Sprintf(matrixProcesses, w.kafka, w.name, partitions, w.broker, w.sinks, filepath.Join(w.dir, "secret"), admin)
			}
			w.migrate()
			w.startAll("ingest", "writer", "replayer")
			m.clients()
			m.queue()
			m.pubsub()
			m.history()
			m.retained()
			m.lookup(open)
		})
	}
}

func (m *matrix) clients() {
	c := e2etest.Dial(m.t, m.broker, "dev")
	m.row("mqtt_client", 1, map[string]string{"clientid": "dev", "state": "1", "node": "emqx@127.0.0.1"})
	m.cell("on_client_connected", "state 1")
	e2etest.More(m.t, c, "some/+", "other")
	m.row("mqtt_sub", 1, map[string]string{"clientid": "dev", "topic": "some/+", "qos": "1"})
	m.row("mqtt_sub", 1, map[string]string{"clientid": "dev", "topic": "other", "qos": "1"})
	m.cell("on_subscribe_store", "2 rows")
	if _, err := c.Unsubscribe(m.t.Context(), "some/+"); err != nil {
		m.t.Fatal(err)
	}
	m.row("mqtt_sub", 0, map[string]string{"clientid": "dev", "topic": "some/+"})
	m.row("mqtt_sub", 1, map[string]string{"clientid": "dev"})
	m.cell("on_unsubscribe_delete", "1 row left")
	c.Disconnect()
	m.row("mqtt_client", 1, map[string]string{"clientid": "dev", "state": "0"})
	m.cell("on_client_disconnected", "state 0")
}

func (m *matrix) queue() {
	m.publish("queue/1", 1, false, "one", "two")
	m.publish("queue/1", 0, false, "at QoS 0")
	for _, payload := range []string{"one", "two"} {
		m.row("mqtt_msg", 1, map[string]string{"topic": "queue/1", "payload": payload, "qos": "1", "sender": "publisher"})
	}
	m.row("mqtt_msg", 2, map[string]string{"topic": "queue/1"})
	m.cell("on_message_publish", "2 rows")
	c := m.dial("device")
	e2etest.More(m.t, c, "queue/1")
	got := m.gets(c, "offline/device/queue/1", "one", "two")
	if err := e2etest.Replays(got); err != nil {
		m.t.Error(err)
	}
	m.cell("on_message_fetch_for_queue", "2 replayed")
	m.row("mqtt_msg", 0, map[string]string{"topic": "queue/1"})
	m.row("mqtt_acked", 1, map[string]string{"clientid": "device", "topic": "queue/1", "msgid": got[1].User("offline-msgid")})
	m.cell("on_message_acked_for_queue", "gone, 1 row")
	c.Disconnect()
}

func (m *matrix) pubsub() {
	m.publish("pubsub/1", 1, false, "one", "two")
	comes := func(id string, payloads ...string) (*mqtttest.Client, string) {
		c := m.dial(id)
		e2etest.More(m.t, c, "pubsub/1")
		got := m.gets(c, "offline/"+id+"/pubsub/1", payloads...)
		return c, got[len(got)-1].User("offline-msgid")
	}
	first, id := comes("first", "one", "two")
	second, _ := comes("second", "one", "two")
	m.cell("on_message_fetch_for_pubsub", "2 replayed to each")
	needsNothingUpTo := func(client, id string) {
		e2etest.Await(m.t, "the position of "+client+" is stored", func() bool {
			return m.row("mqtt_acked", 1, map[string]string{"clientid": client, "topic": "pubsub/1"})["msgid"] >= id
		})
	}
	needsNothingUpTo("first", id)
	needsNothingUpTo("second", id)
	m.row("mqtt_msg", 2, map[string]string{"topic": "pubsub/1"})
	first.Disconnect()
	second.Disconnect()
	m.publish("pubsub/1", 1, false, "three")
	first, id = comes("first", "three")
	needsNothingUpTo("first", id)
	m.cell("on_message_acked_for_pubsub", "kept, 1 row each")
	if _, err := first.Unsubscribe(m.t.Context(), "pubsub/1"); err != nil {
		m.t.Fatal(err)
	}
	m.row("mqtt_acked", 0, map[string]string{"clientid": "first", "topic": "pubsub/1"})
	m.row("mqtt_acked", 1, map[string]string{"clientid": "second", "topic": "pubsub/1"})
	e2etest.More(m.t, first, "pubsub/1")
	m.gets(first, "offline/first/pubsub/1", "one", "two", "three")
	m.cell("on_acked_delete", "all again")
	first.Disconnect()
}

func (m *matrix) history() {
	m.publish("history/1", 0, false, "at QoS 0")
	// Nobody answers at QoS 0: a client that takes its publisher's session over may come before the broker has read it.
	m.row("mqtt_msg", 1, map[string]string{"topic": "history/1", "payload": "at QoS 0", "qos": "0"})
	m.publish("history/1", 1, false, "at QoS 1")
	m.row("mqtt_msg", 1, map[string]string{"topic": "history/1", "payload": "at QoS 1", "qos": "1"})
	c := m.dial("historian")
	e2etest.More(m.t, c, "history/1")
	m.publish("history/1", 1, false, "live")
	m.gets(c, "history/1", "live")
	e2etest.Quiet(m.t, c, time.Second)
	m.row("mqtt_msg", 3, map[string]string{"topic": "history/1"})
	m.cell("on_message_store", "3 rows, no replay")
	c.Disconnect()
}

func (m *matrix) retained() {
	m.publish("retained/1", 1, true, "old", "new")
	m.publish("retained/2/x", 0, true, "at QoS 0")
	m.row("mqtt_retain", 1, map[string]string{"topic": "retained/1", "payload": "new", "qos": "1"})
	m.row("mqtt_retain", 1, map[string]string{"topic": "retained/2/x", "payload": "at QoS 0", "qos": "0"})
	m.cell("on_message_retain", "2 rows")
	c := m.dial("late")
	e2etest.More(m.t, c, "retained/1")
	m.gets(c, "offline/late/retained/1", "new")
	m.cell("on_retain_lookup", "1 handed over")
	m.publish("retained/1", 1, true, "")
	m.gets(c, "retained/1", "")
	m.row("mqtt_retain", 0, map[string]string{"topic": "retained/1"})
	other := m.dial("later")
	e2etest.More(m.t, other, "retained/#")
	m.gets(other, "offline/later/retained/2/x", "at QoS 0")
	e2etest.Quiet(m.t, other, time.Second)
	m.cell("on_retain_delete", "1 row left")
	c.Disconnect()
	other.Disconnect()
}
