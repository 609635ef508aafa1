package pipeline_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// device is a client and its session at the broker.
type device struct {
	id        event.ClientID
	node      time.Duration // what the clock of its broker node is ahead
	connected bool
	since     time.Time // by that clock
	session   bool
	keeps     bool // its session outlives its connection
	subs      map[string]bool
	queue     []delivery2
	stuck     bool // it does not acknowledge
	epoch     int
	pumping   bool

	owed map[string]time.Time // filters, by when the client first subscribed to them
	got  map[event.ID]int     // acknowledged
	sent map[event.ID]int     // replays
}

type delivery2 struct {
	id       event.ID
	topic    event.Topic
	replayed bool
	expires  time.Time
}

// sent is a message as the judge knows it.
type sent struct {
	id      event.ID
	topic   event.Topic
	at      time.Time
	expires time.Time
}

// world is brokers, devices, a log, a store and one replayer, in virtual time, from one seed.
type pubsubWorld struct {
	*stack
	rng      *rand.Rand    // of what is done, of the test's goroutine
	dice     *rand.Rand    // of what comes of it; guarded by mu
	skew     time.Duration // half of what two brokers can be apart
	limits   pipeline.ReplayLimits
	forget   bool
	slow     bool // replayers get few records at a time, and wait for the store
	lapses   bool // some messages have a short life
	restless bool // clients fall silent and subscribe to other filters, and replayers end, more often
	ttl      time.Duration
	first    time.Duration
	ingests  [2]*event.Minter

	mu      sync.Mutex
	devices map[event.ClientID]*device
	all     []sent
	telling sync.Mutex // of lines
	lines   []string
	proc    *mortal
	quietly bool // nothing goes wrong any more
	well    time.Time
	wrong   []string
}

func (w *pubsubWorld) note(format string, args ...any) {
	w.telling.Lock()
	defer w.telling.Unlock()
	w.lines = append(w.lines, fmt.Sprintf("%8.3f ", time.Since(w.epoch()).Seconds())+fmt.Sprintf(format, args...))
}

func (w *pubsubWorld) epoch() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

func (w *pubsubWorld) headAt(node time.Duration) event.Head {
	now := time.Now()
	return event.Head{ID: w.ingests[w.dice.IntN(2)].Mint(), Source: "restante/test", At: now.Add(node).Truncate(time.Millisecond)}
}

func (w *pubsubWorld) clock() time.Duration {
	if w.skew == 0 {
		return 0
	}
	return time.Duration(w.dice.IntN(3)-1) * w.skew
}

func (w *pubsubWorld) isWell() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.quietly
}

func (w *pubsubWorld) publish(topic string) { w.publishes(topic, 12, true) }

// publishes lets a broker node take a message and hand it to who is subscribed; one delivery in so many is dropped. It may be written
// at once.
func (w *pubsubWorld) publishes(topic string, drops int, write bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	node := w.clock()
	now := time.Now()
	h := event.Head{Source: "restante/test", At: now.Add(node).Truncate(time.Millisecond)}
	h.ID = event.IDOf(now.Add(node).UnixMicro(), uint64(len(w.all)), uint16(len(w.all)))
	e := event.Published{Head: h, Topic: eventtest.Topic(w.t, topic), Sender: "pub", QoS: 1, Payload: []byte(fmt.Sprint(len(w.all)))}
	m := sent{id: e.ID, topic: e.Topic, at: now}
	if w.ttl > 0 {
		m.expires = e.ID.Time().Add(w.ttl)
	}
	if w.lapses && w.dice.IntN(3) == 0 {
		e.Expiry = time.Duration(1+w.dice.IntN(60)) * time.Second
		if x := e.At.Add(e.Expiry); m.expires.IsZero() || x.Before(m.expires) {
			m.expires = x
		}
	}
	late := time.Duration(0)
	if w.limits.Settle > 0 && w.dice.IntN(4) == 0 { // its source may lose the order, and be late
		late = time.Duration(w.dice.Int64N(int64(w.limits.Settle)))
		time.AfterFunc(late, func() { w.put(e) })
	} else {
		w.put(e)
	}
	w.all = append(w.all, m)
	w.note("publish %d %s node %v expires %v, late by %v", len(w.all)-1, topic, node, e.Expiry, late)
	if write && w.dice.IntN(2) == 0 {
		w.write()
	}
	for _, id := range slices.Sorted(maps.Keys(w.devices)) {
		d := w.devices[id]
		if !d.session || !d.subscribed(w.t, e.Topic) {
			continue
		}
		d.queue = append(d.queue, delivery2{id: e.ID, topic: e.Topic, expires: m.expires})
		switch {
		case len(d.queue) > 6 && w.dice.IntN(2) == 0: // its queue is full, and the eldest goes
			w.drops(d, 0)
		case len(d.queue) > 6, !w.quietly && w.dice.IntN(drops) == 0:
			w.drops(d, len(d.queue)-1)
		}
		w.pump(d)
	}
}

// drops lets the broker give up a delivery that waits in a session, and say so.
func (w *pubsubWorld) drops(d *device, i int) {
	m := d.queue[i]
	d.queue = slices.Delete(d.queue, i, i+1)
	e := event.Dropped{Head: w.headAt(d.node), Topic: m.topic, Client: d.id, Message: m.id, Reason: "queue_full"}
	if w.dice.IntN(4) > 0 {
		w.note("%s dropped %s", d.id, w.name(m.id))
		w.put(e)
		return
	}
	late := time.Duration(w.dice.IntN(30)) * time.Second
	w.note("%s dropped %s, which is told %v later", d.id, w.name(m.id), late)
	time.AfterFunc(late, func() { w.put(e) })
}

func (w *pubsubWorld) name(id event.ID) string {
	i := slices.IndexFunc(w.all, func(m sent) bool { return m.id == id })
	return fmt.Sprint("#", i)
}

func (d *device) subscribed(t *testing.T, topic event.Topic) bool {
	for f := range d.subs {
		if eventtest.Filter(t, f).Match(topic) {
			return true
		}
	}
	return false
}

// write stores all that is in the log, as the writers do.
func (w *pubsubWorld) write() {
	plan := w.rules.ForSink("s")
	for p := range w.parts {
		tp := w.messages(p)
		from := max(w.cluster.Committed(writerGroup, tp), 0)
		for _, r := range w.cluster.Records(tp)[from:] {
			e, err := event.Decode(event.Messages, r.Wire)
			if err != nil {
				panic(err)
			}
			if ops := plan(e).Ops; len(ops) > 0 {
				if err := w.store.Store.Apply(context.Background(), ops); err != nil {
					panic(err)
				}
			}
		}
		w.cluster.Reset(writerGroup, tp, w.cluster.Span(tp).End)
	}
}

// pump lets a device acknowledge what it has, in order.
func (w *pubsubWorld) pump(d *device) {
	if d.pumping || !d.connected || d.stuck || len(d.queue) == 0 {
		return
	}
	d.pumping = true
	epoch := d.epoch
	time.AfterFunc(time.Duration(w.dice.IntN(300))*time.Millisecond, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if d.epoch != epoch {
			return
		}
		if d.pumping = false; !d.stuck {
			w.acks(d)
			w.pump(d)
		}
	})
}

// acks lets a device acknowledge the first message that it has.
func (w *pubsubWorld) acks(d *device) {
	if len(d.queue) == 0 {
		return
	}
	m := d.queue[0]
	d.queue = d.queue[1:]
	if !m.expires.IsZero() && time.Now().After(m.expires) {
		w.note("%s: %s has expired", d.id, w.name(m.id))
		return
	}
	d.got[m.id]++
	w.note("%s acks %s replayed=%v", d.id, w.name(m.id), m.replayed)
	w.put(event.Acked{Head: w.headAt(d.node), Topic: m.topic, Client: d.id, Message: m.id, Replayed: m.replayed, Watched: true})
}

// Publish is the replayer's way to the broker.
func (w *pubsubWorld) Publish(_ context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.devices[to]
	if !d.session {
		return pipeline.Outcome{NoSubscriber: true}, nil
	}
	if !m.Expires.IsZero() && time.Now().After(m.Expires) {
		return pipeline.Outcome{}, pipeline.ErrExpired
	}
	d.sent[m.ID]++
	w.note("%s is sent %s", d.id, w.name(m.ID))
	if i := slices.IndexFunc(w.all, func(s sent) bool { return s.id == m.ID }); !w.all[i].expires.Equal(m.Expires) {
		w.wrong = append(w.wrong, fmt.Sprintf("%s was sent #%d, which expires at %v, as one that expires at %v", d.id, i, w.all[i].expires, m.Expires))
	}
	if !w.quietly && w.dice.IntN(15) == 0 {
		w.note("and it is dropped")
		if w.dice.IntN(2) == 0 {
			w.put(event.Dropped{Head: w.headAt(d.node), Topic: m.Topic, Client: d.id, Message: m.ID, Reason: "queue_full"})
		}
		return pipeline.Outcome{}, nil
	}
	d.queue = append(d.queue, delivery2{id: m.ID, topic: m.Topic, replayed: true, expires: m.Expires})
	w.pump(d)
	return pipeline.Outcome{}, nil
}

func (w *pubsubWorld) connect(d *device, clean bool, filters []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.connected {
		w.disconnect(d)
	}
	present := event.No
	if clean || !d.session {
		d.session, d.subs, d.queue = true, map[string]bool{}, nil
	} else {
		present = event.Yes
	}
	d.node, d.connected, d.stuck = w.clock(), true, !w.quietly && w.dice.IntN(4) == 0
	d.keeps = !w.quietly && w.dice.IntN(2) == 0
	h := w.headAt(d.node)
	d.since = h.At
	w.note("%s connects clean=%v present=%v keeps=%v stuck=%v node=%v", d.id, clean, present, d.keeps, d.stuck, d.node)
	w.put(event.Connected{Head: h, Client: d.id, ConnectedAt: h.At, SessionPresent: present})
	if present == event.No || w.dice.IntN(4) == 0 {
		for _, f := range filters {
			w.subscribe(d, f)
		}
	}
	w.pump(d)
}

func (w *pubsubWorld) subscribe(d *device, f string) {
	d.subs[f] = true
	if _, ok := d.owed[f]; !ok {
		d.owed[f] = time.Now()
	}
	w.note("%s subscribes %s", d.id, f)
	w.put(event.Subscribed{Head: w.headAt(d.node), Client: d.id, Filter: eventtest.Filter(w.t, f), QoS: 1})
}

func (w *pubsubWorld) unsubscribe(d *device, f string) {
	delete(d.subs, f)
	delete(d.owed, f)
	w.note("%s unsubscribes %s", d.id, f)
	w.put(event.Unsubscribed{Head: w.headAt(d.node), Client: d.id, Filter: eventtest.Filter(w.t, f)})
}

func (w *pubsubWorld) disconnect(d *device) {
	w.note("%s disconnects", d.id)
	d.connected, d.pumping = false, false
	d.epoch++
	if !d.keeps {
		d.session, d.subs, d.queue = false, nil, nil
	}
	h := w.headAt(d.node)
	e := event.Disconnected{Head: h, Client: d.id, Reason: "normal", ConnectedAt: d.since, DisconnectedAt: h.At}
	if w.dice.IntN(3) == 0 {
		e.ConnectedAt = time.Time{}
	}
	w.put(e)
}
