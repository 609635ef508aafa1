package embedded

import (
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// hook is where mochi calls us. The hooks of a connection run in its own goroutine, except where a comment says otherwise.
type hook struct {
	mochi.HookBase
	*Broker
}

// ID names the hook.
func (h *hook) ID() string { return "restante" }

// Provides tells mochi which hooks there are.
func (h *hook) Provides(b byte) bool {
	switch b {
	case mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnSessionEstablish, mochi.OnSessionEstablished,
		mochi.OnDisconnect, mochi.OnClientExpired, mochi.OnPacketRead, mochi.OnPacketEncode, mochi.OnPacketProcessed,
		mochi.OnSubscribe, mochi.OnSubscribed, mochi.OnUnsubscribe, mochi.OnUnsubscribed, mochi.OnPublish, mochi.OnPublishDropped,
		mochi.OnQosPublish, mochi.OnQosDropped, mochi.OnWill:
		return true
	}
	return false
}

// OnConnectAuthenticate lets in whom the configuration names.
func (h *hook) OnConnectAuthenticate(_ *mochi.Client, pk packets.Packet) bool {
	if h.cfg.Users == nil {
		return true
	}
	password, ok := h.cfg.Users[string(pk.Connect.Username)]
	return subtle.ConstantTimeCompare([]byte(password), pk.Connect.Password) == 1 && ok
}

// OnACLCheck allows everything: who was let in may use every topic.
func (h *hook) OnACLCheck(*mochi.Client, string, bool) bool { return true }

// OnConnect keeps what mochi forgets of a CONNECT and takes over the flow control, see [hook.OnPacketEncode].
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	w := wireOf(cl)
	w.client, w.own = cl, h.isOwn(cl.ID)
	if p := &cl.Properties.Props; cl.Properties.ProtocolVersion == 5 {
		if p.ReceiveMaximum > 0 {
			w.limit, w.receiveMax = int(p.ReceiveMaximum), p.ReceiveMaximum
		}
		w.maxPacket = int(p.MaximumPacketSize)
		// mochi would lose the packet ids of what it holds back, and the topic of what it sends by alias.
		p.ReceiveMaximum, p.TopicAliasMaximum = 0, 0
	}
	cl.State.Inflight.ResetSendQuota(0)
	if pk.Connect.WillFlag {
		w.will = willOf(cl, pk)
		w.willDelay = time.Duration(cl.Properties.Will.WillDelayInterval) * time.Second
	}
	return nil
}

// OnSessionEstablish comes before the session is chosen.
func (h *hook) OnSessionEstablish(cl *mochi.Client, _ packets.Packet) {
	wireOf(cl).unlock = h.sessions.lock(cl.ID)
}

// connected tells of a connection right before its CONNACK, while no other of the same client id can be at this point.
func (h *hook) connected(cl *mochi.Client, w *wire, present bool) {
	w.connectedAt = h.sessions.stamp(cl.ID, h.cfg.Minter.Now())
	if w.own {
		h.cfg.Count(mqtt.CountOwnEvent)
		return
	}
	// No wait: the session's first subscribe stands behind it in the same partition, and waits for both.
	err := h.note(event.Connected{
		Head: h.head(), Client: event.ClientID(cl.ID), ConnectedAt: w.connectedAt, CleanStart: event.KnownBool(cl.Properties.Clean),
		SessionPresent: event.KnownBool(present), ExpiryInterval: h.expiry(cl), ReceiveMaximum: w.receiveMax,
		Node: h.cfg.Node, Username: string(cl.Properties.Username),
	})
	if err != nil {
		cl.Stop(packets.ErrServerUnavailable) // before the CONNACK
		return
	}
	w.established = true
}

// OnSessionEstablished comes after CONNACK and the resend, before the first packet is read.
func (h *hook) OnSessionEstablished(cl *mochi.Client, _ packets.Packet) {
	w := wireOf(cl)
	h.unpark(cl, w)
	w.open()
	h.pump(cl, w)
}

func (h *hook) expiry(cl *mochi.Client) time.Duration {
	switch {
	case cl.Properties.ProtocolVersion == 5:
		return time.Duration(cl.Properties.Props.SessionExpiryInterval) * time.Second
	case cl.Properties.Clean:
		return 0
	}
	return h.cfg.SessionExpiry
}

// OnDisconnect ends a connection that was established.
func (h *hook) OnDisconnect(cl *mochi.Client, err error, expire bool) {
	w := wireOf(cl)
	why := reason(cl, err)
	if w.slow.Load() {
		h.cfg.Count(mqtt.CountSlowClient)
		h.log.Warn("client does not read, disconnected", "client", cl.ID)
		why = "slow_client"
	}
	h.gone(w, why)
	if !expire {
		return
	}
	// mochi looks whether the connection was taken over and then forgets the client id, with whatever connection that has by
	// then. So no other may come before mochi is through, which [Broker.finished] tells.
	w.unlock = h.sessions.lock(cl.ID)
	if cl.IsTakenOver() {
		w.unlock()
		return
	}
	h.sessions.drop(cl.ID, w.session.Load())
}

// gone tells of the end of a connection that was told of.
func (b *Broker) gone(w *wire, why string) {
	if !w.established {
		return
	}
	w.established = false
	head := b.head()
	_ = b.note(event.Disconnected{
		Head: head, Client: event.ClientID(w.client.ID), Reason: why, ConnectedAt: w.connectedAt, DisconnectedAt: head.At,
	})
}

// reason is why a connection ended, in EMQX's words where it has one.
func reason(cl *mochi.Client, err error) string {
	cause := cl.StopCause()
	if cause == nil {
		cause = err
	}
	var timeout net.Error
	switch {
	case cause == nil, errors.Is(cause, packets.CodeDisconnect):
		return "normal"
	case errors.Is(cause, packets.ErrSessionTakenOver):
		return "takenover"
	case errors.Is(cause, packets.ErrServerShuttingDown):
		return "server_shutdown"
	case errors.Is(cause, io.EOF), errors.Is(cause, net.ErrClosed), errors.Is(cause, io.ErrUnexpectedEOF):
		return "tcp_closed"
	case errors.As(cause, &timeout) && timeout.Timeout():
		return "keepalive_timeout"
	}
	return strings.ReplaceAll(cause.Error(), " ", "_")
}

// OnClientExpired runs in mochi's loop: a session has outlived its expiry. mochi forgets the client, not its subscriptions. It
// forgets the client id, with whatever connection that has by then: the client may come back at this moment.
func (h *hook) OnClientExpired(cl *mochi.Client) {
	if !h.expiring.enter() {
		return // there are no connections any more
	}
	unlock := h.sessions.lock(cl.ID)
	next, _ := h.server.Clients.Get(cl.ID)
	go func() { // ends when mochi's loop has gone on; the end of Run waits for it
		defer h.expiring.leave()
		defer unlock()
		soon := time.NewTicker(time.Millisecond)
		defer soon.Stop()
		for known := true; known; <-soon.C {
			_, known = h.server.Clients.Get(cl.ID)
		}
		if next != nil && next != cl {
			h.server.Clients.Add(next)
		}
	}()
	if next != cl {
		return
	}
	if w := wireOf(cl); w != nil {
		h.sessions.drop(cl.ID, w.session.Load())
	}
	cl.ClearInflights()
	h.server.UnsubscribeClient(cl)
}

// OnSubscribe refuses what is no filter, more strictly than mochi, and notes which subscriptions are new. It takes the turn, which
// OnSubscribed gives back.
func (h *hook) OnSubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	w := wireOf(cl)
	<-w.subscribing.free()
	w.existed = w.existed[:0]
	for i := range pk.Filters {
		f := &pk.Filters[i]
		if _, err := event.ParseFilter(shared(f.Filter)); err != nil {
			h.cfg.Count(mqtt.CountRefusedFilter)
			h.log.Warn("subscribe refused", "client", cl.ID, "err", err)
			f.Filter = "" // mochi refuses that
		}
		_, existed := cl.State.Subscriptions.Get(f.Filter)
		w.existed = append(w.existed, existed)
	}
	return pk
}

// shared spells the share prefix as the standard does; mochi takes it in any case.
func shared(filter string) string {
	const prefix = "$share/"
	if len(filter) > len(prefix) && strings.EqualFold(filter[:len(prefix)], prefix) {
		return prefix + filter[len(prefix):]
	}
	return filter
}

// OnSubscribed comes when the subscriptions exist and before the SUBACK, which waits here until the events are durable.
// Each event's id is minted now: a message with a smaller id may have been routed before the subscription, one with a
// greater id was not.
func (h *hook) OnSubscribed(cl *mochi.Client, pk packets.Packet, codes []byte) {
	w := wireOf(cl)
	defer w.subscribing.leave()
	if w.own {
		h.cfg.Count(mqtt.CountOwnEvent)
		return
	}
	s := w.session.Load()
	s.subscribing(h.cfg.Minter.Now())
	var events []event.Event
	for i, sub := range pk.Filters {
		if i >= len(codes) || codes[i] > 2 {
			continue
		}
		events = append(events, h.subscribed(cl, sub, codes[i], s.isNew(i < len(w.existed) && w.existed[i])))
	}
	if err := h.take(events...); err != nil {
		h.notTaken("subscribe", cl, err)
	}
}

// subscribed is the event of a subscription that exists from now on. Its filter is one that OnSubscribe let pass.
func (b *Broker) subscribed(cl *mochi.Client, sub packets.Subscription, qos byte, known event.Known) event.Subscribed {
	f, _ := event.ParseFilter(shared(sub.Filter))
	e := event.Subscribed{Head: b.head(), Client: event.ClientID(cl.ID), Filter: f, QoS: event.QoS(qos), New: known}
	// Rounded up: the encoded time has ms only, and no message routed before may lie behind it.
	e.At = e.ID.Time().Add(time.Millisecond - 1).Truncate(time.Millisecond)
	if cl.Properties.ProtocolVersion == 5 {
		e.Options = &event.SubOptions{RetainHandling: sub.RetainHandling, RetainAsPublished: sub.RetainAsPublished, NoLocal: sub.NoLocal}
	}
	return e
}

// isNew is unknown where the session has dropped deliveries: the broker's own queue does not hold all then.
func (s *session) isNew(existed bool) event.Known {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !existed:
		return event.Yes
	case s.overflowed:
		s.overflowed = false
		return event.Unknown
	}
	return event.No
}

// OnUnsubscribe takes the turn, which OnUnsubscribed gives back.
func (h *hook) OnUnsubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	<-wireOf(cl).subscribing.free()
	return pk
}

// OnUnsubscribed comes before the UNSUBACK. mochi calls it too when a session ends, without a packet id: that is nobody's
// wish to unsubscribe, and must not cost a position.
func (h *hook) OnUnsubscribed(cl *mochi.Client, pk packets.Packet) {
	w := wireOf(cl)
	if pk.PacketID == 0 || w == nil {
		return
	}
	defer w.subscribing.leave()
	if w.own {
		h.cfg.Count(mqtt.CountOwnEvent)
		return
	}
	var events []event.Event
	for _, sub := range pk.Filters {
		if _, still := cl.State.Subscriptions.Get(sub.Filter); still {
			continue // refused: the packet id was in use
		}
		f, err := event.ParseFilter(shared(sub.Filter))
		if err != nil {
			continue // it never existed
		}
		events = append(events, event.Unsubscribed{Head: h.head(), Client: event.ClientID(cl.ID), Filter: f})
	}
	if err := h.take(events...); err != nil {
		h.notTaken("unsubscribe", cl, err)
	}
}

func (h *hook) isOwn(client string) bool {
	return h.cfg.OwnPrefix != "" && strings.HasPrefix(client, h.cfg.OwnPrefix)
}

// notTaken closes the connection whose packet stays without an answer: the client asks again.
func (h *hook) notTaken(what string, cl *mochi.Client, err error) {
	h.cfg.Count(mqtt.CountNotTaken)
	h.log.Warn("event was not taken, client disconnected", "what", what, "client", cl.ID, "err", err)
	h.turnAway(cl)
}

func (h *hook) turnAway(cl *mochi.Client) {
	code := packets.ErrServerUnavailable
	if h.stopping.Load() {
		code = packets.ErrServerShuttingDown
	}
	if cl.Properties.ProtocolVersion == 5 {
		_ = h.server.DisconnectClient(cl, code)
		return
	}
	cl.Stop(code)
}
