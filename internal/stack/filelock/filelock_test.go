package filelock_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/restante/restante/internal/stack/filelock"
)

func TestALockIsHeldUntilItIsClosed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	first, err := filelock.Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := filelock.Try(path); second != nil || err != nil {
		t.Fatalf("a held lock was taken: %v, %v", second, err)
	}
	time.AfterFunc(200*time.Millisecond, func() { _ = first.Close() })
	begun := time.Now()
	second, err := filelock.Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Close()
	if waited := time.Since(begun); waited < 100*time.Millisecond {
		t.Errorf("the lock came after %v, before it was free", waited)
	}
}
