package embedded

import (
	"context"
	"sync/atomic"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

var _ pipeline.Resubscriber = (*Broker)(nil)

// Resubscribe makes subscriptions in the session of a connected client, and tells of them as of the client's own. It returns when
// that is durable. A subscription that the session has stays as it is and is told of again. The client gets no packet of it, and
// no retained messages.
func (b *Broker) Resubscribe(ctx context.Context, client event.ClientID, subs []sinks.Sub) (pipeline.Resubscribed, error) {
	gone := pipeline.Resubscribed{Gone: true}
	if !b.running.Load() || !b.direct.enter() {
		return gone, nil
	}
	defer b.direct.leave()
	cl, ok := b.server.Clients.Get(string(client))
	w := (*wire)(nil)
	if ok {
		w = wireOf(cl)
	}
	if w == nil || cl.Closed() {
		return gone, nil
	}
	for _, ready := range []<-chan struct{}{w.up, w.subscribing.free()} {
		select {
		case <-ready:
		case <-w.closed:
			return gone, nil
		case <-ctx.Done():
			return pipeline.Resubscribed{}, context.Cause(ctx)
		}
	}
	defer w.subscribing.leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.work, func() { cancel(errStopping) })() //nolint:contextcheck // whichever ends first

	if w.own {
		b.cfg.Count(mqtt.CountOwnEvent)
		return pipeline.Resubscribed{Refused: len(subs)}, nil
	}
	made, refused := b.enroll(cl, w, subs)
	if made == nil {
		return gone, nil
	}
	w.session.Load().subscribing(b.cfg.Minter.Now())
	for _, m := range made {
		r, err := b.accept(ctx, b.subscribed(cl, m.sub, m.sub.Qos, m.known))
		if err == nil && r != nil {
			err = pipeline.Wait(ctx, r)
		}
		if err != nil {
			return pipeline.Resubscribed{}, err
		}
	}
	return pipeline.Resubscribed{Refused: refused}, nil
}

// enrolled is a subscription of a session.
type enrolled struct {
	sub   packets.Subscription
	known event.Known // whether it is new
}

// enroll makes the subscriptions; nil when the connection has ended. Nobody takes the session over meanwhile.
func (b *Broker) enroll(cl *mochi.Client, w *wire, subs []sinks.Sub) (made []enrolled, refused int) {
	defer b.sessions.lock(cl.ID)()
	if now, ok := b.server.Clients.Get(cl.ID); !ok || now != cl || cl.IsTakenOver() || cl.Closed() || w.session.Load() == nil {
		return nil, 0
	}
	made = []enrolled{}
	var added []packets.Subscription
	for _, s := range subs {
		sub, existed := cl.State.Subscriptions.Get(s.Filter.String())
		if !existed {
			sub = packets.Subscription{Filter: s.Filter.String(), Qos: byte(s.QoS)}
			if s.QoS > 2 || !mochi.IsValidFilter(sub.Filter, false) {
				refused++
				continue
			}
			if b.server.Topics.Subscribe(cl.ID, sub) {
				atomic.AddInt64(&b.server.Info.Subscriptions, 1)
			}
			cl.State.Subscriptions.Add(sub.Filter, sub)
			added = append(added, sub)
		}
		made = append(made, enrolled{sub, w.session.Load().isNew(existed)})
	}
	if !cl.Closed() {
		return made, refused // should it end now, mochi finds what was added
	}
	for _, sub := range added { // mochi may have cleared the session before
		if b.server.Topics.Unsubscribe(sub.Filter, cl.ID) {
			atomic.AddInt64(&b.server.Info.Subscriptions, -1)
		}
		cl.State.Subscriptions.Delete(sub.Filter)
	}
	return nil, 0
}

// turn lets one at a time change the subscriptions of a connection and tell of it, so that the log has these changes in their order.
type turn chan struct{}

func newTurn() turn {
	t := make(turn, 1)
	t <- struct{}{}
	return t
}

// free gives the turn to whoever receives from it.
func (t turn) free() <-chan struct{} { return t }

// leave gives it back.
func (t turn) leave() { t <- struct{}{} }
