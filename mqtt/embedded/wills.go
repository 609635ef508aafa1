package embedded

import (
	"maps"
	"slices"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// willOf is the will of a CONNECT as a publish, with the properties that mochi's own form of it lacks.
func willOf(cl *mochi.Client, pk packets.Packet) *packets.Packet {
	out := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: pk.Connect.WillQos, Retain: pk.Connect.WillRetain},
		TopicName:   pk.Connect.WillTopic,
		Payload:     pk.Connect.WillPayload,
		Properties:  pk.Connect.WillProperties.Copy(false),
		Origin:      cl.ID,
		PacketID:    uint16(min(pk.Connect.WillQos, 1)), // needed for the packet to be valid, never sent
	}
	out.Properties.WillDelayInterval = 0
	return &out
}

// OnWill takes a will out of mochi's hands, which would route it without a hook that could log it: mochi gets one without a
// topic, which it routes to nobody.
func (h *hook) OnWill(cl *mochi.Client, _ mochi.Will) (mochi.Will, error) {
	w := wireOf(cl)
	if w.will == nil {
		return mochi.Will{}, nil
	}
	will, delay := *w.will, w.willDelay
	w.will = nil
	if cl.Properties.ProtocolVersion == 5 {
		delay = min(delay, time.Duration(cl.Properties.Props.SessionExpiryInterval)*time.Second)
	}
	switch {
	case delay == 0 || h.stopping.Load():
		h.publishWill(cl.ID, will)
	case !cl.IsTakenOver():
		h.wills.later(cl.ID, will, delay)
	}
	return mochi.Will{}, nil
}

// publishWill publishes as the client that is gone: through every hook of a publish, without an answer to anybody.
func (b *Broker) publishWill(client string, will packets.Packet) {
	ghost := b.server.NewClient(nil, listenerID, client, true)
	ghost.Properties.ProtocolVersion = 5
	if err := b.server.InjectPacket(ghost, will); err != nil {
		b.log.Warn("will was not published", "client", client, "err", err)
	}
	ghost.Stop(nil)
}

// wills are those that wait for their delay.
type wills struct {
	broker *Broker
	mu     sync.Mutex
	timers map[string]*lateWill
	wg     sync.WaitGroup
}

type lateWill struct {
	*time.Timer
	packet packets.Packet
}

func (v *wills) later(client string, will packets.Packet, delay time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.timers == nil {
		v.timers = map[string]*lateWill{}
	}
	l := &lateWill{packet: will}
	v.wg.Add(1)
	l.Timer = time.AfterFunc(delay, func() {
		defer v.wg.Done()
		v.mu.Lock()
		mine := v.timers[client] == l
		if mine {
			delete(v.timers, client)
		}
		v.mu.Unlock()
		if mine {
			v.broker.publishWill(client, will)
		}
	})
	v.timers[client] = l
}

// cancel forgets the will of a client that came back in time.
func (v *wills) cancel(client string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if l, ok := v.timers[client]; ok {
		delete(v.timers, client)
		if l.Stop() {
			v.wg.Done()
		}
	}
}

// flush publishes what still waits: the sessions end with the broker.
func (v *wills) flush() {
	v.mu.Lock()
	waiting := maps.Clone(v.timers)
	v.mu.Unlock()
	for _, client := range slices.Sorted(maps.Keys(waiting)) {
		if waiting[client].Stop() {
			v.mu.Lock()
			delete(v.timers, client)
			v.mu.Unlock()
			v.broker.publishWill(client, waiting[client].packet)
			v.wg.Done()
		}
	}
	v.wg.Wait()
}
