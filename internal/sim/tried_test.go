package sim

import (
	"fmt"
	"sync"
	"testing"

	"github.com/restante/restante/pipeline"
)

// seen names a thing that the simulation is there to try. One that never happens proves nothing.
type seen string

const (
	seenSpool     seen = "spools that began"
	seenHeldAlias seen = "aliases held back"
	seenUnknown   seen = "acks without an alias"
	seenExpired   seen = "messages that expired on their way"
	seenSlice     seen = "slices"
	seenDead      seen = "dead letters"
	seenElided    seen = "pairs elided"
	seenLagging   seen = "rounds that did not see all"
	seenRetained  seen = "retained messages handed over"
	seenPositions seen = "positions stored"
	seenMarks     seen = "marks set"
	seenEchoes    seen = "replays that came back"
	seenSkipped   seen = "subscribes at QoS 0"
)

var allSeen = []seen{
	seenSpool, seenHeldAlias, seenUnknown, seenExpired, seenSlice, seenDead, seenElided, seenLagging, seenRetained, seenPositions, seenMarks,
	seenEchoes, seenSkipped,
}

// tally takes over what the processes have counted.
func (w *world) tally() {
	h := w.hist
	for _, in := range w.all {
		m := in.m
		h.rounds += int(in.metric(m.TailOverBudget))
		h.seen[seenElided] += int(in.metric(m.Elided.WithLabelValues(sink)))
		h.seen[seenRetained] += int(in.metric(m.RetainedSent.WithLabelValues("sent")))
		h.seen[seenPositions] += int(in.metric(m.Positions.WithLabelValues("stored")))
		h.seen[seenMarks] += int(in.metric(m.PositionMarks.WithLabelValues("set")))
		h.seen[seenUnknown] += int(in.metric(m.Skipped.WithLabelValues("replayer", pipeline.SkipUnknownAlias)))
	}
	h.seen[seenLagging] += h.rounds
	h.seen[seenEchoes] += w.broker.replayed
	for _, d := range h.dead {
		h.seen[seenDead] += len(d)
	}
}

// tried sums up what has happened in many runs. It is safe for concurrent use.
type tried struct {
	mu    sync.Mutex
	times map[seen]int
}

func newTried() *tried { return &tried{times: make(map[seen]int)} }

func (t *tried) add(times map[seen]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s, n := range times {
		t.times[s] += n
	}
}

func (t *tried) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := ""
	for i, s := range allSeen {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%d %s", t.times[s], s)
	}
	return text
}

// complete fails the test when something was never tried.
func (t *tried) complete(tb testing.TB) {
	tb.Helper()
	for _, s := range allSeen {
		if t.times[s] == 0 {
			tb.Errorf("no run had any %s", s)
		}
	}
}
