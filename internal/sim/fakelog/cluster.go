// Package fakelog is Kafka in memory, behind the interfaces of package pipeline, for tests. It starts no goroutine of its own
// but for the functions of a generation, and waits only by channels and timers, so that it works in a testing/synctest bubble.
//
// A [Cluster] is what survives all processes. A [Client] is one process incarnation's way to it; its hook can hold back, fail
// or blur every call, which makes faults, kills and a stepped scheduler possible. Without a hook nothing ever fails.
package fakelog

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/restante/restante/pipeline"
)

// Ops of a [Call].
const (
	OpSpans     = "spans"
	OpCommitted = "committed"
	OpOffsetAt  = "offset_at"
	OpOpen      = "open"
	OpFetch     = "fetch"
	OpFetched   = "fetched" // a fetch that has waited goes on: records came
	OpAppend    = "append"
	OpJoin      = "join"
	OpJoined    = "joined" // a join that has waited goes on
	OpCommit    = "commit"
)

// Call is one call on a fake, as hooks see it.
type Call struct {
	Op     string
	TP     pipeline.TP // Part is -1 where it is no single partition
	Group  string
	Offset int64 // of open and commit
}

func (c Call) String() string {
	s := c.Op + " " + c.TP.String()
	if c.Group != "" {
		s += " " + c.Group
	}
	if c.Op == OpOpen || c.Op == OpCommit || c.Op == OpFetch || c.Op == OpFetched {
		s += fmt.Sprintf(" @%d", c.Offset)
	}
	return s
}

// Verdict is what a hook decides about a call. The zero Verdict lets it do its work.
type Verdict struct {
	// Err is returned to the caller, nil = what the call itself returns.
	Err error
	// Done says that the call does its work before it returns Err: its outcome is unknown to the caller.
	Done bool
	// Empty lets a fetch return nothing, as if nothing had come within its wait.
	Empty bool
}

// Hook is asked before each call takes effect. It may wait for as long as it likes; ctx is the call's.
type Hook func(ctx context.Context, c Call) Verdict

// Config says how a cluster behaves.
type Config struct {
	// Partitions of each topic, by its full name.
	Partitions map[string]int
	// Partition places a key among n partitions, nil = [Partition].
	Partition func(key string, n int) int
	// Heartbeat is how long a member takes to learn that its group rebalances, Session how long a dead member is missed,
	// Rebalance how long members may take to finish and rejoin.
	Heartbeat, Session, Rebalance time.Duration
	// Rotate gives the partitions to other members at each rebalance.
	Rotate bool
	// OnAppend and OnCommit are told, in order, of what has happened. They must not call the cluster.
	OnAppend func(r pipeline.Record)
	OnCommit func(group string, tp pipeline.TP, at int64)
}

// Cluster is a Kafka cluster.
type Cluster struct {
	cfg Config

	mu     sync.Mutex
	parts  map[pipeline.TP]*part
	groups map[string]*group
}

// part is one partition. recs[i] has the offset first + i.
type part struct {
	first int64
	recs  []pipeline.Record
	marks map[int64]bool // offsets that hold no record
	more  chan struct{}  // closed when something changes
}

func (p *part) end() int64 { return p.first + int64(len(p.recs)) }

func (p *part) changed() {
	close(p.more)
	p.more = make(chan struct{})
}

// New returns an empty cluster.
func New(cfg Config) *Cluster {
	if cfg.Partition == nil {
		cfg.Partition = Partition
	}
	if cfg.Session == 0 {
		cfg.Session = 30 * time.Second
	}
	if cfg.Rebalance == 0 {
		cfg.Rebalance = 30 * time.Second
	}
	c := &Cluster{cfg: cfg, parts: make(map[pipeline.TP]*part), groups: make(map[string]*group)}
	for topic, n := range cfg.Partitions {
		for i := range n {
			c.parts[pipeline.TP{Topic: topic, Part: i}] = &part{more: make(chan struct{})}
		}
	}
	return c
}

// Partition places a key by its FNV-1a hash.
func Partition(key string, n int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	return int(h.Sum32() % uint32(n)) //nolint:gosec // a count of partitions
}

func (c *Cluster) part(tp pipeline.TP) (*part, error) {
	p := c.parts[tp]
	if p == nil {
		return nil, fmt.Errorf("%s: no such partition", tp)
	}
	return p, nil
}

// append adds a record to its partition. c.mu is held.
func (c *Cluster) append(o pipeline.Outgoing) {
	tp := pipeline.TP{Topic: o.Topic, Part: c.cfg.Partition(string(o.Key), c.cfg.Partitions[o.Topic])}
	p := c.parts[tp]
	r := pipeline.Record{TP: tp, Offset: p.end(), Wire: o.Wire}
	p.recs = append(p.recs, r)
	if c.cfg.OnAppend != nil {
		c.cfg.OnAppend(r)
	}
	p.changed()
}

// Put appends records as any other process could, at once.
func (c *Cluster) Put(records ...pipeline.Outgoing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range records {
		c.append(o)
	}
}

// Mark takes an offset that holds no record, as the end of a transaction does.
func (c *Cluster) Mark(tp pipeline.TP) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.parts[tp]
	if p.marks == nil {
		p.marks = make(map[int64]bool)
	}
	p.marks[p.end()] = true
	p.recs = append(p.recs, pipeline.Record{TP: tp, Offset: p.end()})
	p.changed()
}

// Records returns what a partition holds, marks included.
func (c *Cluster) Records(tp pipeline.TP) []pipeline.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.parts[tp]
	return append([]pipeline.Record(nil), p.recs...)
}

// Span is what a partition holds.
func (c *Cluster) Span(tp pipeline.TP) pipeline.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.parts[tp]
	return pipeline.Span{First: p.first, End: p.end()}
}

// Retain removes the records below an offset, as retention does.
func (c *Cluster) Retain(tp pipeline.TP, first int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.parts[tp]
	first = min(max(first, p.first), p.end())
	p.recs = p.recs[first-p.first:]
	p.first = first
	p.changed()
}

// Committed returns a group's committed offset, < 0 = none.
func (c *Cluster) Committed(group string, tp pipeline.TP) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.committed(group, tp)
}

func (c *Cluster) committed(group string, tp pipeline.TP) int64 {
	if g := c.groups[group]; g != nil {
		if o, ok := g.offsets[tp]; ok {
			return o
		}
	}
	return -1
}

// Reset sets a group's committed offset by hand.
func (c *Cluster) Reset(group string, tp pipeline.TP, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.group(group).offsets[tp] = at
}

// Client is one process's way to the cluster.
type Client struct {
	c *Cluster
	// Hook is asked before each call takes effect; nil = nothing is.
	Hook Hook
	// Landing says how a batch of n records gets into a partition's log: after which time, and how often (more than once =
	// a retry whose first try had succeeded). nil = at once, once.
	Landing func(tp pipeline.TP, n int) (delay time.Duration, copies int)

	// of the cluster's mutex
	killed    bool
	members   []*member
	producers []*producer
}

// Client returns a new process's client.
func (c *Cluster) Client() *Client { return &Client{c: c} }

// Log returns the client's pipeline.Log.
func (c *Client) Log() pipeline.Log { return &reader{c} }

// Kill lets the process die: its members are missed after the session time-out, and of what its producers had taken the next
// n batches of each partition still land. The caller sees to it that none of its calls returns (see [Hook]).
func (c *Client) Kill(n int) {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	c.killed = true
	for _, m := range c.members {
		if m.entry != nil {
			m.entry.lose(c.c.cfg.Session)
		}
	}
	for _, p := range c.producers {
		p.kill(n)
	}
}

// Expel takes the process's members out of their groups at once, as happens when the coordinator has not heard of them. They
// themselves learn it only after the given time.
func (c *Client) Expel(learn time.Duration) {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	for _, m := range c.members {
		if e := m.entry; e != nil {
			e.expel(learn)
		}
	}
}

// Rebalance makes a group rebalance.
func (c *Cluster) Rebalance(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.groups[name]; g != nil && len(g.entries) > 0 {
		g.prepare()
	}
}

// errEmpty is how a Verdict's Empty comes to a fetch.
var errEmpty = errors.New("nothing came")

// do asks the hook and does a call's work under the cluster's lock.
func (c *Client) do(ctx context.Context, call Call, work func() error) error {
	var v Verdict
	if c.Hook != nil {
		v = c.Hook(ctx, call)
	}
	if v.Err != nil && !v.Done {
		return v.Err
	}
	if v.Empty && (call.Op == OpFetch || call.Op == OpFetched) {
		return errEmpty
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.c.mu.Lock()
	err := work()
	c.c.mu.Unlock()
	if v.Err != nil {
		return v.Err
	}
	return err
}
