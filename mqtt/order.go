package mqtt

import (
	"container/list"
	"context"
	"sync"
)

// order knows which packets of all connections have come and are not finished. A session event must wait until it is the
// oldest: only then is every message that came before it durable.
type order struct {
	mu      sync.Mutex
	pending list.List
	moved   chan struct{} // closed and renewed when the oldest changes; nil while nobody waits
}

func (o *order) enter() *list.Element {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.pending.PushBack(nil)
}

func (o *order) leave(e *list.Element) {
	o.mu.Lock()
	defer o.mu.Unlock()
	oldest := o.pending.Front() == e
	o.pending.Remove(e)
	if oldest && o.moved != nil {
		close(o.moved)
		o.moved = nil
	}
}

// oldest waits until nothing older than e is pending.
func (o *order) oldest(ctx context.Context, e *list.Element) error {
	for {
		o.mu.Lock()
		if o.pending.Front() == e {
			o.mu.Unlock()
			return nil
		}
		if o.moved == nil {
			o.moved = make(chan struct{})
		}
		moved := o.moved
		o.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
