package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/pipeline"
)

type log struct {
	client *Client
	group  string // a label of its metrics
	most   int    // bytes of a fetch
}

var _ pipeline.Log = (*log)(nil)

// Log reads the topics. group is only the label of its metrics.
func (c *Client) Log(group string) pipeline.Log {
	c.metrics.expectReader(group, slices.Sorted(maps.Keys(c.cfg.Partitions)))
	return &log{client: c, group: group, most: c.cfg.FetchBytes}
}

// Peek is Log for a reader that looks at single records: it fetches a batch at a time.
func (c *Client) Peek(group string) pipeline.Log {
	c.metrics.expectReader(group, slices.Sorted(maps.Keys(c.cfg.Partitions)))
	const little = 4 << 10 // Kafka gives the first batch whole, however large it is
	return &log{client: c, group: group, most: min(little, c.cfg.FetchBytes)}
}

// Spans asks each leader twice, for the first offsets and the ends, at the same time.
func (l *log) Spans(ctx context.Context, topic string, parts ...int) (map[int]pipeline.Span, error) {
	var first, end map[int]int64
	err := l.client.again(ctx, func() error {
		led, err := l.client.byLeader(ctx, topic, parts)
		if err != nil {
			return err
		}
		first, end = make(map[int]int64, len(parts)), make(map[int]int64, len(parts))
		var mu sync.Mutex
		g, ctx := errgroup.WithContext(ctx)
		for broker, parts := range led {
			for at, into := range map[int64]map[int]int64{kafka.FirstOffset: first, kafka.LastOffset: end} {
				g.Go(func() error {
					got, err := l.client.listOffsets(ctx, broker, topic, parts, at)
					mu.Lock()
					maps.Copy(into, got)
					mu.Unlock()
					return err
				})
			}
		}
		if err = g.Wait(); err != nil {
			l.client.forgetLeaders(topic)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the offsets of %s: %w", topic, err)
	}
	spans := make(map[int]pipeline.Span, len(parts))
	for _, p := range parts {
		spans[p] = pipeline.Span{First: first[p], End: end[p]}
	}
	return spans, nil
}

func (c *Client) byLeader(ctx context.Context, topic string, parts []int) (map[int][]int, error) {
	leaders, err := c.leaders(ctx, topic, parts)
	if err != nil {
		return nil, err
	}
	led := map[int][]int{}
	for p, b := range leaders {
		led[b.ID] = append(led[b.ID], p)
	}
	return led, nil
}

// Committed asks the coordinator, which is remembered until it errs.
func (l *log) Committed(ctx context.Context, group, topic string, parts ...int) (map[int]int64, error) {
	var found map[int]int64
	err := l.client.again(ctx, func() error {
		var err error
		found, err = l.client.fetchOffsets(ctx, group, topic, parts)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read what group %s has committed of %s: %w", group, topic, err)
	}
	return found, nil
}

// OffsetAt asks the partition's leader.
func (l *log) OffsetAt(ctx context.Context, tp pipeline.TP, t time.Time) (int64, error) {
	var at int64
	err := l.client.again(ctx, func() error {
		leaders, err := l.client.leaders(ctx, tp.Topic, []int{tp.Part})
		if err != nil {
			return err
		}
		for _, when := range []int64{max(t.UnixMilli(), 0), kafka.LastOffset} {
			got, err := l.client.listOffsets(ctx, leaders[tp.Part].ID, tp.Topic, []int{tp.Part}, when)
			if err != nil {
				l.client.forgetLeaders(tp.Topic)
				return err
			}
			if at = got[tp.Part]; at >= 0 {
				return nil
			}
		}
		return errors.New("the broker names no end")
	})
	if err != nil {
		return 0, fmt.Errorf("find the offset of %v in %v: %w", t, tp, err)
	}
	return at, nil
}

// idleConns keeps, per partition, one connection of a closed stream for the next one: a tail is read again and again.
type idleConns struct {
	mu     sync.Mutex
	conns  map[pipeline.TP]*idleConn
	closed bool
}

type idleConn struct {
	conn   *fetchConn
	leader string
	expire *time.Timer
}

func (i *idleConns) take(tp pipeline.TP, leader string) *fetchConn {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := i.conns[tp]
	if c == nil || !c.expire.Stop() {
		return nil
	}
	delete(i.conns, tp)
	if c.leader != leader {
		_ = c.conn.Close()
		return nil
	}
	return c.conn
}

func (i *idleConns) put(tp pipeline.TP, leader string, conn *fetchConn) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed || i.conns[tp] != nil {
		_ = conn.Close()
		return
	}
	c := &idleConn{conn: conn, leader: leader}
	c.expire = time.AfterFunc(idleTimeout, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.conns[tp] == c {
			delete(i.conns, tp)
		}
		_ = c.conn.Close()
	})
	i.conns[tp] = c
}

func (i *idleConns) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	for tp, c := range i.conns {
		c.expire.Stop()
		_ = c.conn.Close()
		delete(i.conns, tp)
	}
}
