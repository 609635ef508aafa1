package fakelog

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/restante/restante/pipeline"
)

var (
	errEnded       = errors.New("the generation is over")
	errGroupClosed = errors.New("the group is closed")
)

// group is a consumer group as its coordinator sees it. The cluster's mutex guards it.
type group struct {
	c         *Cluster
	name      string
	offsets   map[pipeline.TP]int64
	entries   []*entry // the members, in the order of their joining
	number    int      // of the generation
	preparing bool
	timer     *time.Timer
}

// entry is a member as the coordinator sees it.
type entry struct {
	g       *group
	topics  []string
	gone    bool
	client  *Client
	gen     *generation      // its last one
	waiting chan *generation // != nil: it waits for the next one
}

func (c *Cluster) group(name string) *group {
	g := c.groups[name]
	if g == nil {
		g = &group{c: c, name: name, offsets: make(map[pipeline.TP]int64)}
		c.groups[name] = g
	}
	return g
}

// prepare begins a rebalance: the members are told to finish and to join again.
func (g *group) prepare() {
	if g.preparing {
		return
	}
	g.preparing = true
	for _, e := range g.entries {
		if e.gen != nil && e.waiting == nil {
			e.gen.endIn(g.c.cfg.Heartbeat)
		}
	}
	number := g.number
	g.timer = time.AfterFunc(g.c.cfg.Rebalance, func() {
		g.c.mu.Lock()
		defer g.c.mu.Unlock()
		if g.preparing && g.number == number {
			for _, e := range slices.Clone(g.entries) {
				if e.waiting == nil {
					e.remove()
				}
			}
			g.complete()
		}
	})
}

// complete begins the next generation when all members wait for it.
func (g *group) complete() {
	if !g.preparing {
		return
	}
	if len(g.entries) == 0 {
		g.preparing = false
		g.timer.Stop()
		return
	}
	for _, e := range g.entries {
		if e.waiting == nil {
			return
		}
	}
	g.timer.Stop()
	g.preparing = false
	g.number++
	for _, e := range g.entries {
		e.gen = &generation{e: e, number: g.number, assigned: make(map[pipeline.TP]int64), over: make(chan struct{})}
		e.gen.ctx, e.gen.cancel = context.WithCancelCause(context.Background())
	}
	for _, topic := range g.topics() {
		var takers []*entry
		for _, e := range g.entries {
			if slices.Contains(e.topics, topic) {
				takers = append(takers, e)
			}
		}
		turn := 0
		if g.c.cfg.Rotate {
			turn = g.number
		}
		for p := range g.c.cfg.Partitions[topic] {
			tp := pipeline.TP{Topic: topic, Part: p}
			takers[(p+turn)%len(takers)].gen.assigned[tp] = g.c.committed(g.name, tp)
		}
	}
	for _, e := range g.entries {
		w := e.waiting
		e.waiting = nil
		w <- e.gen // it has room for one
	}
}

func (g *group) topics() []string {
	var all []string
	for _, e := range g.entries {
		all = append(all, e.topics...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (e *entry) remove() {
	e.gone = true
	e.g.entries = slices.DeleteFunc(e.g.entries, func(o *entry) bool { return o == e })
}

// lose removes a member that is not heard of any more.
func (e *entry) lose(after time.Duration) {
	time.AfterFunc(after, func() {
		e.g.c.mu.Lock()
		defer e.g.c.mu.Unlock()
		e.leave()
	})
}

func (e *entry) leave() {
	if e.gone {
		return
	}
	e.remove()
	if len(e.g.entries) > 0 {
		e.g.prepare()
	}
	e.g.complete()
}

func (e *entry) expel(learn time.Duration) {
	if e.waiting == nil {
		e.leave()
	}
	if e.gen != nil {
		e.gen.endIn(learn)
	}
}

// member is a process's membership of a group.
type member struct {
	c      *Client
	name   string
	topics []string
	gen    *generation // the last one that Next returned
	closed bool
	entry  *entry
}

var _ pipeline.Group = (*member)(nil)

// Group returns a member of the named group. It joins at the first Next.
func (c *Client) Group(name string, topics ...string) pipeline.Group {
	m := &member{c: c, name: name, topics: topics}
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	c.members = append(c.members, m)
	return m
}

// Next waits for the functions of the generation before, and joins.
func (m *member) Next(ctx context.Context) (pipeline.Generation, error) {
	if m.gen != nil {
		select {
		case <-m.gen.over:
			m.gen.wg.Wait()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	for {
		gen, err := m.join(ctx)
		switch {
		case err == nil:
			m.gen = gen
			return gen, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, errGroupClosed):
			return nil, err
		}
		if err := pipeline.Sleep(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

func (m *member) join(ctx context.Context) (*generation, error) {
	w := make(chan *generation, 1)
	call := Call{Op: OpJoin, Group: m.name, TP: pipeline.TP{Part: -1}}
	err := m.c.do(ctx, call, func() error {
		if m.closed {
			return errGroupClosed
		}
		g := m.c.c.group(m.name)
		if m.entry == nil || m.entry.gone {
			m.entry = &entry{g: g, client: m.c, topics: m.topics}
			g.entries = append(g.entries, m.entry)
		}
		m.entry.waiting = w
		g.prepare()
		g.complete()
		return nil
	})
	if err != nil {
		return nil, err
	}
	select {
	case gen := <-w:
		call.Op = OpJoined
		if err := m.c.do(ctx, call, func() error { return nil }); err != nil {
			gen.cancel(errEnded)
			return nil, err
		}
		return gen, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Close ends the generation, waits for its functions and leaves.
func (m *member) Close() error {
	if m.gen != nil {
		m.gen.end()
		m.gen.wg.Wait()
	}
	m.c.c.mu.Lock()
	defer m.c.c.mu.Unlock()
	m.closed = true
	if m.entry != nil && !m.c.killed {
		m.entry.leave()
	}
	return nil
}

// generation is one assignment.
type generation struct {
	e        *entry
	number   int
	assigned map[pipeline.TP]int64
	ctx      context.Context
	cancel   context.CancelCauseFunc
	over     chan struct{} // closed with the end of ctx
	once     sync.Once
	wg       sync.WaitGroup
}

var _ pipeline.Generation = (*generation)(nil)

// Assigned is what the member has to do.
func (g *generation) Assigned() map[pipeline.TP]int64 { return g.assigned }

func (g *generation) end() {
	g.once.Do(func() {
		g.cancel(errEnded)
		close(g.over)
	})
}

func (g *generation) endIn(d time.Duration) {
	if d <= 0 {
		g.end()
		return
	}
	time.AfterFunc(d, g.end)
}

// Start runs fn; its return ends the generation.
func (g *generation) Start(fn func(ctx context.Context)) {
	g.wg.Go(func() { // Next and Close wait for it
		defer g.end()
		fn(g.ctx)
	})
}

// Commit is refused when the member is out, or a later generation has begun.
func (g *generation) Commit(ctx context.Context, at map[pipeline.TP]pipeline.Next) error {
	call := Call{Op: OpCommit, Group: g.e.g.name, TP: pipeline.TP{Part: -1}}
	for tp, n := range at {
		call.TP, call.Offset = tp, n.Offset()
	}
	return g.e.client.do(ctx, call, func() error {
		if g.e.gone || g.e.g.number != g.number {
			return pipeline.ErrFenced
		}
		for tp, n := range at {
			if _, ok := g.assigned[tp]; !ok {
				return pipeline.ErrFenced
			}
			g.e.g.offsets[tp] = n.Offset()
			if g.e.g.c.cfg.OnCommit != nil {
				g.e.g.c.cfg.OnCommit(g.e.g.name, tp, n.Offset())
			}
		}
		return nil
	})
}
