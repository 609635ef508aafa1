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

// pump sends what is parked as far as there is room.
func (h *hook) pump(cl *mochi.Client, w *wire) {
	s := w.session.Load()
	for {
		s.mu.Lock()
		if len(w.parked) == 0 || len(w.sent) >= w.limit {
			s.mu.Unlock()
			return
		}
		pk := w.parked[0]
		w.parked = w.parked[1:]
		_, alive := cl.State.Inflight.Get(pk.PacketID) // it may have expired
		if alive {
			w.sent[pk.PacketID] = markOf(pk).id
		}
		if len(w.parked) == 0 {
			s.room()
		}
		s.mu.Unlock()
		if alive {
			pk.Ignore = true // see await
			_ = cl.WritePacket(pk)
		}
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
		h.moving.Go(func() { h.move(s, cl, pk) }) // ends when the next connection is up, or closed
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
// into the connection that has the session now.
func (h *hook) move(s *session, from *mochi.Client, pk packets.Packet) {
	for range 1000 { // mochi shows the new connection some µs after it marks the old one
		cl, ok := h.server.Clients.Get(from.ID)
		if !ok {
			return
		}
		if cl == from {
			<-time.After(time.Millisecond)
			continue
		}
		w := wireOf(cl)
		select {
		case <-w.up:
		case <-w.closed:
		}
		if w.session.Load() != s {
			return // a clean start: the session that it was for is over
		}
		m := markOf(pk)
		s.mu.Lock()
		_, has := s.inflight[m.id]
		if !has {
			id, err := cl.NextPacketID()
			if err != nil {
				s.mu.Unlock()
				h.dropped(cl, m, "queue_full", mqtt.CountDroppedInflight)
				return
			}
			pk.PacketID = uint16(id) //nolint:gosec // up to 65,535
			s.inflight[m.id] = pk.PacketID
			cl.State.Inflight.Set(pk)
		}
		s.mu.Unlock()
		if !has && !cl.Closed() {
			_ = cl.WritePacket(pk)
		}
		return
	}
}
