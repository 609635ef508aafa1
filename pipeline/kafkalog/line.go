package kafkalog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// line is the way to one partition: a queue, and one goroutine that sends from it, a request at a time.
type line struct {
	producer *producer
	tp       pipeline.TP
	trouble  trouble

	mu     sync.Mutex
	queue  []pending
	bytes  int
	closed bool
	wake   chan struct{} // holds one: the queue is no longer empty, or full, or closed
}

// pending is a record on its way.
type pending struct {
	wire    event.Wire
	size    int
	at      time.Time
	receipt *receipt
}

func (p *producer) newLine(tp pipeline.TP) *line {
	return &line{
		producer: p, tp: tp, wake: make(chan struct{}, 1),
		trouble: trouble{log: p.client.log.With("topic", tp.Topic, "partition", tp.Part)},
	}
}

// push returns false when the line is closed.
func (l *line) push(r pending) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.queue = append(l.queue, r)
	l.bytes += r.size
	if len(l.queue) == 1 || l.full() {
		l.ring()
	}
	return true
}

func (l *line) full() bool { return l.bytes+batchOverhead >= l.producer.client.cfg.MaxBatchBytes }

func (l *line) ring() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *line) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.ring()
}

// run ends when the line is closed and empty, or with ctx: then nothing more is sent.
func (l *line) run(ctx context.Context) {
	for {
		batch := l.take(ctx)
		if len(batch) == 0 {
			break
		}
		l.send(ctx, batch)
	}
	l.mu.Lock()
	rest := l.queue
	l.queue, l.bytes, l.closed = nil, 0, true
	l.mu.Unlock()
	l.abandon(rest)
}

// take waits for the next batch. It is empty when there will be none.
func (l *line) take(ctx context.Context) []pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 {
		if l.closed || !l.await(ctx, nil) {
			return nil
		}
	}
	if l.producer.sending.Load() >= busyFrom && !l.linger(ctx) {
		return nil
	}
	n, size := 0, batchOverhead
	for n < len(l.queue) && (n == 0 || size+l.queue[n].size <= l.producer.client.cfg.MaxBatchBytes) {
		size += l.queue[n].size
		n++
	}
	batch := slices.Clone(l.queue[:n])
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	l.bytes -= size - batchOverhead
	return batch
}

// linger returns when the oldest record has waited long enough, or false with ctx. The lock is held on entry and return.
func (l *line) linger(ctx context.Context) bool {
	end := l.queue[0].at.Add(l.producer.client.cfg.Linger)
	t := time.NewTimer(time.Until(end))
	defer t.Stop()
	for !l.closed && !l.full() && time.Now().Before(end) {
		if !l.await(ctx, t.C) {
			return false
		}
	}
	return true
}

// await gives the lock up until the line is rung, the timer fires, or ctx ends (false).
func (l *line) await(ctx context.Context, timer <-chan time.Time) bool {
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-l.wake:
	case <-timer:
	case <-ctx.Done():
		return false
	}
	return ctx.Err() == nil
}

// send returns when the fate of each record is known: it is in the log, or refused for good, or ctx has ended.
func (l *line) send(ctx context.Context, batch []pending) {
	m := l.producer.client.metrics
	begin := time.Now()
	for try := 0; ; try++ {
		l.producer.sending.Add(1)
		err := l.producer.client.produce(ctx, l.tp, &batchReader{batch: batch})
		l.producer.sending.Add(-1)
		if err == nil {
			l.trouble.over(ctx, "produce")
			m.produceDuration.WithLabelValues(l.tp.Topic).Observe(time.Since(begin).Seconds())
			l.finish(batch, nil)
			return
		}
		if ctx.Err() != nil {
			l.abandon(batch)
			return
		}
		why := reason(err)
		m.produceErrors.WithLabelValues(l.tp.Topic, why).Inc()
		if why == "refused_record" {
			l.split(ctx, batch, err)
			return
		}
		l.trouble.met(ctx, "produce", err)
		if pipeline.Sleep(ctx, pause(try)) != nil {
			l.abandon(batch)
			return
		}
	}
}

// split halves a refused batch, in order, until the record at fault stands alone: one bad record fails its whole batch.
func (l *line) split(ctx context.Context, batch []pending, err error) {
	if len(batch) == 1 {
		l.finish(batch, fault.Poison(fmt.Errorf("append to %v: %w", l.tp, err)))
		return
	}
	half := len(batch) / 2
	l.send(ctx, batch[:half])
	l.send(ctx, batch[half:])
}

func (l *line) abandon(batch []pending) {
	l.producer.lost.Add(int64(len(batch)))
	l.finish(batch, errUnknownFate)
}

func (l *line) finish(batch []pending, err error) {
	var cost int64
	var size int
	for i := range batch {
		r := &batch[i]
		cost += l.producer.cost(r.size)
		size += bytesOf(r.wire)
		r.receipt.err = err
		close(r.receipt.done)
	}
	l.producer.room.Release(cost)
	if err == nil {
		m := l.producer.client.metrics
		m.producedRecords.WithLabelValues(l.tp.Topic).Add(float64(len(batch)))
		m.producedBytes.WithLabelValues(l.tp.Topic).Add(float64(size))
	}
}
