// Package sqlite keeps a store in one SQLite file: the sink of the embedded stack. mqtt_msg and acked have the names and the
// columns of the tables that EMQX's rule action kept in Cassandra, so that the sqlite3 shell shows what cqlsh showed.
//
// Writes commute: a row's stamp is a function of its event, and what is removed leaves a tombstone that outlives the log's
// retention. Each Apply is one transaction in a write-ahead log that is synced before Apply returns.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// Config says where the store is and how long it remembers.
type Config struct {
	// Path is the database file. It and its directory are made when they are not there, for this user only.
	Path string
	// Now is the wall clock that expiry goes by; nil = time.Now.
	Now func() time.Time
	// TombstoneTTL is how long a removal is remembered. It must be longer than the retention of the log, so that no late write
	// can meet a row whose removal is forgotten. 0 = 7 days.
	TombstoneTTL time.Duration
	// ReadOnly opens an existing database for reading beside the process that owns it.
	ReadOnly bool
}

const (
	defaultTombstoneTTL = 7 * 24 * time.Hour
	readers             = 4
	knownTopics         = 8 << 20
)

// Caches are small: the pages that matter are in the kernel's cache anyway. The kernel's copy of the log is synced at each
// commit (FULL), so that a commit survives the loss of power.
var (
	writerPragmas = []string{"busy_timeout(5000)", "synchronous(FULL)", "cache_size(-16384)", "temp_store(MEMORY)", "wal_autocheckpoint(4000)", "journal_size_limit(33554432)"}
	readerPragmas = []string{"busy_timeout(5000)", "query_only(1)", "cache_size(-1024)", "temp_store(MEMORY)"}
)

// Store is an open SQLite file.
type Store struct {
	cfg   Config
	known topicindex.Known

	write   *sql.DB       // one connection
	turn    chan struct{} // held by whoever uses w
	w       *writer       // nil = to be opened
	read    *sql.DB
	queries [len(queryTexts)]*sql.Stmt
}

var _ sinks.Store = (*Store)(nil)

// Open opens the store, and makes it when it is not there. Its errors say what to do.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.TombstoneTTL <= 0 {
		cfg.TombstoneTTL = defaultTombstoneTTL
	}
	var err error
	if cfg.Path, err = absolute(cfg.Path); err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, turn: make(chan struct{}, 1),
		known: topicindex.Known{TTL: cfg.TombstoneTTL, Bytes: knownTopics},
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	path, mode := s.cfg.Path, "rw"
	if s.cfg.ReadOnly {
		mode = "ro"
		if _, err := os.Stat(path); err != nil {
			return fault.Fatal(fmt.Errorf("open %s for reading: %w: start the process that writes it first, or give another path in the config", path, err))
		}
	} else {
		if _, err := create(path); err != nil {
			return err
		}
		if s.write, err = sql.Open("sqlite", dsn(path, mode, writerPragmas...)); err != nil {
			return explain(path, "open", err)
		}
		s.write.SetMaxOpenConns(1)
		if s.w, err = s.openWriter(ctx); err != nil {
			return err
		}
	}
	if s.read, err = sql.Open("sqlite", dsn(path, mode, readerPragmas...)); err != nil {
		return explain(path, "open", err)
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	s.read.SetConnMaxIdleTime(time.Minute)
	if s.cfg.ReadOnly {
		missing, err := inspect(ctx, s.read, path)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return fault.Fatal(fmt.Errorf(`open %s for reading: table %s is missing: run "restante migrate"`, path, missing[0].name))
		}
	}
	for i, text := range queryTexts {
		if s.queries[i], err = s.read.PrepareContext(ctx, text); err != nil {
			return explain(path, "prepare to read", err)
		}
	}
	return nil
}

// Check verifies the tables, column by column, and writes and reads a row.
func (s *Store) Check(ctx context.Context) error {
	path := s.cfg.Path
	if _, err := inspect(ctx, s.read, path); err != nil {
		return err
	}
	found, err := differences(ctx, s.read)
	if err != nil {
		return explain(path, "check the tables of", err)
	}
	if len(found) > 0 {
		return fault.Fatal(fmt.Errorf(`check %s: %s: "restante migrate" makes a missing table; put any other right by hand, or move the file away`,
			path, strings.Join(found, "; ")))
	}
	if s.cfg.ReadOnly {
		return nil
	}
	at := s.cfg.Now().UnixMicro()
	err = s.transact(ctx, func(ctx context.Context, t *tx) error { return t.exec(ctx, putCheck, at) })
	if err != nil {
		return explain(path, "write a row into", err)
	}
	var got int64
	if err := s.queries[selectCheck].QueryRowContext(ctx).Scan(&got); err != nil {
		return explain(path, "read a row of", err)
	}
	if got < at {
		return fmt.Errorf("check %s: wrote %d, read %d", path, at, got)
	}
	return nil
}

// Close ends all connections.
func (s *Store) Close() error {
	var errs []error
	for _, q := range s.queries {
		if q != nil {
			errs = append(errs, q.Close())
		}
	}
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.w != nil {
		errs = append(errs, s.w.close())
		s.w = nil
	}
	if s.write != nil {
		errs = append(errs, s.write.Close()) // the last one: it moves the log into the file
	}
	return explain(s.cfg.Path, "close", errors.Join(errs...))
}

func absolute(path string) (string, error) {
	if path == "" {
		return "", fault.Fatal(errors.New("the sqlite sink has no path: give one in the config"))
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fault.Fatal(fmt.Errorf("resolve %s: %w: give an absolute path in the config", path, err))
	}
	return abs, nil
}

// create makes the directory and an empty file that only this user can read, and says whether the file is new. SQLite gives
// its side files the mode of the database.
func create(path string) (bool, error) {
	advice := func(verb string, err error) error {
		return fault.Fatal(fmt.Errorf("%s: %w: give this user the right to write there, or another path in the config", verb, err))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return false, advice("make the directory of "+path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator's own path
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, advice("make "+path, err)
	}
	if err := errors.Join(f.Close(), syncDir(filepath.Dir(path))); err != nil {
		return false, advice("make "+path, err)
	}
	return true, nil
}

// syncDir makes the entry of a new file survive the loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the operator's own path
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// dsn names the file as a URI, so that any character may stand in its path.
func dsn(path, mode string, pragmas ...string) string {
	q := url.Values{"mode": {mode}, "_pragma": pragmas}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}
