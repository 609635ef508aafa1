package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// Tail reads the part of the log that a sink's writers have not committed yet, in rounds that serve all replays that wait. The
// truth about a topic is the store plus this tail (DESIGN §6). What was read stays in memory, and only what is new is read.
type Tail struct {
	Reader Log
	Topic  string // full name of the messages topic
	Parts  int    // the configured count
	Group  string // the sink's writer group
	// Partition is the producer's: murmur2(key) mod Parts.
	Partition func(key string) int
	Plan      Planner // of the sink
	// Budget bounds the bytes kept, LookBack is how much log below the commit is looked at for acks, Pause the least time
	// between two rounds.
	Budget   int
	LookBack time.Duration
	Pause    time.Duration
	// Retained says that retained messages are looked up: views show them too.
	Retained bool
	Metrics  *Metrics
	Log      *slog.Logger

	mu      sync.Mutex
	waiting []*ask
	wake    chan struct{}
	parts   map[int]*tailPart // used by the rounds only
	left    atomic.Int64      // of the budget, in bytes
}

// ask is a replay that waits for a round.
type ask struct {
	filter event.Filter
	done   chan struct{}
	view   *View
	err    error
}

// View is what one round saw of the topics of one filter. The store must be read after the round.
type View struct {
	// Complete is false when the tail was over the budget: then another pass must follow.
	Complete bool
	topics   map[event.Topic]overlay
}

// overlay are the changes that lie in the tail of one topic.
type overlay struct {
	puts []sinks.Message // ascending by id, each id once, none of them gone
	gone map[event.ID]struct{}
	// retained is what the tail does to the topic's retained message, nil = nothing.
	retained sinks.Op
}

// Topics are the topics that have messages in the tail, sorted.
func (v *View) Topics() []event.Topic {
	var out []event.Topic
	for t, o := range v.topics {
		if len(o.puts) > 0 {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, compareTopics)
	return out
}

// NewTail returns a Tail with the fields of t, ready to run.
func NewTail(t *Tail) *Tail {
	t.wake = make(chan struct{}, 1)
	t.parts = make(map[int]*tailPart)
	return t
}

// View waits for the next round and returns what it saw of the filter's topics. An error is transient.
func (t *Tail) View(ctx context.Context, f event.Filter) (*View, error) {
	a := &ask{filter: f, done: make(chan struct{})}
	t.mu.Lock()
	t.waiting = append(t.waiting, a)
	select {
	case t.wake <- struct{}{}:
	default:
	}
	t.mu.Unlock()
	select {
	case <-a.done:
		return a.view, a.err
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		t.waiting = slices.DeleteFunc(t.waiting, func(o *ask) bool { return o == a })
		return nil, context.Cause(ctx)
	}
}

// Run works the rounds until ctx ends.
func (t *Tail) Run(ctx context.Context) error {
	defer func() {
		for _, p := range t.parts {
			p.close()
		}
	}()
	last := time.Now().Add(-t.Pause)
	for {
		select {
		case <-t.wake:
		case <-ctx.Done():
			return nil
		}
		const together = 100 * time.Microsecond // replays that began together ask together: one round serves them
		if Sleep(ctx, max(t.Pause-time.Since(last), together)) != nil {
			return nil
		}
		t.mu.Lock()
		asks := t.waiting
		t.waiting = nil
		select {
		case <-t.wake: // of those that have come since: they are served now
		default:
		}
		t.mu.Unlock()
		if len(asks) == 0 {
			continue // they have gone, and nothing has been read
		}
		last = time.Now()
		seen, err := t.round(ctx, t.partsOf(asks))
		for _, a := range asks {
			if a.err = err; err == nil {
				a.view, a.err = t.look(a.filter, seen)
			}
			close(a.done)
		}
		t.Metrics.RoundSeconds.Observe(time.Since(last).Seconds())
	}
}

// partsOf are the partitions that the filters' topics may be in, sorted.
func (t *Tail) partsOf(asks []*ask) []int {
	var parts []int
	for _, a := range asks {
		if topic, ok := a.filter.Exact(); ok {
			parts = append(parts, t.Partition(topic.String()))
			continue
		}
		parts = parts[:0]
		for p := range t.Parts {
			parts = append(parts, p)
		}
		break
	}
	slices.Sort(parts)
	return slices.Compact(parts)
}

// seen is how far a round got with one partition.
type seen struct {
	complete bool
	err      error
}

// round brings the partitions up to date: end offsets first, then the committed ones, then the log between them. Below the
// commit all is in the store, from there on all is in the tail, so the store must be read after the commit was.
func (t *Tail) round(ctx context.Context, parts []int) (map[int]seen, error) {
	spans, err := t.Reader.Spans(ctx, t.Topic, parts...)
	if err != nil {
		return nil, fmt.Errorf("read end offsets of %s: %w", t.Topic, err)
	}
	committed, err := t.Reader.Committed(ctx, t.Group, t.Topic, parts...)
	if err != nil {
		return nil, fmt.Errorf("read committed offsets of %s: %w", t.Group, err)
	}
	for _, n := range parts {
		span := spans[n]
		first, ok := committed[n]
		if !ok || first < span.First {
			first = span.First
		}
		p := t.parts[n]
		if p == nil {
			p = &tailPart{tp: TP{t.Topic, n}, byTopic: make(map[event.Topic][]tailOp)}
			p.reset(first)
			t.parts[n] = p
		}
		p.trim(first, span, t.LookBack)
		p.used = time.Now()
	}
	t.account()
	var g errgroup.Group
	const abreast = 8
	g.SetLimit(abreast)
	errs := make([]error, len(parts))
	for i, n := range parts {
		g.Go(func() error {
			errs[i] = t.parts[n].advance(ctx, t)
			return nil
		})
	}
	_ = g.Wait() // each partition's error stands in errs
	out := make(map[int]seen, len(parts))
	records, over := 0, false
	for i, n := range parts {
		p := t.parts[n]
		out[n] = seen{complete: p.pos >= p.end, err: errs[i]}
		records += len(p.ops)
		over = over || p.pos < p.end
	}
	if over {
		t.Metrics.TailOverBudget.Inc()
	}
	t.Metrics.TailRecords.Observe(float64(records))
	return out, nil
}

// account sets what is left of the budget, and gives up what no replay has asked for lately when it gets tight.
func (t *Tail) account() {
	const idle = 30 * time.Second
	used := 0
	for _, p := range t.parts {
		used += p.bytes
	}
	if used > t.Budget/2 {
		for _, p := range t.parts {
			if time.Since(p.used) > idle {
				used -= p.bytes
				p.reset(p.committed)
			}
		}
	}
	t.left.Store(int64(t.Budget - used))
}

// look makes the view of one filter.
func (t *Tail) look(f event.Filter, parts map[int]seen) (*View, error) {
	v := &View{Complete: true, topics: make(map[event.Topic]overlay)}
	if topic, ok := f.Exact(); ok {
		n := t.Partition(topic.String())
		v.Complete = parts[n].complete
		t.parts[n].overlay(topic, v)
		return v, parts[n].err
	}
	for n, s := range parts {
		if s.err != nil {
			return nil, s.err
		}
		v.Complete = v.Complete && s.complete
		p := t.parts[n]
		for topic := range p.byTopic {
			if f.Match(topic) {
				p.overlay(topic, v)
			}
		}
	}
	return v, nil
}
