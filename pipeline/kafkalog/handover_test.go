package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/pipeline"
)

// member works like a worker: one function per partition reads, and commits what it has read, also while draining.
type member struct {
	t      *testing.T
	client *Client
	group  string
	topic  string
	book   *book
	slow   time.Duration // of the drain
}

// book is what all members did, in the order they did it.
type book struct {
	mu     sync.Mutex
	read   map[pipeline.TP]map[int64]int
	commit map[pipeline.TP]int64
}

func (b *book) committed(t *testing.T, tp pipeline.TP, next int64) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if next < b.commit[tp] {
		t.Errorf("%v: committed %d after %d", tp, next, b.commit[tp])
	}
	b.commit[tp] = next
}

func (m *member) run(ctx context.Context) {
	g, err := m.client.Group(m.group, m.topic)
	if err != nil {
		m.t.Error(err)
		return
	}
	defer func() { _ = g.Close() }()
	for {
		gen, err := g.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				m.t.Error(err)
			}
			return
		}
		for tp, from := range gen.Assigned() {
			gen.Start(func(ended context.Context) {
				both, cancel := context.WithCancel(ended)
				defer cancel()
				defer context.AfterFunc(ctx, cancel)()
				m.work(both, gen, tp, max(from, 0))
			})
		}
		if len(gen.Assigned()) == 0 {
			gen.Start(func(ended context.Context) {
				select {
				case <-ended.Done():
				case <-ctx.Done():
				}
			})
		}
	}
}

func (m *member) work(ctx context.Context, gen pipeline.Generation, tp pipeline.TP, from int64) {
	s, err := m.client.Log(m.group).Open(context.WithoutCancel(ctx), tp, from)
	if err != nil {
		m.t.Error(err)
		return
	}
	defer func() { _ = s.Close() }()
	at := from
	for done := false; !done; {
		rs, err := s.Fetch(ctx, 5, 20*time.Millisecond)
		if err != nil {
			if ctx.Err() == nil {
				m.t.Errorf("fetch: %v", err)
			}
			done = true
			time.Sleep(m.slow)
		}
		m.book.mu.Lock()
		for _, r := range rs {
			m.book.read[tp][r.Offset]++
			at = r.Offset + 1
		}
		m.book.mu.Unlock()
		if at == 0 {
			continue
		}
		switch err := gen.Commit(context.WithoutCancel(ctx), before(tp, at)); {
		case err == nil:
			m.book.committed(m.t, tp, at)
		case !errors.Is(err, pipeline.ErrFenced):
			m.t.Logf("commit: %v", err)
		}
	}
}

func TestHandOverLosesNothingAndNoOffsetGoesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	b := &book{read: map[pipeline.TP]map[int64]int{}, commit: map[pipeline.TP]int64{}}
	for p := range 3 {
		b.read[pipeline.TP{Topic: topic, Part: p}] = map[int64]int{}
	}
	feeder := c.open(t)
	p := feeder.Producer()
	feed := func(n int) {
		for i := range n {
			if _, err := p.Append(soon(t), out(fmt.Sprint(i), "v")); err != nil {
				t.Fatal(err)
			}
			if i%10 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	var wg sync.WaitGroup
	join := func() context.CancelFunc {
		m := &member{t: t, client: c.open(t), group: "g", topic: topic, book: b, slow: 50 * time.Millisecond}
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { m.run(ctx) })
		return cancel
	}
	first := join()
	feed(500)
	second := join()
	begin := time.Now()
	if _, err := c.WaitGroupStable(soon(t), "g", 2); err != nil {
		t.Fatal(err)
	}
	t.Logf("hand-over when a member joins: %v", time.Since(begin))
	feed(500)
	first()
	begin = time.Now()
	if _, err := c.WaitGroupStable(soon(t), "g", 1); err != nil {
		t.Fatal(err)
	}
	t.Logf("hand-over when a member leaves: %v", time.Since(begin))
	feed(500)
	if err := p.Close(soon(t)); err != nil {
		t.Fatal(err)
	}
	ctx := soon(t)
	for p := range 3 {
		tp := pipeline.TP{Topic: topic, Part: p}
		for {
			spans, err := feeder.Log("g").Spans(ctx, topic, p)
			if err != nil {
				t.Fatal(err)
			}
			at, err := feeder.Log("g").Committed(ctx, "g", topic, p)
			if err != nil {
				t.Fatal(err)
			}
			if at[p] != spans[p].End {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			b.mu.Lock()
			twice := 0
			for o := range spans[p].End {
				if b.read[tp][o] == 0 {
					t.Errorf("%v: offset %d was never read", tp, o)
				}
				if b.read[tp][o] > 1 {
					twice++
				}
			}
			b.mu.Unlock()
			t.Logf("%v: %d records, %d read twice", tp, spans[p].End, twice)
			break
		}
	}
	second()
	wg.Wait()
}
