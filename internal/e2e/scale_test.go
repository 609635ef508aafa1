package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
)

// pulse watches how far a group has committed the messages topic.
type pulse struct {
	t     *testing.T
	w     *world
	group string
	sum   int64
}

// committed is how many records the writers have committed, of all partitions.
func (p *pulse) committed() int64 {
	_, at, err := p.w.ends(p.t.Context(), "messages", p.group)
	if err != nil {
		return p.sum
	}
	var sum int64
	for _, n := range at {
		sum += max(n, 0)
	}
	p.sum = max(p.sum, sum)
	return p.sum
}

// watch lets a time pass, and then goes on until commits have moved at least twice since. It gives the records a second, and the longest
// time without a commit that moved.
func (p *pulse) watch(d time.Duration) (perSecond float64, gap time.Duration) {
	p.t.Helper()
	began, from := time.Now(), p.committed()
	moved, last, moves := began, from, 0
	for time.Since(began) < d || moves < 2 {
		if time.Since(moved) > e2etest.Patience {
			p.t.Errorf("nothing was committed for %v", time.Since(moved))
			return 0, gap
		}
		time.Sleep(50 * time.Millisecond)
		if now := p.committed(); now > last {
			gap, moved, last = max(gap, time.Since(moved)), time.Now(), now
			moves++
		}
	}
	return float64(last-from) / time.Since(began).Seconds(), gap
}

// TestWritersScaleOutAndBackUnderLoad: one writer, four, and one again, by joining the group and by SIGTERM, while messages come and
// devices take them. Nothing is lost, what is acknowledged does not come back, each topic stays in order, and every writer that leaves
// has finished what it held.
func TestWritersScaleOutAndBackUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.parts = 8
	cassandra := stack.Shared(t, stack.Cassandra)
	w.cassandra("history", cassandra, w.name, "")
	w.offline("history")
	w.migrate()
	look := lookCassandra(t, cassandra, w.name)
	start := time.Now()
	all := w.startAll("ingest", "replayer")
	writers := map[string]*e2etest.Process{}
	name := func(i int) string { return fmt.Sprintf("writer-%d", i) }
	begin := func(i int) {
		writers[name(i)] = e2etest.Start(t, "writer", "-config", w.config(name(i)))
		e2etest.AwaitReady(t, w.admin[name(i)])
	}
	begin(0)
	load := e2etest.StartLoad(t, w.broker, "t/load/%d", 12, long(120*time.Millisecond, 2*time.Millisecond))
	visitor := e2etest.StartVisitor(t, w.broker, "visitor", "t/load/0")
	progress(t, load, 100)
	p := &pulse{t: t, w: w, group: w.group("history")}
	phase := long(2*time.Second, time.Minute)
	steps := []struct {
		what string
		do   func()
	}{
		{"one writer", func() {}},
		{"scaled to four", func() {
			for i := 1; i < 4; i++ {
				begin(i)
			}
		}},
		{"four writers", func() {}},
		{"scaled back to one", func() {
			for i := 3; i > 0; i-- {
				drains(t, name(i), writers[name(i)])
				delete(writers, name(i))
			}
		}},
		{"one writer again", func() {}},
	}
	for _, s := range steps {
		done := make(chan struct{})
		before := load.Acked()
		began := time.Now()
		go func() { // ends by itself; waited for below
			defer close(done)
			_, gap := (&pulse{t: t, w: w, group: p.group}).watch(time.Second)
			t.Logf("%s: the longest gap between commits at its beginning was %v", s.what, gap.Round(10*time.Millisecond))
		}()
		s.do()
		<-done
		rate, gap := p.watch(phase)
		t.Logf("%s: %.0f records/s committed, the longest gap %v; %.0f PUBACKs/s", s.what, rate, gap.Round(10*time.Millisecond),
			float64(load.Acked()-before)/time.Since(began).Seconds())
	}
	acked, had := load.Stop(), visitor.Stop()
	w.awaitCommitted("history")
	b := w.book()
	promised(t, b, acked)
	awaitStored(t, look, b.waiting())
	left := map[string]bool{}
	for p := range acked {
		if !had[p] {
			left[p] = true
		}
	}
	e2etest.AwaitAll(t, w.broker, "the last", "t/load/#", left) // which checks the order of each topic
	if len(b.acked) == 0 {
		t.Error("the visitor has acknowledged nothing")
	}
	t.Logf("%d PUBACKs, %d acknowledged by the visitor, %d rows, the longest time without a PUBACK %v; all in %v", len(acked), len(b.acked), len(b.waiting()),
		load.Stall().Round(10*time.Millisecond), time.Since(start).Round(time.Second))
	for name, p := range all {
		drains(t, name, p)
	}
	drains(t, name(0), writers[name(0)])
}
