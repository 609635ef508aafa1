package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/restante/restante/fault"
)

//go:embed schema.sql
var schemaSQL string

const (
	// applicationID marks a file as ours ("RSTE").
	applicationID = 0x52535445
	// schemaVersion counts up when schema.sql changes in a way that an older binary cannot work with.
	schemaVersion = 1
)

// table is one table of schema.sql.
type table struct{ name, ddl string }

func tables() []table {
	var all []table
	for part := range strings.SplitSeq(schemaSQL, ";\n") {
		_, rest, ok := strings.Cut(part, "CREATE TABLE ")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, " ")
		all = append(all, table{name, "CREATE TABLE " + rest})
	}
	return all
}

// querier is what *sql.DB and *sql.Conn have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Migrate makes the database or brings its tables up to date, and says what it did; on a dry run it changes nothing and says
// what it would do. Run again it finds nothing to do.
func Migrate(ctx context.Context, path string, dryRun bool) ([]string, error) {
	path, err := absolute(path)
	if err != nil {
		return nil, err
	}
	if dryRun {
		switch st, err := os.Stat(path); {
		case errors.Is(err, fs.ErrNotExist), err == nil && st.Size() == 0:
			done := []string{"create database " + path}
			for _, t := range tables() {
				done = append(done, "create table "+t.name)
			}
			return done, nil
		case err != nil:
			return nil, fault.Fatal(fmt.Errorf("look at %s: %w: give another path in the config", path, err))
		}
		db, err := sql.Open("sqlite", dsn(path, "ro"))
		if err != nil {
			return nil, explain(path, "open", err)
		}
		defer db.Close() //nolint:errcheck // nothing was written
		missing, err := inspect(ctx, db, path)
		if err != nil {
			return nil, err
		}
		return migrations(path, missing), nil
	}
	made, err := create(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(path, "rw", writerPragmas...))
	if err != nil {
		return nil, explain(path, "open", err)
	}
	defer db.Close() //nolint:errcheck // all was committed
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, explain(path, "open", err)
	}
	defer conn.Close() //nolint:errcheck // all was committed
	missing, err := migrate(ctx, conn, path)
	if err != nil {
		return nil, err
	}
	done := migrations(path, missing)
	if made && len(done) > 0 {
		done[0] = "create database " + path
	}
	return done, nil
}

// migrations puts the work on the tables that are missing into words.
func migrations(path string, missing []table) []string {
	var done []string
	if len(missing) == len(tables()) {
		done = append(done, "make "+path+" a database of Restante")
	}
	for _, t := range missing {
		done = append(done, "create table "+t.name)
	}
	return done
}

// inspect makes sure that the database is ours, or empty, and returns the tables that are missing.
func inspect(ctx context.Context, q querier, path string) ([]table, error) {
	have := map[string]bool{}
	rows, err := q.QueryContext(ctx, `SELECT name FROM sqlite_schema WHERE type = 'table'`)
	if err != nil {
		return nil, explain(path, "read the schema of", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, explain(path, "read the schema of", err)
		}
		have[name] = true
	}
	if err := rows.Err(); err != nil {
		return nil, explain(path, "read the schema of", err)
	}
	var app, version int
	err = cmp.Or(
		q.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&app),
		q.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version))
	switch {
	case err != nil:
		return nil, explain(path, "read the schema of", err)
	case app != applicationID && len(have) > 0:
		return nil, fault.Fatal(fmt.Errorf("%s is an SQLite database of another program (it has the table %s): give another path in the config",
			path, slices.Min(slices.Collect(maps.Keys(have)))))
	case app == applicationID && version > schemaVersion:
		return nil, fault.Fatal(fmt.Errorf("%s has schema version %d, this program knows versions up to %d: run the newer Restante, or give another path in the config",
			path, version, schemaVersion))
	}
	var missing []table
	for _, t := range tables() {
		if !have[t.name] {
			missing = append(missing, t)
		}
	}
	return missing, nil
}

// migrate makes what is missing, in one transaction, and returns it.
func migrate(ctx context.Context, conn *sql.Conn, path string) (missing []table, err error) {
	if missing, err = inspect(ctx, conn, path); err != nil {
		return nil, err
	}
	var mode string
	if err := conn.QueryRowContext(ctx, `PRAGMA journal_mode = WAL`).Scan(&mode); err != nil {
		return nil, explain(path, "open", err)
	}
	if mode != "wal" {
		return nil, fault.Fatal(fmt.Errorf("%s cannot have a write-ahead log (journal mode %s): put it on a local file system", path, mode))
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if _, err := conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return nil, explain(path, "migrate", err)
	}
	defer func() {
		if err != nil {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`)
		}
	}()
	// Another process may have been faster.
	if missing, err = inspect(ctx, conn, path); err != nil {
		return nil, err
	}
	for _, t := range missing {
		if _, err := conn.ExecContext(ctx, t.ddl); err != nil {
			return nil, explain(path, "create table "+t.name+" in", err)
		}
	}
	if _, err := conn.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT`, applicationID, schemaVersion)); err != nil {
		return nil, explain(path, "migrate", err)
	}
	return missing, nil
}

// column is what is compared of a column; pk is its place in the primary key, 0 = none.
type column struct {
	name, typ   string
	notNull, pk int
}

func (c column) String() string {
	s := c.typ
	if c.notNull != 0 {
		s += " not null"
	}
	if c.pk != 0 {
		s += fmt.Sprintf(", number %d of the key", c.pk)
	}
	return s
}

func columns(ctx context.Context, q querier, table string) ([]column, error) {
	rows, err := q.QueryContext(ctx, `SELECT name, lower(type), "notnull", pk FROM pragma_table_info(?) ORDER BY cid`, table)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var all []column
	for rows.Next() {
		var c column
		if err := rows.Scan(&c.name, &c.typ, &c.notNull, &c.pk); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// differences compares the tables with schema.sql, column by column.
func differences(ctx context.Context, q querier) ([]string, error) {
	model, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	defer model.Close() //nolint:errcheck // in memory
	model.SetMaxOpenConns(1)
	if _, err := model.ExecContext(ctx, schemaSQL); err != nil {
		return nil, err
	}
	var found []string
	for _, t := range tables() {
		want, err := columns(ctx, model, t.name)
		if err != nil {
			return nil, err
		}
		have, err := columns(ctx, q, t.name)
		if err != nil {
			return nil, err
		}
		if len(have) == 0 {
			found = append(found, fmt.Sprintf("table %s is missing", t.name))
			continue
		}
		found = append(found, compareColumns(t.name, want, have)...)
	}
	return found, nil
}

func compareColumns(table string, want, have []column) []string {
	var found []string
	names := func(cs []column) (out []string) {
		for _, c := range cs {
			out = append(out, c.name)
		}
		return out
	}
	wanted, had := names(want), names(have)
	for i, name := range wanted {
		j := slices.Index(had, name)
		switch {
		case j < 0:
			found = append(found, fmt.Sprintf("table %s: column %s is missing", table, name))
		case have[j] != want[i]:
			found = append(found, fmt.Sprintf("table %s: column %s is %s, want %s", table, name, have[j], want[i]))
		}
	}
	for _, name := range had {
		if !slices.Contains(wanted, name) {
			found = append(found, fmt.Sprintf("table %s: column %s does not belong there", table, name))
		}
	}
	if len(found) == 0 && !slices.Equal(wanted, had) {
		found = append(found, fmt.Sprintf("table %s: columns stand in the order %s, want %s", table, strings.Join(had, ", "), strings.Join(wanted, ", ")))
	}
	return found
}
