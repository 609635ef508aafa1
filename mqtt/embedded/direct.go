package embedded

import (
	"context"
	"errors"
	"fmt"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// Publish puts a message into the session of one client; nobody else sees it. It returns when the message is in flight. A
// message that is on its way to the client already, as a live delivery, is not sent another time: its ack will say that it
// was asked for. At QoS 0 it returns when the message is written to the connection.
func (b *Broker) Publish(ctx context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	if m.QoS > 2 {
		return pipeline.Outcome{}, fault.Poison(fmt.Errorf("deliver %s: qos %d", m.ID, m.QoS))
	}
	nobody := pipeline.Outcome{NoSubscriber: true}
	if !b.direct.enter() {
		return nobody, nil
	}
	defer b.direct.leave()
	cl, ok := b.server.Clients.Get(string(to))
	w := (*wire)(nil)
	if ok {
		w = wireOf(cl)
	}
	if w == nil || cl.Closed() || !b.running.Load() {
		return nobody, nil
	}
	select {
	case <-w.up:
	case <-w.closed:
		return nobody, nil
	case <-ctx.Done():
		return pipeline.Outcome{}, context.Cause(ctx)
	}
	pk, err := b.packet(to, m)
	if err != nil {
		return pipeline.Outcome{}, err
	}
	if m.QoS == 0 {
		return b.writeOnce(cl, w, pk, m.ID)
	}
	for {
		has, changed := b.enter(cl, w, &pk, m)
		switch {
		case has == nowhere:
			return nobody, nil
		case has == onItsWay:
			return pipeline.Outcome{}, nil
		case has == acknowledged:
			return pipeline.Outcome{}, b.note(event.Acked{
				Head: b.head(), Topic: m.Topic, Client: to, Message: m.ID, Replayed: true, Watched: true,
			})
		case changed == nil:
			return b.write(cl, w, pk, m.ID)
		}
		select {
		case <-changed:
		case <-w.closed:
			return nobody, nil
		case <-ctx.Done():
			return pipeline.Outcome{}, context.Cause(ctx)
		}
	}
}

func (b *Broker) packet(to event.ClientID, m pipeline.Outgo) (packets.Packet, error) {
	now := b.cfg.Minter.Now()
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Publish, Qos: byte(m.QoS), Retain: m.Retained},
		ProtocolVersion: 5, // of the message: mochi lets only such expire
		TopicName:       m.Topic.String(),
		Payload:         m.Payload,
		Created:         now.Unix(),
		Properties: packets.Properties{
			ContentType: m.Properties.ContentType, ResponseTopic: m.Properties.ResponseTopic,
			CorrelationData: m.Properties.CorrelationData,
			PayloadFormat:   m.Properties.PayloadFormat, PayloadFormatFlag: m.Properties.PayloadFormat > 0,
		},
	}
	if !m.Expires.IsZero() {
		left := m.Expires.Sub(now)
		if left <= 0 {
			return pk, mqtt.ErrExpired
		}
		pk.Expiry = time.Now().Add(left + time.Second - 1).Unix() // by mochi's clock, rounded up
	}
	for _, p := range b.cfg.Secret.Properties(to, pk.TopicName, m) {
		pk.Properties.User = append(pk.Properties.User, packets.UserProperty{Key: p.Key, Val: p.Value})
	}
	setMark(&pk, mark{id: m.ID, replayed: true, topic: m.Topic})
	return pk, nil
}

// has is what a client has of a message that is to be delivered to it.
type has byte

const (
	nothing has = iota
	nowhere     // there is no such client any more
	onItsWay
	acknowledged
)

// enter takes a place and a packet id for a message of which the client has nothing. A channel means that there is no room,
// and when to look again.
func (b *Broker) enter(cl *mochi.Client, w *wire, pk *packets.Packet, m pipeline.Outgo) (has, <-chan struct{}) {
	id := m.ID
	s := w.session.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.IsTakenOver() || w.isClosed() {
		return nowhere, nil
	}
	if pid, ok := s.inflight[id]; ok {
		if entry, ok := cl.State.Inflight.Get(pid); ok && markOf(entry).id == id {
			s.watched[id] = struct{}{}
			return onItsWay, nil
		}
		delete(s.inflight, id)
	}
	if _, ok := s.recent[id]; ok && !m.Retained { // a subscriber gets what is retained although it had the message live
		delete(s.recent, id)
		return acknowledged, nil
	}
	if len(w.sent) >= w.limit || len(s.parked) > 0 || cl.State.Inflight.Len() >= int(b.cfg.MaxInflight) {
		return nothing, s.changed
	}
	pid, err := cl.NextPacketID()
	if err != nil {
		return nothing, s.changed // all ids are in use: one gets free with the next ack
	}
	pk.PacketID = uint16(pid) //nolint:gosec // up to 65,535
	w.sent[pk.PacketID] = id
	s.inflight[id] = pk.PacketID
	s.sending(cl, *pk)
	if cl.IsTakenOver() {
		// Perhaps the next connection has a copy. If so it finds the id, if not it finds that the id leads nowhere.
		return nowhere, nil
	}
	return nothing, nil
}

func (b *Broker) write(cl *mochi.Client, w *wire, pk packets.Packet, id event.ID) (pipeline.Outcome, error) {
	pk.Ignore = true // see await
	err := cl.WritePacket(pk)
	if err == nil {
		return pipeline.Outcome{}, nil
	}
	s := w.session.Load()
	s.mu.Lock()
	if !cl.IsTakenOver() { // else the next connection has it
		cl.State.Inflight.Delete(pk.PacketID)
		delete(w.sent, pk.PacketID)
		delete(s.inflight, id)
		s.room()
	}
	s.mu.Unlock()
	return notWritten(cl, w, id, err)
}

// writeOnce writes a message at QoS 0: it has no place in the session, and nothing answers it.
func (b *Broker) writeOnce(cl *mochi.Client, w *wire, pk packets.Packet, id event.ID) (pipeline.Outcome, error) {
	if err := cl.WritePacket(pk); err != nil {
		return notWritten(cl, w, id, err)
	}
	return pipeline.Outcome{}, nil
}

func notWritten(cl *mochi.Client, w *wire, id event.ID, err error) (pipeline.Outcome, error) {
	if errors.Is(err, packets.ErrPacketTooLarge) {
		return pipeline.Outcome{}, fault.Poison(fmt.Errorf("deliver %s to %q: larger than the %d bytes that the client takes", id, cl.ID, w.maxPacket))
	}
	return pipeline.Outcome{NoSubscriber: true}, nil // the connection is gone
}
