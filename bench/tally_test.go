package bench

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/pipeline"
)

// tally follows the work from outside, by what the worker asks of the log.
type tally struct {
	stop context.CancelFunc
	all  int // records to be fetched and committed

	mu            sync.Mutex
	began, end    time.Time
	before, after time.Duration         // processor time
	fetched       map[pipeline.TP]int64 // offsets before which all has been taken
	committed     map[pipeline.TP]int64
}

func (t *tally) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.began.IsZero() {
		t.began, t.before = time.Now(), cpu()
	}
}

// fetch notes that all below an offset of a partition has been taken. A rebalance has some of it fetched again.
func (t *tally) fetch(tp pipeline.TP, to int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fetched[tp] = max(t.fetched[tp], to)
	sum := int64(0)
	for _, n := range t.fetched {
		sum += n
	}
	if sum == int64(t.all) {
		t.stop()
	}
}

func (t *tally) commit(at map[pipeline.TP]pipeline.Next) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for tp, next := range at {
		t.committed[tp] = next.Offset()
	}
	t.end, t.after = time.Now(), cpu()
}

func (t *tally) took(b *testing.B) cost {
	b.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := int64(0)
	for _, n := range t.committed {
		sum += n
	}
	if sum != int64(t.all) {
		b.Fatalf("%d records are committed of %d", sum, t.all)
	}
	return cost{t.end.Sub(t.began), t.after - t.before}
}

// counted tells the tally of commits.
type counted struct {
	pipeline.Generation
	tally *tally
}

func (c counted) Commit(ctx context.Context, at map[pipeline.TP]pipeline.Next) error {
	err := c.Generation.Commit(ctx, at)
	if err == nil {
		c.tally.commit(at)
	}
	return err
}

// counting tells the tally of fetches.
type counting struct {
	pipeline.Log
	tally *tally
}

func (c counting) Open(ctx context.Context, tp pipeline.TP, from int64) (pipeline.Stream, error) {
	s, err := c.Log.Open(ctx, tp, from)
	return &countingStream{Stream: s, tally: c.tally, tp: tp}, err
}

type countingStream struct {
	pipeline.Stream
	tally *tally
	tp    pipeline.TP
	taken int64 // offset before which the worker has taken all that it was given
}

// Fetch counts what the calls before brought: only now has the worker taken it.
func (c *countingStream) Fetch(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	c.tally.fetch(c.tp, c.taken)
	recs, err := c.Stream.Fetch(ctx, limit, wait)
	if n := len(recs); n > 0 {
		c.taken = recs[n-1].Next().Offset()
	}
	return recs, err
}
