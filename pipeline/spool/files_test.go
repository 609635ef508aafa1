package spool

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/restante/restante/pipeline"
)

func TestTheSpoolIsForItsUserOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "spool")
	k := newKafka(0)
	k.set(true)
	p, err := Open(Config{
		Dir: dir, Size: 1 << 20, After: 50 * time.Millisecond, Inner: k, Topics: topics, Now: time.Now, Metrics: NewMetrics(nil), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Append(t.Context(), message("t", "kept"))
	if err == nil {
		err = pipeline.Wait(t.Context(), r) // it is on the disk
	}
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	if err := filepath.WalkDir(filepath.Dir(dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			files++
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if files < 2 { // the lock and a segment
		t.Errorf("only %d files are there", files)
	}
	k.set(false)
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
