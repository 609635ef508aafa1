package spool

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Disk is one directory, as a [Producer] uses it. Names are those of files in it; "." is the directory itself. Its errors are those of
// package os: what is not there is fs.ErrNotExist, what is there already fs.ErrExist. It is safe for concurrent use.
type Disk interface {
	// Open is os.OpenFile.
	Open(name string, flag int) (File, error)
	// List returns the names of all files.
	List() ([]string, error)
	Remove(name string) error
	Rename(from, to string) error
}

// File is an open file of a [Disk]. One goroutine writes it.
type File interface {
	io.Writer
	io.ReaderAt
	io.Closer
	Truncate(size int64) error
	Size() (int64, error)
	// Sync returns nil when what was written is durable. After an error nobody knows what is: the file is written no further.
	Sync() error
}

// folder is a directory of the operating system.
type folder string

func (d folder) path(name string) string { return filepath.Join(string(d), name) }

func (d folder) Open(name string, flag int) (File, error) {
	f, err := os.OpenFile(d.path(name), flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d folder) List() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (d folder) Remove(name string) error     { return os.Remove(d.path(name)) }
func (d folder) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	i, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return i.Size(), nil
}

// read returns what stands in the file between the two places; to < 0 is its end.
func read(d Disk, name string, from, to int64) (b []byte, err error) {
	f, err := d.Open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	if to < 0 {
		if to, err = f.Size(); err != nil {
			return nil, err
		}
	}
	b = make([]byte, max(0, to-from))
	if n, err := f.ReadAt(b, from); n < len(b) {
		return nil, fmt.Errorf("read %d bytes at %d: %w", len(b), from, err)
	}
	return b, nil
}

// write makes or replaces a file; it is durable with the next syncDir.
func write(d Disk, name string, b []byte) error {
	f, err := d.Open(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// syncDir makes the names of new files durable.
func syncDir(d Disk) error {
	f, err := d.Open(".", os.O_RDONLY)
	if err != nil {
		return err
	}
	err = f.Sync()
	_ = f.Close() // nothing was written
	return err
}
