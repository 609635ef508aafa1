package kafkalog

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/restante/restante/fault"
)

// leaderTTL bounds how long a leader is believed that nobody has complained about.
const leaderTTL = 5 * time.Second

// leaderCache knows the leaders of topics. kafka-go's own cache cannot be told that it is wrong: after a leader has moved it
// would fail for a second or two.
type leaderCache struct {
	turn   chan struct{} // who asks holds it: when a broker goes, many want to know at once
	mu     sync.Mutex
	topics map[string]topicLeaders
}

type topicLeaders struct {
	of map[int]kafka.Broker // by partition; without a host while there is none
	at time.Time
}

func (l *leaderCache) get(topic string) (topicLeaders, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.topics[topic]
	return t, ok && time.Since(t.at) < leaderTTL
}

func address(b kafka.Broker) string { return net.JoinHostPort(b.Host, strconv.Itoa(b.Port)) }

// leaders returns the leader of each of the partitions.
func (c *Client) leaders(ctx context.Context, topic string, parts []int) (map[int]kafka.Broker, error) {
	if _, ok := c.cfg.Partitions[topic]; !ok {
		return nil, fault.Fatal(fmt.Errorf("topic %s is not among the configured topics", topic))
	}
	known, ok := c.known.get(topic)
	if !ok {
		select {
		case c.known.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		defer func() { <-c.known.turn }()
		if known, ok = c.known.get(topic); !ok {
			of, err := c.askLeaders(ctx, topic)
			if err != nil {
				return nil, fmt.Errorf("look up topic %s: %w", topic, err)
			}
			known = topicLeaders{of: of, at: time.Now()}
			c.known.mu.Lock()
			c.known.topics[topic] = known
			c.known.mu.Unlock()
		}
	}
	found := make(map[int]kafka.Broker, len(parts))
	for _, p := range parts {
		b, ok := known.of[p]
		if ok && b.Host != "" {
			found[p] = b
			continue
		}
		c.forgetLeaders(topic)
		err := kafka.UnknownTopicOrPartition
		if ok {
			err = kafka.LeaderNotAvailable
		}
		return nil, fmt.Errorf("look up the leader of %s/%d: %w", topic, p, err)
	}
	return found, nil
}

func (c *Client) askLeaders(ctx context.Context, topic string) (map[int]kafka.Broker, error) {
	msg, err := c.ask(ctx, anyBroker, requestTimeout, &metadata.Request{TopicNames: []string{topic}})
	if err != nil {
		return nil, err
	}
	res, ok := msg.(*metadata.Response)
	if !ok || len(res.Topics) != 1 {
		return nil, fmt.Errorf("answer of type %T", msg)
	}
	if code := res.Topics[0].ErrorCode; code != 0 {
		return nil, kafka.Error(code)
	}
	brokers := make(map[int32]kafka.Broker, len(res.Brokers))
	for _, b := range res.Brokers {
		brokers[b.NodeID] = kafka.Broker{ID: int(b.NodeID), Host: b.Host, Port: int(b.Port), Rack: b.Rack}
	}
	of := make(map[int]kafka.Broker, len(res.Topics[0].Partitions))
	for _, p := range res.Topics[0].Partitions {
		of[int(p.PartitionIndex)] = brokers[p.LeaderID]
	}
	return of, nil
}

// PartitionCount is how many partitions a topic has, which may be more than are configured.
func (c *Client) PartitionCount(ctx context.Context, topic string) (int, error) {
	var n int
	err := c.again(ctx, func() error {
		of, err := c.askLeaders(ctx, topic)
		n = len(of)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count the partitions of %s: %w", topic, err)
	}
	return n, nil
}

// forgetLeaders is for whoever was sent to the wrong broker, or to one that is gone.
func (c *Client) forgetLeaders(topic string) {
	c.known.mu.Lock()
	delete(c.known.topics, topic)
	c.known.mu.Unlock()
}
