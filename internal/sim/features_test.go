package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// features are what a run has besides writers, replayers and queues. Each run has some of them.
type features struct {
	spool      int64 // bytes of each ingest's, 0 = none
	spoolAfter time.Duration
	pubsub     bool
	first      time.Duration // what a first subscribe gets, in pub/sub
	retains    bool          // the broker retains nothing itself
	async      bool          // class A: the broker does not wait for ingest
	tells      bool          // the broker tells of acks
	evidence   pipeline.Evidence
	drops      float64 // how many live deliveries the broker drops
	expires    float64 // how many messages expire
	echoes     bool    // replays come back as publishes
	ahead      map[string]time.Duration
	also       map[event.ClientID][]string // what clients subscribe to at each connect
}

// feature draws them, from numbers of their own, and returns what else is drawn from those.
func (p *plan) feature() *rand.Rand {
	r := rand.New(rand.NewPCG(p.seed, 9))
	p.features = features{
		spool: pick[int64](r, 0, 0, 6<<10, 64<<10), spoolAfter: pick(r, 300*time.Millisecond, time.Second), pubsub: pick(r, true, true, false),
		first: pick(r, 0, 0, pipeline.FirstAll, 5*time.Second), retains: pick(r, true, false), async: pick(r, true, false, false), tells: true,
		evidence: pipeline.EvidenceBroker, drops: pick(r, 0, 0, 0.1), expires: pick(r, 0, 0, 0.2), echoes: pick(r, true, false),
		ahead: make(map[string]time.Duration), also: make(map[event.ClientID][]string),
	}
	if r.IntN(5) == 0 {
		p.evidence, p.tells = pipeline.EvidencePuback, false
	}
	return r
}

// skew is how far two clocks may be apart.
const skew = 2 * time.Second

// more draws what the features lead to.
func (p *plan) more(r *rand.Rand) {
	p.replay.PositionHold = pick(r, 300*time.Millisecond, 2*time.Second)
	p.renames = p.renames && !p.async && p.tells
	if p.pubsub || p.spool > 0 {
		p.replay.ClockSkew = skew // nothing is embedded
		p.replay.Settle = 3 * time.Second
		p.replay.Active = 100
	}
	if p.replay.ClockSkew > 0 && r.IntN(2) == 0 {
		p.clocks(r)
	}
	for _, c := range p.clients {
		if p.pubsub {
			p.also[c] = append(p.also[c], pick(r, "p/1", "p/+", "p/#"))
			if r.IntN(3) == 0 {
				p.also[c] = append(p.also[c], pick(r, "p/2/x", "p/#", "p/1"))
			}
		}
		if p.retains {
			p.also[c] = append(p.also[c], pick(r, "r/1", "r/+", "r/#"))
		}
		slices.Sort(p.also[c])
		p.also[c] = slices.Compact(p.also[c])
		p.oddities(r, c)
	}
	if p.pubsub {
		for i := range 15 + r.IntN(25) {
			p.message(r, fmt.Sprintf("p%d", i), pick(r, "p/1", "p/1", "p/2", "p/2/x"))
		}
	}
	if p.retains {
		for i := range 6 + r.IntN(10) {
			p.message(r, fmt.Sprintf("r%d", i), pick(r, "r/1", "r/2"))
		}
	}
	p.outages(r)
	if p.async && p.ingests > 1 {
		p.flaps(r)
	}
}

// flaps lets the acks of messages overtake them on their way into the log, and clients come again at that very moment.
func (p *plan) flaps(r *rand.Rand) {
	for i := range 6 {
		from, c := pick(r, p.publishers...), pick(r, p.clients...)
		if hashOf(string(from))%p.ingests == hashOf(string(c))%p.ingests {
			continue
		}
		at := within(r, 0, chaos-3*time.Second)
		slow := fmt.Sprint("ingest", hashOf(string(from))%p.ingests)
		topic, text := "t/"+string(c)+"/x", fmt.Sprintf("flap %d", i)
		p.add(at, func(w *world) {
			w.change(func(m *mood) { m.lagging, m.lagsFor = slow, time.Now().Add(600*time.Millisecond) })
			w.broker.connect(c)
			w.broker.subscribe(c, topic, 1)
			w.broker.publish(event.Published{Sender: from, Topic: mustTopic(topic), Payload: []byte(text), QoS: 1})
		}, "%s is slow, and %s publishes %s %s", slow, from, topic, text)
		again := at + within(r, 50*time.Millisecond, 900*time.Millisecond)
		p.add(again, func(w *world) { w.broker.disconnect(c) }, "%s disconnects", c)
		p.add(again+within(r, time.Millisecond, 300*time.Millisecond), func(w *world) {
			w.broker.connect(c)
			w.broker.subscribe(c, topic, 1)
		}, "%s subscribes %s", c, topic)
	}
}

// message draws a publish.
func (p *plan) message(r *rand.Rand, text, topic string) {
	at := within(r, 0, chaos)
	if r.IntN(8) == 0 {
		at += settled - chaos
	}
	e := event.Published{Sender: pick(r, p.publishers...), Topic: mustTopic(topic), Payload: []byte(text), QoS: pick[event.QoS](r, 1, 1, 1, 2)}
	switch {
	case isRetained(e.Topic):
		e.Retain = true
		e.QoS = pick[event.QoS](r, 0, 1)
		if r.IntN(5) == 0 {
			e.Payload = []byte{}
		}
	case r.IntN(30) == 0:
		e.Payload = []byte("poison " + text)
	}
	p.add(at, func(w *world) { w.broker.publish(e) }, "%s publishes %s %s", e.Sender, topic, text)
}

// clocks puts clocks wrong, within what is allowed, and corrects some of them on the way.
func (p *plan) clocks(r *rand.Rand) {
	p.limits.ClockSkew = skew
	wrong := func() time.Duration { return within(r, -skew/2, skew/2) }
	for _, name := range []string{"node0", "node1", "ingest0", "ingest1", "writer0", "writer1", "replayer0"} {
		if r.IntN(2) == 0 {
			continue
		}
		p.ahead[name] = wrong()
		for range r.IntN(3) {
			d := wrong()
			p.add(within(r, 0, chaos), func(w *world) { w.clocks[name].Store(int64(d)) }, "the clock of %s is put to %v", name, d)
		}
	}
}

// oddities are what clients do now and then.
func (p *plan) oddities(r *rand.Rand, c event.ClientID) {
	for range r.IntN(3) {
		oldFirst := r.IntN(2) == 0
		at := within(r, 0, chaos)
		p.add(at, func(w *world) { w.broker.takeOver(c, oldFirst) }, "%s connects once more", c)
		f := pick(r, filters(c)...)
		p.add(at+within(r, 0, time.Second), func(w *world) { w.broker.subscribe(c, f, 1) }, "%s subscribes %s", c, f)
	}
	for range r.IntN(3) {
		f := pick(r, filters(c)...)
		p.add(within(r, 0, chaos), func(w *world) { w.broker.subscribe(c, f, 0) }, "%s subscribes %s at QoS 0", c, f)
	}
	for range r.IntN(2) {
		p.add(within(r, 0, chaos), func(w *world) { w.broker.mumble(c, "t/"+string(c)+"/x") }, "%s acknowledges what nobody knows", c)
	}
	if len(p.also[c]) > 0 {
		for range r.IntN(3) {
			f := pick(r, p.also[c]...)
			at := within(r, 0, chaos)
			p.add(at, func(w *world) { w.broker.unsubscribe(c, f) }, "%s unsubscribes %s", c, f)
			if r.IntN(2) == 0 {
				p.add(at+within(r, 0, 3*time.Second), func(w *world) { w.broker.subscribe(c, f, 1) }, "%s subscribes %s", c, f)
			}
		}
	}
}

// outages are those that spools are for, and those of their disks.
func (p *plan) outages(r *rand.Rand) {
	if p.spool == 0 {
		return
	}
	for range 1 + r.IntN(3) {
		at, d := within(r, 0, chaos-2*time.Second), within(r, 0, pick(r, 3*time.Second, 12*time.Second))
		p.add(at, func(w *world) { w.change(func(m *mood) { m.logDown = w.begin().Add(min(at+d, chaos)) }) }, "the log is down for %v", d)
	}
	if r.IntN(3) == 0 {
		at, d := within(r, 0, chaos-2*time.Second), within(r, 0, 8*time.Second)
		p.add(at, func(w *world) { w.change(func(m *mood) { m.diskFull = w.begin().Add(min(at+d, chaos)) }) }, "the disks are full for %v", d)
	}
	if r.IntN(3) == 0 {
		at := within(r, 0, chaos-2*time.Second)
		p.add(at, func(w *world) { w.change(func(m *mood) { m.disk = 0.3 }) }, "the disks are ill")
		p.add(min(at+within(r, 0, 8*time.Second), chaos), func(w *world) { w.change(func(m *mood) { m.disk = 0 }) }, "the disks are well")
	}
}

// rules are seed 1's action for topics with an addressee and for topics without, the client rows, and what the features need.
func (p *plan) rules() *pipeline.Rules {
	yes := true
	list := []pipeline.Rule{
		{Action: pipeline.SaveOfflineMessages, Topic: mustFilter("t/#"), Sink: sink, Addressee: "t/{clientid}/#"},
		{Action: pipeline.SaveOfflineMessages, Topic: mustFilter("u/#"), Sink: sink, Wildcards: &yes},
		{Action: pipeline.OnClientConnected, Hook: pipeline.ClientConnected, Sink: sink},
		{Action: pipeline.OnClientDisconnected, Hook: pipeline.ClientDisconnected, Sink: sink},
		{Action: pipeline.OnSubscribeStore, Hook: pipeline.SessionSubscribed, Topic: mustFilter("#"), Sink: sink},
		{Action: pipeline.OnUnsubscribeDelete, Hook: pipeline.SessionUnsubscribed, Topic: mustFilter("#"), Sink: sink},
	}
	if p.pubsub {
		f := mustFilter("p/#")
		list = append(list,
			pipeline.Rule{Action: pipeline.OnMessagePublish, Hook: pipeline.MessagePublish, Topic: f, Sink: sink},
			pipeline.Rule{Action: pipeline.OnMessageFetchForPubsub, Hook: pipeline.SessionSubscribed, Topic: f, Sink: sink, First: p.first},
			pipeline.Rule{Action: pipeline.OnMessageAckedForPubsub, Hook: pipeline.MessageAcked, Topic: f, Sink: sink},
			pipeline.Rule{Action: pipeline.OnAckedDelete, Hook: pipeline.SessionUnsubscribed, Topic: f, Sink: sink})
	}
	if p.retains {
		f := mustFilter("r/#")
		list = append(list,
			pipeline.Rule{Action: pipeline.OnMessageRetain, Hook: pipeline.MessagePublish, Topic: f, Sink: sink},
			pipeline.Rule{Action: pipeline.OnRetainDelete, Hook: pipeline.MessagePublish, Topic: f, Sink: sink},
			pipeline.Rule{Action: pipeline.OnRetainLookup, Hook: pipeline.SessionSubscribed, Topic: f, Sink: sink})
	}
	var all []pipeline.Rule
	for _, r := range list {
		all = append(all, r.Expand()...)
	}
	out, err := pipeline.Compile(all, p.own())
	if err != nil {
		panic(err)
	}
	return out
}

// own is the prefix of our own clients' ids.
func (p *plan) own() string {
	if p.planted == echoIgnored {
		return "nobody-"
	}
	return ownPrefix
}
