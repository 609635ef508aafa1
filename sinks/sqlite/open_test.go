package sqlite_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/sqlite"
)

func contextWithTimeout(tb testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	tb.Helper()
	return context.WithTimeout(tb.Context(), d)
}

// TestOpenSaysWhatToDo: files that are none of ours, each with a clear error, and left as they are.
func TestOpenSaysWhatToDo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	database := func(name, query string) string {
		path := filepath.Join(dir, name)
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close() //nolint:errcheck // all was committed
		if _, err := db.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
		return path
	}
	newer := filepath.Join(dir, "newer.db")
	if _, err := sqlite.Migrate(t.Context(), newer, false); err != nil {
		t.Fatal(err)
	}
	database("newer.db", `PRAGMA user_version = 99`)
	torn := filepath.Join(dir, "torn.db")
	if _, err := sqlite.Migrate(t.Context(), torn, false); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(torn)
	if err != nil {
		t.Fatal(err)
	}
	for i := 100; i < 4096; i++ {
		content[i] = 0xee
	}
	file("torn.db", content)
	for name, c := range map[string]struct{ path, want string }{
		"no path":          {"", "give one in the config"},
		"a text":           {file("text.db", []byte(strings.Repeat("no database at all\n", 500))), "it is no SQLite database"},
		"a short text":     {file("short.db", []byte("hello")), "it is no SQLite database"},
		"a damaged one":    {torn, "it is damaged"},
		"of another":       {database("other.db", `CREATE TABLE bookmarks (id int)`), "of another program (it has the table bookmarks)"},
		"a newer one":      {newer, "run the newer Restante"},
		"a directory":      {dir, "give this user the right"},
		"below a file":     {filepath.Join(file("plain", nil), "x.db"), "give this user the right to write there"},
		"of another, ours": {database("mine.db", `CREATE TABLE mqtt_msg (id int)`), "of another program"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, _ := os.ReadFile(c.path)
			s, err := sqlite.Open(t.Context(), sqlite.Config{Path: c.path})
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if !fault.IsFatal(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Base(c.path)) && c.path != "" {
				t.Errorf("error %q, want a fatal one with the path and %q", err, c.want)
			}
			if after, _ := os.ReadFile(c.path); string(after) != string(before) {
				t.Error("the file was changed")
			}
		})
	}
	t.Run("missing, for reading", func(t *testing.T) {
		t.Parallel()
		_, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "none.db"), ReadOnly: true})
		if !fault.IsFatal(err) || !strings.Contains(err.Error(), "start the process that writes it first") {
			t.Errorf("error %v", err)
		}
	})
}

// TestMigrateIsIdempotent: a dry run changes nothing, the second run finds nothing, a lost table is made again.
func TestMigrateIsIdempotent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sub", "restante.db")
	run := func(dry bool) []string {
		t.Helper()
		done, err := sqlite.Migrate(t.Context(), path, dry)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	would := run(true)
	if _, err := os.Stat(filepath.Dir(path)); err == nil {
		t.Error("a dry run made the directory")
	}
	if len(would) != 11 || would[0] != "create database "+path || would[1] != "create table mqtt_msg" {
		t.Errorf("a dry run would %q", would)
	}
	if d := cmp.Diff(would, run(false)); d != "" {
		t.Error("done is not what was promised (-want +got):\n" + d)
	}
	for _, dry := range []bool{true, false} {
		if done := run(dry); len(done) > 0 {
			t.Errorf("dry = %v: again: %q", dry, done)
		}
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), `DROP TABLE mqtt_retain`)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		if d := cmp.Diff([]string{"create table mqtt_retain"}, run(dry)); d != "" {
			t.Error(d)
		}
	}
	if err := opened(t, sqlite.Config{Path: path}).Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// victimEnv tells a copy of the test binary to write into a database until it is killed.
const victimEnv = "RESTANTE_SQLITE_VICTIM"

const (
	perBatch = 40
	perTopic = 7
)

// batchOf is the n-th batch: messages to seven topics, and the removal of those of the batch before.
func batchOf(n int) []sinks.Op {
	at := time.Unix(1_790_000_000, 0)
	var ops []sinks.Op
	for i := range perBatch {
		m := victimMessage(at, n, i)
		ops = append(ops, sinks.PutMessage{Message: m})
		if n > 0 {
			old := victimMessage(at, n-1, i)
			ops = append(
				ops, sinks.DeleteMessage{Topic: old.Topic, ID: old.ID, Stamp: old.ID.Micros() + 1},
				sinks.PutAcked{Client: "c", Topic: old.Topic.String(), Message: old.ID, Stamp: old.ID.Micros()},
			)
		}
	}
	ops, _ = sinks.Coalesce(ops)
	return ops
}

func victimMessage(at time.Time, n, i int) sinks.Message {
	t, err := event.ParseTopic(fmt.Sprintf("victim/%d/%d", n, i%perTopic))
	if err != nil {
		panic(err) // a text of this test
	}
	m := message(t, at.Add(time.Duration(n)*time.Second), i)
	m.Payload = []byte(strings.Repeat("x", 300))
	return m
}

func victim(path string) {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for n := 0; ; n++ {
		if err := s.Apply(ctx, batchOf(n)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

// TestKilledWritersLoseNothing: a process killed in the middle of Apply leaves what it said was durable, and of the batch it
// was at all or nothing, while another process writes into the same file.
func TestKilledWritersLoseNothing(t *testing.T) {
	t.Parallel()
	for _, after := range []int{1, 5, 12, 30} {
		t.Run(strconv.Itoa(after), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "restante.db")
			s := opened(t, sqlite.Config{Path: path})
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), victimEnv+"="+path)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			last := -1
			for in := bufio.NewScanner(out); in.Scan(); {
				n, err := strconv.Atoi(in.Text())
				if err != nil {
					t.Fatal(in.Text())
				}
				last = n
				if n == after {
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				} else {
					_ = s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: message(eventtest.Topic(t, "beside"), time.Now(), n)}}) // busy at times
				}
			}
			_ = cmd.Wait() // killed
			if last < after {
				t.Fatalf("the process ended after batch %d", last)
			}
			stored := func(n int) int {
				found := 0
				for i := range perTopic {
					got, err := s.Messages(t.Context(), sinks.Query{
						Topic: eventtest.Topic(t, fmt.Sprintf("victim/%d/%d", n, i)), Until: event.LastIDAt(time.Now().Add(1e6 * time.Hour)), Limit: 1000,
					})
					if err != nil {
						t.Fatal(err)
					}
					found += len(got)
				}
				return found
			}
			next := stored(last + 1) // more may have been written than was said
			switch now := stored(last); {
			case next == 0 && now == perBatch, next == perBatch && now == 0:
			default:
				t.Errorf("batch %d: %d rows, batch %d: %d rows, want one whole and one empty", last, now, last+1, next)
			}
			for n := range last {
				if got := stored(n); got > 0 {
					t.Errorf("batch %d: %d rows are back", n, got)
				}
			}
			id, ok, err := s.Acked(t.Context(), "c", fmt.Sprintf("victim/%d/0", last-1))
			if err != nil || !ok {
				t.Errorf("the positions of batch %d are lost: %v (%v)", last-1, id, err)
			}
			if err := s.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
