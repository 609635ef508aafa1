package embedded

import (
	"bytes"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// mochi keeps the packets in flight of both directions in one map by packet id. A client may use the same id in both at
// once, and most do. So before mochi handles a packet, the entry of the other direction is put aside, and put back after.

// outbound tells a delivery from the broker's half of an inbound publish.
func outbound(pk packets.Packet) bool {
	return pk.FixedHeader.Type == packets.Publish || pk.FixedHeader.Type == packets.Pubrel
}

// OnPacketRead sees each packet before mochi handles it: it makes the in-flight map right for it, and turns PUBACK and
// PUBREC into events while the map still holds what they acknowledge.
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
		if pk.FixedHeader.Qos > 0 && !w.prepare(cl, pk.PacketID, false) {
			return pk, packets.ErrRejectPacket
		}
	case packets.Pubrel, packets.Subscribe, packets.Unsubscribe:
		if !w.prepare(cl, pk.PacketID, false) {
			return pk, packets.ErrRejectPacket
		}
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		if !w.prepare(cl, pk.PacketID, true) {
			return pk, packets.ErrRejectPacket
		}
		if pk.FixedHeader.Type != packets.Pubcomp {
			h.acked(cl, w, pk)
		}
	}
	return pk, nil
}

// prepare leaves in mochi's map only what belongs to the direction of the packet in hand. It is false where the connection
// was taken over: mochi may be about to copy the map for the next one, and what it does with the packet would take deliveries
// out of it. The client sends such a packet again.
func (w *wire) prepare(cl *mochi.Client, id uint16, out bool) bool {
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.IsTakenOver() {
		return false
	}
	entry, ok := cl.State.Inflight.Get(id)
	switch {
	case ok && out && !outbound(entry):
		s.aside[id] = entry
		cl.State.Inflight.Delete(id)
	case ok && !out && outbound(entry):
		s.stash = &entry
		cl.State.Inflight.Delete(id)
	}
	if in, ok := s.aside[id]; ok && !out {
		delete(s.aside, id)
		cl.State.Inflight.Set(in)
	}
	return true
}

// reserve keeps the packet id of a publish from deliveries while the publish waits for the log: mochi's answer would take the
// place of a delivery that got the id meanwhile.
func (w *wire) reserve(cl *mochi.Client, id uint16) {
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case cl.IsTakenOver():
	case s.stash != nil:
		cl.State.Inflight.Set(*s.stash)
	default:
		if entry, ok := cl.State.Inflight.Get(id); ok && outbound(entry) {
			s.stash = &entry // it came after prepare
			return
		}
		cl.State.Inflight.Set(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Reserved}, PacketID: id})
	}
}

// acked makes the event of a PUBACK or of the first PUBREC. One with an error code counts as well: the client has the
// message and will not take it another time.
func (h *hook) acked(cl *mochi.Client, w *wire, pk packets.Packet) {
	s := w.session.Load()
	s.mu.Lock()
	entry, ok := cl.State.Inflight.Get(pk.PacketID)
	m := markOf(entry)
	if !ok || m.id.IsZero() || (pk.FixedHeader.Type == packets.Puback) != (entry.FixedHeader.Qos == 1) {
		s.mu.Unlock()
		return
	}
	head := h.head()
	watched := s.acked(m.id, head.At)
	s.mu.Unlock()
	if w.own {
		h.cfg.Count(mqtt.CountOwnEvent)
		return
	}
	_ = h.note(event.Acked{
		Head: head, Topic: m.topic, Client: event.ClientID(cl.ID), Message: m.id, Replayed: m.replayed || watched,
		Watched: m.replayed || watched,
	})
}

// OnPacketProcessed comes after mochi has handled a packet, whether with success or not.
func (h *hook) OnPacketProcessed(cl *mochi.Client, pk packets.Packet, _ error) {
	w := wireOf(cl)
	if w == nil {
		return // a will
	}
	switch pk.FixedHeader.Type {
	case packets.Publish, packets.Pubrel, packets.Subscribe, packets.Unsubscribe, packets.Puback, packets.Pubrec, packets.Pubcomp:
		h.restore(cl, w, pk.PacketID)
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if w.publishing {
			w.publishing = false
			h.busy.leave()
		}
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		w.settle(cl, pk.PacketID)
		h.pump(cl, w)
	}
}

func (h *hook) restore(cl *mochi.Client, w *wire, id uint16) {
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.IsTakenOver() {
		return // what is aside is the next connection's
	}
	entry, taken := cl.State.Inflight.Get(id)
	if stash := s.stash; stash != nil && stash.PacketID == id {
		switch {
		case taken && outbound(entry):
			// Another delivery got the id in the moment that it was free. The client's ack could mean either: neither is
			// believed, both stay stored.
			cl.State.Inflight.Delete(id)
			delete(s.inflight, markOf(entry).id)
			delete(s.inflight, markOf(*stash).id)
			s.stash = nil
			h.cfg.Count(mqtt.CountDroppedID)
			return
		case taken:
			s.aside[id] = entry
		}
		cl.State.Inflight.Set(*stash)
		if !cl.IsTakenOver() { // else it may have been too late for the copy
			s.stash = nil
		}
		return
	}
	if in, ok := s.aside[id]; ok && !taken {
		delete(s.aside, id)
		cl.State.Inflight.Set(in)
	}
}

// unstash ends the handling of an inbound packet that mochi gave up.
func (h *hook) unstash(cl *mochi.Client, w *wire) {
	s := w.session.Load()
	s.mu.Lock()
	stash := s.stash
	s.mu.Unlock()
	if stash != nil {
		h.restore(cl, w, stash.PacketID)
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
		switch entry, ok := s.delivery(cl, pk.PacketID); {
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
