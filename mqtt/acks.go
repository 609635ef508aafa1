package mqtt

import (
	"context"
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
}

func newAcks() *acks {
	return &acks{SessionManager: state.NewInMemory(), due: map[uint16]struct{}{}}
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
