package sim

import (
	"os"
	"testing"
	"time"
)

// bugs are what the judges must find, each within 2,000 seeds. seed is the first that finds it, as far as is known: it is tried first.
var bugs = []struct {
	bug  planted
	seed uint64
	rush bool // only where owners that do not know that they are none are the rule
}{
	{bug: commitFirst},
	{bug: ackFirst},
	{bug: giveUp},
	{bug: dropPoison},
	{bug: deadFirst},
	{bug: offByOne},
	{bug: staleCommit},
	{bug: cutOff},
	{bug: drainFirst},
	{bug: wallClock, rush: true},
	{bug: naiveElision, rush: true},
	{bug: ageElision, rush: true},
	{bug: staleStore},
	{bug: staleEnds},
	{bug: noSecondPass},
	{bug: acksIgnored},
	{bug: noLookBack},
	{bug: sliceLost},
	{bug: echoIgnored},
	{bug: aliasSpooled},
	{bug: naivePosition},
	{bug: positionPassing},
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

func TestPlantedBugsAreFound(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("a bug is found without the race detector or not at all")
	}
	for _, b := range bugs {
		t.Run(string(b.bug), func(t *testing.T) {
			t.Parallel()
			found := func(seed uint64) bool {
				p := draw(seed)
				p.planted = b.bug
				if b.rush {
					p.rush()
				}
				r := simulate(t, p)
				if len(r.bad) > 0 {
					t.Logf("found with seed %d: %s", seed, r.bad[0])
				}
				return len(r.bad) > 0
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
