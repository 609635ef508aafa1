package sim

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/restante/restante/event"
)

// broker is an MQTT broker of two nodes, with its clients. It hands its events to ingest in order, and again after an ingest has died
// before it acknowledged them. A message goes to the subscribers that are online, when it is durable (class S) or at once (class A).
type broker struct {
	w        *world
	mu       sync.Mutex
	sessions map[event.ClientID]*session
	boxes    []*box // of the ingests
	nodes    [2]node
	replayed int // replays that came back as publishes
}

// node is a part of the broker with a clock of its own.
type node struct {
	name   string
	number uint64
	lastID int64
}

type session struct {
	id        event.ClientID
	online    bool
	conn      int
	since     time.Time // by the node's clock
	subs      map[string]granted
	deliverys map[event.ID]int
	acksAt    time.Time // of the last pub/sub message: it acknowledges those in order
}

type granted struct {
	filter event.Filter
	qos    event.QoS
}

func newBroker(w *world) *broker {
	b := &broker{w: w, sessions: make(map[event.ClientID]*session), nodes: [2]node{{name: "node0", number: 9}, {name: "node1", number: 10}}}
	for range w.plan.ingests {
		b.boxes = append(b.boxes, &box{more: make(chan struct{})})
	}
	return b
}

func (b *broker) session(id event.ClientID) *session {
	s := b.sessions[id]
	if s == nil {
		s = &session{id: id, subs: make(map[string]granted), deliverys: make(map[event.ID]int)}
		b.sessions[id] = s
	}
	return s
}

func hashOf(s string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return int(h.Sum32())
}

func (b *broker) box(c event.ClientID) *box { return b.boxes[hashOf(string(c))%len(b.boxes)] }

// node is where a client is connected.
func (b *broker) node(c event.ClientID) *node { return &b.nodes[hashOf("n"+string(c))%len(b.nodes)] }

func (b *broker) head(c event.ClientID) event.Head {
	return event.Head{Source: "restante/sim", At: b.w.clock(b.node(c).name).Truncate(time.Millisecond)}
}

// mint makes a message id: a node's ids ascend, whatever its clock does.
func (b *broker) mint(n *node) event.ID {
	n.lastID = max(b.w.clock(n.name).UnixMicro(), n.lastID+1)
	return event.IDOf(n.lastID, n.number, 1)
}

// publish takes a message of a client. e says what it is; the broker adds what it gives it.
func (b *broker) publish(e event.Published) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.Head = b.head(e.Sender)
	e.ID = b.mint(b.node(e.Sender))
	if x := b.w.chance(fmt.Sprint("expiry", e.ID)); x < b.w.plan.expires && !isRetained(e.Topic) {
		e.Expiry = time.Second + time.Duration(x/b.w.plan.expires*15)*time.Second
	}
	b.w.hist.published(e)
	b.box(e.Sender).put(e)
	if b.w.plan.async {
		b.spread(e)
	}
}

// spread gives a message to the subscribers that are online.
func (b *broker) spread(e event.Published) {
	for _, c := range slices.Sorted(maps.Keys(b.sessions)) {
		s := b.sessions[c]
		qos, ok := s.wants(e.Topic)
		if !ok || !s.online {
			continue
		}
		if b.w.chance(fmt.Sprint("drop", c, e.ID)) < b.w.plan.drops {
			b.w.hist.drops(c, e.ID)
			b.box(c).put(event.Dropped{Head: b.head(c), Topic: e.Topic, Client: c, Message: e.ID, Reason: "queue_full"})
			continue
		}
		b.deliver(s, handing{id: e.ID, topic: e.Topic, qos: min(qos, e.QoS)})
	}
}

func (b *broker) connect(c event.ClientID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.session(c); !s.online {
		b.box(c).put(b.begin(s))
	}
}

// begin begins a connection, with a new session.
func (b *broker) begin(s *session) event.Connected {
	head := b.head(s.id)
	s.online, s.since, s.acksAt = true, head.At, time.Time{}
	s.conn++
	b.w.hist.note("%s connects (%d)", s.id, s.conn)
	conn := s.conn
	for i, f := range b.w.plan.also[s.id] {
		d := time.Duration(b.w.chance(fmt.Sprint("also", s.id, conn, f)) * float64(200*time.Millisecond))
		b.w.later(d+time.Duration(i), func() {
			if s.conn == conn {
				b.subscribe(s.id, f, 1)
			}
		})
	}
	return event.Connected{Head: head, Client: s.id, ConnectedAt: s.since, CleanStart: event.Yes, SessionPresent: event.No, ExpiryInterval: -1, Node: b.node(s.id).name}
}

func (b *broker) disconnect(c event.ClientID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.session(c); s.online {
		b.box(c).put(b.end(s, "normal"))
	}
}

// end ends a connection, and its session.
func (b *broker) end(s *session, reason string) event.Disconnected {
	s.online = false
	b.w.hist.note("%s disconnects (%d): %s", s.id, s.conn, reason)
	head := b.head(s.id)
	for _, f := range slices.Sorted(maps.Keys(s.subs)) {
		b.w.hist.unsubscribed(s.id, f, head.At, false)
	}
	clear(s.subs)
	e := event.Disconnected{Head: head, Client: s.id, Reason: reason, DisconnectedAt: head.At}
	if b.w.plan.connectedAt {
		e.ConnectedAt = s.since
	}
	return e
}

// takeOver is a second connection of a client that is online. Which of the two events comes first is the broker's affair.
func (b *broker) takeOver(c event.ClientID, oldFirst bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session(c)
	if !s.online {
		return
	}
	old := b.end(s, "takenover")
	up := b.begin(s)
	if oldFirst {
		b.box(c).put(old)
		b.box(c).put(up)
		return
	}
	b.box(c).put(up)
	b.box(c).put(old)
}

func (b *broker) subscribe(c event.ClientID, filter string, qos event.QoS) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session(c)
	if !s.online {
		return
	}
	f := mustFilter(filter)
	s.subs[filter] = granted{f, qos}
	head := b.head(c)
	b.w.hist.subscribed(c, s.conn, f, qos, head.At)
	b.box(c).put(event.Subscribed{Head: head, Client: c, Filter: f, QoS: qos, New: event.Unknown})
}

func (b *broker) unsubscribe(c event.ClientID, filter string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session(c)
	if _, ok := s.subs[filter]; !ok {
		return
	}
	delete(s.subs, filter)
	b.w.hist.note("%s unsubscribes %s", c, filter)
	head := b.head(c)
	b.w.hist.unsubscribed(c, filter, head.At, true)
	b.box(c).put(event.Unsubscribed{Head: head, Client: c, Filter: mustFilter(filter)})
}

// wants says at which QoS a session gets a topic.
func (s *session) wants(t event.Topic) (qos event.QoS, ok bool) {
	for _, g := range s.subs {
		if g.filter.Match(t) {
			qos, ok = max(qos, g.qos), true
		}
	}
	return qos, ok
}

// handing is one delivery.
type handing struct {
	id      event.ID // the original one
	topic   event.Topic
	qos     event.QoS
	replay  bool
	renamed event.ID // by which the broker knows a replay, zero = by the original
}

func isPubsub(t event.Topic) bool   { return strings.HasPrefix(t.String(), "p/") }
func isRetained(t event.Topic) bool { return strings.HasPrefix(t.String(), "r/") }

// deliver gives a message to a client, which acknowledges it after a while, or not at all the first time. The ack of a replay that
// the broker has renamed names that id. Messages of pub/sub are acknowledged in order, some of them late.
func (b *broker) deliver(s *session, d handing) {
	s.deliverys[d.id]++
	b.w.hist.delivered(s.id, s.conn, d)
	r := b.w.chance(fmt.Sprint("ack", s.id, d.id, s.deliverys[d.id]))
	wait := time.Duration(r * float64(b.w.plan.ackDelay))
	switch first := s.deliverys[d.id] == 1; {
	case d.qos == 0, !b.w.plan.tells:
		return
	case isPubsub(d.topic):
		if first && r < b.w.plan.withheld {
			wait += 700 * time.Millisecond
		}
		at := time.Now().Add(wait)
		if !at.After(s.acksAt) {
			at = s.acksAt.Add(time.Microsecond)
		}
		s.acksAt, wait = at, time.Until(at)
	case first && r < b.w.plan.withheld:
		return
	}
	conn := s.conn
	b.w.later(wait, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s.online && s.conn == conn {
			b.w.hist.note("%s acks %s", s.id, b.w.hist.name(d.id))
			e := event.Acked{Head: b.head(s.id), Topic: d.topic, Client: s.id, Message: d.id, Replayed: d.replay}
			if !d.renamed.IsZero() {
				e.Message, e.BrokerID = event.ID{}, d.renamed
			}
			b.box(s.id).put(e)
		}
	})
}

// mumble is an ack of something that nobody knows.
func (b *broker) mumble(c event.ClientID, topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.session(c); s.online {
		b.w.hist.note("%s acks what nobody knows", c)
		b.box(c).put(event.Acked{Head: b.head(c), Topic: mustTopic(topic), Client: c, BrokerID: b.mint(b.node(c))})
	}
}

// confirmed is called when ingest has acknowledged an event.
func (b *broker) confirmed(e event.Event) {
	switch e := e.(type) {
	case event.Replayed:
		s := b.session(e.Client)
		if qos, ok := s.wants(e.Topic); ok && s.online {
			b.deliver(s, handing{id: e.Message, topic: e.Topic, qos: min(qos, 1), replay: true, renamed: e.BrokerID})
		}
	case event.Published:
		if b.w.hist.confirmed(e.ID) && !b.w.plan.async {
			b.spread(e)
		}
	case event.Acked, event.Dropped, event.Subscribed, event.Unsubscribed, event.Connected, event.Disconnected, event.ReplayContinued:
	}
}
