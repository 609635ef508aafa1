package spool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

const (
	window      = 4096 // records between the disk and Kafka's answer
	near        = 256  // so few records are left when it is worth a try to finish
	tryFinish   = 250 * time.Millisecond
	finishEvery = time.Second
	// innerClose is how long the inner producer has to end when the disk holds what it may not get rid of.
	innerClose = time.Second
)

// sending is a record on its way from the disk to Kafka.
type sending struct {
	fetched
	receipt pipeline.Receipt // nil until it is appended
}

// drain moves what is on the disk to Kafka. It returns true when nothing is left and records are passed on again, false when the
// producer is closed and the disk has everything.
//
// Three goroutines do it, each in the order of the records: the first appends all but session events, the second waits until all
// messages before a session event are durable before it appends that, the third waits for the rest and says what is done.
func (p *Producer) drain() (again bool) {
	ctx, stop := context.WithCancel(context.Background()) // of what is not appended yet
	hard, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	defer stop()
	var wg sync.WaitGroup
	started := false
	start := func() {
		first, second := make(chan sending, window), make(chan sending, window)
		wg.Go(func() { defer close(first); p.appendAll(ctx, first) })
		wg.Go(func() { defer close(second); p.appendSessions(ctx, hard, first, second) })
		wg.Go(func() { p.settle(ctx, hard, second) })
		started = true
	}
	ready := p.cfg.Ready
	if p.ready() {
		ready = nil
		start()
	}
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if started && !time.Now().Before(next) && p.flows() {
			if p.finish() {
				stop()
				wg.Wait()
				return true
			}
			next = time.Now().Add(finishEvery)
		}
		p.mu.Lock()
		p.waiting = true
		p.mu.Unlock()
		timer.Reset(max(time.Until(next), tryFinish))
		select {
		case <-p.nudge:
		case <-timer.C:
		case <-ready:
			ready = nil
			start()
		case <-p.closing:
			p.leave(stop)
			giveUp()
			wg.Wait()
			return false
		}
	}
}

// flows reports whether Kafka takes records, and those that are left take it no longer than newer ones can be held back.
func (p *Producer) flows() bool {
	left := p.queue.left()
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := time.Since(p.markedAt); d >= finishEvery {
		p.rate = float64(p.moved-p.marked) / d.Seconds()
		p.marked, p.markedAt = p.moved, time.Now()
	}
	few := max(near, int(p.rate*tryFinish.Seconds()/2))
	return left == 0 || left <= few && time.Since(p.movedAt) < tryFinish
}

// finish waits for the last records, for a moment in which nothing newer comes; when that is too short, all goes on as before.
func (p *Producer) finish() bool {
	p.mu.Lock()
	p.mode, p.waiting = finishing, true
	p.mu.Unlock()
	timer := time.NewTimer(tryFinish)
	defer timer.Stop()
	for over := false; ; {
		p.mu.Lock()
		if p.inside == 0 && p.queue.empty() {
			p.pass()
			p.carriedOver()
			p.queue.rest()
			p.open()
			p.mu.Unlock()
			return true
		}
		if over {
			p.mode = spooling
			p.open()
			p.mu.Unlock()
			return false
		}
		p.mu.Unlock()
		select {
		case <-p.nudge:
		case <-timer.C:
			over = true
		case <-p.closing:
			over = true
		}
	}
}

// carriedOver says that the spool is over. The lock is held.
func (p *Producer) carriedOver() {
	clear(p.carried)
	p.cfg.Metrics.spooling.Set(0)
	if p.cfg.Changed != nil {
		p.cfg.Changed("")
	}
	p.cfg.Log.Info("spooling ended: kafka has everything", "after", time.Since(p.since).Round(time.Millisecond), "records", p.moved)
}

// leave ends the drain with the producer: the disk gets everything first, and then the inner producer does not matter.
func (p *Producer) leave(stop func()) {
	ctx := p.closeCtx
	err := p.queue.flush(ctx)
	stop()
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, innerClose)
		defer cancel()
	}
	if err := p.cfg.Inner.Close(ctx); err != nil {
		p.cfg.Log.Info("kafka has not taken all before the end: the rest is in the spool", "records", p.queue.left(), "err", err)
	}
}

// appendAll reads the disk and appends what need not wait. Until Kafka has answered once it appends no more than one record: those that
// wait in the inner producer wait in memory, and with the stamp of the time when they were appended.
func (p *Producer) appendAll(ctx context.Context, out chan<- sending) {
	for answered := false; ; {
		list, err := p.queue.fetch(ctx)
		if err != nil {
			return // the end of ctx
		}
		for _, f := range list {
			s := sending{fetched: f, receipt: p.carriedReceipt(f.seq)}
			if s.receipt == nil && !f.gone() && f.out.Topic != p.cfg.Topics.Sessions {
				if s.receipt, err = p.send(ctx, f); err != nil {
					return
				}
			}
			select {
			case out <- s:
			case <-ctx.Done():
				return
			}
			if !answered && s.receipt != nil {
				select {
				case <-s.receipt.Done():
					answered = true
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

func (p *Producer) carriedReceipt(seq uint64) pipeline.Receipt {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.carried[seq]
	delete(p.carried, seq)
	return r
}

// refusal is the receipt of a record that Kafka can never take.
type refusal struct{ err error }

var closedChannel = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (refusal) Done() <-chan struct{} { return closedChannel }
func (r refusal) Err() error          { return r.err }

// send appends a record, and tries again until it is taken, refused for good, or ctx ends.
func (p *Producer) send(ctx context.Context, f fetched) (pipeline.Receipt, error) {
	o := f.out
	o.Wire = event.Restamp(o.Wire, p.cfg.Now())
	for attempt := 1; ; attempt++ {
		r, err := p.cfg.Inner.Append(ctx, o)
		switch {
		case err == nil:
			return r, nil
		case fault.IsPoison(err):
			return refusal{err}, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		p.queue.complain("append", func() {
			p.cfg.Log.WarnContext(ctx, "record of the spool not appended, will retry", "topic", o.Topic, "err", err)
		})
		if err := pipeline.Sleep(ctx, p.cfg.Backoff.Delay(attempt)); err != nil {
			return nil, err
		}
	}
}

// appendSessions appends the session events, each after all messages before it are durable.
func (p *Producer) appendSessions(ctx, hard context.Context, in <-chan sending, out chan<- sending) {
	for s := range in {
		var err error
		switch {
		case s.gone():
		case s.receipt == nil:
			s.receipt, err = p.send(ctx, s.fetched)
		case s.out.Topic != p.cfg.Topics.Sessions:
			err = p.outcome(ctx, hard, &s)
		}
		if err != nil {
			break // what follows stays on the disk
		}
		out <- s
	}
	for range in { // whoever appends is not held up
	}
}

// outcome returns nil when the record is in Kafka, or where those go that Kafka refuses.
func (p *Producer) outcome(ctx, hard context.Context, s *sending) error {
	for {
		err := pipeline.Wait(hard, s.receipt)
		if err == nil {
			s.receipt = refusal{}
			return nil
		}
		if fault.IsPoison(err) {
			return p.bury(ctx, hard, s, err)
		}
		if ctx.Err() != nil {
			return err
		}
		if s.receipt, err = p.send(ctx, s.fetched); err != nil {
			return err
		}
	}
}

// settle says what is done, in the order of the records.
func (p *Producer) settle(ctx, hard context.Context, in <-chan sending) {
	failed := false
	for s := range in {
		if failed {
			continue // the disk has it
		}
		records := 1
		if s.gone() {
			records = 0
		} else if err := p.outcome(ctx, hard, &s); err != nil {
			failed = true
			continue
		}
		p.queue.drained(s.seq, records)
		p.mu.Lock()
		p.moved, p.movedAt = p.moved+records, time.Now()
		p.look()
		p.mu.Unlock()
	}
}

// bury keeps a record that Kafka can never take: in the dead-letter topic, or in a file where that refuses it too.
func (p *Producer) bury(ctx, hard context.Context, s *sending, cause error) error {
	p.cfg.Metrics.rejected.Inc()
	dead := fetched{entry{s.seq, p.deadLetter(s.out, cause)}}
	if s.out.Topic != p.cfg.Topics.Dead {
		r, err := p.send(ctx, dead)
		if err == nil {
			err = pipeline.Wait(hard, r)
		}
		if err == nil {
			p.cfg.Log.ErrorContext(ctx, "record of the spool is in the dead letters: kafka can never take it", "topic", s.out.Topic, "err", cause)
			s.receipt = refusal{}
			return nil
		}
		if !fault.IsPoison(err) {
			return err
		}
	}
	for attempt := 1; ; attempt++ {
		name, err := p.queue.reject(s.entry)
		if err == nil {
			p.cfg.Log.ErrorContext(ctx, "record of the spool is kept in a file: kafka can never take it", "topic", s.out.Topic, "file", name, "err", cause)
			s.receipt = refusal{}
			return nil
		}
		p.queue.complain("reject", func() {
			p.cfg.Log.ErrorContext(ctx, "refused record not kept aside, will retry", "file", name, "err", err)
		})
		if pipeline.Sleep(ctx, p.cfg.Backoff.Delay(attempt)) != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

func (p *Producer) deadLetter(o pipeline.Outgoing, cause error) pipeline.Outgoing {
	o.Headers = pipeline.Obituary{
		Reason: pipeline.ReasonRefused, Cause: fmt.Sprint(cause), Topic: o.Topic, Offset: pipeline.NoOffset, By: pipeline.ByIngest,
	}.Append(o.Headers)
	o.Topic = p.cfg.Topics.Dead
	return o
}
