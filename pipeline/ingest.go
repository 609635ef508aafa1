package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
)

// Topics are the full names of the pipeline's Kafka topics.
type Topics struct{ Messages, Sessions, Dead string }

// Of is the full name of the topic of the kind.
func (t Topics) Of(k event.Kind) string {
	switch k {
	case event.Messages:
		return t.Messages
	case event.Sessions:
		return t.Sessions
	case event.Dead:
		return t.Dead
	}
	panic(fmt.Sprintf("pipeline: no topic for kind %q", k)) // unreachable: the kinds are a closed set
}

// Ingest takes events from sources into the log. Run must be running for receipts of session events to be done.
//
// Everything taken goes through one queue in the order of its taking; a session event is appended only after all that was taken
// before it is durable, so that a replay sees every message that came before its subscribe, and whoever sees the copy of an ack
// in sessions can rely on the one in messages.
type Ingest struct {
	Producer   Producer
	Topics     Topics
	Rules      *Rules
	Minter     *event.Minter
	MaxPayload int // bytes
	Metrics    *Metrics
	Log        *slog.Logger
	Now        func() time.Time

	queue  chan queued
	gate   *gate
	ids    *identities
	oldest *oldest
}

// oldest shows when the eldest event was taken that is not durable: of the two that are waited for the one further on, since they come in
// the order of their taking.
type oldest struct {
	mu                   sync.Mutex
	advancing, resolving time.Time // zero = nothing is
}

// set changes one of the two and shows what follows.
func (o *oldest) set(which *time.Time, taken time.Time, shown prometheus.Gauge) {
	o.mu.Lock()
	defer o.mu.Unlock()
	*which = taken
	eldest := o.resolving
	if eldest.IsZero() {
		eldest = o.advancing
	}
	if eldest.IsZero() {
		shown.Set(0)
		return
	}
	shown.Set(float64(eldest.UnixMilli()) / 1e3)
}

// gate counts who is inside Accept, and closes.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup // grows only while closed is not set
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

// close lets nobody in any more. What it returns is closed when the last one has left.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	left := make(chan struct{})
	go func() { // ends with the last Accept, which the end of its source's ctx ends
		g.inside.Wait()
		close(left)
	}()
	return left
}

var errIngestOver = errors.New("ingest has ended")

// queued is an entry of the queue: a receipt to wait for, and what to append then.
type queued struct {
	taken time.Time
	first Receipt   // nil = nothing to wait for
	then  *Outgoing // nil = nothing to append
	done  *promise  // resolved at the end, nil = nobody waits
}

// promise is a receipt that is resolved by hand.
type promise struct {
	done chan struct{}
	err  error
}

func (p *promise) Done() <-chan struct{} { return p.done }
func (p *promise) Err() error            { return p.err }

func (p *promise) resolve(err error) {
	p.err = err
	close(p.done)
}

// NewIngest returns an Ingest with the fields of i and its queue made.
func NewIngest(i Ingest) *Ingest {
	const depth = 1 << 16
	i.queue, i.gate, i.ids, i.oldest = make(chan queued, depth), &gate{}, newIdentities(), &oldest{}
	return &i
}

// Accept is the [Accept] of the sources. It is safe for concurrent use; the order of one caller is kept.
func (i *Ingest) Accept(ctx context.Context, e event.Event) (Receipt, error) {
	if !i.gate.enter() {
		return nil, errIngestOver
	}
	defer i.gate.inside.Done()
	size := 0
	if p, ok := e.(event.Published); ok {
		size = len(p.Payload)
	}
	e, drop := i.prepare(e)
	if drop != "" {
		i.Metrics.ReceivedBytes.Add(float64(size))
		i.Metrics.IngestDropped.WithLabelValues(drop).Inc()
		return nil, nil //nolint:nilnil // Accept's contract: not wanted, and that is no error
	}
	i.Metrics.Received.WithLabelValues(event.TypeOf(e)).Inc()
	taken := time.Now()
	i.Metrics.Backpressure.begin(taken)
	defer i.Metrics.Backpressure.end(taken)
	var first Receipt
	var second *Outgoing
	now := i.Now()
	for _, r := range e.Routes() {
		o := Outgoing{Topic: i.Topics.Of(r.Kind), Wire: event.Encode(e, r, now)}
		if r.Kind == event.Sessions {
			second = &o
			continue
		}
		if p, ok := e.(event.Published); ok && len(p.Payload) > i.MaxPayload {
			o = i.oversize(o, len(p.Payload))
		}
		var err error
		if first, err = i.Producer.Append(ctx, o); err != nil {
			return nil, fmt.Errorf("append %s: %w", event.TypeOf(e), err)
		}
	}
	i.Metrics.ReceivedBytes.Add(float64(size))
	q := queued{taken: taken, first: first, then: second}
	out := first
	if second != nil {
		q.done = &promise{done: make(chan struct{})}
		out = q.done
	}
	select {
	case i.queue <- q:
		i.Metrics.IngestUnacked.Inc()
		return out, nil
	case <-ctx.Done():
		if second == nil {
			return out, nil // it is in the log; only its latency goes unmeasured
		}
		return nil, context.Cause(ctx)
	}
}

// prepare completes an event, or says why it is dropped.
func (i *Ingest) prepare(e event.Event) (event.Event, string) {
	mint := func(h event.Head) event.Head {
		if h.ID.IsZero() {
			h.ID = i.Minter.Mint()
		}
		if h.At.IsZero() {
			h.At = i.Now()
		}
		return h
	}
	var who event.ClientID
	switch x := e.(type) {
	case event.Published:
		x.Head, who = mint(x.Head), x.Sender
		if x.Payload == nil {
			x.Payload = []byte{}
		}
		e = i.identify(x)
	case event.Acked:
		x.Head, who = mint(x.Head), x.Client
		x.Watched = i.Rules.Watches(x.Topic)
		x.Message = i.ids.stored(x.Message)
		e = x
	case event.Replayed:
		x.Head = mint(x.Head)
		e = x
	case event.Dropped:
		x.Head, who = mint(x.Head), x.Client
		e = x
	case event.Subscribed:
		x.Head, who = mint(x.Head), x.Client
		e = x
	case event.Unsubscribed:
		x.Head, who = mint(x.Head), x.Client
		e = x
	case event.Connected:
		x.Head, who = mint(x.Head), x.Client
		e = x
	case event.Disconnected:
		x.Head, who = mint(x.Head), x.Client
		e = x
	case event.ReplayContinued:
		x.Head, who = mint(x.Head), x.Client
		e = x
	}
	switch {
	case i.Rules.Own(who):
		return nil, dropOwn
	case i.Rules.Wants(e):
		return e, ""
	case i.Rules.leavesOut(e):
		return nil, SkipQoS0
	}
	return nil, dropUnwanted
}

// oversize turns a publish over the limit into a dead letter: it is whole, durable and counted, and never stored.
func (i *Ingest) oversize(o Outgoing, size int) Outgoing {
	i.Metrics.IngestDropped.WithLabelValues(dropOversize).Inc()
	i.Log.Warn("payload is over ingest.max_payload, message goes to the dead letters", "topic", string(o.Key), "bytes", size, "limit", i.MaxPayload)
	o.Headers = Obituary{
		Reason: ReasonOversize, Cause: fmt.Sprintf("payload of %d bytes is over the limit of %d", size, i.MaxPayload), Topic: o.Topic,
		Offset: NoOffset, By: ByIngest,
	}.Append(o.Headers)
	o.Topic = i.Topics.Dead
	return o
}

// Refuse counts an event that a source cannot make out or must not take: reason is "invalid" or "own_client".
func (i *Ingest) Refuse(reason string) { i.Metrics.IngestDropped.WithLabelValues(reason).Inc() }

// Run works the queue until ctx has ended and what was taken is durable, or work ends; then what is left is refused, so that no
// source acknowledges it. Once ctx has ended Accept refuses; what is inside it then is still taken.
func (i *Ingest) Run(ctx, work context.Context) error {
	appended := make(chan queued, cap(i.queue))
	var resolver sync.WaitGroup
	resolver.Go(func() { // ends when appended is closed
		for q := range appended {
			i.resolve(work, q)
		}
	})
	defer resolver.Wait()
	defer close(appended)
	for ctx.Err() == nil {
		select {
		case q := <-i.queue:
			appended <- i.advance(work, q)
		case <-ctx.Done():
		}
	}
	for left, open := i.gate.close(), true; open || len(i.queue) > 0; {
		select {
		case q := <-i.queue:
			appended <- i.advance(work, q)
		case <-left:
			left, open = nil, false
		case <-work.Done():
			open = false
		}
	}
	return nil
}

// advance waits for what q waits for and appends what comes then; q's first is what is still to be waited for.
func (i *Ingest) advance(work context.Context, q queued) queued {
	i.oldest.set(&i.oldest.advancing, q.taken, i.Metrics.IngestOldest)
	defer i.oldest.set(&i.oldest.advancing, time.Time{}, i.Metrics.IngestOldest)
	if q.first != nil {
		if err := Wait(work, q.first); err != nil {
			return failed(q, err)
		}
	}
	if q.then == nil {
		return q
	}
	r, err := i.Producer.Append(work, *q.then)
	if err != nil {
		return failed(q, err)
	}
	q.first = r
	return q
}

func failed(q queued, err error) queued {
	p := &promise{done: make(chan struct{})}
	p.resolve(err)
	q.first = p
	return q
}

// resolve waits for the last receipt of q and passes its fate on.
func (i *Ingest) resolve(work context.Context, q queued) {
	defer i.Metrics.IngestUnacked.Dec()
	i.oldest.set(&i.oldest.resolving, q.taken, i.Metrics.IngestOldest)
	defer i.oldest.set(&i.oldest.resolving, time.Time{}, i.Metrics.IngestOldest)
	err := Wait(work, q.first)
	if err == nil {
		i.Metrics.IngestLatency.Observe(time.Since(q.taken).Seconds())
	} else if work.Err() == nil {
		i.Log.WarnContext(work, "event is not durable, its source is not acknowledged", "err", err)
	}
	if q.done != nil {
		q.done.resolve(err)
	}
}
