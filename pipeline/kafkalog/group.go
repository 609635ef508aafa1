package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// errEnded is the cause of the ctx of a generation's functions when the generation is over.
var errEnded = errors.New("the generation is over")

var errGroupClosed = errors.New("the group is closed")

type group struct {
	client  *Client
	name    string
	topics  []string
	reader  *log
	trouble trouble // of Next

	mu     sync.Mutex
	member *kafka.ConsumerGroup // nil before the first Next
	closed bool
}

var _ pipeline.Group = (*group)(nil)

// Group is a member of the named consumer group, for all topics. It joins at the first Next.
func (c *Client) Group(name string, topics ...string) (pipeline.Group, error) {
	if name == "" || len(topics) == 0 {
		return nil, fault.Fatal(fmt.Errorf("join group %q for %d topics: a name and a topic are needed", name, len(topics)))
	}
	for _, t := range topics {
		if c.cfg.Partitions[t] == 0 {
			return nil, fault.Fatal(fmt.Errorf("join group %s: topic %s is not among the configured topics", name, t))
		}
	}
	c.metrics.expectGroup(name, topics, c.cfg.Partitions)
	return &group{
		client: c, name: name, topics: slices.Clone(topics),
		reader:  &log{client: c, group: name, most: c.cfg.FetchBytes},
		trouble: trouble{log: c.log.With("group", name)},
	}, nil
}

// Next waits until the topics exist before it joins for the first time: kafka-go would give an empty assignment for a missing
// one, and say nothing.
func (g *group) Next(ctx context.Context) (pipeline.Generation, error) {
	member, err := g.join(ctx)
	if err != nil {
		return nil, err
	}
	for {
		gen, err := member.Next(ctx)
		switch {
		case err == nil:
			return g.begin(ctx, gen)
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, kafka.ErrGroupClosed):
			return nil, fmt.Errorf("join group %s: %w", g.name, errGroupClosed)
		}
		if err = mark(err); fault.IsFatal(err) {
			return nil, fmt.Errorf("join group %s: %w", g.name, err)
		}
		g.trouble.met(ctx, "join the group", err) // kafka-go pauses before its next try
	}
}

func (g *group) join(ctx context.Context) (*kafka.ConsumerGroup, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("join group %s: %w", g.name, errGroupClosed)
	}
	if g.member != nil {
		return g.member, nil
	}
	g.mu.Unlock()
	err := g.client.awaitTopics(ctx, &g.trouble, g.topics)
	g.mu.Lock()
	if err != nil {
		return nil, err
	}
	if g.closed {
		return nil, fmt.Errorf("join group %s: %w", g.name, errGroupClosed)
	}
	cfg := g.client.cfg
	member, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: g.name, Brokers: cfg.Brokers, Topics: g.topics, Dialer: g.client.dialer(),
		HeartbeatInterval: cfg.HeartbeatInterval, SessionTimeout: cfg.SessionTimeout,
		RebalanceTimeout: cfg.RebalanceTimeout, JoinGroupBackoff: cfg.JoinGroupBackoff,
		Timeout: requestTimeout,
	})
	if err != nil {
		return nil, fault.Fatal(fmt.Errorf("join group %s: %w", g.name, err))
	}
	g.member = member
	return member, nil
}

// begin makes sure of the committed offsets. kafka-go takes an error of the coordinator, given per partition, for "none
// committed", which would start the partition over.
func (g *group) begin(ctx context.Context, gen *kafka.Generation) (pipeline.Generation, error) {
	assigned := map[pipeline.TP]int64{}
	for _, topic := range g.topics {
		var unsure []int
		for _, a := range gen.Assignments[topic] {
			assigned[pipeline.TP{Topic: topic, Part: a.ID}] = a.Offset
			if a.Offset < 0 {
				unsure = append(unsure, a.ID)
			}
		}
		if len(unsure) == 0 {
			continue
		}
		sure, err := g.committed(ctx, topic, unsure)
		if err != nil {
			return nil, err
		}
		for p, o := range sure {
			assigned[pipeline.TP{Topic: topic, Part: p}] = o
		}
	}
	g.trouble.over(ctx, "join the group")
	g.client.metrics.rebalances.WithLabelValues(g.name).Inc()
	g.client.metrics.assign(g.name, g.topics, g.client.cfg.Partitions, assigned)
	return &generation{group: g, gen: gen, assigned: assigned}, nil
}

func (g *group) committed(ctx context.Context, topic string, parts []int) (map[int]int64, error) {
	for try := 0; ; try++ {
		found, err := g.reader.Committed(ctx, g.name, topic, parts...)
		if err == nil || ctx.Err() != nil || fault.IsFatal(err) {
			return found, err
		}
		g.trouble.met(ctx, "read the group's offsets", err)
		if err := pipeline.Sleep(ctx, pause(try)); err != nil {
			return nil, err
		}
	}
}

// Close tells the coordinator that the member goes, so that nobody waits for its session to end.
func (g *group) Close() error {
	g.mu.Lock()
	g.closed = true
	member := g.member
	g.mu.Unlock()
	if member == nil {
		return nil
	}
	err := member.Close()
	g.client.metrics.assign(g.name, g.topics, g.client.cfg.Partitions, nil)
	return err
}

type generation struct {
	group    *group
	gen      *kafka.Generation
	assigned map[pipeline.TP]int64
}

var _ pipeline.Generation = (*generation)(nil)

// Assigned is what the group's leader gave this member.
func (g *generation) Assigned() map[pipeline.TP]int64 { return g.assigned }

// Start gives fn a standard context: that of kafka-go costs a goroutine for every context derived from it.
func (g *generation) Start(fn func(ctx context.Context)) {
	g.gen.Start(func(ended context.Context) {
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		stop := context.AfterFunc(ended, func() { cancel(errEnded) })
		defer stop()
		fn(ctx) //nolint:contextcheck // it ends with the one given
	})
}

// Commit works until the last of the generation's functions has returned, its ctx notwithstanding: the coordinator knows the
// member until the group rejoins. It is bounded by a request's time-out.
func (g *generation) Commit(ctx context.Context, at map[pipeline.TP]pipeline.Next) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	offsets := map[string]map[int]int64{}
	for tp, next := range at {
		if offsets[tp.Topic] == nil {
			offsets[tp.Topic] = map[int]int64{}
		}
		offsets[tp.Topic][tp.Part] = next.Offset()
	}
	err := fenced(g.gen.CommitOffsets(offsets))
	m, outcome := g.group.client.metrics, committed
	switch {
	case err == nil:
		m.lastCommit.WithLabelValues(g.group.name).Set(float64(time.Now().UnixMilli()) / 1e3)
	case errors.Is(err, pipeline.ErrFenced):
		outcome = commitFenced
	default:
		outcome = commitFailed
	}
	m.commits.WithLabelValues(g.group.name, outcome).Inc()
	if err != nil {
		return fmt.Errorf("commit to group %s: %w", g.group.name, err)
	}
	return nil
}

// fenced finds the errors after which this generation can commit nothing more. A connection that kafka-go has closed is one of
// them: it is the generation's only one, and sending the commit over another could overtake it with its own older copy.
func fenced(err error) error {
	for _, over := range []error{
		kafka.IllegalGeneration, kafka.UnknownMemberId, kafka.RebalanceInProgress, kafka.FencedInstanceID,
		kafka.NotCoordinatorForGroup, net.ErrClosed,
	} {
		if errors.Is(err, over) {
			return fmt.Errorf("%w: %w", pipeline.ErrFenced, err)
		}
	}
	return mark(err)
}
