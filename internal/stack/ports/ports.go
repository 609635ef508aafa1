// Package ports gives out the ports of this machine on which tests run their servers.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/restante/restante/internal/stack/filelock"
)

// Ports come from below the range that the system gives to outgoing connections, which begins at 32768: while a server is down its port
// must stay free for it, and a client that dials a port of that range over and over may even end up connected to itself.
const (
	first = 12000
	end   = 32000
)

// Port is a port that nobody else who asks this package is given while it is held, in this process or another of the same user.
type Port struct {
	Number int
	held   *os.File
}

// Take takes n free ports. A program that does not ask this package can still take one before the server binds it.
func Take(n int) (_ []Port, err error) {
	dir := filepath.Join(os.TempDir(), "restante-ports-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make a directory for ports: %w", err)
	}
	var taken []Port
	defer func() {
		if err != nil {
			Free(taken)
		}
	}()
	for try := 0; len(taken) < n; try++ {
		if try == 1000 {
			return nil, errors.New("take ports: found none free in 1000 tries")
		}
		number := first + rand.IntN(end-first) //nolint:gosec // nobody need be kept from guessing it
		held, err := filelock.Try(filepath.Join(dir, strconv.Itoa(number)))
		if err != nil {
			return nil, fmt.Errorf("take port %d: %w", number, err)
		}
		if held == nil {
			continue
		}
		if !canListen(number) {
			_ = held.Close()
			continue
		}
		taken = append(taken, Port{Number: number, held: held})
	}
	return taken, nil
}

// Free gives ports back.
func Free(taken []Port) {
	for _, p := range taken {
		_ = p.held.Close()
	}
}

// Addr is an address of loopback that nobody listens on. No other test is given it until this one has ended, and no connection that
// somebody opens gets its port: a process may be started on it, ended, and started again.
func Addr(tb testing.TB) string {
	tb.Helper()
	taken, err := Take(1)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { Free(taken) })
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(taken[0].Number))
}

// canListen says whether the port is free on every address: DynamoDB Local listens on all of them.
func canListen(number int) bool {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: number})
	if err != nil {
		return false
	}
	return l.Close() == nil
}
