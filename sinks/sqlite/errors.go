package sqlite

import (
	"context"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"github.com/restante/restante/fault"
)

// class is one of package fault's three.
type class int

const (
	transient class = iota
	poison
	fatal
)

// faults classifies SQLite's primary result codes. What is not in it is transient: a retry is never wrong, only late.
var faults = map[int]struct {
	class
	advice string
}{
	// The disk, another process, or memory is short; each heals without us.
	codes.SQLITE_FULL:     {transient, "free space on its disk"},
	codes.SQLITE_BUSY:     {transient, "another process holds it"},
	codes.SQLITE_LOCKED:   {transient, "another process holds it"},
	codes.SQLITE_PROTOCOL: {transient, "another process holds it"},
	codes.SQLITE_IOERR:    {transient, "look at its disk"},
	codes.SQLITE_NOMEM:    {transient, ""},

	// The value can never be stored.
	codes.SQLITE_TOOBIG:     {poison, ""},
	codes.SQLITE_CONSTRAINT: {poison, ""},
	codes.SQLITE_MISMATCH:   {poison, ""},

	// Nobody but an operator can help.
	codes.SQLITE_NOTADB:   {fatal, "it is no SQLite database, or damaged: move it away or restore it from a copy, or give another path in the config"},
	codes.SQLITE_CORRUPT:  {fatal, `it is damaged: save what "sqlite3 FILE .recover" gives and restore it, or move the file away to begin anew`},
	codes.SQLITE_READONLY: {fatal, "it cannot be written: give this user the right to write the file and its directory"},
	codes.SQLITE_CANTOPEN: {fatal, "give this user the right to make, read and write the file and its directory"},
	codes.SQLITE_PERM:     {fatal, "give this user the right to read and write the file and its directory"},
	codes.SQLITE_AUTH:     {fatal, "give this user the right to read and write the file and its directory"},
	codes.SQLITE_ERROR:    {fatal, `run "restante migrate", then "restante check"`},
	codes.SQLITE_FORMAT:   {fatal, "its format is unknown: give another path in the config"},
	codes.SQLITE_NOLFS:    {fatal, "its file system cannot hold it: put it on another"},
}

// classify returns the class of an error and what to do about it.
func classify(err error) (class, string) {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return transient, ""
	}
	f := faults[e.Code()&0xff]
	return f.class, f.advice
}

// explain says what could not be done with which file, marks the class and adds what to do. nil stays nil.
func explain(path, verb string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s %s: %w", verb, path, err)
	}
	c, advice := classify(err)
	if advice == "" {
		err = fmt.Errorf("%s %s: %w", verb, path, err)
	} else {
		err = fmt.Errorf("%s %s: %w: %s", verb, path, err, advice)
	}
	switch c {
	case poison:
		return fault.Poison(err)
	case fatal:
		return fault.Fatal(err)
	case transient:
	}
	return err
}
