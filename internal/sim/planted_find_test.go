package sim

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// bugs are what the judges must find, each within 2,000 seeds. seed is the first that finds it, as far as is known: it is tried first.
var bugs = []struct {
	bug  planted
	seed uint64
	// rare makes what the bug needs more frequent than it is; nil = it is frequent enough.
	rare func(*plan)
}{
	{bug: commitFirst},
	{bug: ackFirst, seed: 31},
	{bug: giveUp},
	{bug: dropPoison, seed: 1},
	{bug: deadFirst, seed: 1},
	{bug: offByOne},
	{bug: staleCommit, seed: 26},
	{bug: cutOff, seed: 4},
	{bug: drainFirst, seed: 133},
	{bug: wallClock, seed: 7, rare: (*plan).rush},
	{bug: naiveElision, seed: 11, rare: (*plan).rush},
	{bug: ageElision, seed: 164, rare: (*plan).lag},
	{bug: staleStore, seed: 8},
	{bug: staleEnds, seed: 16},
	{bug: noSecondPass, seed: 83},
	{bug: acksIgnored, seed: 3},
	{bug: noLookBack, seed: 1, rare: (*plan).overtake},
	{bug: sliceLost},
	{bug: echoIgnored},
	{bug: aliasSpooled, seed: 33},
	{bug: naivePosition, seed: 4},
	{bug: positionPassing, seed: 40},
}

// rush makes owners that do not know that they are none the rule, with a slow store.
func (p *plan) rush() {
	p.parts, p.writers, p.ackDelay, p.limits.Hold, p.limits.Records = 1, 2, time.Second, time.Second, 5
	for i := range 9 {
		at := time.Duration(i+1) * 4 * time.Second
		p.add(at, func(w *world) {
			w.change(func(m *mood) { m.slow = 0.5 })
			w.expel("writer", i%2, 2*time.Second)
		}, "writer %d is out of its group", i%2)
		p.add(at+2100*time.Millisecond, func(w *world) { w.kill("writer", i%2) }, "writer %d is killed", i%2)
		p.add(at+2200*time.Millisecond, func(w *world) { w.start("writer", i%2) }, "writer %d starts", i%2)
	}
	p.sort()
	p.need()
}

// lag makes owners the rule that read late what owners before them have written and not committed.
func (p *plan) lag() {
	p.parts, p.writers, p.ackDelay, p.withheld, p.limits.Hold, p.limits.Records = 1, 1, 800*time.Millisecond, 0, time.Second, 5
	p.tells, p.evidence = true, pipeline.EvidenceBroker
	for _, t := range []time.Duration{2 * time.Second, 15 * time.Second, 27 * time.Second} {
		topic := "t/a/x"
		p.add(t-2*time.Second, func(w *world) {
			w.change(func(m *mood) { m.faults = faults{slow: 0.6} })
			w.broker.connect("a")
			w.broker.subscribe("a", topic, 1)
		}, "a subscribes %s", topic)
		for i := range 15 {
			p.add(t-time.Duration(i)*100*time.Millisecond, func(w *world) {
				w.broker.publish(event.Published{Sender: "p", Topic: mustTopic(topic), Payload: []byte("late"), QoS: 1})
			}, "p publishes %s", topic)
		}
		p.add(t+50*time.Millisecond, func(w *world) { w.kill("writer", 0) }, "writer 0 is killed")
		p.add(t+100*time.Millisecond, func(w *world) {
			w.start("writer", 0)
			w.change(func(m *mood) { m.faults = faults{} })
		}, "writer 0 starts")
		p.add(t+2500*time.Millisecond, func(w *world) { w.change(func(m *mood) { m.faults = faults{empty: 1} }) }, "nothing is read")
		p.add(t+12800*time.Millisecond, func(w *world) { w.change(func(m *mood) { m.faults = faults{} }) }, "all is read again")
	}
	p.sort()
	p.need()
}

// overtake makes acks that are in the log before their publishes the rule.
func (p *plan) overtake() {
	p.async, p.tells, p.evidence, p.renames, p.withheld, p.drops, p.expires = true, true, pipeline.EvidenceBroker, false, 0, 0, 0
	p.ahead, p.ackDelay, p.limits.Hold = nil, 20*time.Millisecond, 300*time.Millisecond
	p.actions = slices.DeleteFunc(p.actions, func(a action) bool {
		return strings.HasPrefix(a.text, "the clock") || strings.HasPrefix(a.text, "replayer") && a.at > 0 && a.at != chaos || a.text == readers+" rebalances"
	})
	r := rand.New(rand.NewPCG(p.seed, 10))
	for range 6 {
		p.flaps(r)
	}
	p.sort()
	p.need()
}

func TestPlantedBugsAreFound(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("a bug is found without the race detector or not at all")
	}
	for _, b := range bugs {
		t.Run(string(b.bug), func(t *testing.T) {
			t.Parallel()
			run := func(seed uint64, bug planted) []string {
				p := draw(seed)
				p.planted = bug
				if b.rare != nil {
					b.rare(&p)
				}
				return simulate(t, p).bad
			}
			found := func(seed uint64) bool {
				bad := run(seed, b.bug)
				if len(bad) == 0 {
					return false
				}
				t.Logf("found with seed %d: %s", seed, bad[0])
				if bad := run(seed, ""); len(bad) > 0 {
					t.Errorf("without the bug seed %d is no better: %s", seed, bad[0])
				}
				return true
			}
			if os.Getenv("RESTANTE_SOAK") == "" && found(b.seed) {
				return
			}
			from, to := seeds(300, 2000)
			for seed := from; seed < to; seed++ {
				if found(uint64(seed)) {
					return
				}
			}
			t.Errorf("not found with %d seeds", to-from)
		})
	}
}
