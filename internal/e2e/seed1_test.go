package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/mqtt/mqtttest"
)

// The statements of EMQX's manual, without the two options that Cassandra 4.0 took away.
var seedTables = []string{
	`CREATE KEYSPACE {} WITH replication = {'class': 'SimpleStrategy', 'replication_factor': '1'}  AND durable_writes = true`,
	`CREATE TABLE {}.mqtt_msg (
    topic text,
    msgid text,
    arrived timestamp,
    payload text,
    qos int,
    retain int,
    sender text,
    PRIMARY KEY (topic, msgid)
) WITH CLUSTERING ORDER BY (msgid DESC)` + seedOptions,
	`CREATE TABLE {}.acked (
    clientid text,
    topic text,
    msgid text,
    PRIMARY KEY (clientid, topic)
) WITH CLUSTERING ORDER BY (topic ASC)` + seedOptions,
}

const seedOptions = `
    AND bloom_filter_fp_chance = 0.01
    AND caching = {'keys': 'ALL', 'rows_per_partition': 'NONE'}
    AND comment = ''
    AND compaction = {'class': 'org.apache.cassandra.db.compaction.SizeTieredCompactionStrategy', 'max_threshold': '32', 'min_threshold': '4'}
    AND compression = {'chunk_length_in_kb': '64', 'class': 'org.apache.cassandra.io.compress.LZ4Compressor'}
    AND crc_check_chance = 1.0
    AND default_time_to_live = 0
    AND gc_grace_seconds = 864000
    AND max_index_interval = 2048
    AND memtable_flush_period_in_ms = 0
    AND min_index_interval = 128
    AND speculative_retry = '99PERCENTILE'`

// restante runs the command, again where a server was too busy to answer in time, and gives its exit code and what it printed.
func (w *world) restante(args ...string) (code int, out string) {
	w.t.Helper()
	for until := time.Now().Add(e2etest.Patience); ; {
		p := e2etest.StartFile(w.t, e2etest.Build(w.t, "cmd/restante"), args...)
		code = p.Code()
		if p.Log() != "" {
			w.t.Logf("restante %q wrote to stderr: %s", args, p.Log())
		}
		if code == 0 || !tooSlow.MatchString(p.Out()+p.Log()) || time.Now().After(until) {
			return code, p.Out()
		}
	}
}

// tooSlow is what a command says of a server that is too busy to answer in time.
var tooSlow = regexp.MustCompile("i/o timeout|deadline exceeded|no answer within")

// wantLines checks that a text has exactly these lines, each of which a pattern describes.
func wantLines(t *testing.T, text string, patterns ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != len(patterns) {
		t.Errorf("got %d lines, want %d:\n%s", len(lines), len(patterns), text)
		return
	}
	for i, p := range patterns {
		if !regexp.MustCompile(`^` + p + `$`).MatchString(lines[i]) {
			t.Errorf("line %d is %q, want %q", i+1, lines[i], p)
		}
	}
}

// TestSeed1 is the manual's page "save offline messages to Cassandra", step by step.
func TestSeed1(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	address := stack.Shared(t, stack.Cassandra)
	look := lookCassandra(t, address, w.name)
	for _, cql := range seedTables {
		if err := look.session.Query(strings.Replace(cql, "{}", w.name, 1)).Exec(); err != nil {
			t.Fatalf("%s: %v", cql, err)
		}
	}
	w.cassandra("history", address, w.name, "")
	w.rules = `
  - sql: SELECT * FROM "t/#", "$events/session_subscribed", "$events/message_acked" WHERE topic =~ 't/#'
    action: save_offline_messages
    sink: history`
	const columns = "SELECT table_name, column_name, type, kind, position, clustering_order FROM system_schema.columns WHERE keyspace_name = '{}' AND table_name IN ('mqtt_msg', 'acked')"
	before := look.rows(t, columns)

	// "Test connection": first something is missing, then not.
	config := w.config("restante")
	kafka, server, broker := regexp.QuoteMeta(w.kafka), regexp.QuoteMeta(address), regexp.QuoteMeta(w.broker)
	code, out := w.restante("check", "-c", config)
	if code != 1 {
		t.Errorf("check before migrate: exit code %d, want 1", code)
	}
	wantLines(t, out, `ok +configuration`, `FAILED +kafka `+kafka+`: .*messages is missing.*dead is missing.*run "restante migrate"`,
		`ok +sink history, server `+server, ` +Cassandra 5\.[0-9.]+ in data center datacenter1`,
		`FAILED +sink history: .*mqtt_client.*run "restante migrate"`, `FAILED +mqtt mqtt://`+broker+`: .*refused: start the broker.*`)
	if code, out = w.restante("migrate", "-c", config); code != 0 || !strings.Contains(out, "mqtt_client") || strings.Contains(out, ".acked") {
		t.Errorf("migrate: exit code %d:\n%s", code, out)
	}
	if d := cmp.Diff(before, look.rows(t, columns)); d != "" {
		t.Errorf("migrate altered the tables of the manual (-before +after):\n%s", d)
	}
	w.startAll("ingest", "writer", "replayer")
	if code, out = w.restante("check", "-c", config); code != 0 {
		t.Errorf("check: exit code %d", code)
	}
	wantLines(t, out, `ok +configuration`, `ok +kafka `+kafka, `ok +sink history, server `+server,
		` +Cassandra 5\.[0-9.]+ in data center datacenter1`, `ok +sink history`, `ok +mqtt mqtt://`+broker)

	// A message is published: it is in the table.
	began := time.Now().Truncate(time.Millisecond)
	c := e2etest.Dial(t, w.broker, "mqttjs_231b962d5c")
	for _, m := range []mqtttest.Message{
		{Topic: "t/1", Payload: []byte("at QoS 0"), QoS: 0},
		{Topic: "u/1", Payload: []byte("not of the rule"), QoS: 1},
		{Topic: "t/1", Payload: []byte(`{ "msg": "Hello, World!" }`), QoS: 1},
		{Topic: "t/1", Payload: []byte("二"), QoS: 2},
		{Topic: "t/2", Payload: []byte("kept"), QoS: 1, Retain: true},
	} {
		if err := c.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	ended := time.Now()
	var rows []map[string]any
	e2etest.Await(t, "three rows", func() bool {
		rows = look.rows(t, "SELECT * FROM {}.mqtt_msg WHERE topic IN ('t/1', 't/2', 'u/1')")
		return len(rows) >= 3
	})
	var ids []string
	for _, r := range rows {
		id, arrived := r["msgid"].(string), r["arrived"].(time.Time)
		if !regexp.MustCompile(`^[0-9A-F]{32}$`).MatchString(id) {
			t.Errorf("message id %q", id)
		}
		if arrived.Before(began) || arrived.After(ended) {
			t.Errorf("arrived %v, want between %v and %v", arrived, began, ended)
		}
		ids = append(ids, id)
		delete(r, "msgid")
		delete(r, "arrived")
	}
	sender := "mqttjs_231b962d5c"
	want := []map[string]any{ // the newest of a topic first, as the manual's table is ordered
		{"topic": "t/1", "payload": "二", "qos": 2, "retain": 0, "sender": sender},
		{"topic": "t/1", "payload": `{ "msg": "Hello, World!" }`, "qos": 1, "retain": 0, "sender": sender},
		{"topic": "t/2", "payload": "kept", "qos": 1, "retain": 1, "sender": sender},
	}
	if d := cmp.Diff(want, rows); d != "" {
		t.Fatalf("mqtt_msg (-want +got):\n%s", d)
	}
	if ids[0] <= ids[1] {
		t.Errorf("message ids %q are not in the order of time", ids[:2])
	}

	// Another client subscribes: it receives them at once.
	began = time.Now()
	device := e2etest.Subscribe(t, w.broker, "device", "t/1")
	got := e2etest.Receive(t, device, 2)
	t.Logf("both messages came %v after the connect", time.Since(began).Round(time.Millisecond))
	if d := cmp.Diff([]string{`{ "msg": "Hello, World!" }`, "二"}, e2etest.Payloads(got)); d != "" {
		t.Errorf("replay (-want +got):\n%s", d)
	}
	if err := e2etest.Replays(got); err != nil {
		t.Error(err)
	}

	// It has acknowledged them: they are gone.
	e2etest.Await(t, "the messages are gone", func() bool {
		return len(look.rows(t, "SELECT topic FROM {}.mqtt_msg WHERE topic = 't/1'")) == 0
	})
	e2etest.Await(t, "the acked row", func() bool {
		rows = look.rows(t, "SELECT * FROM {}.acked")
		return len(rows) > 0 && rows[0]["msgid"] == ids[0]
	})
	if d := cmp.Diff([]map[string]any{{"clientid": "device", "topic": "t/1", "msgid": ids[0]}}, rows); d != "" {
		t.Errorf("acked (-want +got):\n%s", d)
	}
	if rows = look.rows(t, "SELECT payload FROM {}.mqtt_msg"); len(rows) != 1 || rows[0]["payload"] != "kept" {
		t.Errorf("mqtt_msg has %v, want the message that nobody took", rows)
	}
	e2etest.Quiet(t, device, 500*time.Millisecond)
	e2etest.Quiet(t, e2etest.Subscribe(t, w.broker, "another", "t/1"), time.Second)
}
