package sqlite

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

func internalMessage(t *testing.T, topic string, n int) sinks.PutMessage {
	t.Helper()
	p, err := event.ParseTopic(topic)
	if err != nil {
		t.Fatal(err)
	}
	id := event.IDOf(time.Now().UnixMicro(), 1, uint16(n))
	return sinks.PutMessage{Message: sinks.Message{ID: id, Topic: p, QoS: 1, Payload: []byte(strings.Repeat("x", 2000)), Arrived: id.Time()}}
}

// TestFullDiskIsWaitedOut: no room is no reason to lose or to refuse a message.
func TestFullDiskIsWaitedOut(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "restante.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // at the end
	room := func(pages int) {
		t.Helper()
		if _, err := s.w.conn.ExecContext(t.Context(), fmt.Sprintf(`PRAGMA max_page_count = %d`, pages)); err != nil {
			t.Fatal(err)
		}
	}
	room(40)
	var stored []sinks.PutMessage
	for n := 0; ; n++ {
		m := internalMessage(t, "t", n)
		err := s.Apply(t.Context(), []sinks.Op{m})
		if err == nil {
			if stored = append(stored, m); n > 1000 {
				t.Fatal("never full")
			}
			continue
		}
		if fault.IsPoison(err) || fault.IsFatal(err) || !strings.Contains(err.Error(), "free space on its disk") {
			t.Errorf("a full disk gave %v, want an unmarked error that says so", err)
		}
		if _, ok := errors.AsType[*sinks.ApplyError](err); ok {
			t.Errorf("a full disk names ops: %v", err)
		}
		if s.w != nil {
			room(1 << 20)
		}
		if err := s.Apply(t.Context(), []sinks.Op{m}); err != nil {
			t.Errorf("with room again: %v", err)
		}
		stored = append(stored, m)
		break
	}
	got, err := s.Messages(t.Context(), sinks.Query{Topic: stored[0].Topic, Until: event.LastIDAt(time.Now().Add(time.Hour)), Limit: 2000})
	if err != nil || len(got) != len(stored) {
		t.Errorf("%d messages, want %d (%v)", len(got), len(stored), err)
	}
}

// TestRefusedOpsSpareTheOthers: what SQLite itself refuses is poison, and named.
func TestRefusedOpsSpareTheOthers(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "restante.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // at the end
	const trigger = `CREATE TRIGGER no BEFORE INSERT ON mqtt_msg WHEN new.topic LIKE 'bad%' BEGIN SELECT RAISE(ABORT, 'no'); END`
	if _, err := s.w.conn.ExecContext(t.Context(), trigger); err != nil {
		t.Fatal(err)
	}
	ops := []sinks.Op{
		internalMessage(t, "good", 1), internalMessage(t, "bad/1", 2), internalMessage(t, "good", 3), internalMessage(t, "bad/2", 4), internalMessage(t, "good", 5),
	}
	err = s.Apply(t.Context(), ops)
	var part *sinks.ApplyError
	if !errors.As(err, &part) || len(part.Failed) != 2 || !fault.IsPoison(part.Failed[1]) || !fault.IsPoison(part.Failed[3]) {
		t.Fatalf("Apply gave %v, want ops 1 and 3 as poison", err)
	}
	good := ops[0].(sinks.PutMessage).Topic
	got, err := s.Messages(t.Context(), sinks.Query{Topic: good, Until: event.LastIDAt(time.Now().Add(time.Hour)), Limit: 10})
	if err != nil || len(got) != 3 {
		t.Errorf("%d messages, want 3 (%v)", len(got), err)
	}
}

// TestBrokenConnectionsAreReplaced: after a connection is lost the next Apply opens another.
func TestBrokenConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "restante.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // at the end
	if err := s.w.conn.Close(); err != nil {
		t.Fatal(err)
	}
	op := []sinks.Op{internalMessage(t, "t", 1)}
	if err := s.Apply(t.Context(), op); err == nil || fault.IsFatal(err) || fault.IsPoison(err) {
		t.Errorf("a lost connection gave %v, want an unmarked error", err)
	}
	if err := s.Apply(t.Context(), op); err != nil {
		t.Error(err)
	}
}

// TestCommitsAreSynced: the write-ahead log is synced at each commit.
func TestCommitsAreSynced(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "restante.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // at the end
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal"} {
		var got string
		if err := s.w.conn.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, want %s (%v)", pragma, got, want, err)
		}
	}
}
