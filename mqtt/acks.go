package mqtt

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"
)

// acks is paho's session, which knows in addition which acks are still to be written: paho takes an ack and sends it in its
// own time, and does not tell.
type acks struct {
	session.SessionManager

	mu    sync.Mutex
	due   map[uint16]struct{} // by packet id
	empty chan struct{}       // not nil while somebody waits
	up    chan struct{}       // closed when paho is through with its connect, or has lost the connection
}

func newAcks() *acks {
	return &acks{SessionManager: state.NewInMemory(), due: map[uint16]struct{}{}, up: make(chan struct{})}
}

// ConAckReceived is called by paho at the CONNACK.
func (a *acks) ConAckReceived(conn io.Writer, c *packets.Connect, ack *packets.Connack) error {
	a.mu.Lock()
	a.up = make(chan struct{})
	a.mu.Unlock()
	return a.SessionManager.ConAckReceived(conn, c, ack) //nolint:wrapcheck // paho's own
}

// connected tells that paho's connect has returned.
func (a *acks) connected() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open()
}

// open needs mu.
func (a *acks) open() {
	select {
	case <-a.up:
	default:
		close(a.up)
	}
}

// PacketReceived is called by paho for what it has read. A publish waits until the connect has returned: shortly before that,
// paho forgets the publishes that it could be asked to acknowledge. A resumed session sends some at once, and they would stay
// without their acks for as long as the connection lives.
func (a *acks) PacketReceived(p *packets.ControlPacket, publishes chan<- *packets.Publish) error {
	if p.Type == packets.PUBLISH {
		a.mu.Lock()
		up := a.up
		a.mu.Unlock()
		<-up
	}
	return a.SessionManager.PacketReceived(p, publishes) //nolint:wrapcheck // paho's own
}

// expect notes an ack before paho gets it; settled, that it has been written or never will be.
func (a *acks) expect(id uint16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due[id] = struct{}{}
}

func (a *acks) settled(id uint16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.due, id)
	a.tell()
}

// tell needs mu.
func (a *acks) tell() {
	if len(a.due) == 0 && a.empty != nil {
		close(a.empty)
		a.empty = nil
	}
}

// Ack is called by paho to write an ack.
func (a *acks) Ack(p *packets.Publish) error {
	defer a.settled(p.PacketID)
	return a.SessionManager.Ack(p) //nolint:wrapcheck // paho's own
}

// ConnectionLost is called by paho: what is due is not written any more.
func (a *acks) ConnectionLost(d *packets.Disconnect) error {
	a.mu.Lock()
	clear(a.due)
	a.tell()
	a.open()
	a.mu.Unlock()
	return a.SessionManager.ConnectionLost(d) //nolint:wrapcheck // paho's own
}

// wait returns when all acks have been written, or no longer than d after, or with the end of ctx.
func (a *acks) wait(ctx context.Context, d time.Duration) {
	a.mu.Lock()
	if len(a.due) == 0 {
		a.mu.Unlock()
		return
	}
	empty := make(chan struct{})
	a.empty = empty
	a.mu.Unlock()
	select {
	case <-empty:
	case <-time.After(d):
	case <-ctx.Done():
	}
}
