package cassandra

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// TestTablesShowWhatTheManualShows: the rows as an operator's own client reads them.
func TestTablesShowWhatTheManualShows(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	s, g := opened(t, cfg), plain(t, cfg)
	topic, client := fresh(t, "t/1"), event.ClientID("mqttjs_"+time.Now().Format("150405.000000000"))
	m := message(topic, time.Now().Add(-time.Minute), 1)
	m.Payload, m.Retain, m.Expires = []byte(`{"msg": "Hello, Wörld!"}`), true, m.ID.Time().Add(time.Hour)
	apply(t, s, sinks.PutMessage{Message: m}, sinks.PutAcked{Client: client, Topic: topic.String(), Message: m.ID, Stamp: m.ID.Micros()})
	type shown struct {
		Topic, Msgid, Payload, Sender string
		Arrived                       time.Time
		QoS, Retain                   int
		Written                       int64
	}
	var got shown
	var left int
	err := g.Query(`SELECT topic, msgid, arrived, payload, qos, retain, sender, WRITETIME(payload), TTL(payload) FROM `+cfg.Keyspace+`.mqtt_msg WHERE topic = ?`, topic.String()).
		Scan(&got.Topic, &got.Msgid, &got.Arrived, &got.Payload, &got.QoS, &got.Retain, &got.Sender, &got.Written, &left)
	if err != nil {
		t.Fatal(err)
	}
	want := shown{topic.String(), m.ID.String(), string(m.Payload), "mqttjs_1", m.Arrived, 1, 1, m.ID.Micros()}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("mqtt_msg (-want +got):\n%s", d)
	}
	if left < 59*60-60 || left > 59*60 {
		t.Errorf("%d s are left of an hour that began a minute ago", left)
	}
	var msgid string
	var written int64
	err = g.Query(`SELECT msgid, WRITETIME(msgid) FROM `+cfg.Keyspace+`.acked WHERE clientid = ? AND topic = ?`, string(client), topic.String()).Scan(&msgid, &written)
	if err != nil || msgid != m.ID.String() || written != m.ID.Micros() {
		t.Errorf("acked: %s at %d (%v)", msgid, written, err)
	}
	if n := count(t, g, `SELECT count(*) FROM `+cfg.Keyspace+`.mqtt_msg_props WHERE topic = ?`, topic.String()); n != 0 {
		t.Errorf("%d rows of properties for a message that has none", n)
	}
	apply(t, s, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: time.Now().UnixMicro()})
	if n := count(t, g, `SELECT count(*) FROM `+cfg.Keyspace+`.mqtt_msg WHERE topic = ?`, topic.String()); n != 0 {
		t.Errorf("%d rows after the ack", n)
	}
}

// TestPropertiesGoWithTheirMessage: a row in mqtt_msg_props ends with the message, also where another store removes it.
func TestPropertiesGoWithTheirMessage(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	s, g := opened(t, cfg), plain(t, cfg)
	topic := fresh(t, "props")
	rows := func() int {
		t.Helper()
		return count(t, g, `SELECT count(*) FROM `+cfg.Keyspace+`.mqtt_msg_props WHERE topic = ?`, topic.String())
	}
	for i, remover := range []*Store{s, opened(t, cfg)} {
		m := message(topic, time.Now(), i)
		m.Properties = event.Properties{ContentType: "text/plain"}
		apply(t, s, sinks.PutMessage{Message: m})
		if n := rows(); n != 1 {
			t.Fatalf("%d rows of properties, want 1", n)
		}
		apply(t, remover, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
		if n := rows(); n != 0 {
			t.Errorf("%d rows of properties after the removal by store %d", n, i)
		}
	}
}

// TestARowKeepsItsLifeThroughAnOutage: what is written late lives no longer for it, and what has expired is counted.
func TestARowKeepsItsLifeThroughAnOutage(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	cfg.Metrics = seen
	s, g := opened(t, cfg), plain(t, cfg)
	topic := fresh(t, "ttl")
	m := message(topic, time.Now().Add(-50*time.Minute), 1)
	m.Expires = m.ID.Time().Add(time.Hour)
	over := message(topic, time.Now().Add(-2*time.Hour), 2)
	over.Expires = over.ID.Time().Add(time.Hour)
	apply(t, s, sinks.PutMessage{Message: m}, sinks.PutMessage{Message: over})
	var left int
	if err := g.Query(`SELECT TTL(payload) FROM `+cfg.Keyspace+`.mqtt_msg WHERE topic = ?`, topic.String()).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left < 540 || left > 600 || seen.of(Expired) != 1 {
		t.Errorf("%d s are left, want 10 minutes; %d expired, want 1", left, seen.of(Expired))
	}
}

// TestTheIndexLivesAsLongAsItsMessages: whatever the order, the row of a topic does not expire before a message.
func TestTheIndexLivesAsLongAsItsMessages(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	topic, now := fresh(t, "index"), time.Now()
	short, forever := message(topic, now, 1), message(topic, now.Add(-time.Hour), 2)
	short.Expires = now.Add(3 * time.Second)
	g := plain(t, cfg)
	for _, m := range []sinks.Message{forever, short} { // each by a store that knows nothing
		apply(t, opened(t, cfg), sinks.PutMessage{Message: m})
	}
	var left *int
	parent := "#" + topic.String()[:bytes.LastIndexByte([]byte(topic.String()), '/')+1]
	err := g.Query(`SELECT TTL(leaf) FROM `+cfg.Keyspace+`.mqtt_topic_node WHERE parent = ? AND level = 'index'`, parent).Scan(&left)
	if err != nil || left != nil {
		t.Errorf("the row of a topic with a message that does not expire has %v s left (%v)", left, err)
	}
}

func TestBatchesKeepTheirLimits(t *testing.T) {
	t.Parallel()
	var units []unit
	for i := range 1000 {
		u := one([]string{"a", "b", "c"}[i%3], deleteAcked, i)
		u.op, u.size = i, 100
		if i%50 == 0 {
			u.size = batchBytes + 1
		}
		units = append(units, u)
	}
	seen := map[int]bool{}
	last := map[string]int{}
	for _, b := range batches(units) {
		size := 0
		for _, u := range b {
			if u.key != b[0].key {
				t.Fatal("a batch of two partitions")
			}
			if seen[u.op] || u.op < last[u.key] && len(b) > 1 && size > 0 && b[0].op > u.op {
				t.Fatal("an op twice, or out of order")
			}
			seen[u.op], last[u.key], size = true, u.op, size+u.size
		}
		if len(b) > batchRows || size > batchBytes && len(b) > 1 {
			t.Errorf("a batch of %d rows and %d bytes", len(b), size)
		}
	}
	if len(seen) != len(units) {
		t.Errorf("%d of %d ops are in a batch", len(seen), len(units))
	}
}
