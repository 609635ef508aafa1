package up

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/restante/restante/fault"
)

// lock takes the data directory for this process. The lock goes with the process, however that ends.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Fatal(fmt.Errorf("data directory: %w", err))
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the operator names the directory
	if err != nil {
		return nil, fault.Fatal(fmt.Errorf("lock the data directory: %w", err))
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		who := "another process"
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 { //nolint:gosec // see above
			who = "process " + strings.TrimSpace(string(b))
		}
		_ = f.Close() // nothing was written
		return nil, fault.Fatal(fmt.Errorf("data directory %s is in use by %s: stop it, or give another directory with --data", dir, who))
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fault.Fatal(fmt.Errorf("lock the data directory %s: %w", dir, err))
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteString(strconv.Itoa(os.Getpid()) + "\n") // for people only
	}
	return func() { _ = f.Close() }, nil // closing gives the lock back
}
