package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/dirlock"
	"github.com/restante/restante/pipeline"
)

// ErrSpooling is what becomes of an alias (mqtt.message.replayed) while events go to the disk: it must be in the log before the ack
// that it explains, and so it is never answered from the spool. It may be sent again later.
var ErrSpooling = errors.New("kafka is away: an alias is not taken into the spool")

// Producer is a [pipeline.Producer] that keeps on disk what Kafka does not take. A receipt's nil means: in Kafka, or synced to disk.
type Producer struct {
	cfg    Config
	queue  *queue
	unlock func()

	closing  chan struct{}
	closeCtx context.Context //nolint:containedctx // that of Close, for what ends the run; set before closing is closed
	ended    chan struct{}   // closed when run has returned
	nudge    chan struct{}   // holds one: run should look again

	mu      sync.Mutex
	mode    mode
	gate    chan struct{} // closed when a mode that lets nobody in is over
	flights flights       // of direct mode, oldest first
	waiting bool          // run waits for a nudge
	direct  context.Context
	end     context.CancelFunc // of direct mode
	inside  int                // Appends on their way into the queue
	carried map[uint64]pipeline.Receipt
	since   time.Time // when the spool began
	moved   int       // how many records have gone from it to Kafka
	movedAt time.Time // when the last one had

	marked   int // moved, at a time from which on the rate is measured
	markedAt time.Time
	rate     float64 // records to Kafka a second
	closed   bool
}

var _ pipeline.Producer = (*Producer)(nil)

type mode int

const (
	passing   mode = iota // records go to the inner producer
	switching             // what is on its way goes to the disk, and what comes waits
	spooling              // records go to the disk
	finishing             // the last of the disk goes to Kafka, and what comes waits
)

// Open takes the directory and what is in it. Faults that waiting does not heal are fatal: the directory is another process's, or holds
// what this program cannot read, or records of topics that are not configured.
func Open(cfg Config) (*Producer, error) {
	if cfg.Disk != nil {
		p, err := open(cfg, cfg.Disk)
		if err != nil {
			return nil, fault.Fatal(err)
		}
		return p, nil
	}
	const lockFile = "spool.lock"
	unlock, err := dirlock.Lock(cfg.Dir, lockFile)
	if _, ok := errors.AsType[*dirlock.InUseError](err); ok {
		return nil, fault.Fatal(fmt.Errorf("spool %w: stop it, or give each process an ingest.spool.path of its own", err))
	}
	if err != nil {
		return nil, fault.Fatal(fmt.Errorf("spool: %w", err))
	}
	p, err := open(cfg, folder(cfg.Dir))
	if err != nil {
		unlock()
		return nil, fault.Fatal(err)
	}
	p.unlock = unlock
	return p, nil
}

func open(cfg Config, d Disk) (*Producer, error) {
	if cfg.Backoff.First == 0 {
		cfg.Backoff = pipeline.DefaultBackoff
	}
	known := func(topic string) error {
		if topic == cfg.Topics.Messages || topic == cfg.Topics.Sessions || topic == cfg.Topics.Dead {
			return nil
		}
		return fmt.Errorf("it holds records of topic %s, which is not configured: configure it again until the spool is empty, or move the spool away", topic)
	}
	q, err := openQueue(d, cfg.Size, cfg.Backoff, cfg.Log, cfg.Metrics, known)
	if err != nil {
		return nil, err
	}
	p := &Producer{
		cfg: cfg, queue: q, unlock: func() {}, closing: q.closing, ended: make(chan struct{}), nudge: make(chan struct{}, 1),
		gate: make(chan struct{}), carried: make(map[uint64]pipeline.Receipt),
	}
	switch {
	case !q.empty():
		p.began("records of the last run are left")
	case !p.ready():
		p.began("kafka was not seen yet")
	default:
		p.pass()
	}
	go p.run() // ended, and waited for, by Close
	return p, nil
}

func (p *Producer) ready() bool {
	select {
	case <-p.cfg.Ready:
		return true
	default:
		return p.cfg.Ready == nil
	}
}

// pass begins direct mode. The lock is held, or nobody else has p yet.
func (p *Producer) pass() {
	p.mode = passing
	p.direct, p.end = context.WithCancel(context.Background())
}

// began begins the spool. The lock is held, or nobody else has p yet.
func (p *Producer) began(why string) {
	p.mode, p.since = spooling, time.Now()
	p.moved, p.marked, p.markedAt, p.rate = 0, 0, time.Now(), 0
	p.cfg.Metrics.spooling.Set(1)
	if p.cfg.Changed != nil {
		p.cfg.Changed(why)
	}
	p.cfg.Log.Warn("spooling begins: events go to the disk, and are in no replay until kafka has them", "because", why, "records", p.queue.left())
}

// Append takes a record. While records are passed on, the end of ctx may be noticed late, by as much as the spool's After. It returns
// [ErrSpooling] for an alias while records go to the disk; so may the receipt of one.
func (p *Producer) Append(ctx context.Context, o pipeline.Outgoing) (pipeline.Receipt, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		switch p.mode {
		case passing:
			return p.passOn(o)
		case spooling:
			return p.keep(ctx, o)
		case switching, finishing:
		}
		gate := p.gate
		p.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// passOn gives a record to the inner producer. It comes with the lock held and leaves without.
func (p *Producer) passOn(o pipeline.Outgoing) (pipeline.Receipt, error) {
	f := &flight{out: o, at: time.Now(), receipt: promise{done: make(chan struct{})}}
	p.flights.push(f)
	direct := p.direct
	p.mu.Unlock()
	// Not the caller's context: two of them in one would cost as much as all the rest, and direct mode ends before long.
	inner, err := p.cfg.Inner.Append(direct, o)
	p.mu.Lock()
	defer p.mu.Unlock()
	f.inner, f.settled = inner, true
	p.look()
	if err != nil && (direct.Err() == nil || fault.IsPoison(err) || fault.IsFatal(err)) {
		f.refused = true // run, which was woken, waits for the lock
		return nil, err
	}
	return &f.receipt, nil
}

// look wakes run if it waits. The lock is held.
func (p *Producer) look() {
	if !p.waiting {
		return
	}
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}

// keep puts a record on the disk. It comes with the lock held and leaves without.
func (p *Producer) keep(ctx context.Context, o pipeline.Outgoing) (pipeline.Receipt, error) {
	if o.IsAlias() {
		p.mu.Unlock()
		return nil, ErrSpooling
	}
	p.inside++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.inside--
		p.look()
	}()
	size := sizeOf(&o)
	if err := p.queue.reserve(ctx, size); err != nil {
		return nil, err
	}
	receipt := newPromise()
	if _, err := p.queue.push(o, size, receipt); err != nil {
		return nil, err
	}
	return receipt, nil
}

// run passes receipts on, and drains, in turn, until the producer is closed.
func (p *Producer) run() {
	defer close(p.ended)
	for {
		if p.passes() {
			why := p.watch()
			if why == "" {
				return
			}
			p.divert(why)
		}
		if !p.drain() {
			return
		}
	}
}

func (p *Producer) passes() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode == passing
}

// watch resolves receipts in their order. It returns why the spool must begin, or nothing when the producer is closed and all that it
// took is in Kafka.
func (p *Producer) watch() (why string) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.mu.Lock()
		f := p.flights.front()
		for f != nil && f.over() {
			p.flights.pop()
			if !f.refused {
				f.receipt.resolve(f.inner.Err())
			}
			f = p.flights.front()
		}
		if f == nil && p.closed {
			p.end()
			p.mu.Unlock()
			return ""
		}
		var done <-chan struct{}
		closing, wait := p.closing, p.cfg.After // where there is nothing, something is looked for now and then: it does not ring
		if f != nil {
			closing, wait = nil, time.Until(f.at.Add(p.cfg.After))
			if f.inner != nil {
				done = f.inner.Done()
			}
		}
		p.waiting = done == nil
		p.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-done:
		case <-p.nudge:
		case <-closing:
		case <-timer.C:
			if f != nil && !p.answered(f) { // a process that stood still finds both
				return fmt.Sprintf("kafka has not answered for %v", p.cfg.After)
			}
		}
	}
}

func (p *Producer) answered(f *flight) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f.over()
}

// divert puts what is on its way on the disk, in its order, and lets what comes follow.
func (p *Producer) divert(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = switching
	p.end()
	p.waiting = true
	for p.unsettled() {
		p.mu.Unlock()
		<-p.nudge // an Append that has ended with direct mode
		p.mu.Lock()
	}
	p.waiting = false
	for f := p.flights.front(); f != nil; f = p.flights.front() {
		p.flights.pop()
		switch {
		case f.over():
			if !f.refused {
				f.receipt.resolve(f.inner.Err())
			}
		case f.out.IsAlias():
			f.receipt.resolve(ErrSpooling)
		default:
			size := sizeOf(&f.out)
			p.queue.room.force(size) // no more than the inner producer holds
			seq, err := p.queue.push(f.out, size, &f.receipt)
			if err != nil {
				f.receipt.resolve(err) // unreachable: the queue is closed after run
			} else if f.inner != nil {
				p.carried[seq] = f.inner
			}
		}
	}
	p.began(why)
	p.open()
}

func (p *Producer) unsettled() bool {
	for _, f := range p.flights.list[p.flights.head:] {
		if !f.settled {
			return true
		}
	}
	return false
}

// open lets those in who wait for a mode to be over. The lock is held.
func (p *Producer) open() {
	close(p.gate)
	p.gate = make(chan struct{})
}

// Close takes no more and returns nil when all that was taken is durable, in Kafka or on the disk. The inner producer is closed with
// what is left of ctx, but does not get long when the disk has everything.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return errClosed
	}
	p.closed, p.closeCtx = true, ctx
	close(p.closing)
	p.look()
	p.mu.Unlock()
	<-p.ended
	var err error
	if p.passes() {
		err = p.cfg.Inner.Close(ctx)
	}
	if n := p.queue.close(); n > 0 {
		err = cmp.Or(err, fmt.Errorf("close the spool: %d records of unknown fate", n))
	}
	p.unlock()
	return err
}
