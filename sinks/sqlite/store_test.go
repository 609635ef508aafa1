package sqlite_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/sinktest"
	"github.com/restante/restante/sinks/sqlite"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(victimEnv); path != "" {
		victim(path)
	}
	goleak.VerifyTestMain(m)
}

func open(tb testing.TB, cfg sqlite.Config) *sqlite.Store {
	tb.Helper()
	s, err := sqlite.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func opened(tb testing.TB, cfg sqlite.Config) *sqlite.Store {
	tb.Helper()
	s := open(tb, cfg)
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	var paths sync.Map // store → path
	at := func(t *testing.T, path string, now func() time.Time) sinks.Store {
		t.Helper()
		s := open(t, sqlite.Config{Path: path, Now: now})
		paths.Store(s, path)
		return s
	}
	sinktest.Run(t, sinktest.Config{
		Open: func(t *testing.T, now func() time.Time) sinks.Store {
			t.Helper()
			return at(t, filepath.Join(t.TempDir(), "restante.db"), now)
		},
		Reopen: func(t *testing.T, s sinks.Store, now func() time.Time) sinks.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			path, _ := paths.Load(s)
			return at(t, path.(string), now)
		},
		Law: sinktest.Commute,
		Poison: func(topic event.Topic) sinks.Op {
			at := time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)
			return sinks.PutMessage{Message: sinks.Message{ID: event.FirstIDAt(at), Topic: topic, Payload: []byte{}, Arrived: at}}
		},
	})
}

func message(topic event.Topic, at time.Time, n int) sinks.Message {
	id := event.IDOf(at.UnixMicro()+int64(n), 0xF44200000901, 1)
	return sinks.Message{ID: id, Topic: topic, Sender: "mqttjs_1", QoS: 1, Payload: fmt.Appendf(nil, "message %d", n), Arrived: id.Time()}
}

func apply(tb testing.TB, s sinks.Store, ops ...sinks.Op) {
	tb.Helper()
	if err := s.Apply(tb.Context(), ops); err != nil {
		tb.Fatal(err)
	}
}

// rows reads a table with the plain driver, as the sqlite3 shell would.
func rows(tb testing.TB, path, query string) (columns []string, out [][]any) {
	tb.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // a reader
	rs, err := db.QueryContext(tb.Context(), query)
	if err != nil {
		tb.Fatal(err)
	}
	defer rs.Close() //nolint:errcheck // rs.Err tells
	if columns, err = rs.Columns(); err != nil {
		tb.Fatal(err)
	}
	for rs.Next() {
		row := make([]any, len(columns))
		dest := make([]any, len(columns))
		for i := range row {
			dest[i] = &row[i]
		}
		if err := rs.Scan(dest...); err != nil {
			tb.Fatal(err)
		}
		out = append(out, row)
	}
	if err := rs.Err(); err != nil {
		tb.Fatal(err)
	}
	return columns, out
}

// TestTablesShowWhatTheSeedsShow: the tables of EMQX's rule action, column for column.
func TestTablesShowWhatTheSeedsShow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "restante.db")
	s := opened(t, sqlite.Config{Path: path})
	topic, at := eventtest.Topic(t, "t/1"), time.Date(2026, 11, 22, 19, 47, 36, 413_000_000, time.FixedZone("", 3600))
	m := message(topic, at, 0)
	m.Payload = []byte(`{"msg": "Hello, Wörld!"}`)
	m.Expires = time.Now().Add(time.Hour)
	binary := message(topic, at, 1)
	binary.Payload, binary.QoS, binary.Retain = []byte{0xff, 0}, 2, true
	apply(t, s, sinks.PutMessage{Message: m}, sinks.PutMessage{Message: binary},
		sinks.PutAcked{Client: "c1", Topic: "t/1", Message: m.ID, Stamp: m.ID.Micros()})

	columns, got := rows(t, path, `SELECT * FROM mqtt_msg`)
	if d := cmp.Diff([]string{"topic", "msgid", "arrived", "payload", "qos", "retain", "sender"}, columns); d != "" {
		t.Error(d)
	}
	want := [][]any{
		{"t/1", m.ID.String(), "2026-11-22 18:47:36.413+0000", `{"msg": "Hello, Wörld!"}`, int64(1), int64(0), "mqttjs_1"},
		{"t/1", binary.ID.String(), "2026-11-22 18:47:36.413+0000", []byte{0xff, 0}, int64(2), int64(1), "mqttjs_1"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	columns, got = rows(t, path, `SELECT * FROM acked`)
	if d := cmp.Diff([]string{"clientid", "topic", "msgid"}, columns); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([][]any{{"c1", "t/1", m.ID.String()}}, got); d != "" {
		t.Error(d)
	}

	apply(t, s, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1}, sinks.DeleteMessage{Topic: topic, ID: binary.ID, Stamp: binary.ID.Micros() + 1})
	for _, table := range []string{"mqtt_msg", "mqtt_msg_props"} {
		if _, got = rows(t, path, `SELECT * FROM `+table); len(got) > 0 {
			t.Errorf("%s holds %d rows after the acks", table, len(got))
		}
	}
}

// TestRicherReportWins: two sources tell of one message, one of them without its retain flag and properties.
func TestRicherReportWins(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "restante.db")
	s := opened(t, sqlite.Config{Path: path})
	now := time.Now()
	for n, firstRich := range []bool{true, false} {
		poor := message(eventtest.Topic(t, "t"), now, n)
		rich := poor
		rich.Retain, rich.Properties = true, event.Properties{ContentType: "x", User: []event.UserProperty{{Key: "k", Value: "v"}}}
		if !firstRich {
			rich.Retain = false
			rich, poor = poor, rich
		}
		apply(t, s, sinks.PutMessage{Message: rich})
		apply(t, s, sinks.PutMessage{Message: poor})
	}
	got, err := s.Messages(t.Context(), sinks.Query{Topic: eventtest.Topic(t, "t"), Until: event.LastIDAt(now.Add(time.Hour)), Limit: 10})
	if err != nil || len(got) != 2 {
		t.Fatalf("%d messages (%v)", len(got), err)
	}
	for i, m := range got {
		if m.Properties.ContentType != "x" || len(m.Properties.User) != 1 || m.Retain != (i == 0) {
			t.Errorf("message %d is %+v", i, m)
		}
	}
}

// TestFilesAreForThisUserOnly: the directory, the database and its side files.
func TestFilesAreForThisUserOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "odd % ? # dir")
	path := filepath.Join(dir, "rest ante.db")
	s := opened(t, sqlite.Config{Path: path})
	apply(t, s, sinks.PutMessage{Message: message(eventtest.Topic(t, "t"), time.Now(), 1)})
	for name, want := range map[string]os.FileMode{dir: 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600} {
		st, err := os.Stat(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := st.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", filepath.Base(name), got, want)
		}
	}
}

// TestTwoHandlesShareAFile: two processes on one file slow each other down and lose nothing.
func TestTwoHandlesShareAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "restante.db")
	now := time.Now()
	var wg sync.WaitGroup
	const batches = 30
	for h := range 2 {
		s := opened(t, sqlite.Config{Path: path})
		topic, other := eventtest.Topic(t, fmt.Sprint("t/", h)), eventtest.Topic(t, "t/both")
		wg.Go(func() {
			for i := range batches {
				err := s.Apply(t.Context(), []sinks.Op{
					sinks.PutMessage{Message: message(topic, now, i)}, sinks.PutMessage{Message: message(other, now, i)},
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := opened(t, sqlite.Config{Path: path, ReadOnly: true})
	for _, topic := range []string{"t/0", "t/1", "t/both"} {
		got, err := s.Messages(t.Context(), sinks.Query{Topic: eventtest.Topic(t, topic), Until: event.LastIDAt(now.Add(time.Hour)), Limit: 1000})
		if err != nil || len(got) != batches {
			t.Errorf("%s: %d messages, want %d (%v)", topic, len(got), batches, err)
		}
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: message(eventtest.Topic(t, "t"), now, 1)}}); !fault.IsFatal(err) {
		t.Errorf("a write into what is open for reading gave %v", err)
	}
}

// TestWritersWaitForTheirTurn: a file that another process holds is tried again, and the wait ends with the context.
func TestWritersWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "restante.db")
	s := opened(t, sqlite.Config{Path: path})
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // rolled back
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextWithTimeout(t, 50*time.Millisecond)
	defer cancel()
	put := []sinks.Op{sinks.PutMessage{Message: message(eventtest.Topic(t, "t"), time.Now(), 1)}}
	if err := s.Apply(ctx, put); err == nil || fault.IsFatal(err) || fault.IsPoison(err) {
		t.Errorf("a held file gave %v, want an unmarked error", err)
	}
	if _, err := db.ExecContext(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	apply(t, s, put...)
}

// TestLateWritesMeetTombstones: what was removed stays removed while the log may still repeat it; then the tombstone goes.
func TestLateWritesMeetTombstones(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "restante.db")
	now := time.Now()
	s := opened(t, sqlite.Config{Path: path, Now: func() time.Time { return now }, TombstoneTTL: 24 * time.Hour})
	topic := eventtest.Topic(t, "t/1/x")
	var puts, dels []sinks.Op
	for i := range 2500 {
		m := message(topic, now, i)
		puts = append(puts, sinks.PutMessage{Message: m})
		dels = append(dels, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
	}
	keep := message(eventtest.Topic(t, "t/2"), now, 1)
	short := message(eventtest.Topic(t, "s"), now, 1)
	short.Expires = now.Add(time.Hour)
	old := short
	old.ID = event.IDOf(short.ID.Micros()-1, 1, 1)
	old.Expires = time.Time{}
	apply(t, s, puts...)
	apply(t, s, dels...)
	past := message(eventtest.Topic(t, "s"), now, 2)
	past.Expires = now.Add(time.Hour)
	apply(t, s, sinks.PutMessage{Message: keep}, sinks.PutMessage{Message: short}, sinks.PutRetained{Message: short}, sinks.PutMessage{Message: past, History: true})

	purge := func(want sqlite.Purged) {
		t.Helper()
		got, err := s.Purge(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error("purged (-want +got):\n" + d)
		}
	}
	count := func(table string) int {
		_, out := rows(t, path, `SELECT * FROM `+table)
		return len(out)
	}
	purge(sqlite.Purged{})
	apply(t, s, puts[:10]...)
	if n := count("mqtt_msg"); n != 3 {
		t.Errorf("%d messages, want the three that were not removed", n)
	}
	now = now.Add(2 * time.Hour)
	purge(sqlite.Purged{Messages: 1, Expired: 3})
	apply(t, s, sinks.PutRetained{Message: old})
	if n := count("mqtt_retain"); n != 0 {
		t.Error("what an expired retained message had replaced came back")
	}
	now = now.Add(23 * time.Hour)
	purge(sqlite.Purged{Tombstones: 2500, Topics: 2}) // x below t/1, and s
	purge(sqlite.Purged{Topics: 1})                   // then t/1 below t
	now = now.Add(2 * time.Hour)
	purge(sqlite.Purged{Tombstones: 1})
	got, err := s.Topics(t.Context(), eventtest.Filter(t, "#"), event.Topic{}, 10)
	if err != nil || len(got) != 1 || got[0] != keep.Topic {
		t.Errorf("topics %v, want t/2 alone, whose message lives (%v)", got, err)
	}
	apply(t, s, puts[0])
	got, err = s.Topics(t.Context(), eventtest.Filter(t, "t/+/#"), event.Topic{}, 10)
	if err != nil || len(got) != 2 {
		t.Errorf("topics %v, want t/1/x again (%v)", got, err)
	}
}

// TestIndexIsNotRewritten: the rows of a known topic are written again after a while, not for each message.
func TestIndexIsNotRewritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "restante.db")
	start := time.Now()
	now := start
	s := opened(t, sqlite.Config{Path: path, Now: func() time.Time { return now }, TombstoneTTL: 8 * time.Hour})
	seen := func() int64 {
		_, out := rows(t, path, `SELECT min(seen_at) FROM mqtt_topic_node`)
		return out[0][0].(int64)
	}
	for i, after := range []time.Duration{0, time.Hour, 119 * time.Minute, 121 * time.Minute} {
		now = start.Add(after)
		apply(t, s, sinks.PutMessage{Message: message(eventtest.Topic(t, "a/b/c"), start, i)})
		want := start.UnixMilli()
		if after > 2*time.Hour {
			want = now.UnixMilli()
		}
		if got := seen(); got != want {
			t.Errorf("after %v the index was seen at %d, want %d", after, got, want)
		}
	}
}

// TestCheckNamesDifferences: tables that somebody changed.
func TestCheckNamesDifferences(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "restante.db")
	s := opened(t, sqlite.Config{Path: path})
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // all was committed
	for _, q := range []string{
		`ALTER TABLE mqtt_msg ADD COLUMN extra text`, `ALTER TABLE mqtt_sub RENAME COLUMN qos TO quality`, `DROP TABLE mqtt_retain`,
		`DROP TABLE acked`, `CREATE TABLE acked (clientid text NOT NULL, msgid int NOT NULL, topic text NOT NULL, PRIMARY KEY (topic, clientid)) WITHOUT ROWID`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	err = s.Check(t.Context())
	if !fault.IsFatal(err) {
		t.Fatalf("check gave %v, want a fatal error", err)
	}
	for _, want := range []string{
		"table mqtt_msg: column extra does not belong there", "table mqtt_sub: column qos is missing", "table mqtt_sub: column quality does not belong there",
		"table mqtt_retain is missing", "table acked: column clientid is text not null, number 2 of the key, want text not null, number 1 of the key",
		"table acked: column msgid is int not null, want text not null", `"restante migrate"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("check does not say %q:\n%v", want, err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	sinktest.Bench(b, opened(b, sqlite.Config{Path: filepath.Join(b.TempDir(), "restante.db")}))
}
