package pipeline

import (
	"context"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// What follows from sessions that a broker keeps. It hands its own queue over when the client comes back, so that a replay at the same
// time would deliver everything twice. But its queue is bounded, and may be lost: what is still un-acked after a while is replayed.

// unfinishedLife is how long an owner remembers at least that a replay was not finished.
const (
	unfinishedLife = 24 * time.Hour
	mostUnfinished = 100_000
)

// forget lets what is remembered grow old.
func (o *owner) forget(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left.Tick(now)
}

// clientFilter is a client's subscription.
type clientFilter struct {
	client event.ClientID
	filter string
}

// unfinished notes whether a replay of the client's subscription has left something.
func (o *owner) unfinished(c event.ClientID, f event.Filter, left bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left.Put(clientFilter{c, f.String()}, left)
}

// resumed says how long the replays of a subscribe are put off, and false where none is needed: the subscription was there already, so
// that the broker has delivered or keeps what was published since, and no replay before has left anything. At QoS 0 a broker keeps
// nothing.
func (o *owner) resumed(c *client, e event.Subscribed) (time.Duration, bool) {
	if e.QoS == 0 || e.New == event.Yes {
		return 0, true
	}
	if e.New == event.No {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.r.Limits.ResumeDelay, o.left.Get(clientFilter{c.id, e.Filter.String()})
	}
	if c.fresh {
		return 0, true
	}
	return o.r.Limits.ResumeDelay, true
}

// catchUps begins what rules on client.connected ask for.
func (o *owner) catchUps(ctx context.Context, rec Record, c *client, p Plan, e event.Connected) {
	for _, u := range p.CatchUps {
		if _, ok := o.r.Sinks[u.Sink]; !ok {
			o.r.Metrics.Skipped.WithLabelValues("replayer", SkipUnsupported).Inc()
			continue
		}
		x := &errand{o: o, c: c, key: "catch-up " + u.Rule, event: rec, at: e.At, quit: make(map[string]struct{})}
		o.send(ctx, x, func(wait context.Context) error {
			waits := o.r.Metrics.ReplayParked.WithLabelValues(parkedResumed)
			waits.Inc()
			err := Sleep(wait, min(max(e.At.Add(u.Delay).Sub(o.r.Now()), 0), u.Delay)) // less where an owner before has waited
			waits.Dec()
			if err != nil {
				return err
			}
			return o.catchUp(ctx, wait, x, u, e)
		})
	}
}

// catchUp starts the replays of a client's stored subscriptions. They outlive the errand, which wait is for.
func (o *owner) catchUp(ctx, wait context.Context, x *errand, u CatchUp, e event.Connected) error {
	place := o.r.lookups.ask()
	defer o.r.lookups.leave(place)
	select {
	case <-place.come:
	case <-wait.Done():
		return context.Cause(wait)
	}
	if u.Written {
		if err := o.r.settle(wait, u.Sink, o.tp, x.event.Offset, time.Now()); err != nil {
			return err
		}
	}
	var subs []sinks.Sub
	err := o.r.retry(wait, "read stored subscriptions", u.Sink, func() (err error) {
		subs, err = o.r.Sinks[u.Sink].Store.Subs(wait, x.c.id)
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range subs {
		if s.Filter.IsZero() || s.QoS > 2 || x.hasQuit(s.Filter) {
			continue // no subscription, or none any more
		}
		rp, why := u.Replay(s)
		if rp.Mode == "" && why == "" {
			continue // of no interest to the rule
		}
		if why != "" {
			o.r.Metrics.Skipped.WithLabelValues("replayer", why).Inc()
			continue
		}
		a := asking{at: e.At, bound: o.r.bound(e.Head), subscribe: x.event.Offset}
		run, ok := o.prepare(ctx, wait, x.event, x.c, rp, a)
		switch {
		case !ok:
			return context.Cause(wait)
		case run != nil:
			o.jobs.Go(run) // ends by itself or by its cancel; Own waits for it
		}
	}
	return nil
}

// hasQuit reports whether the client has unsubscribed from the filter since.
func (x *errand) hasQuit(f event.Filter) bool {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	_, ok := x.quit[f.String()]
	return ok
}

// quits tells the errands of a client that it has unsubscribed.
func (c *client) quits(f event.Filter) {
	c.cancelErrands(func(x *errand) bool { return x.filter == f }, errUnsubscribed)
	c.mu.Lock()
	defer c.mu.Unlock()
	for x := range c.errands {
		if x.quit != nil {
			x.quit[f.String()] = struct{}{}
		}
	}
}
