package bench

import (
	"runtime"
	"testing"
	"time"
)

// cost is what work took: the time on the wall, and that of this process on the processors.
type cost struct{ wall, processor time.Duration }

// measure is the cost of do.
func measure(do func()) cost {
	runtime.GC()
	began, before := time.Now(), cpu()
	do()
	return cost{time.Since(began), cpu() - before}
}

// rounds is how often a pair is measured.
const rounds = 5

// pairs compares ours with a ceiling: both do the same with n things, side by side.
type pairs struct {
	n          int
	ours, bare []cost
}

// run measures once for each round, each of both first in every other one. prepare makes what a round needs and says how to
// do away with it.
func (p *pairs) run(prepare func() (ours, bare func() cost, done func())) {
	for i := range rounds {
		ours, bare, done := prepare()
		if i%2 == 0 {
			p.bare = append(p.bare, bare())
			p.ours = append(p.ours, ours())
		} else {
			p.ours = append(p.ours, ours())
			p.bare = append(p.bare, bare())
		}
		done()
	}
}

// rates are how many things were done in a second.
func (p *pairs) rates(all []cost) []float64 {
	out := make([]float64, len(all))
	for i, c := range all {
		out[i] = float64(p.n) / c.wall.Seconds()
	}
	return out
}

// processor is the processor time of one thing, in µs.
func (p *pairs) processor(all []cost) []float64 {
	out := make([]float64, len(all))
	for i, c := range all {
		out[i] = float64(c.processor.Nanoseconds()) / 1e3 / float64(p.n)
	}
	return out
}

// report adds the ratio of the rates with its target, that of the processor times where it has one, and what they are made of.
func (p *pairs) report(b *testing.B, thing string, rate, processor float64) {
	b.Helper()
	atLeast(b, thing+"/s of the ceiling", median(ratios(p.rates(p.ours), p.rates(p.bare))), "×", rate)
	const name = "processor time of the ceiling"
	if r := median(ratios(p.processor(p.ours), p.processor(p.bare))); processor > 0 {
		atMost(b, name, r, "×", processor)
	} else {
		report(b, name, r, "×")
	}
	for _, of := range []struct {
		name string
		all  []cost
	}{{"ours", p.ours}, {"ceiling", p.bare}} {
		report(b, of.name, median(p.rates(of.all))/1000, "k "+thing+"/s")
		report(b, of.name+", client", median(p.processor(of.all)), "µs CPU each")
	}
}
