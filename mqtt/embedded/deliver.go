package embedded

import (
	"bytes"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// mochi keeps the packets in flight of both directions in one map by packet id. A client may use the same id in both at
// once, and most do. So mochi knows what a client sends by a stand-in, an id that no delivery has, and which QoS 2 messages a
// client has to release is in the session. The map is that of the deliveries alone.

// outbound tells a delivery from mochi's answer to an inbound packet in hand.
func outbound(pk packets.Packet) bool {
	return pk.FixedHeader.Type == packets.Publish || pk.FixedHeader.Type == packets.Pubrel
}

// OnPacketRead sees each packet before mochi handles it: it gives those with a packet id of the client's their stand-in, and
// turns PUBACK and PUBREC into events while the map still holds what they acknowledge. A connection that was taken over does
// neither: the next one has the session, or is about to copy it. Its client sends such a packet again.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	w := wireOf(cl)
	switch pk.FixedHeader.Type {
	case packets.Publish:
		w.dupPublish = pk.FixedHeader.Dup
		if !mochi.IsValidFilter(pk.TopicName, true) {
			// $SYS: mochi would give no answer at all, and the client would wait for one.
			h.cfg.Count(mqtt.CountRefusedTopic)
			h.log.Warn("publish refused, client disconnected", "client", cl.ID, "topic", pk.TopicName)
			if cl.Properties.ProtocolVersion == 5 {
				_ = h.server.DisconnectClient(cl, packets.ErrTopicNameInvalid)
			}
			return pk, packets.ErrRejectPacket
		}
		if pk.FixedHeader.Qos > 0 {
			return w.substitute(cl, pk)
		}
	case packets.Pubrel, packets.Subscribe, packets.Unsubscribe:
		return w.substitute(cl, pk)
	case packets.Puback, packets.Pubrec:
		if !h.acked(cl, w, pk) {
			return pk, packets.ErrRejectPacket
		}
	}
	return pk, nil
}

// substitute gives a packet the stand-in by which mochi knows it.
func (w *wire) substitute(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	w.asked, w.standIn = pk.PacketID, 0
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.IsTakenOver() {
		return pk, packets.ErrRejectPacket
	}
	if pk.PacketID == 0 {
		return pk, nil // mochi refuses it
	}
	id, err := cl.NextPacketID()
	if err != nil {
		return pk, packets.ErrRejectPacket // every id is in flight
	}
	w.standIn = uint16(id) //nolint:gosec // up to 65,535
	if _, ok := s.received[w.asked]; ok {
		// mochi takes the packet for what it is: a repeated PUBLISH, the PUBREL, or one with an id that is in use.
		cl.State.Inflight.Set(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrec}, PacketID: w.standIn})
	}
	pk.PacketID = w.standIn
	return pk, nil
}

// reserve keeps the stand-in from deliveries while a publish waits for the log.
func (w *wire) reserve(cl *mochi.Client) {
	cl.State.Inflight.Set(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Reserved}, PacketID: w.standIn})
}

// received notes that the QoS 2 publish in hand is the broker's now, until its PUBREL.
func (w *wire) received() {
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received[w.asked] = struct{}{}
}

// handled ends the handling of a packet that has a stand-in.
func (w *wire) handled(cl *mochi.Client, pk packets.Packet, err error) {
	if w.standIn == 0 || pk.PacketID != w.standIn {
		return
	}
	cl.State.Inflight.Delete(w.standIn)
	w.standIn = 0
	if pk.FixedHeader.Type != packets.Pubrel || err != nil {
		return
	}
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.received, w.asked)
}

// acked makes the event of a PUBACK or of the first PUBREC. One with an error code counts as well: the client has the
// message and will not take it another time. It is false where the connection was taken over.
func (h *hook) acked(cl *mochi.Client, w *wire, pk packets.Packet) bool {
	s := w.session.Load()
	s.mu.Lock()
	if cl.IsTakenOver() {
		s.mu.Unlock()
		return false
	}
	entry, ok := cl.State.Inflight.Get(pk.PacketID)
	m := markOf(entry)
	if !ok || m.id.IsZero() || (pk.FixedHeader.Type == packets.Puback) != (entry.FixedHeader.Qos == 1) {
		s.mu.Unlock()
		return true
	}
	head := h.head()
	watched := s.acked(m.id, head.At)
	s.mu.Unlock()
	if w.own {
		h.cfg.Count(mqtt.CountOwnEvent)
		return true
	}
	_ = h.note(event.Acked{
		Head: head, Topic: m.topic, Client: event.ClientID(cl.ID), Message: m.id, Replayed: m.replayed || watched,
		Watched: m.replayed || watched,
	})
	return true
}

// OnPacketProcessed comes after mochi has handled a packet, whether with success or not.
func (h *hook) OnPacketProcessed(cl *mochi.Client, pk packets.Packet, err error) {
	w := wireOf(cl)
	if w == nil {
		return // a will
	}
	switch pk.FixedHeader.Type {
	case packets.Pubrel, packets.Subscribe, packets.Unsubscribe:
		w.handled(cl, pk, err)
	case packets.Publish:
		w.handled(cl, pk, err)
		if w.publishing {
			w.publishing = false
			h.busy.leave()
		}
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		w.settle(cl, pk.PacketID)
		h.pump(cl, w)
	}
}

// settle frees the place of a delivery that is finished.
func (w *wire) settle(cl *mochi.Client, id uint16) {
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !cl.IsTakenOver() { // the ack was in time for the copy, or there is none
		s.acking = event.ID{}
	}
	entry, ok := cl.State.Inflight.Get(id)
	if ok && entry.FixedHeader.Type == packets.Pubrel {
		return // the PUBCOMP is still to come
	}
	if ok && outbound(entry) && markOf(entry).id == w.sent[id] {
		return // an ack that settles nothing; where the ids differ, a new delivery has got the packet id already
	}
	delete(w.sent, id)
	s.room()
}

// OnPacketEncode comes before each packet that is written. Deliveries wait here, in the writer's own goroutine, for the
// CONNACK and the resend to be out and for the client's receive maximum: mochi's flow control forgets the packet ids of what
// it held back, so that their acks find nothing, its quota is never given back, and it can lock itself up; ours replaces it.
func (h *hook) OnPacketEncode(cl *mochi.Client, pk packets.Packet) packets.Packet {
	w := wireOf(cl)
	if w == nil {
		return pk
	}
	switch pk.FixedHeader.Type {
	case packets.Puback, packets.Pubrec, packets.Pubcomp, packets.Suback, packets.Unsuback: // in the goroutine of the packet in hand
		if w.standIn != 0 && pk.PacketID == w.standIn {
			pk.PacketID = w.asked
		}
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		if pk.ReasonCode == 0 {
			pk.Properties.MaximumPacketSize = h.cfg.MaxPacket
			h.resume(cl, w, pk.SessionPresent)
		}
	case packets.Pubrec:
		if w.dupPublish && pk.ReasonCode == packets.ErrPacketIdentifierInUse.Code {
			pk.ReasonCode, pk.Properties.ReasonString = 0, "" // a repeated publish gets the answer that it got before
		}
	case packets.Publish:
		pk.Mods.DisallowProblemInfo = false // mochi leaves out the user properties otherwise, which only acks may lack
		if !h.await(cl, w, pk) {
			pk.FixedHeader.Type = packets.Reserved // is not written; only mochi's writer comes to this, and it goes on
		}
	}
	return pk
}

// await returns when the packet may be written, or the connection is closed; false when it is to be left out.
func (h *hook) await(cl *mochi.Client, w *wire, pk packets.Packet) bool {
	resent := pk.FixedHeader.Dup // only mochi's resend, before w.up, sets that
	if !resent {
		select {
		case <-w.up:
		case <-w.closed:
			return true // to fail
		}
	}
	w.room()
	if pk.FixedHeader.Qos == 0 || !h.fit(cl, w, pk) {
		return true
	}
	s, id := w.session.Load(), markOf(pk).id
	for {
		s.mu.Lock()
		was, ok := w.sent[pk.PacketID]
		sent := ok && was == id
		switch entry, ok := cl.State.Inflight.Get(pk.PacketID); {
		case w.isClosed():
			s.mu.Unlock()
			return true // to fail: the client has not got it
		case pk.Ignore:
			s.mu.Unlock()
			return true // ours: it has its place
		case resent && sent:
			s.mu.Unlock()
			return true
		case resent:
			// It came into the session after resume looked: it must not overtake what is parked.
			if ok && markOf(entry) == markOf(pk) && !entry.FixedHeader.Dup {
				s.park(cl, entry)
			}
			w.swallow.Store(true)
			s.mu.Unlock()
			return true
		case sent || !ok || markOf(entry) != markOf(pk):
			s.mu.Unlock()
			return false // the resend took it along, or it was moved, or has expired
		case len(s.parked) == 0 && len(w.sent) < w.limit:
			w.sent[pk.PacketID] = id
			s.sending(cl, entry)
			s.mu.Unlock()
			return true
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-w.closed:
			return true // to fail
		}
	}
}

// fit drops a delivery that is larger than the client takes, as the standard asks for: it then counts as sent.
func (h *hook) fit(cl *mochi.Client, w *wire, pk packets.Packet) bool {
	if w.maxPacket == 0 {
		return true
	}
	var b bytes.Buffer
	pk.ProtocolVersion = 5
	pk.Mods.AllowResponseInfo = true
	if err := pk.PublishEncode(&b); err == nil && b.Len() <= w.maxPacket {
		return true
	}
	cl.State.Inflight.Delete(pk.PacketID)
	h.dropped(cl, markOf(pk), "packet_too_large", mqtt.CountDroppedSize)
	return false
}

// OnQosDropped runs where a delivery leaves the session without an ack: expired, or ended with its session.
func (h *hook) OnQosDropped(cl *mochi.Client, pk packets.Packet) {
	w := wireOf(cl)
	if w == nil || w.session.Load() == nil {
		return
	}
	if cl.IsTakenOver() {
		return // the next connection has it
	}
	// Its place stays taken, since the client may still acknowledge what it has got.
	if id := markOf(pk).id; !id.IsZero() {
		w.session.Load().forget(id)
	}
}

// OnPublishDropped runs in the publisher's goroutine: the write queue of a client was full.
func (h *hook) OnPublishDropped(cl *mochi.Client, pk packets.Packet) {
	if pk.FixedHeader.Qos > 0 {
		h.dropped(cl, markOf(pk), "queue_full", mqtt.CountDroppedQueue)
	}
}

// dropped tells the log of a delivery that the broker gave up; the stored copy waits for the next subscribe.
func (h *hook) dropped(cl *mochi.Client, m mark, why string, c mqtt.Counter) {
	h.cfg.Count(c)
	w := wireOf(cl)
	if m.id.IsZero() || w == nil || w.session.Load() == nil || w.own {
		return
	}
	s := w.session.Load()
	s.forget(m.id)
	s.mu.Lock()
	s.overflowed = true
	s.mu.Unlock()
	_ = h.note(event.Dropped{Head: h.head(), Topic: m.topic, Client: event.ClientID(cl.ID), Message: m.id, Reason: why})
}
