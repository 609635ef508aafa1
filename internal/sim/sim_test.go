package sim

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

var (
	oneSeed  = flag.Int64("seed", -1, "run this seed only and print its history")
	verbose  = flag.Bool("steps", false, "put every call into the history")
	rush     = flag.Bool("rush", false, "make owners that do not know that they are none the rule")
	overtake = flag.Bool("overtake", false, "make acks that are in the log before their publishes the rule")
	logs     = flag.Bool("logs", false, "print what the processes log")
	first    = flag.Int64("first", 0, "the first seed")
	small    = flag.Bool("small", false, "with -seed: leave out of the history what it does not need to fail")
	bug      = flag.String("bug", "", "plant this bug")
	count    = flag.Int64("count", 0, "how many seeds, 0 = as many as fit the occasion")
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // many short lives, little memory
	// Goroutines that wake in one step would run in an order of the moment's. One processor keeps it: the same seed, the same history.
	runtime.GOMAXPROCS(1)
	goleak.VerifyTestMain(m)
}

func seeds(few, many int64) (int64, int64) {
	switch {
	case *oneSeed >= 0:
		return *oneSeed, *oneSeed + 1
	case *count > 0:
		few = *count
	case os.Getenv("RESTANTE_SOAK") != "":
		few = many
	}
	return *first, *first + few
}

type result struct {
	lines []string
	hash  string
	bad   []string
	steps int
	w     *world
}

func (w *world) begin() time.Time { return w.hist.begin }

// retain removes what both groups have committed and a little more could want.
func (w *world) retain() {
	for part := range w.plan.parts {
		tp := pipeline.TP{Topic: topics.Messages, Part: part}
		w.cluster.Retain(tp, w.cluster.Committed(writers, tp))
	}
}

// simulate runs a plan in a bubble of its own.
func simulate(t *testing.T, p plan) result {
	t.Helper()
	var res result
	synctest.Test(t, func(*testing.T) {
		out := io.Discard
		level := slog.LevelError + 1
		if *logs {
			out, level = os.Stdout, slog.LevelDebug
		}
		w := newWorld(p, slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})))
		if *verbose {
			w.step.trace = func(c *call, v fakelog.Verdict) { w.hist.note("    %s %s %v", c.in.name, c.key, v) }
			w.step.admitted = func(c *call) { w.hist.note("    %s asks to %s, ready in %v", c.in.name, c.key, time.Until(c.ready)) }
		}
		res = w.play()
	})
	return res
}

func (w *world) play() result {
	for _, a := range w.plan.actions {
		w.step.at(w.begin().Add(a.at), func() {
			w.hist.note("-- %s", a.text)
			a.do(w)
		})
	}
	end := w.begin().Add(rest)
	if w.plan.readers == 0 {
		end = w.begin().Add(chaos + 25*time.Second)
	}
	const most = 200_000
	w.step.run(func() bool { return !time.Now().Before(end) || w.step.steps > most })
	if w.step.steps > most {
		w.hist.broken("liveness: more than %d calls until %v", most, time.Since(w.begin()))
	}
	for _, in := range w.all {
		if in.dead.Load() || in.ended {
			continue
		}
		for _, role := range []string{"writer", "replayer", "ingest"} {
			for i := range 4 {
				if w.procs[fmt.Sprint(role, i)] == in {
					w.stop(role, i)
				}
			}
		}
	}
	alive := func() bool {
		for _, in := range w.all {
			select {
			case <-in.done:
			default:
				if !in.dead.Load() {
					return true
				}
			}
		}
		return false
	}
	late := time.Now().Add(30 * time.Second)
	w.step.run(func() bool { return !alive() || !time.Now().Before(late) || w.step.steps > 2*most })
	res := result{lines: w.hist.lines, steps: w.step.steps, w: w}
	w.tally()
	if alive() {
		w.hist.broken("liveness: a process that was told to stop is still there after 30 s")
	}
	for _, in := range w.all {
		if !in.dead.Load() && in.err != nil && w.procs[in.slot()] == in {
			w.hist.broken("%s ended with %v", in.name, in.err)
		}
	}
	res.bad = w.verdict()
	res.lines, res.hash = w.hist.lines, w.hist.hash()
	close(w.step.over)
	for _, in := range w.all {
		in.cancel()
		in.abort()
	}
	for _, in := range w.all {
		<-in.done
	}
	time.Sleep(time.Minute) // the timers that are left
	return res
}

// slot is the place that an incarnation fills.
func (in *incarnation) slot() string { name, _, _ := strings.Cut(in.name, "."); return name }

func report(t *testing.T, r result, seed int64) {
	t.Helper()
	lines, what := r.lines, "its history"
	if *oneSeed < 0 || *small {
		r = shrink(t, r)
		lines, what = r.lines, fmt.Sprintf("a history of %d actions that is left of it", len(r.w.plan.actions))
	}
	t.Errorf("seed %d: %d promises broken:\n  %s\nall of it: go test ./internal/sim -run '%s' -seed %d (with -small: what follows)\n%s:\n%s",
		seed, len(r.bad), strings.Join(r.bad, "\n  "), t.Name(), seed, what, strings.Join(lines, "\n"))
}

// longest is how long seeds are begun.
const longest = 30 * time.Minute

// judge runs seeds beside each other, and reports those that break a promise.
func judge(t *testing.T, few, many int64, draw func(seed uint64) plan) *tried {
	t.Helper()
	from, to := seeds(few, many)
	var failed, steps, runs atomic.Int64
	over := time.Now().Add(longest)
	tried := newTried()
	var next atomic.Int64
	next.Store(from)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			const most = 3
			for seed := next.Add(1) - 1; seed < to && failed.Load() < most && time.Now().Before(over); seed = next.Add(1) - 1 {
				r := simulate(t, draw(uint64(seed)))
				runs.Add(1)
				steps.Add(int64(r.steps))
				tried.add(r.w.hist.seen)
				if len(r.bad) > 0 {
					failed.Add(1)
					report(t, r, seed)
				} else if *oneSeed >= 0 {
					t.Logf("seed %d:\n%s", seed, strings.Join(r.lines, "\n"))
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d of %d seeds, %d calls, %v", runs.Load(), to-from, steps.Load(), tried)
	return tried
}

func TestPipelineKeepsItsPromises(t *testing.T) {
	t.Parallel()
	few := int64(300)
	if raced {
		few = 40 // the detector makes each five times as long
	}
	tried := judge(t, few, 10_000, func(seed uint64) plan {
		p := draw(seed)
		p.planted = planted(*bug)
		if *rush {
			p.rush()
		}
		if *overtake {
			p.overtake()
		}
		return p
	})
	if *oneSeed < 0 && *count == 0 && !raced { // with so few not everything happens
		tried.complete(t)
	}
}

func TestASeedAlwaysGivesTheSameHistory(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("the race detector draws the order in which goroutines run")
	}
	_, most := seeds(30, 100)
	for seed := range uint64(most) {
		want := simulate(t, draw(seed))
		for range 2 {
			if got := simulate(t, draw(seed)); got.hash != want.hash {
				i := 0
				for i < len(got.lines) && i < len(want.lines) && got.lines[i] == want.lines[i] {
					i++
				}
				t.Fatalf("%+v seed %d: the histories part at line %d:\n%s\n----\n%s", want.w.plan.replay, seed, i,
					strings.Join(got.lines[max(i-8, 0):min(i+3, len(got.lines))], "\n"), strings.Join(want.lines[max(i-8, 0):min(i+3, len(want.lines))], "\n"))
			}
		}
	}
}
