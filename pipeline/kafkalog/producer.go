package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/semaphore"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

const (
	recordOverhead = 256 // what a record in flight costs beside its bytes
	batchOverhead  = 61  // the header of a record batch
	// busyFrom is how many partitions must have a request under way before records linger for company. Below it requests are
	// cheap enough, and whoever waits for a receipt before the next record should not wait for more.
	busyFrom = 8
)

var (
	errProducerClosed = errors.New("the producer is closed")
	// errUnknownFate is a receipt's error when the producer was closed before Kafka had said anything certain.
	errUnknownFate = errors.New("the producer was closed with the record's fate unknown: it may be in the log or not")
)

type producer struct {
	client *Client
	lines  map[string][]*line
	room   *semaphore.Weighted
	wg     sync.WaitGroup
	kill   context.CancelCauseFunc
	lost   atomic.Int64 // records of unknown fate

	sending atomic.Int64 // requests under way
}

var _ pipeline.Producer = (*producer)(nil)

// Producer starts one goroutine per partition of the configured topics; its Close ends them.
func (c *Client) Producer() pipeline.Producer {
	ctx, kill := context.WithCancelCause(context.Background())
	p := &producer{
		client: c, lines: make(map[string][]*line, len(c.cfg.Partitions)),
		room: semaphore.NewWeighted(c.cfg.MaxInFlightBytes), kill: kill,
	}
	for topic, n := range c.cfg.Partitions {
		lines := make([]*line, n)
		for i := range lines {
			lines[i] = p.newLine(pipeline.TP{Topic: topic, Part: i})
			p.wg.Go(func() { lines[i].run(ctx) })
		}
		p.lines[topic] = lines
	}
	return p
}

// receipt is one record's.
type receipt struct {
	done chan struct{}
	err  error
}

// Done is closed when the record's fate is known.
func (r *receipt) Done() <-chan struct{} { return r.done }

// Err is nil when all in-sync replicas have the record.
func (r *receipt) Err() error { return r.err }

// Append sends the record to its partition's line. One partition that is stuck holds up the others when it has filled all of
// MaxInFlightBytes.
func (p *producer) Append(ctx context.Context, r pipeline.Outgoing) (pipeline.Receipt, error) {
	lines := p.lines[r.Topic]
	if len(lines) == 0 {
		return nil, fault.Fatal(fmt.Errorf("append to topic %s: it is not among the configured topics", r.Topic))
	}
	size := sizeOf(r.Wire)
	if limit := p.client.cfg.MaxBatchBytes; size+batchOverhead > limit {
		return nil, fault.Poison(fmt.Errorf("append to topic %s: a record of %d bytes is over the limit of %d", r.Topic, size, limit))
	}
	if r.Value == nil {
		r.Value = empty
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := p.room.Acquire(ctx, p.cost(size)); err != nil {
		return nil, context.Cause(ctx)
	}
	l := lines[partition(r.Key, len(lines))]
	taken := &receipt{done: make(chan struct{})}
	if !l.push(pending{wire: r.Wire, size: size, at: time.Now(), receipt: taken}) {
		p.room.Release(p.cost(size))
		return nil, fmt.Errorf("append to topic %s: %w", r.Topic, errProducerClosed)
	}
	return taken, nil
}

func (p *producer) cost(size int) int64 {
	return min(int64(size+recordOverhead), p.client.cfg.MaxInFlightBytes)
}

// Close takes no more, and waits for the rest. When ctx ends first, all receipts that are open get an error.
func (p *producer) Close(ctx context.Context) error {
	for _, lines := range p.lines {
		for _, l := range lines {
			l.close()
		}
	}
	drained := make(chan struct{})
	go func() { // ends with the lines, which Close awaits in both cases
		p.wg.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		p.kill(context.Cause(ctx))
		<-drained
	}
	p.kill(nil)
	if n := p.lost.Load(); n > 0 {
		return fmt.Errorf("close the producer: %d records of unknown fate", n)
	}
	return nil
}

// partition is where Java's clients put the key when the topic has n partitions.
func partition(key []byte, n int) int {
	return int(murmur2(key)&0x7fffffff) % n
}

// murmur2 is the hash of Kafka's clients. (kafka-go's own is behind a balancer that wants a list of the partitions each time.)
func murmur2(b []byte) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(b)) //nolint:gosec // a record's length
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> 24
		h = h*m ^ k*m
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// sizeOf is an upper bound of the record's size in a batch.
func sizeOf(w event.Wire) int {
	n := 5 + 1 + 10 + 5 + 5 + len(w.Key) + 5 + len(w.Value) + 5
	for _, h := range w.Headers {
		n += 5 + len(h.Key) + 5 + len(h.Value)
	}
	return n
}

func bytesOf(w event.Wire) int {
	n := len(w.Key) + len(w.Value)
	for _, h := range w.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// batchReader hands kafka-go the records of one attempt. An attempt that timed out may still be reading, so each has its own.
type batchReader struct {
	batch   []pending
	record  kafka.Record
	headers []kafka.Header
}

// ReadRecord returns the next record; the one before is then no longer valid.
func (b *batchReader) ReadRecord() (*kafka.Record, error) {
	if len(b.batch) == 0 {
		return nil, io.EOF
	}
	w := &b.batch[0].wire
	b.batch = b.batch[1:]
	b.headers = b.headers[:0]
	for _, h := range w.Headers {
		b.headers = append(b.headers, kafka.Header{Key: h.Key, Value: h.Value})
	}
	b.record = kafka.Record{Time: w.Time, Key: kafka.NewBytes(w.Key), Value: kafka.NewBytes(w.Value), Headers: b.headers}
	return &b.record, nil
}
