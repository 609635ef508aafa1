package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// ReplaySink is where one sink's stored messages are read: the store, and the tail of its writers.
type ReplaySink struct {
	Store sinks.Reader
	Tail  *Tail
	// Positions writes the pub/sub positions; nil where no rule of the sink needs any.
	Positions *Storing
}

// Replayer reacts to subscribes: it reads what is pending and publishes it, oldest first, with a window of un-acked messages.
// One value serves all partitions of the process.
type Replayer struct {
	Reader    Log
	Topics    Topics
	Group     string
	Plan      Planner // of all sinks
	Sinks     map[string]ReplaySink
	Publisher Publisher
	// Resubscriber restores stored subscriptions; nil = the broker cannot, and no rule asks for it.
	Resubscriber Resubscriber
	Producer     Producer
	Evidence     Evidence
	Aliases      bool // replays may be acknowledged by the broker's ids
	Dead         *DeadLetters
	Minter       *event.Minter
	Source       string // ce_source of the events that the replayer makes
	Limits       ReplayLimits
	Backoff      Backoff
	Metrics      *Metrics
	Log          *slog.Logger
	Now          func() time.Time
	// GiveUp is how long [Replayer.Explain] tries what fails; 0 = for ever, as replays do.
	GiveUp time.Duration

	once    sync.Once
	admit   *admission
	lookups *admission
	pace    *rate.Limiter // nil = no limit
}

// Own is the [Part] of the replayer's group: it owns one partition of the sessions topic. It keeps reading while replays run
// beside it, because their acks come in the same partition, and commits the lowest offset that is not finished.
func (r *Replayer) Own(ctx, work context.Context, g Generation, tp TP, from int64) error {
	r.once.Do(func() {
		r.admit = &admission{free: r.Limits.Active}
		r.lookups = &admission{free: r.Limits.Lookups}
		r.pace = limiter(r.Limits.ProcessRate)
		r.Sinks = maps.Clone(r.Sinks)
		for name, s := range r.Sinks {
			limit, beside := r.Metrics.ReadLimit.WithLabelValues(name), r.Metrics.ReadsAtOnce.WithLabelValues(name)
			s.Store = throttled{s.Store, newThrottle(r.Limits.Reads, r.Limits.ReadTarget, limit, beside)}
			r.Sinks[name] = s
		}
	})
	hard, cancel := drainContext(ctx, work, r.Limits.Drain)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	o := newOwner(ctx, r, tp)
	o.gen, o.next, o.committed = g, from, from
	err := o.loop(ctx, hard)
	stop(errGenerationOver) // what the replays did not finish stays uncommitted
	o.jobs.Wait()
	if !errors.Is(err, ErrFenced) {
		if kerr := o.keep(hard); err == nil {
			err = kerr
		}
	}
	o.letGo()
	switch {
	case errors.Is(err, ErrFenced):
		r.Log.InfoContext(ctx, "partition belongs to another owner", "topic", tp.Topic, "partition", tp.Part)
		return nil
	case err != nil && !errors.Is(err, errStopped):
		return err
	}
	if err := o.commit(hard); err != nil && !errors.Is(err, ErrFenced) && hard.Err() == nil {
		return err
	}
	return nil
}

// owner is the state of one partition. Its fields belong to the goroutine of loop, but for what jobs report under mu.
type owner struct {
	r         *Replayer
	tp        TP
	gen       Generation
	clients   map[event.ClientID]*client
	next      int64 // offset of the next record to fetch
	committed int64
	commitAt  time.Time
	swept     time.Time
	received  receiving
	last      Record                     // the last record fetched
	fresh     []func()                   // replays that begin when all of a fetch is handled
	aliases   Recent[event.ID, event.ID] // broker's id → message
	keepers   map[string]*keeper         // of pub/sub positions, by sink
	ctx       context.Context            //nolint:containedctx // the keepers' own: they begin when they are needed, and end with the generation

	mu     sync.Mutex
	heard  time.Time                  // when the partition's events were read last
	broken error                      // what ends the process
	open   map[int64]int              // offsets of events whose replays are not finished, with how many
	low    []Record                   // the records of open, ascending; finished ones may stand in it
	left   Recent[clientFilter, bool] // subscriptions whose last replay has left something
	jobs   sync.WaitGroup
}

func newOwner(ctx context.Context, r *Replayer, tp TP) *owner {
	return &owner{
		r: r, tp: tp, ctx: ctx, clients: make(map[event.ClientID]*client), open: make(map[int64]int), keepers: make(map[string]*keeper),
		left:    Recent[clientFilter, bool]{Limit: mostUnfinished, Age: unfinishedLife},
		aliases: Recent[event.ID, event.ID]{Limit: mostAliases, Age: aliasLife},
	}
}

func (o *owner) loop(ctx, hard context.Context) error {
	if err := o.seek(ctx); err != nil {
		return nil //nolint:nilerr // ctx is over, nothing was begun
	}
	o.received = o.r.Metrics.receiving(o.r.Group, o.tp.Topic, o.r.Now())
	o.recall(ctx)
	var stream Stream
	defer func() {
		if stream != nil {
			_ = stream.Close() // nothing is lost with a reader
		}
	}()
	for attempt := 1; ctx.Err() == nil; {
		var err error
		if stream == nil {
			stream, err = o.r.Reader.Open(ctx, o.tp, o.next)
		}
		var recs []Record
		asked := time.Now() // the answer may have lain there since, when this process stood still
		if err == nil {
			const limit, wait = 1000, 250 * time.Millisecond
			recs, err = stream.Fetch(ctx, limit, wait)
		}
		switch {
		case err == nil:
			attempt = 1
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrGap):
			return o.stand(ctx, hard, stopGap, fmt.Errorf("offset %d of %s: %w: subscribes that lay there were removed before they were read; "+
				"set the group's offset (kafka-consumer-groups --reset-offsets) once that is understood", o.next, o.tp, err))
		default:
			if stream != nil {
				_ = stream.Close() // it is opened anew
				stream = nil
			}
			if attempt == 1 {
				o.r.Log.WarnContext(ctx, "fetch failed, will retry", "topic", o.tp.Topic, "partition", o.tp.Part, "err", err)
			}
			_ = Sleep(ctx, o.r.Backoff.Delay(attempt)) // the loop asks ctx
			attempt++
		}
		o.received.fetched(recs, o.r.Now())
		for err = nil; len(recs) > 0 && err == nil; recs = recs[1:] {
			err = o.handle(ctx, hard, recs[0])
		}
		if o.launch(); err != nil {
			return err
		}
		if stream != nil { // the fetch gave an answer
			o.hears(asked)
		}
		if err := o.tick(ctx, hard); err != nil {
			return err
		}
	}
	return nil
}

func (o *owner) seek(ctx context.Context) error {
	for attempt := 1; o.next < 0; attempt++ {
		spans, err := o.r.Reader.Spans(ctx, o.tp.Topic, o.tp.Part)
		if err == nil {
			o.next = spans[o.tp.Part].First
			return nil
		}
		if attempt == 1 {
			o.r.Log.WarnContext(ctx, "start offset unknown, will retry", "topic", o.tp.Topic, "partition", o.tp.Part, "err", err)
		}
		if err := Sleep(ctx, o.r.Backoff.Delay(attempt)); err != nil {
			return err
		}
	}
	return nil
}

// stand lets the partition stand still, uncommitted from there on, until somebody acts. What runs goes on and is committed.
func (o *owner) stand(ctx, hard context.Context, reason string, cause error) error {
	o.launch()
	o.r.Log.ErrorContext(ctx, "partition stands still", "topic", o.tp.Topic, "partition", o.tp.Part, "reason", reason, "err", cause)
	g := o.r.Metrics.Stopped.WithLabelValues(o.r.Group, reason)
	g.Inc()
	defer g.Dec()
	for Sleep(ctx, time.Second) == nil {
		o.hears(time.Now()) // all that there will be
		if err := o.tick(ctx, hard); err != nil {
			return err
		}
	}
	return nil
}

// hears notes that the events of the partition are known that were there at a time.
func (o *owner) hears(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heard = at
}

// current waits while the events of the partition have not been read for a while, as after a process stood still: the client may have
// gone and come again, and would get what a replay of before sends on ahead of its own.
func (o *owner) current(ctx context.Context) error {
	const lately, pause = 10 * time.Second, 20 * time.Millisecond
	for enough := time.Now().Add(-lately); ; { // where each answer takes long it is enough that one was asked for since
		o.mu.Lock()
		heard := o.heard
		o.mu.Unlock()
		if !heard.Before(enough) {
			return nil
		}
		if err := Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// tick commits about once a second and forgets clients that have been idle for long.
func (o *owner) tick(ctx, hard context.Context) error {
	const pause, idle = time.Second, 10 * time.Minute
	now := time.Now()
	o.aliases.Tick(now)
	o.forget(now)
	if now.Sub(o.swept) > time.Minute {
		o.swept = now
		for id, c := range o.clients {
			if c.idleSince(now) > idle && c.settled() {
				delete(o.clients, id)
			}
		}
	}
	if err := o.failure(); err != nil {
		return err
	}
	if now.Sub(o.commitAt) < pause {
		return nil
	}
	o.commitAt = now
	err := o.commit(hard)
	switch {
	case err == nil:
	case errors.Is(err, ErrFenced):
		return err
	default:
		o.r.Log.WarnContext(ctx, "commit failed, will retry", "topic", o.tp.Topic, "partition", o.tp.Part, "err", err)
	}
	return nil
}

// handle does what one record says. It never waits for a replay.
func (o *owner) handle(ctx, hard context.Context, rec Record) error {
	o.last, o.next = rec, rec.Offset+1
	e, err := event.Decode(event.Sessions, rec.Wire)
	switch {
	case errors.Is(err, event.ErrUnknownMajor):
		o.last, o.next = Record{TP: rec.TP, Offset: rec.Offset - 1}, rec.Offset
		if err := o.stand(ctx, hard, stopMajor, err); err != nil {
			return err
		}
		return errStopped
	case err != nil:
		return o.r.Dead.Bury(hard, rec, ReasonMalformed, err)
	}
	switch e := e.(type) {
	case event.Replayed:
		o.aliases.Put(e.BrokerID, e.Message)
	case event.Acked:
		if e.Message.IsZero() {
			o.resolve(ctx, rec, e)
			return nil
		}
		o.client(e.Client).ack(e.Message)
		o.moved(rec, e)
	case event.Connected:
		c := o.client(e.Client)
		if e.ConnectedAt.After(c.connectedAt) {
			c.connectedAt = e.ConnectedAt
		}
		c.joined.move(rec.Offset, e.At)
		c.narrow(e.ReceiveMaximum)
		c.fresh = e.CleanStart == event.Yes || e.SessionPresent == event.No
		c.cancelErrands(func(x *errand) bool { return x.at.Before(e.At) }, errReconnected)
		c.cancel(func(j *job) bool { return j.asked().Before(e.At) }, errReconnected)
		o.connected(ctx, rec, c, e)
	case event.Disconnected:
		c := o.client(e.Client)
		if takenOver(e) || !e.ConnectedAt.IsZero() && e.ConnectedAt.Before(c.connectedAt) {
			return nil // of an older connection
		}
		c.gone.move(rec.Offset, e.At)
		c.fresh = false
		c.cancelErrands(func(x *errand) bool { return !x.at.After(e.At) }, errDisconnected)
		c.cancel(func(j *job) bool { return !j.asked().After(e.At) }, errDisconnected)
		c.cancelLookups(func(l *lookup) bool { return !l.at.After(e.At) }, errDisconnected)
	case event.Unsubscribed:
		c := o.client(e.Client)
		c.spoke(e.Filter.String())
		c.seen[e.Filter.String()] = rec.Offset
		c.quits(e.Filter)
		c.cancel(func(j *job) bool { return j.replay.Filter == e.Filter }, errUnsubscribed)
		o.forgets(rec, e)
	case event.Subscribed:
		o.subscribed(ctx, rec, e)
	case event.ReplayContinued:
		o.continued(ctx, rec, e)
	case event.Dropped:
		o.lost(rec, e)
	case event.Published:
	}
	return nil
}

func (o *owner) client(id event.ClientID) *client {
	c := o.clients[id]
	if c == nil {
		c = &client{
			id: id, window: newWindow(o.r.Limits.Window), jobs: make(map[jobKey]*job), seen: make(map[string]int64),
			flight: make(map[event.ID]*flight), landed: make(map[event.ID]*flight),
			pace: limiter(o.r.Limits.ClientRate), ledgers: make(map[string]*ledger), lookups: make(map[string]*lookup), owed: make(map[string]*lookup), errands: make(map[*errand]struct{}),
		}
		o.clients[id] = c
	}
	c.touched = time.Now()
	return c
}

func (o *owner) subscribed(ctx context.Context, rec Record, e event.Subscribed) {
	c := o.client(e.Client)
	c.spoke(e.Filter.String())
	c.seen[e.Filter.String()] = rec.Offset
	// The subscription that was there is no more. What a replay of it sends now is acknowledged at the new QoS, or never.
	c.cancel(func(j *job) bool { return j.replay.Filter == e.Filter && (j.replay.QoS == 0) != (e.QoS == 0) }, errOtherQoS)
	bound := o.r.bound(e.Head)
	delay, wanted := o.resumed(c, e)
	p := o.r.Plan(e)
	if p.Skipped != "" {
		o.r.Metrics.Skipped.WithLabelValues("replayer", p.Skipped).Inc()
	}
	for _, rp := range p.Replays {
		switch rp.Mode {
		case Queue:
			if !wanted {
				o.r.Metrics.Skipped.WithLabelValues("replayer", SkipNotNew).Inc()
				continue
			}
			o.start(ctx, rec, c, rp, asking{at: e.At, bound: bound, subscribe: rec.Offset, delay: delay})
		case Retained:
			o.retained(ctx, rec, c, rp, e.At, bound)
		case Pubsub: // positions and marks say what is left, whether the subscription is new or not
			o.start(ctx, rec, c, rp, asking{id: e.ID, at: e.At, bound: bound, subscribe: rec.Offset, delay: delay})
		}
	}
}

func (o *owner) continued(ctx context.Context, rec Record, e event.ReplayContinued) {
	c := o.client(e.Client)
	switch {
	case c.seen[e.Filter.String()] > e.Subscribe, c.gone.offset > e.Subscribe && !e.At.After(c.gone.at),
		c.joined.offset > e.Subscribe && e.At.Before(c.joined.at):
		return // a later subscribe, unsubscribe, disconnect or connect says otherwise
	}
	for _, rp := range o.r.Plan(e).Replays {
		if rp.Mode != Retained && rp.Rule == e.Rule {
			o.start(ctx, rec, c, rp, asking{id: e.ID, at: e.At, bound: e.Bound, subscribe: e.Subscribe, slice: e.Slice, after: e.After})
			return
		}
	}
}
