package embedded

import (
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
)

// session is what the broker knows of a session beyond what mochi keeps. It outlives connections as the session does.
type session struct {
	mu sync.Mutex
	// inflight maps the message ids of the deliveries on their way to their packet ids; watched are those that the replayer
	// asked for while a live delivery was on its way.
	inflight map[event.ID]uint16
	watched  map[event.ID]struct{}
	// received are the packet ids of QoS 2 publishes that the broker has, until their PUBREL.
	received map[uint16]struct{}
	// recent are messages acknowledged shortly after the last SUBSCRIBE, until then: a replay may still ask for them.
	recent map[event.ID]struct{}
	until  time.Time
	// acking is the message whose ack is in hand: a connection that takes over at this moment may have got a copy of it.
	acking event.ID
	// parked are deliveries of a resumed session that wait for acks, since they exceed the client's receive maximum, or for
	// the resend to be over. One without a packet id is in no in-flight map; one with an id is, unless it is done with.
	parked []packets.Packet
	// early are deliveries that the connection resumed with before their publishers had told of them.
	early map[event.ID]struct{}
	// changed is closed and renewed when room was made.
	changed chan struct{}
	// overflowed says that a delivery was dropped since the last new subscription.
	overflowed bool
}

const (
	recentFor  = 5 * time.Second
	recentMost = 1024
)

func newSession() *session {
	return &session{
		inflight: map[event.ID]uint16{}, watched: map[event.ID]struct{}{}, received: map[uint16]struct{}{},
		early:   map[event.ID]struct{}{},
		changed: make(chan struct{}),
	}
}

// sending notes in mochi's map, which the next connection inherits, that the client may have got the delivery under this
// packet id. The caller holds mu.
func (s *session) sending(cl *mochi.Client, pk packets.Packet) {
	if cl.IsTakenOver() {
		return // the wire is closed: the client does not get it from here, and its id may be another's by now
	}
	pk.FixedHeader.Dup = true
	cl.State.Inflight.Set(pk)
}

// room wakes whoever waits for room. The caller holds mu.
func (s *session) room() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// acked notes an ack and tells whether the replayer waits for it. now is the broker's clock. The caller holds mu.
func (s *session) acked(id event.ID, now time.Time) (watched bool) {
	s.acking = id
	_, watched = s.watched[id]
	delete(s.watched, id)
	delete(s.inflight, id)
	if now.Before(s.until) && len(s.recent) < recentMost {
		s.recent[id] = struct{}{}
	}
	return watched
}

// forget drops a delivery that will not be acknowledged.
func (s *session) forget(id event.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watched, id)
	delete(s.inflight, id)
	s.room()
}

// subscribing begins the time in which a replay may ask for what was delivered live.
func (s *session) subscribing(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent, s.until = map[event.ID]struct{}{}, now.Add(recentFor)
}

// sessions are all sessions by client id.
type sessions struct {
	mu   sync.Mutex
	byID map[string]*session
	// busy holds the client ids that are between the choice of their session and their CONNACK.
	busy map[string]chan struct{}
	// young and old are the last connection times of the last two seconds.
	young, old map[string]time.Time
	turned     time.Time
}

func newSessions() *sessions {
	return &sessions{byID: map[string]*session{}, busy: map[string]chan struct{}{}, young: map[string]time.Time{}}
}

// lock lets one connection of a client id at a time choose its session: mochi leaves two that come at once both alive.
func (t *sessions) lock(id string) (unlock func()) {
	for {
		t.mu.Lock()
		c, ok := t.busy[id]
		if !ok {
			c = make(chan struct{})
			t.busy[id] = c
			t.mu.Unlock()
			return sync.OnceFunc(func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.busy, id)
				close(c)
			})
		}
		t.mu.Unlock()
		<-c // its holder has a connection with deadlines
	}
}

// take returns the session of a connection: the one before when it is resumed, else a new one.
func (t *sessions) take(id string, resumed bool) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.byID[id]
	if !ok || !resumed {
		s = newSession()
		t.byID[id] = s
	}
	return s
}

func (t *sessions) get(id string) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// drop forgets a session unless another has its place.
func (t *sessions) drop(id string, s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s == nil || t.byID[id] == s {
		delete(t.byID, id)
	}
}

// stamp is the time of a connection, in ms, later than that of the client's connection before: the row of a client that
// reconnects within one ms would otherwise keep the state of the disconnect.
func (t *sessions) stamp(id string, now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.turned) > time.Second || now.Before(t.turned) {
		t.old, t.young, t.turned = t.young, map[string]time.Time{}, now
	}
	at := now.Truncate(time.Millisecond)
	for _, seen := range []map[string]time.Time{t.old, t.young} {
		if last, ok := seen[id]; ok && !at.After(last) && last.Sub(at) < time.Second {
			at = last.Add(time.Millisecond)
		}
	}
	t.young[id] = at
	return at
}
