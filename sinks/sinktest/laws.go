package sinktest

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// universe is a small world: so few topics, clients, ids and stamps that a random history meets itself all the time.
type universe struct {
	base       time.Time
	topics     []event.Topic
	positions  []string
	clients    []event.ClientID
	filters    []event.Filter
	everything []event.Filter // together they match all topics
	// apart: no two topics share an id.
	apart bool
}

func newUniverse(ns string, now time.Time, apart bool) *universe {
	u := &universe{
		apart:   apart,
		base:    now.Add(-10 * time.Minute).Truncate(time.Second),
		topics:  []event.Topic{mustTopic(ns + "/a"), mustTopic(ns + "/a/é b"), mustTopic(ns + "/a-b"), mustTopic("$" + ns + "/x")},
		clients: []event.ClientID{event.ClientID(ns + "-1"), event.ClientID(ns + " 2/+#😀")},
	}
	for _, s := range []string{ns + "/a", ns + "/+/é b", "$share/g/" + ns + "/#"} {
		u.filters = append(u.filters, mustFilter(s))
	}
	u.everything = []event.Filter{mustFilter(ns + "/#"), mustFilter("$" + ns + "/#")}
	u.positions = []string{ns + "/a", ns + "/#"}
	return u
}

func mustTopic(s string) event.Topic {
	t, err := event.ParseTopic(s)
	if err != nil {
		panic(err) // a text of this package
	}
	return t
}

func mustFilter(s string) event.Filter {
	f, err := event.ParseFilter(s)
	if err != nil {
		panic(err) // a text of this package
	}
	return f
}

// spec is an op without the names of its universe.
type spec struct {
	kind, where, who, id, stamp, value int
	history                            bool
}

const (
	manyKinds  = 10
	manyIDs    = 6
	manyStamps = 12
)

var genSpec = rapid.Custom(func(rt *rapid.T) spec {
	return spec{
		kind: rapid.IntRange(0, manyKinds-1).Draw(rt, "kind"), where: rapid.IntRange(0, 11).Draw(rt, "where"),
		who: rapid.IntRange(0, 1).Draw(rt, "who"), id: rapid.IntRange(0, manyIDs-1).Draw(rt, "id"),
		stamp: rapid.IntRange(0, manyStamps-1).Draw(rt, "stamp"), value: rapid.IntRange(0, 2).Draw(rt, "value"),
		history: rapid.IntRange(0, 4).Draw(rt, "history") == 0,
	}
})

// id i is a ms behind id i-1, but for the first, which is a day old: a late one. Two share one µs.
func (u *universe) id(i int) event.ID {
	switch i {
	case 0:
		return event.IDOf(u.base.Add(-26*time.Hour).UnixMicro(), 0xF44200000001, 1)
	case 1:
		return event.IDOf(u.base.Add(2*time.Millisecond).UnixMicro(), 0xF44200000001, 7)
	}
	return event.IDOf(u.base.Add(time.Duration(i)*time.Millisecond).UnixMicro(), 0xF44200000001, uint16(i)) //nolint:gosec // small
}

// idIn is the id of message i of a topic.
func (u *universe) idIn(t event.Topic, i int) event.ID {
	id := u.id(i)
	if !u.apart {
		return id
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.String()))
	return event.IDOf(id.Micros(), h.Sum64(), uint16(i)) //nolint:gosec // small
}

// stamp s is the µs of an id, or of an event between two ids.
func (u *universe) stamp(s int) int64 {
	if s < manyIDs {
		return u.id(s).Micros()
	}
	return u.base.Add(time.Duration(s-manyIDs)*time.Millisecond + 500*time.Microsecond).UnixMicro()
}

// message is a function of topic and id, as it is in life. Some have expired, some never do.
func (u *universe) message(t event.Topic, i int) sinks.Message {
	id := u.idIn(t, i)
	m := sinks.Message{
		ID: id, Topic: t, Sender: u.clients[i%2], QoS: event.QoS(1 + i%2), Retain: i%3 == 0,
		Payload: fmt.Appendf(nil, "payload %d of %s", i, t), Arrived: id.Time().Truncate(time.Millisecond),
	}
	switch i {
	case 2:
		m.Payload = []byte{0xff, 0, 1}
		m.Properties = event.Properties{User: []event.UserProperty{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}}, ContentType: "x"}
	case 3:
		m.Payload = []byte{}
		m.Expires = u.base.Add(3*time.Hour + 123456*time.Microsecond)
	case 4:
		m.Expires = u.base.Add(time.Minute) // nine minutes ago
	}
	return m
}

func (u *universe) op(s spec) sinks.Op {
	topic, client, filter := u.topics[s.where%len(u.topics)], u.clients[s.who], u.filters[s.where%len(u.filters)]
	position := u.positions[s.where%len(u.positions)]
	switch s.kind {
	case 0, 1:
		return sinks.PutMessage{Message: u.message(topic, s.id), History: s.history}
	case 2:
		return sinks.DeleteMessage{Topic: topic, ID: u.idIn(topic, s.id), Stamp: max(u.id(s.id).Micros()+1, u.stamp(s.stamp))}
	case 3: // queue mode
		return sinks.PutAcked{Client: client, Topic: position, Message: u.id(s.id), Stamp: u.id(s.id).Micros()}
	case 4: // pub/sub
		return sinks.PutAcked{Client: client, Topic: position, Message: u.id(s.id), Stamp: u.stamp(s.stamp)}
	case 5:
		return sinks.DeleteAcked{Client: client, Topic: position, Stamp: u.stamp(s.stamp)}
	case 6:
		if s.history {
			return sinks.DeleteRetained{Topic: topic, Stamp: u.id(s.id).Micros()}
		}
		return sinks.PutRetained{Message: u.message(topic, s.id)}
	case 7:
		at := u.stamp(s.stamp)
		up := sinks.ClientUp{Node: fmt.Sprintf("node%d", s.stamp%3), OnlineAt: time.UnixMicro(at).Truncate(time.Millisecond), Stamp: at}
		return sinks.PutClient{Client: client, Up: up}
	case 8:
		at := u.stamp(s.stamp)
		off := time.UnixMicro(at).Truncate(time.Millisecond).Add(time.Duration(s.value) * time.Second)
		return sinks.PutClient{Client: client, Down: sinks.ClientDown{OfflineAt: off, Stamp: at + 1}}
	default:
		if s.history {
			return sinks.DeleteSub{Client: client, Filter: filter, Stamp: u.stamp(s.stamp)}
		}
		return sinks.PutSub{Client: client, Filter: filter, QoS: event.QoS(s.value), Stamp: u.stamp(s.stamp)} //nolint:gosec // small
	}
}

// step is one call of Apply in a schedule.
type step struct {
	ops []int // of the history
	// part > 0: the call is cut off; only every op whose turn mod (part+1) is 0 gets through. The whole comes again later.
	part int
	// hurry > 0: the call's context ends so soon. The whole comes again later.
	hurry time.Duration
}

// genHistory draws a history. Most are long and meet themselves in few rows: there the laws are broken first. It shrinks to a
// short one.
var genHistory = rapid.Custom(func(rt *rapid.T) []spec {
	n := rapid.SampledFrom([]int{1, 4, 15, 50, 50, 100, 100, 100}).Draw(rt, "length")
	where, ids := rapid.SampledFrom([]int{1, 2, 3, 12}).Draw(rt, "places"), rapid.IntRange(1, manyIDs).Draw(rt, "ids")
	stamps, who := rapid.IntRange(1, manyStamps).Draw(rt, "stamps"), rapid.IntRange(1, 2).Draw(rt, "clients")
	var specs []spec
	for range n {
		s := genSpec.Draw(rt, "op")
		s.where, s.id, s.who = s.where%where, (s.id+manyIDs-ids)%manyIDs, s.who%who
		s.stamp = s.stamp * stamps / manyStamps
		specs = append(specs, s)
	}
	return specs
})

// schedule is a history and how it is applied: lanes run beside each other, a lane's steps in order. Rounds follow each other.
type schedule struct {
	specs  []spec
	rounds [][][]step
}

// genCommute draws a history and applies it in any order, with repetitions, by up to three owners at once.
var genCommute = rapid.Custom(func(rt *rapid.T) schedule {
	s := schedule{specs: genHistory.Draw(rt, "history")}
	all := make([]int, len(s.specs))
	for i := range all {
		all[i] = i
	}
	order := slices.Concat(all, rapid.SliceOfN(rapid.SampledFrom(all), 0, len(all)).Draw(rt, "again"))
	order = rapid.Permutation(order).Draw(rt, "order")
	var lanes [][]step
	var again []step
	for range rapid.IntRange(1, 3).Draw(rt, "lanes") {
		lanes = append(lanes, nil)
	}
	for lane := 0; len(order) > 0; lane = (lane + 1) % len(lanes) {
		n := min(rapid.IntRange(1, 25).Draw(rt, "batch"), len(order))
		st := genCut.Draw(rt, "cut")
		st.ops, order = order[:n], order[n:]
		if st.part > 0 || st.hurry > 0 {
			again = append(again, step{ops: st.ops})
		}
		lanes[lane] = append(lanes[lane], st)
	}
	s.rounds = [][][]step{lanes, {again}}
	return s
})

var genCut = rapid.Custom(func(rt *rapid.T) step {
	switch rapid.IntRange(0, 5).Draw(rt, "how") {
	case 0:
		return step{part: rapid.IntRange(1, 3).Draw(rt, "part")}
	case 1:
		return step{hurry: time.Duration(rapid.IntRange(1, 3000).Draw(rt, "µs")) * time.Microsecond}
	}
	return step{}
})

// genReplay draws a history and applies it in order, with restarts: each begins at or before the commit, ends somewhere, cut
// off part-way, and commits somewhere between.
var genReplay = rapid.Custom(func(rt *rapid.T) schedule {
	s := schedule{specs: genHistory.Draw(rt, "history")}
	n, commit := len(s.specs), 0
	var steps []step
	for r := rapid.IntRange(0, 3).Draw(rt, "restarts"); r >= 0; r-- {
		at, end := rapid.IntRange(0, commit).Draw(rt, "from"), n
		if r > 0 {
			end = rapid.IntRange(at, n).Draw(rt, "to")
		}
		for at < end {
			st := step{}
			for size := rapid.IntRange(1, 25).Draw(rt, "batch"); at < end && len(st.ops) < size; at++ {
				st.ops = append(st.ops, at)
			}
			if at == end && r > 0 {
				st.part = rapid.IntRange(0, 3).Draw(rt, "part")
			}
			if st.part == 0 && at > commit {
				commit = rapid.IntRange(commit, at).Draw(rt, "commit")
			}
			steps = append(steps, st)
		}
	}
	s.rounds = [][][]step{{steps}}
	return s
})

// ordered puts a history into an order that a log can have: each row's stamps ascend.
func ordered(ops []sinks.Op) []sinks.Op {
	del := func(o sinks.Op) int {
		if sinks.Deletes(o) {
			return 1
		}
		return 0
	}
	return slices.SortedStableFunc(slices.Values(ops), func(a, b sinks.Op) int {
		return cmp.Or(cmp.Compare(sinks.Stamp(a), sinks.Stamp(b)), cmp.Compare(del(a), del(b)))
	})
}

func commutes(e *env) func(*rapid.T) {
	return func(rt *rapid.T) {
		if err := e.judge(context.Background(), genCommute.Draw(rt, "schedule"), false); err != nil {
			rt.Fatal(err)
		}
	}
}

func replays(e *env) func(*rapid.T) {
	return func(rt *rapid.T) {
		if err := e.judge(context.Background(), genReplay.Draw(rt, "schedule"), true); err != nil {
			rt.Fatal(err)
		}
	}
}

// judge runs a schedule in a universe of its own and compares what it ends in with the model.
func (e *env) judge(ctx context.Context, s schedule, inOrder bool) error {
	u := newUniverse(space(), e.clock.now(), e.cfg.OneTopicAnID)
	ops := make([]sinks.Op, 0, len(s.specs))
	for _, sp := range s.specs {
		ops = append(ops, u.op(sp))
	}
	if inOrder {
		ops = ordered(ops)
	}
	for _, lanes := range s.rounds {
		g, ctx := errgroup.WithContext(ctx)
		for _, steps := range lanes {
			g.Go(func() error {
				for _, st := range steps {
					if err := e.take(ctx, ops, st); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return e.compare(ctx, u, fold(ops))
}

// take applies one step.
func (e *env) take(ctx context.Context, ops []sinks.Op, st step) error {
	var batch []sinks.Op
	for _, i := range st.ops {
		batch = append(batch, ops[i])
	}
	batch, _ = sinks.Coalesce(batch)
	if st.hurry > 0 {
		ctx, cancel := context.WithTimeout(ctx, st.hurry)
		defer cancel()
		_ = e.store.Apply(ctx, batch) // whatever got through; the whole comes again
		return nil
	}
	if st.part > 0 {
		var through []sinks.Op
		for i, o := range batch {
			if i%(st.part+1) == 0 {
				through = append(through, o)
			}
		}
		batch = through
	}
	return e.apply(ctx, batch...)
}
