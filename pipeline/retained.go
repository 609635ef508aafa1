package pipeline

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// What on_retain_lookup does, for a broker that retains nothing itself: a subscriber gets the newest retained message of each topic
// of its filter, out of the store and the tail. Nothing waits for its acks, since nothing of it is removed by them.

// How a lookup of retained messages ended, and what became of the messages.
const (
	retainedComplete = "complete"
	retainedEmpty    = "empty"
	retainedPartial  = "partial"
	retainedAborted  = "aborted"

	retainedSent    = "sent"
	retainedExpired = "expired"
	retainedError   = "error"
	retainedLive    = "live"
)

// retainedLookup hands over the retained messages of one filter because of one subscribe. It belongs to its goroutine.
type retainedLookup struct {
	*errand
	replay  Replay
	bound   event.ID  // what is younger comes live
	settled time.Time // a look that begins then finds what was late
	place   *place    // nil = none
	active  bool
	sent    map[event.Topic]event.ID // what needs no second look
	count   int
	pauses  int    // since the client took a message
	kept    *Outgo // the next to send: whether one follows it is not known yet
	// give hands a message over: publish, but for who only looks. left is told of what is found and not sent; nil = nobody asks.
	give func(context.Context, Outgo) error
	left func(sinks.Message, LeftOut)
}

// retained begins a lookup.
func (o *owner) retained(ctx context.Context, rec Record, c *client, rp Replay, at time.Time, bound event.ID) {
	l := &retainedLookup{
		errand: &errand{o: o, c: c, key: "retained " + rp.Rule + " " + rp.Filter.String(), filter: rp.Filter, event: rec, at: at},
		replay: rp, bound: bound, settled: time.Now().Add(o.r.Limits.Settle), sent: make(map[event.Topic]event.ID),
		place: o.r.admit.ask(), // here, so that lookups are admitted in the order of their subscribes
	}
	l.give = l.publish
	o.send(ctx, l.errand, l.run)
}

func (l *retainedLookup) run(ctx context.Context) error {
	err := l.enter(ctx)
	if err == nil {
		err = l.passes(ctx)
	}
	l.leave()
	outcome := retainedAborted
	switch {
	case err == nil && l.count == 0:
		outcome = retainedEmpty
	case err == nil:
		outcome = retainedComplete
	case errors.Is(err, errNotAcking), errors.Is(err, errNoSubscriber):
		outcome, err = retainedPartial, nil
	}
	r := l.o.r
	r.Metrics.Retained.WithLabelValues(outcome).Inc()
	r.Log.DebugContext(ctx, "lookup of retained messages ended", "clientid", string(l.c.id), "filter", l.replay.Filter.String(),
		"sink", l.replay.Sink, "outcome", outcome, "sent", l.count, "err", err)
	return err
}

// enter waits for a place among the active replays.
func (l *retainedLookup) enter(ctx context.Context) error {
	r := l.o.r
	if l.place == nil {
		l.place = r.admit.ask()
	}
	select {
	case <-l.place.come:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.active = true
	r.Metrics.RetainedActive.Inc()
	return nil
}

// leave gives the place to others.
func (l *retainedLookup) leave() {
	if l.place != nil {
		l.o.r.admit.leave(l.place)
		l.place = nil
	}
	if l.active {
		l.active = false
		l.o.r.Metrics.RetainedActive.Dec()
	}
}

// aside gives the place to others for a while.
func (l *retainedLookup) aside(ctx context.Context, pause time.Duration) error {
	l.leave()
	if err := Sleep(ctx, pause); err != nil {
		return err
	}
	return l.enter(ctx)
}

// passes looks until a look saw the whole tail and began when nothing could be late any more.
func (l *retainedLookup) passes(ctx context.Context) error {
	for {
		began := time.Now()
		complete, err := l.pass(ctx)
		if err != nil {
			return err
		}
		switch {
		case !complete: // the writers lag
			err = Sleep(ctx, l.o.r.Limits.Patience/10)
		case began.Before(l.settled):
			err = l.aside(ctx, time.Until(l.settled))
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// pass goes over the topics of the filter. Each page has a view of its own, so that what it sends is as young as can be.
func (l *retainedLookup) pass(ctx context.Context) (complete bool, err error) {
	r := l.o.r
	sink := r.Sinks[l.replay.Sink]
	var after event.Topic
	complete, l.kept = true, nil
	for more := true; more; {
		v, err := r.view(ctx, l.replay, func() {})
		if err != nil {
			return false, err
		}
		complete = complete && v.Complete
		var page []sinks.Message
		err = r.retry(ctx, "read retained messages", l.replay.Sink, func() (err error) {
			page, err = sink.Store.Retained(ctx, l.replay.Filter, after, r.Limits.Page)
			return err
		})
		if err != nil {
			return false, err
		}
		more = len(page) == r.Limits.Page
		last := after
		if more {
			last = page[len(page)-1].Topic
		}
		if err := l.hand(ctx, v.retained(page, after, last, more)); err != nil {
			return false, err
		}
		after = last
	}
	if k := l.kept; k != nil {
		l.kept = nil
		err = l.give(ctx, *k)
	}
	return complete, err
}

// retained are the retained messages of the topics after one and up to another (without an end where there are no more), in ascending
// order: those of the store, and what the tail makes of them. The later message wins, and a deletion in the tail removes.
func (v *View) retained(page []sinks.Message, after, last event.Topic, more bool) []sinks.Message {
	found := make(map[event.Topic]sinks.Op)
	for _, m := range page {
		found[m.Topic] = sinks.PutRetained{Message: m}
	}
	for t, o := range v.topics {
		if o.retained == nil || compareTopics(t, after) <= 0 || more && compareTopics(t, last) > 0 {
			continue
		}
		if stored, ok := found[t]; ok {
			found[t] = sinks.Merge(stored, o.retained)
		} else {
			found[t] = o.retained
		}
	}
	var out []sinks.Message
	for _, op := range found {
		if p, ok := op.(sinks.PutRetained); ok {
			out = append(out, p.Message)
		}
	}
	slices.SortFunc(out, func(a, b sinks.Message) int { return compareTopics(a.Topic, b.Topic) })
	return out
}

// hand sends a page of messages, all but the last, which is kept until it is known whether one follows.
func (l *retainedLookup) hand(ctx context.Context, page []sinks.Message) error {
	r := l.o.r
	leave := func(m sinks.Message, what string, why LeftOut) {
		r.Metrics.RetainedSent.WithLabelValues(what).Inc()
		if l.left != nil {
			l.left(m, why)
		}
	}
	page = slices.DeleteFunc(page, func(m sinks.Message) bool {
		id, again := l.sent[m.Topic]
		if again && id == m.ID || !l.replay.Selects(m.Topic) {
			return true
		}
		switch {
		case m.ID.Compare(l.bound) > 0:
			leave(m, retainedLive, LeftLater)
		case !m.Expires.IsZero() && !m.Expires.After(r.Now()):
			leave(m, retainedExpired, LeftExpired)
		default:
			return false
		}
		l.sent[m.Topic] = m.ID
		return true
	})
	for i, m := range page {
		if k := l.kept; k != nil {
			l.kept = nil
			k.Remaining = max(k.Remaining, 1)
			if err := l.give(ctx, *k); err != nil {
				return err
			}
		}
		l.kept = &Outgo{Message: m, QoS: min(m.QoS, l.replay.QoS), Remaining: len(page) - 1 - i, Retained: true}
	}
	return nil
}

// publish sends one message, for as long as it takes. A client that takes nothing for a while loses its place, and after the last
// pause it is given up: what is stored stays, for its next subscribe.
func (l *retainedLookup) publish(ctx context.Context, out Outgo) error {
	r := l.o.r
	if err := pace(ctx, l.c.pace, r.pace); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		if err := l.o.current(ctx); err != nil {
			return err
		}
		pctx, cancel := context.WithTimeoutCause(ctx, r.Limits.AckTimeout, errNotAcking)
		o, err := r.Publisher.Publish(pctx, l.c.id, out)
		stuck := errors.Is(context.Cause(pctx), errNotAcking)
		cancel()
		outcome := ""
		switch {
		case err == nil && o.NoSubscriber:
			return errNoSubscriber
		case err == nil:
			outcome = retainedSent
			l.count++
			l.pauses = 0
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrExpired):
			outcome = retainedExpired
		case fault.IsPoison(err):
			outcome = retainedError
			r.Log.ErrorContext(ctx, "retained message cannot be delivered, it stays stored", "topic", out.Topic.String(), "msgid", out.ID.String(), "err", err)
		}
		if outcome != "" {
			l.sent[out.Topic] = out.ID
			r.Metrics.RetainedSent.WithLabelValues(outcome).Inc()
			return nil
		}
		if attempt == 1 {
			r.Log.WarnContext(ctx, "publish failed, will retry", "clientid", string(l.c.id), "err", err)
		}
		switch {
		case !stuck:
			err = Sleep(ctx, r.Backoff.Delay(attempt))
		case l.pauses < len(r.Limits.Retry):
			l.pauses++
			err = l.aside(ctx, r.Limits.Retry[l.pauses-1])
		default:
			return errNotAcking
		}
		if err != nil {
			return err
		}
	}
}

// pace waits until each of the limits allows one message more; nil = no limit.
func pace(ctx context.Context, limits ...*rate.Limiter) error {
	for _, p := range limits {
		if p == nil {
			continue
		}
		if err := p.Wait(ctx); err != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
