package embedded

import (
	"cmp"
	"slices"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/mqtt"
)

// resume runs between the choice of the session and the CONNACK. mochi will send again what is in flight, in an order by
// seconds and without regard to the receive maximum: so the order is written into what it sorts by, and what is too much is
// parked.
func (h *hook) resume(cl *mochi.Client, w *wire, present bool) {
	s := h.sessions.take(cl.ID, present)
	w.session.Store(s)
	h.connected(cl, w, present)
	w.unlock()
	h.wills.cancel(cl.ID)
	var out []packets.Packet
	for _, pk := range cl.State.Inflight.GetAll(false) {
		switch {
		case !outbound(pk):
		case pk.FixedHeader.Type == packets.Publish && !h.fit(cl, w, pk):
		default:
			out = append(out, pk)
		}
	}
	slices.SortFunc(out, func(a, b packets.Packet) int {
		return cmp.Or(
			cmp.Compare(b.FixedHeader.Type, a.FixedHeader.Type), // PUBREL first
			markOf(a).id.Compare(markOf(b).id), cmp.Compare(a.PacketID, b.PacketID),
		)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, pk := range out {
		if id := markOf(pk).id; !id.IsZero() {
			s.inflight[id] = pk.PacketID
		}
		if len(w.sent) >= w.limit && pk.FixedHeader.Type == packets.Publish {
			w.park(cl, pk)
			continue
		}
		pk.Created = int64(i)
		cl.State.Inflight.Set(pk)
		w.sent[pk.PacketID] = markOf(pk).id
	}
}

// unpark gives what was parked packet ids that nobody has taken meanwhile: to this client they are new.
func (b *Broker) unpark(cl *mochi.Client, w *wire) {
	s := w.session.Load()
	s.mu.Lock()
	w.unparked = true
	slices.SortStableFunc(w.parked, func(a, b packets.Packet) int { return markOf(a).id.Compare(markOf(b).id) })
	for i := range w.parked {
		id, err := cl.NextPacketID()
		if err != nil {
			w.parked = w.parked[:i]
			b.cfg.Count(mqtt.CountDroppedInflight)
			s.overflowed = true
			break
		}
		w.parked[i].PacketID = uint16(id) //nolint:gosec // up to 65,535
		cl.State.Inflight.Set(w.parked[i])
		s.inflight[markOf(w.parked[i]).id] = uint16(id) //nolint:gosec // up to 65,535
	}
	s.mu.Unlock()
}

// pump sends what is parked as far as there is room. A delivery stays parked until it is written, so that no live one, which
// waits for that, can overtake it.
func (h *hook) pump(cl *mochi.Client, w *wire) {
	w.pumping.Lock()
	defer w.pumping.Unlock()
	s := w.session.Load()
	for {
		s.mu.Lock()
		if !w.unparked || len(w.parked) == 0 || len(w.sent) >= w.limit {
			s.mu.Unlock()
			return
		}
		pk := w.parked[0]
		_, alive := cl.State.Inflight.Get(pk.PacketID) // it may have expired
		if alive {
			w.sent[pk.PacketID] = markOf(pk).id
		}
		s.mu.Unlock()
		if alive {
			pk.Ignore = true // see await
			_ = cl.WritePacket(pk)
		}
		s.mu.Lock()
		w.parked = w.parked[1:]
		if len(w.parked) == 0 {
			s.room()
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
	if s == nil {
		return // resume finds it
	}
	if cl.IsTakenOver() {
		h.move(s, cl, pk)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if entry, ok := cl.State.Inflight.Get(pk.PacketID); !ok || markOf(entry).id != m.id {
		return // parked in this very moment
	}
	s.inflight[m.id] = pk.PacketID
	if _, sent := w.sent[pk.PacketID]; !sent && !w.unparked {
		w.park(cl, pk) // it must not overtake the resend
	}
}

// park takes a delivery out of flight until there is room for it. The caller holds the session's mutex.
func (w *wire) park(cl *mochi.Client, pk packets.Packet) {
	cl.State.Inflight.Delete(pk.PacketID)
	w.parked = append(w.parked, pk)
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
	entry, ok := cl.State.Inflight.Get(s.inflight[id])
	if ok && markOf(entry).id == id || slices.ContainsFunc(w.parked, func(p packets.Packet) bool { return markOf(p).id == id }) {
		return false
	}
	pid, err := cl.NextPacketID()
	if err != nil {
		h.cfg.Count(mqtt.CountDroppedInflight)
		s.overflowed = true
		return false
	}
	pk.PacketID = uint16(pid)    //nolint:gosec // up to 65,535
	if w.session.Load() == nil { // it ended before its CONNACK: the next connection finds it there
		cl.State.Inflight.Set(pk)
		return false
	}
	w.parked = append(w.parked, pk)
	if !w.unparked {
		return false // unpark does the rest
	}
	cl.State.Inflight.Set(pk)
	s.inflight[id] = pk.PacketID
	return true
}
