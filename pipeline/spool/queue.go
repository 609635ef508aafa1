package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/restante/restante/pipeline"
)

var (
	errClosed      = errors.New("the spool is closed")
	errUnknownFate = errors.New("the spool was closed before the record was on the disk")
)

// promise is a receipt that is resolved by hand.
type promise struct {
	done chan struct{}
	err  error
}

func newPromise() *promise { return &promise{done: make(chan struct{})} }

// Done is closed when the record's fate is known.
func (p *promise) Done() <-chan struct{} { return p.done }

// Err is nil when the record is durable: in Kafka or in the spool.
func (p *promise) Err() error { return p.err }

func (p *promise) resolve(err error) {
	p.err = err
	close(p.done)
}

// pending is a record that is not on the disk yet.
type pending struct {
	entry
	size    int64
	receipt *promise
}

// segment is a file of the log, or what is known of it.
type segment struct {
	name   string
	header segmentHeader
	last   uint64 // the seq of its last durable record
	size   int64  // its durable bytes
	held   int64  // what is given back to the room with it
	file   File   // nil when it is written no more
}

// queue is a log on disk from which the oldest records are taken off. Records are pushed by many and fetched by one; one goroutine,
// [queue.keep], owns what is written.
type queue struct {
	disk    Disk
	room    room
	segment int64 // bytes after which a new segment begins
	backoff pipeline.Backoff
	log     *slog.Logger
	metrics *Metrics
	reader  reader

	closing chan struct{} // closed: nothing is taken any more
	stop    context.CancelFunc
	stopped chan struct{} // closed when keep has returned
	wake    chan struct{} // holds one: there is something to be written or removed

	mu      sync.Mutex
	segs    []*segment // oldest first; only the last has a file
	pending []*pending
	next    uint64 // the seq of the next record
	final   uint64 // the seq of the last record that there is
	done    uint64 // all up to it are in Kafka
	count   int    // of records that are not in Kafka
	failing bool   // the last write failed
	retire  bool   // the last segment shall not stay when it is not needed
	closed  bool
	news    chan struct{} // closed and made anew when there is something to be fetched, or nothing left to be written
	saved   uint64        // what the cursor file says
	savedAt time.Time
	strays  []string // files that ought to be removed
	said    map[string]time.Time
}

// reserve waits for room for a record of that size.
func (q *queue) reserve(ctx context.Context, size int64) error {
	err := q.room.take(ctx, size, q.closing, func() {
		q.ring() // a segment that is written and drained need not stay
		q.complain("full", func() {
			q.log.ErrorContext(ctx, "spool is full, sources wait: nothing is acknowledged until kafka is back", "bytes", q.room.inUse(), "size", q.room.limit)
		})
	})
	q.metrics.bytes.Set(float64(q.room.inUse()))
	return err
}

// push takes a record for which there is room. Its receipt is resolved when it is durable, on the disk or in Kafka.
func (q *queue) push(o pipeline.Outgoing, size int64, receipt *promise) (seq uint64, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.room.give(size)
		return 0, errClosed
	}
	seq = q.next
	q.final = seq
	q.next++
	q.count++
	q.pending = append(q.pending, &pending{entry{seq, o}, size, receipt})
	q.retire = false
	q.metrics.spooled.Inc()
	q.metrics.records.Set(float64(q.count))
	if q.failing {
		q.tell() // what cannot be written can still be fetched
	}
	q.ring()
	return seq, nil
}

func (q *queue) ring() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// tell wakes who waits for news.
func (q *queue) tell() {
	close(q.news)
	q.news = make(chan struct{})
}

// left is how many records are not in Kafka.
func (q *queue) left() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count
}

// empty reports whether everything that was pushed is in Kafka.
func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.done >= q.final
}

// drained says that all records up to seq are in Kafka.
func (q *queue) drained(seq uint64, records int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done = max(q.done, seq)
	q.count -= records
	if q.done >= q.final {
		q.done, q.count = q.next-1, 0 // what was damaged is gone too
	}
	n := 0
	for n < len(q.pending) && q.pending[n].seq <= q.done { // they need no disk any more
		q.room.give(q.pending[n].size)
		q.pending[n].receipt.resolve(nil)
		n++
	}
	if n > 0 {
		q.pending = append(q.pending[:0:0], q.pending[n:]...)
		q.tell()
	}
	q.metrics.drained.Add(float64(records))
	q.metrics.records.Set(float64(q.count))
	q.ring()
}

// rest lets the last segment go when all of it is in Kafka.
func (q *queue) rest() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retire = true
	q.ring()
}

// flush returns when all that was pushed is durable, or ctx ends.
func (q *queue) flush(ctx context.Context) error {
	for {
		q.mu.Lock()
		n, news := len(q.pending), q.news
		q.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("write %d records to the spool: %w", n, context.Cause(ctx))
		}
	}
}

// close takes no more, and ends the writing. What is not durable then gets an error.
func (q *queue) close() (lost int) {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.stop()
	<-q.stopped
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.pending {
		p.receipt.resolve(errUnknownFate)
	}
	lost, q.pending = len(q.pending), nil
	q.tell()
	return lost
}

// complain says something at most once a minute.
func (q *queue) complain(what string, say func()) {
	q.mu.Lock()
	now := time.Now()
	last, before := q.said[what]
	if before && now.Sub(last) < time.Minute {
		q.mu.Unlock()
		return
	}
	q.said[what] = now
	q.mu.Unlock()
	say()
}
