package sim

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/restante/restante/pipeline/spool"
)

var (
	errGone = errors.New("the process is gone")
	errFull = errors.New("no space left on the disk")
)

// disk is an ingest's. It outlives the process; what is not synced goes with the power.
type disk struct {
	mu    sync.Mutex
	files map[string]*content
}

type content struct {
	b      []byte
	synced int
	named  bool // the directory was synced since it was made
}

func newDisk() *disk { return &disk{files: make(map[string]*content)} }

// cut is the end of the power: of what was not synced each file keeps as much as r says.
func (d *disk) cut(r *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := make(map[string]*content)
	for _, name := range d.names() {
		c := d.files[name]
		if !c.named && r.IntN(2) == 0 {
			continue
		}
		n := c.synced + r.IntN(len(c.b)-c.synced+1)
		after[name] = &content{b: slices.Clone(c.b[:n]), synced: n, named: true}
	}
	d.files = after
}

func (d *disk) names() []string {
	names := make([]string, 0, len(d.files))
	for name := range d.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// mount is one process's way to its disk. A process that is dead changes nothing any more.
type mount struct {
	in *incarnation
	*disk
}

var _ spool.Disk = (*mount)(nil)

// refuses is why a call that changes the disk does not.
func (m *mount) refuses(grows bool) error {
	switch {
	case m.in.dead.Load():
		return errGone
	case grows && time.Now().Before(m.in.w.mood.Load().diskFull):
		return errFull
	}
	return nil
}

func (m *mount) Open(name string, flag int) (spool.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "." {
		return &openFile{m: m, name: name}, nil
	}
	c := m.files[name]
	if err := m.refuses(c == nil && flag&os.O_CREATE != 0); err != nil {
		return nil, err
	}
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
	return &openFile{m: m, c: c, name: name}, nil
}

func (m *mount) List() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.names(), nil
}

func (m *mount) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuses(false); err != nil {
		return err
	}
	delete(m.files, name)
	return nil
}

func (m *mount) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuses(false); err != nil {
		return err
	}
	m.files[to] = m.files[from]
	delete(m.files, from)
	return nil
}

type openFile struct {
	m    *mount
	c    *content // nil = the directory
	name string
	off  int
}

func (f *openFile) Write(b []byte) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	err := f.m.refuses(true)
	n := len(b)
	switch {
	case errors.Is(err, errGone):
		return 0, err
	case err != nil:
		n = n * 2 / 3 // a full disk takes a part
	}
	f.c.b = append(f.c.b[:f.off:f.off], b[:n]...)
	f.off += n
	return n, err
}

func (f *openFile) ReadAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	n := copy(b, f.c.b[min(int(off), len(f.c.b)):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *openFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.m.refuses(false); err != nil {
		return err
	}
	f.c.b = f.c.b[:min(int(size), len(f.c.b))]
	f.c.synced = min(f.c.synced, len(f.c.b))
	return nil
}

func (f *openFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.c.b)), nil
}

// Sync takes time, may fail, and is where a process can be killed with its writes not durable.
func (f *openFile) Sync() error {
	f.m.mu.Lock()
	written := 0
	if f.c != nil {
		written = len(f.c.b)
	}
	f.m.mu.Unlock()
	if v := f.m.in.w.step.park(context.Background(), &call{in: f.m.in, op: opSync, key: opSync + " " + f.name}); v.Err != nil {
		return v.Err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.c != nil {
		f.c.synced = max(f.c.synced, min(written, len(f.c.b)))
		return nil
	}
	for _, c := range f.m.files {
		c.named = true
	}
	return nil
}

func (f *openFile) Close() error { return nil }
