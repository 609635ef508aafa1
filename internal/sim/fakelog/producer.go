package fakelog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

var errProducerClosed = errors.New("the producer is closed")

// producer keeps the order of each partition: what was taken waits in a line, and the head of the line lands when its time has
// come. The cluster's mutex guards all of it.
type producer struct {
	c      *Client
	lines  map[pipeline.TP]*line
	closed bool
	open   int           // records on their way
	empty  chan struct{} // closed when none is and the producer is closed
}

type line struct {
	tp      pipeline.TP
	waiting []pending
	landing bool
	left    int // batches that may still land, < 0 = all
}

type pending struct {
	out     pipeline.Outgoing
	receipt *receipt
}

type receipt struct {
	done chan struct{}
	err  error
}

// Done is closed when the record has landed.
func (r *receipt) Done() <-chan struct{} { return r.done }

// Err is valid after Done.
func (r *receipt) Err() error { return r.err }

// Producer returns a new producer of the process.
func (c *Client) Producer() pipeline.Producer {
	p := &producer{c: c, lines: make(map[pipeline.TP]*line), empty: make(chan struct{})}
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	c.producers = append(c.producers, p)
	return p
}

// Append takes a record.
func (p *producer) Append(ctx context.Context, o pipeline.Outgoing) (pipeline.Receipt, error) {
	n := p.c.c.cfg.Partitions[o.Topic]
	if n == 0 {
		return nil, fault.Fatal(fmt.Errorf("append to %s: no such topic", o.Topic))
	}
	tp := pipeline.TP{Topic: o.Topic, Part: p.c.c.cfg.Partition(string(o.Key), n)}
	if o.Value == nil {
		o.Value = []byte{}
	}
	if o.Time.IsZero() {
		o.Time = time.Now()
	}
	r := &receipt{done: make(chan struct{})}
	err := p.c.do(ctx, Call{Op: OpAppend, TP: tp}, func() error {
		if p.closed {
			return errProducerClosed
		}
		l := p.lines[tp]
		if l == nil {
			l = &line{tp: tp, left: -1}
			p.lines[tp] = l
		}
		l.waiting = append(l.waiting, pending{o, r})
		p.open++
		p.send(l)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// send begins the next batch of a line: all that waits.
func (p *producer) send(l *line) {
	if l.landing || len(l.waiting) == 0 || l.left == 0 {
		return
	}
	delay, copies, n := time.Duration(0), 1, len(l.waiting)
	if p.c.Landing != nil {
		delay, copies = p.c.Landing(l.tp, n)
	}
	if delay <= 0 {
		p.land(l, n, copies)
		return
	}
	l.landing = true
	time.AfterFunc(delay, func() {
		p.c.c.mu.Lock()
		defer p.c.c.mu.Unlock()
		l.landing = false
		p.land(l, n, copies)
		p.send(l)
	})
}

func (p *producer) land(l *line, n, copies int) {
	if l.left == 0 {
		return
	}
	for range copies {
		for _, w := range l.waiting[:n] {
			p.c.c.append(w.out)
		}
	}
	for _, w := range l.waiting[:n] {
		if !p.c.killed {
			close(w.receipt.done)
		}
	}
	l.waiting = l.waiting[n:]
	if l.left > 0 {
		l.left--
	}
	if p.open -= n; p.open == 0 && p.closed {
		close(p.empty)
	}
}

func (p *producer) kill(n int) {
	for _, l := range p.lines {
		l.left = n
	}
}

// Close takes no more and waits until everything has landed.
func (p *producer) Close(ctx context.Context) error {
	p.c.c.mu.Lock()
	if !p.closed {
		p.closed = true
		if p.open == 0 {
			close(p.empty)
		}
	}
	p.c.c.mu.Unlock()
	select {
	case <-p.empty:
		return nil
	case <-ctx.Done():
		p.c.c.mu.Lock()
		defer p.c.c.mu.Unlock()
		n := p.open
		for _, l := range p.lines {
			l.left = 0
			for _, w := range l.waiting {
				w.receipt.err = errProducerClosed
				close(w.receipt.done)
			}
			l.waiting = nil
		}
		p.open = 0
		return fmt.Errorf("close the producer: %d records of unknown fate", n)
	}
}
