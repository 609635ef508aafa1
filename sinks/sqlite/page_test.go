package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	goflag "flag"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/sinktest"
)

var update = goflag.Bool("update", false, "write the statements on docs/actions.md anew")

// recorder is SQLite that notes each statement that is run.
type recorder struct {
	under driver.Driver
	dsn   string

	mu  sync.Mutex
	ran []string
}

func (r *recorder) Connect(context.Context) (driver.Conn, error) {
	c, err := r.under.Open(r.dsn)
	return recordedConn{c, r}, err
}

func (r *recorder) Driver() driver.Driver { return r.under }

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ran := r.ran
	r.ran = nil
	return ran
}

type recordedConn struct {
	driver.Conn
	r *recorder
}

func (c recordedConn) Prepare(text string) (driver.Stmt, error) {
	st, err := c.Conn.Prepare(text)
	return recordedStmt{st, c.r, text}, err
}

type recordedStmt struct {
	driver.Stmt
	r    *recorder
	text string
}

func (s recordedStmt) note() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.ran = append(s.r.ran, s.text)
}

func (s recordedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	s.note()
	return s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
}

func (s recordedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	s.note()
	return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
}

// recorded is a store whose statements are noted.
func recorded(t *testing.T) (*Store, *recorder) {
	t.Helper()
	cfg := Config{Path: filepath.Join(t.TempDir(), "page.db"), Now: func() time.Time { return sinktest.PageTime.Add(time.Second) }}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{under: s.read.Driver(), dsn: dsn(s.cfg.Path, "rw", writerPragmas...)}
	errs := []error{s.w.close(), s.write.Close()}
	s.write = sql.OpenDB(r)
	s.write.SetMaxOpenConns(1)
	s.w, err = s.openWriter(t.Context())
	errs = append(errs, err)
	for i, q := range s.queries {
		errs = append(errs, q.Close())
		s.queries[i] = nil
	}
	errs = append(errs, s.read.Close())
	s.read = sql.OpenDB(r)
	for i, text := range queryTexts {
		s.queries[i], err = s.read.PrepareContext(t.Context(), text)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	r.take()
	return s, r
}

func TestThePageShowsTheStatementsThatAreRun(t *testing.T) {
	t.Parallel()
	want := map[string]string{}
	for _, a := range sinktest.Actions() {
		s, r := recorded(t)
		if len(a.Before) > 0 {
			if err := s.Apply(t.Context(), a.Before); err != nil {
				t.Fatal(err)
			}
			r.take()
		}
		var ran []string
		for _, o := range a.Ops {
			if err := s.Apply(t.Context(), []sinks.Op{o}); err != nil {
				t.Fatal(err)
			}
			one := r.take()
			if n := len(one); n < 3 || one[0] != writerTexts[begin] || one[n-1] != writerTexts[commit] {
				t.Fatalf("%s: %q is not one transaction", a.Name, one)
			}
			ran = slices.Concat(ran, one[1:len(one)-1])
		}
		if a.Read != nil {
			if err := a.Read(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			ran = slices.Concat(ran, r.take())
		}
		want[a.Name] = sinktest.Statements(ran)
	}
	sinktest.Page(t, "sql", *update, want)
}
