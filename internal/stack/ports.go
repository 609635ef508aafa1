package stack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// Ports come from below the range that the system gives to outgoing connections, which begins at 32768: while a server is down its port
// must stay free for it, and a client that dials a port of that range over and over may even end up connected to itself.
const (
	firstPort = 12000
	endPort   = 32000
)

// port is a port on this machine that no other process of this package takes while it is held.
type port struct {
	number int
	held   *os.File
}

// takePorts takes n free ports. Another program can still take one before the server binds it.
func takePorts(dir string, n int) (_ []port, err error) {
	dir = filepath.Join(dir, "ports")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make a directory for ports: %w", err)
	}
	var taken []port
	defer func() {
		if err != nil {
			freePorts(taken)
		}
	}()
	for try := 0; len(taken) < n; try++ {
		if try == 1000 {
			return nil, errors.New("take ports: found none free in 1000 tries")
		}
		number := firstPort + rand.IntN(endPort-firstPort) //nolint:gosec // nobody need be kept from guessing it
		held, err := tryLock(filepath.Join(dir, strconv.Itoa(number)))
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
		taken = append(taken, port{number: number, held: held})
	}
	return taken, nil
}

func freePorts(ports []port) {
	for _, p := range ports {
		_ = p.held.Close()
	}
}

// canListen says whether the port is free on every address: DynamoDB Local listens on all of them.
func canListen(number int) bool {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: number})
	if err != nil {
		return false
	}
	return l.Close() == nil
}
