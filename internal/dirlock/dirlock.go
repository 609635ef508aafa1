// Package dirlock gives a directory to one process at a time.
package dirlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// InUseError says that another process has the directory.
type InUseError struct {
	Dir string
	Who string // for people, such as "process 17"
}

func (e *InUseError) Error() string { return fmt.Sprintf("%s is in use by %s", e.Dir, e.Who) }

// Lock takes the directory for this process by a lock on the file named; both are made when they are not there, for this user only.
// The lock goes with the process, however that ends. A directory that another process has gives an [InUseError].
func Lock(dir, file string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory: %w", err)
	}
	path := filepath.Join(dir, file)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the operator names the directory
	if err != nil {
		return nil, fmt.Errorf("lock the directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		who := "another process"
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 { //nolint:gosec // see above
			who = "process " + strings.TrimSpace(string(b))
		}
		_ = f.Close() // nothing was written
		return nil, &InUseError{dir, who}
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteString(strconv.Itoa(os.Getpid()) + "\n") // for people only
	}
	return func() { _ = f.Close() }, nil // closing gives the lock back
}
