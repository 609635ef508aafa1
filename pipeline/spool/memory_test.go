package spool

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"testing"
)

var (
	errIO   = errors.New("the disk is ill")
	errGone = errors.New("the process is gone")
)

// memory is a disk that a test can make ill, kill, and look into. What is not synced is lost, in part or whole, when it is killed.
type memory struct {
	mu    sync.Mutex
	files map[string]*content
	// ill is asked before each call; an error is its answer. A write that fails may have been made in part.
	ill func(call string) error
	// dead: nothing of this process happens any more.
	dead bool
}

type content struct {
	b      []byte
	synced int
	named  bool // the directory was synced since it was made
}

func newMemory() *memory { return &memory{files: map[string]*content{}} }

// be makes the disk ill, or well.
func (m *memory) be(ill func(call string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ill = ill
}

// kill is the end of the process with the power: of what was not synced each file keeps as much as keep says.
func (m *memory) kill(keep func(unsynced int) int) *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	after := newMemory()
	names := make([]string, 0, len(m.files))
	for name := range m.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := m.files[name]
		if !c.named && keep(1) == 0 {
			continue
		}
		n := c.synced + keep(len(c.b)-c.synced)
		after.files[name] = &content{b: slices.Clone(c.b[:n]), synced: n, named: true}
	}
	return after
}

func (m *memory) ask(call string) error {
	if m.dead {
		return errGone
	}
	if m.ill != nil {
		return m.ill(call)
	}
	return nil
}

func (m *memory) Open(name string, flag int) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("open"); err != nil {
		return nil, err
	}
	if name == "." {
		return &memoryFile{m: m, all: true}, nil
	}
	c := m.files[name]
	switch {
	case c == nil && flag&os.O_CREATE == 0:
		return nil, fs.ErrNotExist
	case c != nil && flag&os.O_EXCL != 0:
		return nil, fs.ErrExist
	case c == nil:
		c = &content{}
		m.files[name] = c
	}
	if flag&os.O_TRUNC != 0 {
		c.b, c.synced = nil, 0
	}
	return &memoryFile{m: m, c: c}, nil
}

func (m *memory) List() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for n := range m.files {
		names = append(names, n)
	}
	return names, m.ask("list")
}

func (m *memory) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("remove"); err != nil {
		return err
	}
	delete(m.files, name)
	return nil
}

func (m *memory) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("rename"); err != nil {
		return err
	}
	m.files[to] = m.files[from]
	delete(m.files, from)
	return nil
}

// names are the files whose names end so.
func (m *memory) names(ext string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for n := range m.files {
		if len(n) > len(ext) && n[len(n)-len(ext):] == ext {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

func (m *memory) get(t *testing.T, name string) []byte {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.files[name]
	if c == nil {
		t.Fatalf("there is no file %s", name)
	}
	return slices.Clone(c.b)
}

func (m *memory) put(name string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[name] = &content{b: slices.Clone(b), synced: len(b), named: true}
}

type memoryFile struct {
	m   *memory
	c   *content
	off int
	all bool // it is the directory
}

func (f *memoryFile) Write(b []byte) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	err := f.m.ask("write")
	if errors.Is(err, errGone) {
		return 0, err
	}
	n := len(b)
	if err != nil {
		n = len(b) * 2 / 3 // an ill disk takes a part
	}
	f.c.b = append(f.c.b[:f.off:f.off], b[:n]...)
	f.off += n
	return n, err
}

func (f *memoryFile) ReadAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.m.ask("read"); err != nil {
		return 0, err
	}
	n := copy(b, f.c.b[min(int(off), len(f.c.b)):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memoryFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.m.ask("truncate"); err != nil {
		return err
	}
	f.c.b = f.c.b[:min(int(size), len(f.c.b))]
	f.c.synced = min(f.c.synced, len(f.c.b))
	return nil
}

func (f *memoryFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.c.b)), f.m.ask("size")
}

// Sync that fails leaves what was written where nobody knows.
func (f *memoryFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.m.ask("sync"); err != nil {
		return err
	}
	if f.all {
		for _, c := range f.m.files {
			c.named = true
		}
		return nil
	}
	f.c.synced = len(f.c.b)
	return nil
}

func (f *memoryFile) Close() error { return nil }

// text is a log that can be read while it is written.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (x *text) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(b)
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}
