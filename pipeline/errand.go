package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/restante/restante/event"
)

// errSuperseded ends work for a client that begins anew because of a later event.
var errSuperseded = errors.New("a later event asks for the same")

// errand is work for a client that goes on beside the owner's loop and is no replay. It ends with the client's connection at the
// latest, and holds back the commit of its event until it has ended.
type errand struct {
	o      *owner
	c      *client
	key    string       // what it is; one of a key at a time
	filter event.Filter // zero = of no filter in particular
	event  Record
	at     time.Time // of the event
	cancel context.CancelCauseFunc
	quit   map[string]struct{} // filters that the client has unsubscribed from since; nil = of no interest. Guarded by the client's mu
}

// send begins an errand when all of a fetch is handled. One of the same key that runs ends.
func (o *owner) send(ctx context.Context, e *errand, do func(context.Context) error) {
	ctx, e.cancel = context.WithCancelCause(ctx)
	o.begin(e.event)
	e.c.cancelErrands(func(old *errand) bool { return old.key == e.key }, errSuperseded)
	e.c.mu.Lock()
	e.c.errands[e] = struct{}{}
	e.c.mu.Unlock()
	o.fresh = append(o.fresh, func() {
		defer e.cancel(nil)
		err := do(ctx)
		e.c.mu.Lock()
		delete(e.c.errands, e)
		e.c.mu.Unlock()
		if err == nil || overForClient(err) { // else the partition goes to another owner, who repeats the event
			o.done(e.event.Offset)
		}
	})
}

// overForClient reports whether work ended because of what the client did, and is not to be repeated.
func overForClient(err error) bool {
	for _, why := range []error{errReconnected, errDisconnected, errUnsubscribed, errOtherQoS, errSuperseded} {
		if errors.Is(err, why) {
			return true
		}
	}
	return false
}

// cancelErrands ends the errands that match.
func (c *client) cancelErrands(match func(*errand) bool, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range c.errands {
		if match(e) {
			e.cancel(why)
		}
	}
}
