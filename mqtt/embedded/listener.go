package embedded

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

// listener hands connections to mochi. It knows each of them until its goroutine has ended: mochi knows a connection only
// after its CONNECT, and its stop would wait for ever for one that sends none.
type listener struct {
	net.Listener
	cfg  Config
	done func(*wire, error) // called when mochi is through with a connection

	mu      sync.Mutex
	closing chan struct{}
	wires   map[*wire]struct{}
	wg      sync.WaitGroup
	served  chan struct{}
	stop    func() // takes no more connections; once
}

var _ listeners.Listener = (*listener)(nil)

const listenerID = "embedded"

// ID is the listener's name within mochi.
func (l *listener) ID() string { return listenerID }

// Address is the address that is listened on.
func (l *listener) Address() string { return l.Addr().String() }

// Protocol is tcp, with or without TLS.
func (l *listener) Protocol() string { return "tcp" }

// Init does nothing: the listener is open already.
func (l *listener) Init(*slog.Logger) error { return nil }

// Serve accepts connections until the listener is closed.
func (l *listener) Serve(establish listeners.EstablishFn) {
	defer close(l.served)
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			l.cfg.Log.Warn("accept connection failed, will retry", "err", err)
			select { // out of file descriptors, most likely
			case <-time.After(100 * time.Millisecond):
			case <-l.closing:
			}
			continue
		}
		w := newWire(conn, l.cfg.ConnectTimeout, l.cfg.WriteTimeout)
		l.mu.Lock()
		select {
		case <-l.closing:
			l.mu.Unlock()
			_ = conn.Close()
			continue
		default:
		}
		l.wires[w] = struct{}{}
		l.wg.Go(w.flush) // ends soon after Close
		l.wg.Go(func() { // ends with the connection
			err := establish(listenerID, w)
			_ = w.Close()
			l.done(w, err)
			l.mu.Lock()
			delete(l.wires, w)
			l.mu.Unlock()
		})
		l.mu.Unlock()
	}
}

// Close is mochi's; the broker has stopped the listener before.
func (l *listener) Close(listeners.CloseFn) { l.stop() }

func newListener(l net.Listener, cfg Config) *listener {
	n := &listener{
		Listener: l, cfg: cfg, closing: make(chan struct{}), wires: map[*wire]struct{}{}, served: make(chan struct{}),
	}
	n.stop = sync.OnceFunc(func() {
		n.mu.Lock()
		close(n.closing)
		n.mu.Unlock()
		_ = l.Close()
	})
	return n
}

// cut closes every connection and waits for their goroutines.
func (l *listener) cut() {
	l.mu.Lock()
	for w := range l.wires {
		_ = w.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}
