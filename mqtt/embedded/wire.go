package embedded

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
)

// wire is a connection and what the broker knows of it. mochi's Client is reached from it and it from the Client, so that
// there is no map to keep.
//
// Writes go through a buffer and a goroutine of its own: mochi writes under a lock that every publisher needs who has
// something for the client, so that one client that does not read would stop them all.
type wire struct {
	net.Conn
	timeout time.Duration // for a piece of what is written
	shut    func()
	closed  chan struct{}
	slow    atomic.Bool // closed since the client did not read

	outMu   sync.Mutex
	out     []byte
	wake    chan struct{} // there is something in out
	drained chan struct{} // closed and renewed when out was taken

	swallow atomic.Bool // the next PUBLISH is not written: an error would end mochi's resend and the connection

	up   chan struct{} // closed when CONNACK and what was in flight before have been sent
	open func()        // closes up

	// Set on the way to the CONNACK, read only afterwards.
	client      *mochi.Client
	own         bool
	limit       int // the client's receive maximum, 65,535 when it names none
	receiveMax  uint16
	maxPacket   int // 0 = any
	connectedAt time.Time
	unlock      func() // of the client id, held from the choice of the session to the CONNACK, and while mochi forgets it
	will        *packets.Packet
	willDelay   time.Duration

	// Of the connection's own goroutine.
	established bool
	publishing  bool   // between OnPublish and OnPacketProcessed
	dupPublish  bool   // the PUBLISH in hand is a repetition
	existed     []bool // guarded by subscribing as well
	asked       uint16 // the packet id of the packet in hand
	standIn     uint16 // by which mochi knows it, 0 when there is none

	subscribing turn // to change the subscriptions and tell of it

	session  atomic.Pointer[session] // set right before the CONNACK; its mutex guards what follows
	sent     map[uint16]event.ID
	unparked bool // what the session has parked has packet ids of this connection
	pumping  sync.Mutex
}

const (
	softBuffer = 64 << 10 // deliveries wait while more than that is unwritten
	hardBuffer = 8 << 20  // more than that is unwritten only when the client sends and sends, and does not read
	piece      = 16 << 10
	farewell   = time.Second // for what is unwritten when the connection is closed
)

func newWire(conn net.Conn, connectTimeout, writeTimeout time.Duration) *wire {
	w := &wire{
		Conn: conn, timeout: writeTimeout, closed: make(chan struct{}), wake: make(chan struct{}, 1), drained: make(chan struct{}),
		up: make(chan struct{}), subscribing: newTurn(), sent: map[uint16]event.ID{}, limit: 65535, unlock: func() {},
	}
	w.shut = sync.OnceFunc(func() { close(w.closed) })
	w.open = sync.OnceFunc(func() { close(w.up) })
	_ = conn.SetReadDeadline(time.Now().Add(connectTimeout)) // until mochi sets the one of the keepalive
	return w
}

// wireOf is the wire of a client, nil for one that has no connection.
func wireOf(cl *mochi.Client) *wire {
	w, _ := cl.Net.Conn.(*wire)
	return w
}

// SetDeadline sets the deadline for reads only: an ack that is written after a long wait for the log is not late.
func (w *wire) SetDeadline(t time.Time) error {
	if w.isClosed() {
		return net.ErrClosed
	}
	return w.SetReadDeadline(t)
}

func (w *wire) isClosed() bool {
	select {
	case <-w.closed:
		return true
	default:
		return false
	}
}

// Write takes the bytes and returns.
func (w *wire) Write(b []byte) (int, error) {
	if w.isClosed() {
		return 0, net.ErrClosed
	}
	if len(b) > 0 && b[0]>>4 == packets.Publish && w.swallow.CompareAndSwap(true, false) {
		return len(b), nil
	}
	w.outMu.Lock()
	full := len(w.out) > hardBuffer
	if !full {
		w.out = append(w.out, b...)
	}
	w.outMu.Unlock()
	if full {
		w.slow.Store(true)
		return 0, errors.Join(errors.New("the client does not read"), w.Close())
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return len(b), nil
}

// room returns when little is unwritten, or the connection is closed.
func (w *wire) room() {
	for {
		w.outMu.Lock()
		n, drained := len(w.out), w.drained
		w.outMu.Unlock()
		if n <= softBuffer {
			return
		}
		select {
		case <-drained:
		case <-w.closed:
			return
		}
	}
}

// Close ends the reading at once; what is unwritten gets a moment.
func (w *wire) Close() error {
	w.shut()
	return w.SetReadDeadline(time.Unix(1, 0))
}

// flush writes what was taken until the connection is closed.
func (w *wire) flush() {
	defer w.Conn.Close() //nolint:errcheck // nothing is left to do about it
	for {
		closing := false
		select {
		case <-w.wake:
		case <-w.closed:
			closing = true
		}
		w.outMu.Lock()
		out := w.out
		w.out = nil
		close(w.drained)
		w.drained = make(chan struct{})
		w.outMu.Unlock()
		if closing {
			_ = w.SetWriteDeadline(time.Now().Add(farewell))
			_, _ = w.Conn.Write(out)
			return
		}
		if err := w.write(out); err != nil {
			w.slow.CompareAndSwap(false, errors.Is(err, errSlow))
			_ = w.Close()
			return
		}
	}
}

var errSlow = errors.New("the client does not read")

// write sends in pieces, each with a time of its own: a slow network is not a client that does not read.
func (w *wire) write(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), piece)
		_ = w.SetWriteDeadline(time.Now().Add(w.timeout))
		if _, err := w.Conn.Write(b[:n]); err != nil {
			var t net.Error
			if errors.As(err, &t) && t.Timeout() {
				return errSlow
			}
			return err
		}
		b = b[n:]
	}
	return nil
}
