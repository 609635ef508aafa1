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

func newPubsubWorld(t *testing.T, seed uint64) *pubsubWorld {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 7))
	w := &pubsubWorld{rng: rng, dice: rand.New(rand.NewPCG(seed, 8)), devices: make(map[event.ClientID]*device), forget: rng.IntN(2) == 0, limits: testReplays}
	w.limits.Window, w.limits.Slice, w.limits.Active = 1+rng.IntN(4), 3+rng.IntN(6), 2
	w.limits.AckTimeout, w.limits.Retry = 5*time.Second, []time.Duration{5 * time.Second}
	w.limits.PositionHold = time.Duration(1+rng.IntN(3)) * time.Second
	if rng.IntN(3) > 0 {
		w.skew = 3 * time.Second
		w.limits.ClockSkew = 2 * w.skew
		if rng.IntN(2) == 0 {
			w.limits.Settle = 15 * time.Second
		}
	}
	if rng.IntN(4) == 0 {
		w.ttl = 3 * time.Minute
	}
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

// run is one history: a random one, then a time in which nothing goes wrong and every client takes what is left.
func (w *pubsubWorld) run() {
	topicsOf := []string{"t/1", "t/2", "t/2/x", "u/1", "t"}
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
	for _, id := range ids {
		if w.rng.IntN(3) > 0 {
			w.connect(w.devices[id], true, wants[id])
		}
	}
	down := time.Time{}
	for range 25 + w.rng.IntN(25) {
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
		switch w.rng.IntN(20) {
		case 0, 1, 2, 3, 4, 5, 6, 7:
			for range 1 + w.rng.IntN(3) {
				w.publish(topicsOf[w.rng.IntN(len(topicsOf))])
			}
		case 8, 9, 10:
			w.connect(d, w.rng.IntN(2) == 0, wants[d.id])
		case 11, 12, 13:
			w.mu.Lock()
			if d.connected {
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
			switch w.rng.IntN(3) {
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
			down = time.Now().Add(time.Duration(w.rng.IntN(10)) * time.Second)
		}
	}
	w.heal(ids)
}

func (w *pubsubWorld) heal(ids []event.ClientID) {
	w.note("all is well from now on")
	w.mu.Lock()
	w.quietly = true
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
		time.Sleep(3 * time.Minute)
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
	var wrong []string
	end := time.Now()
	for _, id := range slices.Sorted(maps.Keys(w.devices)) {
		d := w.devices[id]
		for i, m := range w.all {
			if !m.expires.IsZero() && m.expires.Before(end) || !w.stores(m.topic) {
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
