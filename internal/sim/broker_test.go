package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// broker is an MQTT broker with its clients. It hands its events to ingest in order, and again after an ingest has died before
// it acknowledged them. A message goes to the subscribers that are online when it is durable.
type broker struct {
	w        *world
	mu       sync.Mutex
	sessions map[event.ClientID]*session
	boxes    []*box // of the ingests
	lastID   int64
}

type session struct {
	id        event.ClientID
	online    bool
	conn      int
	since     time.Time
	subs      map[string]event.Filter
	deliverys map[event.ID]int
}

// box holds the events for one ingest.
type box struct {
	queue []*letter // not acknowledged
	more  chan struct{}
}

type letter struct {
	e      event.Event
	handed *incarnation
	// answered is closed when the broker has its answer, for who waits for it; nil = nobody does. One that is late counts for nothing.
	answered chan struct{}
	late     bool
}

func (b *box) put(e event.Event) {
	b.queue = append(b.queue, &letter{e: e})
	close(b.more)
	b.more = make(chan struct{})
}

func newBroker(w *world) *broker {
	b := &broker{w: w, sessions: make(map[event.ClientID]*session)}
	for range w.plan.ingests {
		b.boxes = append(b.boxes, &box{more: make(chan struct{})})
	}
	return b
}

func (b *broker) session(id event.ClientID) *session {
	s := b.sessions[id]
	if s == nil {
		s = &session{id: id, subs: make(map[string]event.Filter), deliverys: make(map[event.ID]int)}
		b.sessions[id] = s
	}
	return s
}

func (b *broker) box(c event.ClientID) *box {
	h := fnv.New32a()
	_, _ = h.Write([]byte(c))
	return b.boxes[int(h.Sum32())%len(b.boxes)]
}

func (b *broker) head() event.Head {
	return event.Head{Source: "restante/sim", At: time.Now().Truncate(time.Millisecond)}
}

// publish takes a message of a client.
func (b *broker) publish(from event.ClientID, topic string, payload []byte, qos event.QoS) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastID = max(time.Now().UnixMicro(), b.lastID+1)
	e := event.Published{Head: b.head(), Topic: mustTopic(topic), Sender: from, QoS: qos, Payload: payload}
	e.ID = event.IDOf(b.lastID, 9, 1)
	b.w.hist.published(e)
	b.box(from).put(e)
}

func (b *broker) connect(c event.ClientID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session(c)
	if s.online {
		return
	}
	s.online, s.since = true, time.Now()
	s.conn++
	b.w.hist.note("%s connects (%d)", c, s.conn)
	b.box(c).put(event.Connected{Head: b.head(), Client: c, ConnectedAt: s.since.Truncate(time.Millisecond), CleanStart: event.Yes, SessionPresent: event.No, ExpiryInterval: -1, Node: "n"})
}

func (b *broker) disconnect(c event.ClientID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session(c)
	if !s.online {
		return
	}
	s.online = false
	b.w.hist.note("%s disconnects (%d)", c, s.conn)
	for _, f := range slices.Sorted(maps.Keys(s.subs)) {
		b.w.hist.unsubscribed(c, f)
	}
	clear(s.subs)
	e := event.Disconnected{Head: b.head(), Client: c, Reason: "normal", DisconnectedAt: b.head().At}
	if b.w.plan.connectedAt {
		e.ConnectedAt = s.since.Truncate(time.Millisecond)
	}
	b.box(c).put(e)
}

func (b *broker) subscribe(c event.ClientID, filter string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session(c)
	if !s.online {
		return
	}
	f := mustFilter(filter)
	s.subs[filter] = f
	b.w.hist.subscribed(c, s.conn, f)
	b.box(c).put(event.Subscribed{Head: b.head(), Client: c, Filter: f, QoS: 1, New: event.Unknown})
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
	b.w.hist.unsubscribed(c, filter)
	b.box(c).put(event.Unsubscribed{Head: b.head(), Client: c, Filter: mustFilter(filter)})
}

func (s *session) wants(t event.Topic) bool {
	for _, f := range s.subs {
		if f.Match(t) {
			return true
		}
	}
	return false
}

// deliver gives a message to a client, which acknowledges it after a while, or not at all the first time. The ack of a replay that
// the broker has renamed names that id.
func (b *broker) deliver(s *session, id event.ID, topic event.Topic, replay bool, renamed event.ID) {
	s.deliverys[id]++
	b.w.hist.delivered(s.id, s.conn, id, replay)
	r := b.w.chance(fmt.Sprint("ack", s.id, id, s.deliverys[id]))
	if s.deliverys[id] == 1 && r < b.w.plan.withheld {
		return
	}
	conn := s.conn
	b.w.later(time.Duration(r*float64(b.w.plan.ackDelay)), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s.online && s.conn == conn {
			b.w.hist.note("%s acks %s", s.id, b.w.hist.name(id))
			e := event.Acked{Head: b.head(), Topic: topic, Client: s.id, Message: id, Replayed: replay}
			if !renamed.IsZero() {
				e.Message, e.BrokerID = event.ID{}, renamed
			}
			b.box(s.id).put(e)
		}
	})
}

// confirmed is called when ingest has acknowledged an event.
func (b *broker) confirmed(e event.Event) {
	if a, ok := e.(event.Replayed); ok {
		if s := b.session(a.Client); s.online && s.wants(a.Topic) {
			b.deliver(s, a.Message, a.Topic, true, a.BrokerID)
		}
		return
	}
	p, ok := e.(event.Published)
	if !ok {
		return
	}
	b.w.hist.confirmed(p.ID)
	for _, c := range slices.Sorted(maps.Keys(b.sessions)) {
		if s := b.sessions[c]; s.online && s.wants(p.Topic) {
			b.deliver(s, p.ID, p.Topic, false, event.ID{})
		}
	}
}

// publisher is a replayer's way to the broker: direct delivery into one session.
type publisher struct {
	in *incarnation
}

func (p *publisher) Publish(ctx context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	key := fmt.Sprintf("%s %s %s %d", opPublish, to, m.ID, m.Remaining)
	v := p.in.w.step.park(ctx, &call{in: p.in, op: opPublish, key: key})
	if v.Err != nil && !v.Done {
		return pipeline.Outcome{}, v.Err
	}
	b := p.in.w.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session(to)
	if !s.online || !s.wants(m.Topic) {
		b.w.hist.note("%s is not there for %s", to, b.w.hist.name(m.ID))
		return pipeline.Outcome{NoSubscriber: true}, v.Err
	}
	if b.w.plan.renames {
		b.rename(to, m)
		return pipeline.Outcome{}, v.Err
	}
	b.deliver(s, m.ID, m.Topic, true, event.ID{})
	return pipeline.Outcome{}, v.Err
}

// rename gives a replay an id of the broker's own, and delivers it when an ingest, any of them, has confirmed the alias. b.mu is held,
// but while it waits for that.
func (b *broker) rename(to event.ClientID, m pipeline.Outgo) {
	b.lastID = max(time.Now().UnixMicro(), b.lastID+1)
	l := &letter{answered: make(chan struct{}), e: event.Replayed{
		Head: b.head(), Topic: m.Topic, Client: to, Message: m.ID, BrokerID: event.IDOf(b.lastID, 9, 1),
	}}
	box := b.box(event.ClientID(m.ID.String()))
	box.queue = append(box.queue, l)
	close(box.more)
	box.more = make(chan struct{})
	b.mu.Unlock()
	defer b.mu.Lock()
	t := time.NewTimer(2 * time.Second) // as long as a broker waits
	defer t.Stop()
	select {
	case <-l.answered:
	case <-t.C:
		b.mu.Lock()
		defer b.mu.Unlock()
		l.late = true
	}
}

// source is an ingest's way from the broker.
type source struct {
	in  *incarnation
	box *box
}

type owed struct {
	l *letter
	r pipeline.Receipt
}

// Run hands over and acknowledges in order.
func (s *source) Run(ctx, work context.Context, accept pipeline.Accept) {
	owing := make(chan owed, 1000)
	var wg sync.WaitGroup
	wg.Go(func() { // ends with owing
		for o := range owing {
			if o.r != nil && pipeline.Wait(work, o.r) != nil {
				return
			}
			if v := s.in.w.step.park(work, &call{in: s.in, op: opConfirm, key: opConfirm}); v.Err != nil {
				return
			}
			s.confirm(o.l)
		}
	})
	defer wg.Wait()
	defer close(owing)
	for {
		l, err := s.next(ctx)
		if err != nil {
			return
		}
		r, err := accept(ctx, l.e)
		if err != nil {
			return
		}
		owing <- owed{l, r}
	}
}

func (s *source) confirm(l *letter) {
	b := s.in.w.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(s.box.queue) == 0 || s.box.queue[0] != l {
		panic("sim: events are acknowledged out of order")
	}
	s.box.queue = s.box.queue[1:]
	if !l.late {
		b.confirmed(l.e)
	}
	if l.answered != nil {
		close(l.answered)
	}
}

func (s *source) next(ctx context.Context) (*letter, error) {
	for {
		if v := s.in.w.step.park(ctx, &call{in: s.in, op: opSource, key: opSource}); v.Err != nil {
			return nil, v.Err
		}
		b := s.in.w.broker
		b.mu.Lock()
		more := s.box.more
		s.box.queue = slices.DeleteFunc(s.box.queue, func(l *letter) bool { // who waited for an answer of the dead got none
			return l.answered != nil && (l.late || l.handed != nil) && l.handed != s.in
		})
		for _, l := range s.box.queue {
			if l.handed != s.in {
				l.handed = s.in
				b.mu.Unlock()
				return l, nil
			}
		}
		b.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
