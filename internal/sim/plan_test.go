package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// The times of a run. Faults and processes that die fill its first part; then everything is well and all clients stay as they
// are; then all go, and those that stay come back for what is left.
const (
	chaos   = 40 * time.Second
	settled = chaos + 28*time.Second
	back    = settled + 8*time.Second
	rest    = back + 32*time.Second

	sessionTime = 3 * time.Second
	flushTime   = 1500 * time.Millisecond // the longest that a call of the store takes
	drain       = 2 * time.Second
)

// plan is the schedule of one run, drawn from its seed before it begins.
type plan struct {
	seed                       uint64
	parts, sessionParts        int
	ingests, writers, readers  int
	budget                     int
	withheld                   float64 // how many deliveries are not acknowledged the first time
	ackDelay                   time.Duration
	connectedAt, wholePoison   bool
	renames                    bool // the broker gives each replay an id of its own, and tells of its ack by that
	limits                     pipeline.Limits
	replay                     pipeline.ReplayLimits
	clients, publishers, stays []event.ClientID
	actions                    []action
	planted                    planted
	features
}

type action struct {
	at   time.Duration
	text string
	do   func(*world)
	must bool // a history without it proves nothing
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func draw(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, 1))
	p := plan{
		seed: seed, parts: pick(r, 1, 2, 3), sessionParts: pick(r, 1, 2), ingests: pick(r, 1, 1, 2), writers: pick(r, 1, 2, 2, 3),
		readers: pick(r, 1, 1, 2), budget: pick(r, 64<<20, 64<<20, 3000), withheld: pick(r, 0, 0.1, 0.3),
		ackDelay: pick(r, 20*time.Millisecond, 300*time.Millisecond, time.Second), connectedAt: pick(r, true, false), wholePoison: pick(r, true, false),
	}
	p.limits = pipeline.Limits{
		Hold: pick(r, 0, 300*time.Millisecond, time.Second, time.Second), Records: pick(r, 5, 1000), Bytes: 1 << 20, Fetch: pick(r, 3, 100),
		Drain: drain, Session: sessionTime, MarkAfter: sessionTime + drain + 2*flushTime + time.Second, ClockSkew: time.Millisecond,
		Memory: 2000, Recall: 30 * time.Second,
	}
	p.replay = pipeline.ReplayLimits{
		Window: pick(r, 1, 4, 16), Active: pick(r, 1, 2, 100), Slice: pick(r, 5, 1000), AckTimeout: 3 * time.Second,
		Retry:     slices.Repeat([]time.Duration{time.Second, 2 * time.Second}, 10),
		ClockSkew: pick(r, 0, 2*time.Second), Settle: pick(r, 0, 2*time.Second), Page: pick(r, 2, 100), Patience: time.Second, Drain: drain,
		Reads: 64, ReadTarget: 100 * time.Millisecond,
	}
	if p.replay.Active < 100 {
		p.replay.Settle = 0 // replays that began together would ask again for their places at one instant
	}
	if p.replay.Window == 1 {
		p.withheld = 0 // each message would wait for its second delivery, one after the other
	}
	p.clients = []event.ClientID{"a", "b", "c"}
	p.publishers = []event.ClientID{"p", "q"}
	for _, c := range p.clients {
		if r.IntN(3) > 0 {
			p.stays = append(p.stays, c)
		}
	}
	more := p.feature()
	p.traffic(r)
	p.sessions(r)
	p.faults(r)
	p.ending()
	p.renames = pick(r, true, false, false)
	p.more(more)
	p.sort()
	p.need()
	return p
}

func (p *plan) sort() {
	slices.SortStableFunc(p.actions, func(a, b action) int { return int(a.at - b.at) })
}

func (p *plan) add(at time.Duration, do func(*world), format string, args ...any) {
	p.actions = append(p.actions, action{at: at, text: fmt.Sprintf(format, args...), do: do})
}

func within(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)))
}

func (p *plan) traffic(r *rand.Rand) {
	for i := range 30 + r.IntN(60) {
		at := within(r, 0, chaos)
		if r.IntN(3) == 0 {
			at = at / (5 * time.Second) * (5 * time.Second) // many at once
			at += time.Duration(r.Int64N(2e6))
		}
		if r.IntN(8) == 0 {
			at += settled - chaos
		}
		from := pick(r, p.publishers...)
		c := pick(r, p.clients...)
		topic := pick(r, "t/"+string(c)+"/x", "t/"+string(c)+"/x", "t/"+string(c)+"/y/z", "u/s")
		payload, qos := fmt.Sprintf("#%d", i), event.QoS(1)
		switch r.IntN(30) {
		case 0:
			payload = "poison " + payload
		case 1:
			qos = 0
		}
		p.add(at, func(w *world) {
			w.broker.publish(event.Published{Sender: from, Topic: mustTopic(topic), Payload: []byte(payload), QoS: qos})
		}, "%s publishes %s %s", from, topic, payload)
	}
	if r.IntN(4) == 0 {
		at := within(r, 0, chaos)
		topic := pick(r, topics.Messages, topics.Sessions)
		p.add(at, func(w *world) {
			w.cluster.Put(pipeline.Outgoing{Topic: topic, Wire: event.Wire{Key: []byte("junk"), Value: []byte("no event"), Time: time.Now()}})
		}, "a foreign record on %s", topic)
	}
}

func filters(c event.ClientID) []string {
	return []string{"t/" + string(c) + "/x", "t/" + string(c) + "/#", "t/" + string(c) + "/+", "u/s", "u/#", "t/#"}
}

func (p *plan) sessions(r *rand.Rand) {
	for _, c := range p.clients {
		at := within(r, 0, 10*time.Second)
		for at < chaos {
			p.add(at, func(w *world) { w.broker.connect(c) }, "%s connects", c)
			for range 1 + r.IntN(3) {
				at += within(r, 0, pick(r, 10*time.Millisecond, time.Second))
				f := pick(r, filters(c)...)
				if r.IntN(6) == 0 {
					p.add(at, func(w *world) { w.broker.unsubscribe(c, f) }, "%s unsubscribes %s", c, f)
				} else {
					p.add(at, func(w *world) { w.broker.subscribe(c, f, 1) }, "%s subscribes %s", c, f)
				}
			}
			at += within(r, 0, 15*time.Second)
			if at < chaos && r.IntN(4) > 0 {
				p.add(at, func(w *world) { w.broker.disconnect(c) }, "%s disconnects", c)
			}
			at += within(r, 0, 5*time.Second)
		}
		if r.IntN(3) > 0 { // the last one stays when all is well again
			at = within(r, chaos*3/4, chaos)
			f := pick(r, filters(c)...)
			at = within(r, at, chaos) + time.Millisecond
			for i := range 1 + r.IntN(4) { // what comes just before the subscribe is in the log only
				topic, text := pick(r, "t/"+string(c)+"/x", "u/s"), fmt.Sprintf("just %d", i)
				p.add(at-within(r, 5*time.Millisecond, 80*time.Millisecond), func(w *world) {
					w.broker.publish(event.Published{Sender: "p", Topic: mustTopic(topic), Payload: []byte(text), QoS: 1})
				}, "p publishes %s %s", topic, text)
			}
			p.add(at, func(w *world) {
				w.broker.connect(c)
				w.broker.subscribe(c, f, 1)
			}, "%s subscribes %s", c, f)
		}
	}
}

func (p *plan) faults(r *rand.Rand) {
	roles := []struct {
		name string
		n    int
	}{{"writer", p.writers}, {"replayer", p.readers}, {"ingest", p.ingests}}
	for _, role := range roles {
		for i := range role.n {
			p.add(0, func(w *world) { w.start(role.name, i) }, "%s %d starts", role.name, i)
			for range r.IntN(3) {
				at := within(r, 0, chaos-6*time.Second)
				down := min(within(r, 0, pick(r, 3*time.Second, 15*time.Second)), chaos-at)
				how := pick(r, "kill", "kill", "stop", "expel")
				if role.name == "ingest" {
					how = pick(r, "kill", "stop")
				}
				switch how {
				case "kill":
					p.add(at, func(w *world) { w.kill(role.name, i) }, "%s %d is killed", role.name, i)
				case "stop":
					p.add(at, func(w *world) { w.stop(role.name, i) }, "%s %d is stopped", role.name, i)
				case "expel":
					learn := within(r, 0, sessionTime)
					p.add(at, func(w *world) { w.expel(role.name, i, learn) }, "%s %d is out of its group and learns it after %v", role.name, i, learn)
					continue
				}
				p.add(at+down, func(w *world) { w.start(role.name, i) }, "%s %d starts", role.name, i)
			}
			p.add(chaos, func(w *world) { w.start(role.name, i) }, "%s %d starts", role.name, i)
		}
	}
	for range r.IntN(3) {
		group := pick(r, writers, readers)
		p.add(within(r, 0, chaos), func(w *world) { w.cluster.Rebalance(group) }, "%s rebalances", group)
	}
	for range r.IntN(3) {
		at, d := within(r, 0, chaos), within(r, 0, pick(r, 8*time.Second, 25*time.Second))
		switch r.IntN(3) {
		case 0:
			p.add(at, func(w *world) { w.change(func(m *mood) { m.storeDown = w.begin().Add(min(at+d, chaos)) }) }, "the store is down for %v", d)
		case 1:
			p.add(at, func(w *world) { w.change(func(m *mood) { m.storeFull = w.begin().Add(min(at+d, chaos)) }) }, "the store takes no writes for %v", d)
		case 2:
			p.add(at, func(w *world) { w.change(func(m *mood) { m.logDown = w.begin().Add(min(at+d, chaos)) }) }, "the log is down for %v", d)
		}
	}
	for range r.IntN(4) {
		at := within(r, 0, chaos-time.Second)
		end := min(at+within(r, 0, 15*time.Second), chaos)
		most := pick(r, 0.05, 0.3)
		some := func() float64 { return pick(r, 0, most*r.Float64()) }
		n := faults{
			store: some(), storeUnknown: some(), storePart: some(), log: some(), logUnknown: some(), empty: pick(r, 0, 0, 0.7), publish: some(), slow: some(),
		}
		p.add(at, func(w *world) { w.change(func(m *mood) { m.faults = n }) }, "faults %+v", n)
		p.add(end, func(w *world) { w.change(func(m *mood) { m.faults = faults{} }) }, "no faults")
	}
	p.add(chaos, func(w *world) { w.change(func(m *mood) { m.faults = faults{} }) }, "no faults")
	if r.IntN(3) == 0 {
		p.add(within(r, 0, settled), func(w *world) { w.retain() }, "retention removes what is committed")
	}
}

func (p *plan) ending() {
	for i, c := range p.clients {
		p.add(settled+time.Duration(i)*time.Millisecond, func(w *world) { w.broker.disconnect(c) }, "%s disconnects", c)
		if !slices.Contains(p.stays, c) {
			continue
		}
		at := back + time.Duration(i)*time.Millisecond
		p.add(at, func(w *world) { w.broker.connect(c) }, "%s connects", c)
		p.add(at+time.Millisecond, func(w *world) {
			w.broker.subscribe(c, "t/"+string(c)+"/#", 1)
			w.broker.subscribe(c, "u/s", 1)
		}, "%s subscribes for what is left", c)
	}
}
