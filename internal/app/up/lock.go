package up

import (
	"errors"
	"fmt"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/dirlock"
)

// lock takes the data directory for this process. The lock goes with the process, however that ends.
func lock(dir string) (unlock func(), err error) {
	unlock, err = dirlock.Lock(dir, lockFile)
	if _, ok := errors.AsType[*dirlock.InUseError](err); ok {
		return nil, fault.Fatal(fmt.Errorf("data directory %w: stop it, or give another directory with --data", err))
	}
	if err != nil {
		return nil, fault.Fatal(fmt.Errorf("data directory: %w", err))
	}
	return unlock, nil
}
