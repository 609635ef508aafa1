package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/offsetfetch"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/restante/restante/pipeline"
)

// direct sends a request as it is to one broker. Left to itself, kafka-go splits a ListOffsets into one request per partition,
// each on a connection of its own, asks for the coordinator before every OffsetFetch, and produces to a leader that has moved
// until its cache expires.
type direct struct {
	protocol.Message
	client  string
	broker  int
	version int16
}

var (
	_ protocol.BrokerMessage = (*direct)(nil)
	_ protocol.RawExchanger  = (*direct)(nil)
)

// anyBroker is for requests that each broker can answer.
const anyBroker = -1

// Broker is where the transport sends the request.
func (d *direct) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	if d.broker == anyBroker {
		return protocol.Broker{ID: anyBroker}, nil
	}
	b, ok := cluster.Brokers[int32(d.broker)] //nolint:gosec // it came from an int32
	if !ok {
		return protocol.Broker{}, kafka.BrokerNotAvailable
	}
	return b, nil
}

// Required takes note of the version that the connection has negotiated.
func (d *direct) Required(versions map[protocol.ApiKey]int16) bool {
	d.version = versions[d.ApiKey()]
	return true
}

// RawExchange does one round trip. The connection is ours meanwhile, so any correlation id will do.
func (d *direct) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	const correlation = 1
	if p, ok := d.Message.(protocol.PreparedMessage); ok {
		p.Prepare(d.version)
	}
	if err := protocol.WriteRequest(rw, d.version, correlation, d.client, d.Message); err != nil {
		return nil, err
	}
	id, msg, err := protocol.ReadResponse(rw, d.ApiKey(), d.version)
	if err == nil && id != correlation {
		err = fmt.Errorf("answer %d to request %d", id, correlation)
	}
	if err != nil {
		return nil, err
	}
	return answer{msg}, nil
}

// answer hides its type from the transport, which acts upon some answers and takes their request to be one of its own.
type answer struct{ protocol.Message }

func (c *Client) ask(ctx context.Context, broker int, timeout time.Duration, msg protocol.Message) (protocol.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	res, err := c.transport.RoundTrip(ctx, c.asking.Addr, &direct{Message: msg, client: c.cfg.ClientID, broker: broker})
	if err != nil {
		return nil, err
	}
	a, ok := res.(answer)
	if !ok {
		return nil, fmt.Errorf("answer of type %T", res)
	}
	return a.Message, nil
}

// produce appends a batch with acks=all. An error says nothing about whether the batch is in the log.
func (c *Client) produce(ctx context.Context, tp pipeline.TP, records protocol.RecordReader) error {
	leaders, err := c.leaders(ctx, tp.Topic, []int{tp.Part})
	if err != nil {
		return err
	}
	msg, err := c.ask(ctx, leaders[tp.Part].ID, produceTimeout, &produce.Request{
		Acks: -1, Timeout: int32(produceTimeout / time.Millisecond / 2),
		Topics: []produce.RequestTopic{{Topic: tp.Topic, Partitions: []produce.RequestPartition{{
			Partition: int32(tp.Part), RecordSet: protocol.RecordSet{Records: records}, //nolint:gosec // a partition number
		}}}},
	})
	if err != nil {
		c.forgetLeaders(tp.Topic)
		return err
	}
	res, ok := msg.(*produce.Response)
	if !ok || len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
		return fmt.Errorf("answer of type %T names no partition", msg)
	}
	p := res.Topics[0].Partitions[0]
	if p.ErrorCode == 0 {
		return nil
	}
	c.forgetLeaders(tp.Topic)
	err = kafka.Error(p.ErrorCode)
	if p.ErrorMessage != "" {
		err = fmt.Errorf("%w: %s", err, p.ErrorMessage)
	}
	return err
}

// listOffsets asks one broker for one offset of each of the partitions that it leads. at is a time in ms, or kafka.FirstOffset,
// or kafka.LastOffset.
func (c *Client) listOffsets(ctx context.Context, broker int, topic string, parts []int, at int64) (map[int]int64, error) {
	req := &listoffsets.Request{ReplicaID: -1, Topics: []listoffsets.RequestTopic{{Topic: topic}}}
	for _, p := range parts {
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, listoffsets.RequestPartition{
			Partition: int32(p), CurrentLeaderEpoch: -1, Timestamp: at, //nolint:gosec // a partition number
		})
	}
	msg, err := c.ask(ctx, broker, requestTimeout, req)
	if err != nil {
		return nil, err
	}
	res, ok := msg.(*listoffsets.Response)
	if !ok {
		return nil, fmt.Errorf("answer of type %T", msg)
	}
	found := make(map[int]int64, len(parts))
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				return nil, fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, kafka.Error(p.ErrorCode))
			}
			found[int(p.Partition)] = p.Offset
		}
	}
	for _, p := range parts {
		if _, ok := found[p]; !ok {
			return nil, fmt.Errorf("%s/%d: the broker's answer leaves it out", topic, p)
		}
	}
	return found, nil
}

// fetchOffsets asks the group's coordinator for committed offsets; < 0 = none.
func (c *Client) fetchOffsets(ctx context.Context, group, topic string, parts []int) (map[int]int64, error) {
	broker, err := c.coordinator(ctx, group)
	if err != nil {
		return nil, err
	}
	req := &offsetfetch.Request{GroupID: group, Topics: []offsetfetch.RequestTopic{{Name: topic}}}
	for _, p := range parts {
		req.Topics[0].PartitionIndexes = append(req.Topics[0].PartitionIndexes, int32(p)) //nolint:gosec // a partition number
	}
	msg, err := c.ask(ctx, broker, requestTimeout, req)
	if err != nil {
		c.forgetCoordinator(group)
		return nil, err
	}
	res, ok := msg.(*offsetfetch.Response)
	if !ok {
		return nil, fmt.Errorf("answer of type %T", msg)
	}
	found := make(map[int]int64, len(parts))
	none := func(code int16) (bool, error) {
		switch err := kafka.Error(code); {
		case code == 0:
			return false, nil
		case errors.Is(err, kafka.GroupIdNotFound): // the group was never used: it has committed nothing
			return true, nil
		default:
			c.forgetCoordinator(group)
			return false, err
		}
	}
	empty, err := none(res.ErrorCode)
	if err != nil {
		return nil, err
	}
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			found[int(p.PartitionIndex)] = p.CommittedOffset
			if gone, err := none(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("%s/%d: %w", t.Name, p.PartitionIndex, err)
			} else if gone {
				found[int(p.PartitionIndex)] = -1
			}
		}
	}
	for _, p := range parts {
		if _, ok := found[p]; ok {
			continue
		}
		if !empty { // an answer that leaves a partition out is no answer
			return nil, fmt.Errorf("%s/%d: the coordinator's answer leaves it out", topic, p)
		}
		found[p] = -1
	}
	return found, nil
}

func (c *Client) coordinator(ctx context.Context, group string) (int, error) {
	c.mu.Lock()
	id, ok := c.coordinators[group]
	c.mu.Unlock()
	if ok {
		return id, nil
	}
	res, err := c.asking.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: group, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = res.Error
	}
	if err == nil && res.Coordinator == nil {
		err = kafka.GroupCoordinatorNotAvailable
	}
	if err != nil {
		return 0, fmt.Errorf("find the coordinator: %w", err)
	}
	c.mu.Lock()
	c.coordinators[group] = res.Coordinator.NodeID
	c.mu.Unlock()
	return res.Coordinator.NodeID, nil
}

func (c *Client) forgetCoordinator(group string) {
	c.mu.Lock()
	delete(c.coordinators, group)
	c.mu.Unlock()
}
