package pipeline_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

var (
	seed      = flag.Uint64("seed", 0, "run one history of this seed, and tell it")
	histories = flag.Int("histories", 0, "how many histories to run; 0 = as many as fit into the normal run")
)

// pubsubRules are rules of pub/sub on the filters.
func pubsubRules(t testing.TB, change func(*pipeline.Rule), filters ...string) []pipeline.Rule {
	t.Helper()
	var out []pipeline.Rule
	for _, f := range filters {
		for _, b := range []struct {
			h pipeline.Hook
			a pipeline.Action
		}{
			{pipeline.MessagePublish, pipeline.OnMessagePublish},
			{pipeline.SessionSubscribed, pipeline.OnMessageFetchForPubsub},
			{pipeline.MessageAcked, pipeline.OnMessageAckedForPubsub},
			{pipeline.SessionUnsubscribed, pipeline.OnAckedDelete},
		} {
			r := pipeline.Rule{Hook: b.h, Action: b.a, Sink: "s", Topic: eventtest.Filter(t, f)}
			if change != nil {
				change(&r)
			}
			out = append(out, r)
		}
	}
	return out
}

// wellAfter is how long it may take until every client has what is left for it, when nothing goes wrong.
const wellAfter = 3 * time.Minute

func newPubsubWorld(t *testing.T, seed uint64) *pubsubWorld {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 7))
	w := &pubsubWorld{rng: rng, dice: rand.New(rand.NewPCG(seed, 8)), devices: make(map[event.ClientID]*device), forget: rng.IntN(2) == 0, limits: testReplays}
	w.limits.Window, w.limits.Slice, w.limits.Active = 1+rng.IntN(4), 3+rng.IntN(6), 2
	w.limits.AckTimeout, w.limits.Retry = 5*time.Second, []time.Duration{5 * time.Second}
	w.limits.PositionHold = time.Duration(1+rng.IntN(3)) * time.Second
	if rng.IntN(3) > 0 {
		w.skew = []time.Duration{3 * time.Second, 3 * time.Second, time.Second, 300 * time.Millisecond}[rng.IntN(4)]
		w.limits.ClockSkew = 2 * w.skew
		if rng.IntN(2) == 0 {
			w.limits.Settle = 15 * time.Second
		}
	}
	if rng.IntN(4) == 0 {
		w.ttl = wellAfter + time.Duration(rng.IntN(120))*time.Second
	}
	w.slow, w.lapses, w.restless = rng.IntN(2) == 0, rng.IntN(3) == 0, rng.IntN(2) == 0
	w.first = []time.Duration{0, 0, pipeline.FirstAll, 5 * time.Minute}[rng.IntN(4)]
	rules := pubsubRules(t, func(r *pipeline.Rule) {
		switch r.Action {
		case pipeline.OnMessagePublish:
			r.TTL = w.ttl
		case pipeline.OnMessageFetchForPubsub:
			r.First = w.first
		}
	}, [][]string{{"#"}, {"t/#", "u/#"}}[rng.IntN(2)]...)
	if !w.forget {
		rules = slices.DeleteFunc(rules, func(r pipeline.Rule) bool { return r.Action == pipeline.OnAckedDelete })
	}
	w.stack = newStack(t, 1+rng.IntN(2), rules...)
	for i := range w.ingests {
		ahead := time.Duration(i) * w.skew
		w.ingests[i] = &event.Minter{Node: uint64(i + 1), Now: func() time.Time { return time.Now().Add(ahead) }}
	}
	for _, id := range []event.ClientID{"a", "b"} {
		w.devices[id] = &device{
			id: id, owed: make(map[string]time.Time), got: make(map[event.ID]int), sent: make(map[event.ID]int), subs: make(map[string]bool),
		}
	}
	return w
}

var pubsubTopics = []string{"t/1", "t/2", "t/2/x", "u/1", "t"}

// run is one history: a random one, then a time in which nothing goes wrong and every client takes what is left.
func (w *pubsubWorld) run() {
	wants := map[event.ClientID][]string{}
	filters := []string{"t/1", "t/+", "t/#", "#", "+/1", "u/1", "t/2/x"}
	ids := slices.Sorted(maps.Keys(w.devices))
	for _, id := range ids {
		wants[id] = []string{filters[w.rng.IntN(len(filters))]}
		if w.rng.IntN(2) == 0 {
			wants[id] = append(wants[id], filters[w.rng.IntN(len(filters))])
		}
		slices.Sort(wants[id])
		wants[id] = slices.Compact(wants[id])
	}
	w.replays()
	steps := 25 + w.rng.IntN(25)
	if w.rng.IntN(4) == 0 {
		w.plot(wants, filters)
		steps /= 4
	}
	for _, id := range ids {
		if d := w.devices[id]; !d.connected && w.rng.IntN(3) > 0 {
			w.connect(d, true, wants[id])
		}
	}
	down := time.Time{}
	for range steps {
		pause := time.Duration(w.rng.IntN(3000)) * time.Millisecond
		switch w.rng.IntN(12) {
		case 0:
			pause = time.Duration(w.rng.IntN(30)) * time.Second
		case 1, 2, 3, 4:
			pause = time.Duration(w.rng.IntN(100)) * time.Millisecond
		}
		time.Sleep(pause)
		if !down.IsZero() && time.Now().After(down) {
			w.note("a replayer starts")
			w.replays()
			down = time.Time{}
		}
		d := w.devices[ids[w.rng.IntN(len(ids))]]
		what := w.rng.IntN(20)
		if w.restless && w.rng.IntN(4) == 0 {
			what = 14 + w.rng.IntN(6)
		}
		switch what {
		case 0, 1, 2, 3, 4, 5, 6, 7:
			for range 1 + w.rng.IntN(3) {
				w.publish(pubsubTopics[w.rng.IntN(len(pubsubTopics))])
			}
		case 8, 9, 10:
			w.connect(d, w.rng.IntN(2) == 0, wants[d.id])
		case 11, 12, 13:
			w.mu.Lock()
			if d.connected {
				if w.rng.IntN(3) == 0 {
					w.acks(d) // one more
				}
				w.disconnect(d)
			}
			w.mu.Unlock()
		case 14:
			w.mu.Lock()
			if d.stuck = !d.stuck && d.connected; !d.stuck {
				w.pump(d)
			}
			w.note("%s stuck=%v", d.id, d.stuck)
			w.mu.Unlock()
		case 15:
			w.mu.Lock()
			f := filters[w.rng.IntN(len(filters))]
			switch {
			case !d.connected:
				if w.rng.IntN(3) == 0 { // the broker forgets the session
					d.session, d.subs, d.queue = false, nil, nil
				}
			case d.subs[f]:
				w.unsubscribe(d, f)
				wants[d.id] = slices.DeleteFunc(wants[d.id], func(s string) bool { return s == f })
			default:
				w.subscribe(d, f)
				if !slices.Contains(wants[d.id], f) {
					wants[d.id] = append(wants[d.id], f)
				}
			}
			w.mu.Unlock()
		case 16:
			w.mu.Lock()
			w.write()
			w.mu.Unlock()
		case 17:
			if down.IsZero() {
				w.note("a rebalance")
				w.cluster.Rebalance(replayGroup)
			}
		case 18, 19:
			if !down.IsZero() {
				break
			}
			w.ends(w.rng.IntN(3))
			down = time.Now().Add(time.Duration(w.rng.IntN(10)) * time.Second)
		}
	}
	w.heal(ids)
}

// ends is one of three ways in which a replayer ends.
func (w *pubsubWorld) ends(how int) {
	switch how {
	case 0:
		w.note("the replayer stops")
		_ = w.proc.stop()
	case 1:
		w.note("the replayer dies")
		w.proc.die()
		<-w.proc.done
	case 2:
		w.note("the replayer will die when it writes")
		w.proc.armed.Store(true)
		select {
		case <-w.proc.done:
		case <-time.After(20 * time.Second):
			w.proc.die()
			<-w.proc.done
		}
	}
}

// plot is the beginning of some histories. A client comes back to what it has missed, is cut before it has all of it, comes back once more
// to the session that it had, gets live messages, and turns to another filter; then the replayer ends. What it has missed must still come.
func (w *pubsubWorld) plot(wants map[event.ClientID][]string, filters []string) {
	a, b := w.devices["a"], w.devices["b"]
	some := func(most time.Duration) { time.Sleep(time.Duration(w.rng.Int64N(int64(most)))) }
	w.connect(a, true, wants["a"])
	some(4 * time.Second)
	w.leaves(a, false)
	topic := w.topicOf(wants["a"][0])
	for range 4 + w.rng.IntN(8) {
		w.publish(topic)
	}
	some(20 * time.Second)
	if w.rng.IntN(2) == 0 { // what it leaves unfinished is read again with all that follows
		w.connect(b, true, wants["b"])
		w.mu.Lock()
		b.stuck = true
		w.mu.Unlock()
	}
	w.connect(a, true, wants["a"])
	some(800 * time.Millisecond)
	w.leaves(a, true)
	some(20 * time.Second)
	w.connect(a, false, nil)
	for range 1 + w.rng.IntN(3) {
		w.publish(topic)
		some(time.Second)
	}
	for _, i := range w.rng.Perm(len(filters)) {
		if f := filters[i]; !slices.Contains(wants["a"], f) && eventtest.Filter(w.t, f).Match(eventtest.Topic(w.t, topic)) {
			w.mu.Lock()
			w.subscribe(a, f)
			w.mu.Unlock()
			wants["a"] = append(wants["a"], f)
			break
		}
	}
	some(3 * time.Second)
	w.ends(w.rng.IntN(3))
	some(8 * time.Second)
	w.replays()
}

// leaves cuts a client, whose session goes on or not.
func (w *pubsubWorld) leaves(d *device, keeps bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d.keeps = keeps
	w.disconnect(d)
}

// topicOf is a topic that the filter matches.
func (w *pubsubWorld) topicOf(filter string) string {
	for {
		if t := pubsubTopics[w.rng.IntN(len(pubsubTopics))]; eventtest.Filter(w.t, filter).Match(eventtest.Topic(w.t, t)) {
			return t
		}
	}
}

func (w *pubsubWorld) heal(ids []event.ClientID) {
	w.note("all is well from now on")
	w.mu.Lock()
	w.quietly, w.well = true, time.Now()
	w.mu.Unlock()
	if w.proc.armed.Load() || w.proc.dead.Load() || w.proc.ended() {
		if !w.proc.ended() {
			w.proc.die()
			<-w.proc.done
		}
		w.replays()
	}
	for range 2 {
		for _, id := range ids {
			d := w.devices[id]
			w.connect(d, true, slices.Sorted(maps.Keys(d.owed)))
		}
		time.Sleep(wellAfter)
		w.mu.Lock()
		for _, id := range ids {
			clear(w.devices[id].sent)
		}
		w.mu.Unlock()
	}
	for _, id := range ids { // for a third time: nothing is left
		d := w.devices[id]
		w.connect(d, true, slices.Sorted(maps.Keys(d.owed)))
	}
	time.Sleep(time.Minute)
}

func (m *mortal) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// judge says what was lost, and what came again when nothing was left.
func (w *pubsubWorld) judge() []string {
	wrong := w.wrong
	for _, id := range slices.Sorted(maps.Keys(w.devices)) {
		d := w.devices[id]
		for i, m := range w.all {
			if !m.expires.IsZero() && m.expires.Before(w.well.Add(wellAfter)) || !w.stores(m.topic) {
				continue
			}
			for f, since := range d.owed {
				owed := m.at.After(since) || w.first < 0
				if owed && d.got[m.id] == 0 && eventtest.Filter(w.t, f).Match(m.topic) {
					wrong = append(wrong, fmt.Sprintf("%s lost #%d of %s, owed by %s", d.id, i, m.topic, f))
				}
			}
		}
		for id, n := range d.sent {
			wrong = append(wrong, fmt.Sprintf("%s was sent %s again %d times when nothing was left", d.id, w.name(id), n))
		}
	}
	if w.replayerAt() != w.sessionsEnd() {
		wrong = append(wrong, fmt.Sprintf("the replayer committed %d of %d", w.replayerAt(), w.sessionsEnd()))
	}
	return wrong
}

func (w *pubsubWorld) stores(t event.Topic) bool {
	return len(w.rules.Plan(event.Published{Head: event.Head{ID: event.IDOf(1, 1, 1)}, Topic: t, QoS: 1, Payload: []byte("x")}).Ops) > 0
}

// history runs one seed, and returns what went wrong and what happened.
func history(t *testing.T, seed uint64) (wrong, lines []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newPubsubWorld(t, seed)
		w.run()
		w.mu.Lock()
		defer w.mu.Unlock()
		wrong, lines = w.judge(), w.lines
	})
	return wrong, lines
}

func TestPubsubLosesNothingInRandomHistories(t *testing.T) {
	t.Parallel()
	if *seed != 0 {
		wrong, lines := history(t, *seed)
		t.Logf("history %d:\n%s", *seed, strings.Join(lines, "\n"))
		for _, s := range wrong {
			t.Error(s)
		}
		return
	}
	n := 2000
	switch {
	case *histories > 0:
		n = *histories
	case os.Getenv("RESTANTE_SOAK") != "":
		n = 20_000
	case raced:
		n = 100
	}
	const abreast = 2
	var mu sync.Mutex
	found := 0
	for worker := range abreast {
		t.Run(fmt.Sprint(worker), func(t *testing.T) {
			t.Parallel()
			for s := worker + 1; s <= n; s += abreast {
				wrong, _ := history(t, uint64(s))
				if len(wrong) == 0 {
					continue
				}
				t.Errorf("history %d (-run RandomHistories -seed %d tells it):\n%s", s, s, strings.Join(wrong, "\n"))
				mu.Lock()
				found++
				enough := found >= 5
				mu.Unlock()
				if enough {
					return
				}
			}
		})
	}
}
