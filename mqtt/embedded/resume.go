package embedded

import (
	"cmp"
	"slices"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// resume runs between the choice of the session and the CONNACK. mochi will send again what is in flight, in an order by
// seconds and without regard to the receive maximum: so the order is written into what it sorts by, and what is too much is
// parked. Where the connection is taken over meanwhile, the next one does all that.
func (h *hook) resume(cl *mochi.Client, w *wire, present bool) {
	s := h.sessions.take(cl.ID, present)
	w.session.Store(s)
	h.connected(cl, w, present)
	w.unlock()
	h.wills.cancel(cl.ID)
	s.inherit(cl)
	out := h.copied(cl, w)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !cl.IsTakenOver() {
		s.arrange(cl, w, out)
	}
}

// copied is what is in flight for a new connection and not too large for it.
func (h *hook) copied(cl *mochi.Client, w *wire) (out []packets.Packet) {
	for _, pk := range cl.State.Inflight.GetAll(false) {
		if outbound(pk) && (pk.FixedHeader.Type == packets.Pubrel || h.fit(cl, w, pk)) {
			out = append(out, pk)
		}
	}
	return out
}

// arrange puts into order what a session resumes with, and parks what is too much. The connection may be taken over at any
// moment of it: so a delivery that was parked since out was read stays parked, since back in the in-flight map it could be
// too late for the copy of the next connection. The caller holds mu.
func (s *session) arrange(cl *mochi.Client, w *wire, out []packets.Packet) {
	out = slices.DeleteFunc(out, func(pk packets.Packet) bool {
		_, ok := cl.State.Inflight.Get(pk.PacketID)
		return !ok
	})
	out = append(out, s.orphans(out)...)
	slices.SortStableFunc(out, inOrder)
	s.parked = nil
	clear(s.early)
	waiting := false
	for i, pk := range out {
		if pk.PacketID != 0 && cl.IsTakenOver() {
			continue // it is in the copy; here mochi has cleared the map, and may be giving its id to another
		}
		id := markOf(pk).id
		if !id.IsZero() && !pk.FixedHeader.Dup && pk.PacketID != 0 && s.inflight[id] != pk.PacketID {
			s.early[id] = struct{}{}
		}
		if pk.FixedHeader.Type == packets.Publish && (waiting || pk.PacketID == 0 || len(w.sent) >= w.limit) {
			waiting = true
			s.park(cl, pk)
			continue
		}
		if !id.IsZero() {
			s.inflight[id] = pk.PacketID
		}
		pk.Created, pk.FixedHeader.Dup = int64(i), true
		cl.State.Inflight.Set(pk)
		w.sent[pk.PacketID] = id
	}
}

// inherit mends the copy of the in-flight map that mochi made of the connection before, where that had a packet in hand.
func (s *session) inherit(cl *mochi.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.IsTakenOver() {
		return
	}
	for _, pk := range cl.State.Inflight.GetAll(false) {
		switch {
		case !outbound(pk):
			cl.State.Inflight.Delete(pk.PacketID) // of a packet in hand
		case s.acking.IsZero() || markOf(pk).id != s.acking:
		case pk.FixedHeader.Qos == 1:
			cl.State.Inflight.Delete(pk.PacketID)
		default: // the PUBREC was taken, the PUBREL is to come
			cl.State.Inflight.Set(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: pk.PacketID, Created: pk.Created,
			})
		}
	}
	if !cl.IsTakenOver() { // else that may have been too late for the copy
		s.acking = event.ID{}
	}
}

// orphans are the parked deliveries that mochi's copy lacks, since the connection before had not put them back into its
// in-flight map when it was taken over. The caller holds mu.
func (s *session) orphans(copied []packets.Packet) []packets.Packet {
	has := map[event.ID]struct{}{}
	for _, pk := range copied {
		if id := markOf(pk).id; !id.IsZero() {
			has[id] = struct{}{}
		}
	}
	now := time.Now().Unix() // mochi's clock
	return slices.DeleteFunc(s.parked, func(pk packets.Packet) bool {
		id := markOf(pk).id
		_, ok := has[id]
		expired := pk.ProtocolVersion == 5 && pk.Expiry > 0 && pk.Expiry < now
		if expired {
			delete(s.watched, id)
			delete(s.inflight, id)
		}
		return ok || expired || pk.PacketID != 0
	})
}

// inOrder sorts what a session resumes with: PUBRELs, then what the client may have got before, then what is new to it.
func inOrder(a, b packets.Packet) int {
	was := func(pk packets.Packet) int {
		if pk.FixedHeader.Dup {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(b.FixedHeader.Type, a.FixedHeader.Type), was(a)-was(b),
		markOf(a).id.Compare(markOf(b).id), cmp.Compare(a.PacketID, b.PacketID),
	)
}

// park takes a delivery out of flight until there is room for it. One that the client may have got keeps its packet id: a
// client that has got it at QoS 2 would else take it for another message, and another message for it. The caller holds the
// session's mutex.
func (s *session) park(cl *mochi.Client, pk packets.Packet) {
	if !pk.FixedHeader.Dup {
		cl.State.Inflight.Delete(pk.PacketID)
		pk.PacketID = 0
	}
	s.parked = append(s.parked, pk)
}

// unpark gives what was parked packet ids that nobody has taken meanwhile: to this client they are new. Where the connection
// was taken over, the next one does that.
func (b *Broker) unpark(cl *mochi.Client, w *wire) {
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.IsTakenOver() {
		return
	}
	w.unparked = true
	slices.SortStableFunc(s.parked, inOrder)
	for i := range s.parked {
		if s.parked[i].FixedHeader.Dup {
			continue
		}
		id, err := cl.NextPacketID()
		if err != nil {
			s.parked = s.parked[:i]
			b.cfg.Count(mqtt.CountDroppedInflight)
			s.overflowed = true
			break
		}
		s.enter(cl, &s.parked[i], uint16(id)) //nolint:gosec // up to 65,535
	}
}

// enter puts a parked delivery into flight, unless that is too late for the copy of the next connection. The caller holds mu.
func (s *session) enter(cl *mochi.Client, pk *packets.Packet, id uint16) {
	pk.PacketID = id
	cl.State.Inflight.Set(*pk)
	if cl.IsTakenOver() {
		pk.PacketID = 0
		return
	}
	s.inflight[markOf(*pk).id] = id
}

// leave ends the parking of a connection that has ended: what waits is in mochi's map, and is found there.
func (b *Broker) leave(cl *mochi.Client, w *wire) {
	s := w.session.Load()
	s.mu.Lock()
	unparked := w.unparked
	s.mu.Unlock()
	if !unparked {
		b.unpark(cl, w)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !cl.IsTakenOver() {
		s.parked = nil
	}
}

// pump sends what is parked as far as there is room. A delivery stays parked until it is written, so that no live one, which
// waits for that, can overtake it.
func (h *hook) pump(cl *mochi.Client, w *wire) {
	w.pumping.Lock()
	defer w.pumping.Unlock()
	s := w.session.Load()
	for {
		s.mu.Lock()
		if !w.unparked || len(s.parked) == 0 || len(w.sent) >= w.limit || w.isClosed() {
			s.mu.Unlock()
			return
		}
		pk := s.parked[0]
		entry, ok := cl.State.Inflight.Get(pk.PacketID)
		alive := ok && markOf(entry) == markOf(pk) // it may have expired
		if alive {
			w.sent[pk.PacketID] = markOf(pk).id
			s.sending(cl, entry)
		}
		s.mu.Unlock()
		var err error
		if alive {
			pk.Ignore = true // see await
			err = cl.WritePacket(pk)
		}
		s.mu.Lock()
		if err != nil {
			delete(w.sent, pk.PacketID) // too large for the client, which await has told of
		}
		if !cl.IsTakenOver() && len(s.parked) > 0 { // else they are in the hands of the next connection
			s.parked = s.parked[1:]
			if len(s.parked) == 0 {
				s.room()
			}
		}
		s.mu.Unlock()
	}
}

// OnQosPublish runs in the publisher's goroutine when a delivery has entered the session, online or not.
func (h *hook) OnQosPublish(cl *mochi.Client, pk packets.Packet, _ int64, _ int) {
	w, m := wireOf(cl), markOf(pk)
	if w == nil || m.id.IsZero() {
		return
	}
	s := w.session.Load()
	switch {
	case cl.IsTakenOver() && pk.FixedHeader.Dup:
		return // of mochi's resend: its publisher moves it
	case cl.IsTakenOver():
		if s == nil { // it ended before its CONNACK
			s = h.sessions.get(cl.ID)
		}
		if s != nil {
			h.move(s, cl, pk)
		}
		return
	case s == nil:
		return // resume finds it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	entry, ok := cl.State.Inflight.Get(pk.PacketID)
	if !ok || markOf(entry).id != m.id {
		return // parked in this very moment
	}
	s.inflight[m.id] = pk.PacketID
	switch {
	case w.unparked || entry.FixedHeader.Dup:
	case len(s.parked)+cl.State.Inflight.Len() > int(h.cfg.MaxInflight):
		cl.State.Inflight.Delete(pk.PacketID)
		h.cfg.Count(mqtt.CountDroppedInflight)
		s.overflowed = true
	default:
		s.park(cl, entry) // it must not overtake the resend
	}
}

// move puts a delivery that came into a connection's in-flight map when it had been taken over already, and perhaps copied,
// into the connection that has the session now. The publisher waits, so that its next message does not come before.
func (h *hook) move(s *session, from *mochi.Client, pk packets.Packet) {
	for range 5000 { // mochi shows the new connection some µs after it marks the old one
		cl, ok := h.server.Clients.Get(from.ID)
		if !ok {
			return
		}
		w := wireOf(cl)
		if cl == from || w.session.Load() == nil && !w.isClosed() {
			<-time.After(time.Millisecond)
			continue
		}
		if now := w.session.Load(); now != nil && now != s {
			return // a clean start: the session that it was for is over
		}
		if h.insert(s, cl, w, pk) {
			h.moving.Go(func() { h.pump(cl, w) }) // ends with the connection at the latest
		}
		if !cl.IsTakenOver() {
			return
		}
		from = cl
	}
	h.dropped(from, markOf(pk), "taken_over", mqtt.CountDroppedQueue)
}

// insert puts a delivery behind what is parked, unless the session has it. It tells whether it can be sent.
func (h *hook) insert(s *session, cl *mochi.Client, w *wire, pk packets.Packet) bool {
	id := markOf(pk).id
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.IsTakenOver() {
		return false // the next connection may have looked at what is parked already
	}
	if _, ok := s.early[id]; ok {
		delete(s.early, id)
		return false // it may even have its ack
	}
	entry, ok := cl.State.Inflight.Get(s.inflight[id])
	if ok && markOf(entry).id == id || slices.ContainsFunc(s.parked, func(p packets.Packet) bool { return markOf(p).id == id }) {
		return false
	}
	if w.session.Load() == nil && slices.ContainsFunc(cl.State.Inflight.GetAll(false), func(p packets.Packet) bool { return markOf(p).id == id }) {
		return false // copied, and resume did not note it
	}
	pid, err := cl.NextPacketID()
	if err != nil {
		h.cfg.Count(mqtt.CountDroppedInflight)
		s.overflowed = true
		return false
	}
	if w.session.Load() == nil { // it ended before its CONNACK: the next connection finds it there
		pk.PacketID = uint16(pid) //nolint:gosec // up to 65,535
		cl.State.Inflight.Set(pk)
		return false
	}
	pk.PacketID = 0
	s.parked = append(s.parked, pk)
	if !w.unparked {
		return false // unpark does the rest
	}
	s.enter(cl, &s.parked[len(s.parked)-1], uint16(pid)) //nolint:gosec // up to 65,535
	return true
}
