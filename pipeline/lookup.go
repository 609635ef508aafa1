package pipeline

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// What on_subscribe_lookup does: when a client comes with a new session, its stored subscriptions are given back to it through the
// broker. The broker tells of them as of the client's own subscribes, and so replays begin by the ordinary rules.

// secondLooks are the pauses before a broker that knows no such client is asked again: EMQX may tell of a connection before its
// HTTP API finds it.
var secondLooks = []time.Duration{time.Second, 3 * time.Second}

// How a lookup ended, and what became of a stored subscription.
const (
	lookupRestored  = "restored"
	lookupEmpty     = "empty"
	lookupGone      = "gone"
	lookupCancelled = "cancelled"

	subRestored   = "restored"
	subRefused    = "refused"
	subNewer      = "newer"
	subUnreadable = "unreadable"
)

// lookup restores the subscriptions that one sink has stored of a client, because of one connect.
type lookup struct {
	o      *owner
	c      *client
	rs     Resubscribe
	at     time.Time // of the connect
	offset int64     // of the connect
	began  time.Time
	cancel context.CancelCauseFunc
	place  *place

	mu sync.Mutex
	// said are the filters that the client itself has subscribed to or unsubscribed from in this session: it knows better.
	said map[string]struct{}
}

// connected begins the lookups that follow from a connect. Those of the connection before end. Where the session was resumed, what
// they had not restored is begun again, since no rule on session.created will.
func (o *owner) connected(ctx context.Context, rec Record, c *client, e event.Connected) {
	p := o.r.Plan(e)
	o.catchUps(ctx, rec, c, p, e)
	if p.Skipped == SkipIgnoredClient || p.Skipped == SkipNewSession {
		o.r.Metrics.Skipped.WithLabelValues("replayer", p.Skipped).Inc()
	}
	todo := p.Resubscribes
	c.cancelLookups(func(l *lookup) bool { return !l.at.After(e.At) }, errReconnected)
	owed := c.takeOwed()
	if e.SessionPresent == event.Yes {
		for _, sink := range slices.Sorted(maps.Keys(owed)) {
			if rs := owed[sink].rs; !slices.Contains(todo, rs) {
				todo = append(todo, rs)
			}
		}
	} else {
		owed = nil
	}
	for _, rs := range todo {
		if _, ok := o.r.Sinks[rs.Sink]; !ok || o.r.Resubscriber == nil {
			o.r.Metrics.Skipped.WithLabelValues("replayer", SkipUnsupported).Inc()
			continue
		}
		o.look(ctx, rec, c, rs, e.At, owed[rs.Sink])
	}
}

// look begins one lookup. It goes on beside the loop, and holds back the commit of its connect until it has ended.
func (o *owner) look(ctx context.Context, rec Record, c *client, rs Resubscribe, at time.Time, before *lookup) {
	lctx, cancel := context.WithCancelCause(ctx)
	l := &lookup{
		o: o, c: c, rs: rs, at: at, offset: rec.Offset, began: time.Now(), cancel: cancel, said: make(map[string]struct{}),
		place: o.r.lookups.ask(), // here, so that clients are served in the order in which they came
	}
	if before != nil {
		before.mu.Lock()
		maps.Copy(l.said, before.said)
		before.mu.Unlock()
	}
	if !c.addLookup(l) {
		o.r.lookups.leave(l.place)
		cancel(nil)
		return // one of a later connect runs
	}
	o.begin(rec)
	o.fresh = append(o.fresh, func() {
		defer cancel(nil)
		o.r.Metrics.LookupActive.Inc()
		defer o.r.Metrics.LookupActive.Dec()
		outcome, err := l.run(lctx)
		finished := err == nil || errors.Is(err, errReconnected) || errors.Is(err, errDisconnected)
		if err != nil {
			outcome = lookupCancelled
		}
		c.removeLookup(l, outcome)
		o.r.Metrics.Lookups.WithLabelValues(outcome).Inc()
		o.r.Log.DebugContext(lctx, "lookup ended", "clientid", string(c.id), "sink", rs.Sink, "outcome", outcome, "err", err)
		if finished { // else the partition goes to another owner, who repeats the connect
			o.done(rec.Offset)
		}
	})
}

// run restores, and looks again where the broker knows no such client.
func (l *lookup) run(ctx context.Context) (string, error) {
	for _, pause := range secondLooks {
		outcome, err := l.try(ctx)
		if err != nil || outcome != lookupGone {
			return outcome, err
		}
		if err := Sleep(ctx, pause); err != nil {
			return "", err
		}
		l.place = l.o.r.lookups.ask()
	}
	return l.try(ctx)
}

// try waits for its place, reads what is stored, and has the broker subscribe the client to it. An error is the end of ctx.
func (l *lookup) try(ctx context.Context) (string, error) {
	r := l.o.r
	defer func() { r.lookups.leave(l.place) }()
	select {
	case <-l.place.come:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if l.rs.Written {
		if err := r.settle(ctx, l.rs.Sink, l.o.tp, l.offset, l.began); err != nil {
			return "", err
		}
	}
	var subs []sinks.Sub
	err := r.retry(ctx, "read stored subscriptions", l.rs.Sink, func() (err error) {
		subs, err = r.Sinks[l.rs.Sink].Store.Subs(ctx, l.c.id)
		return err
	})
	if err != nil {
		return "", err
	}
	subs = l.readable(subs)
	var left []sinks.Sub
	var res Resubscribed
	err = r.retry(ctx, "restore subscriptions", l.rs.Sink, func() (err error) {
		if left = l.left(subs); len(left) == 0 {
			return nil
		}
		res, err = r.Resubscriber.Resubscribe(ctx, l.c.id, left)
		return err
	})
	switch {
	case err != nil:
		return "", err
	case len(left) > 0 && res.Gone:
		return lookupGone, nil
	}
	count := func(what string, n int) { r.Metrics.LookupSubs.WithLabelValues(what).Add(float64(n)) }
	count(subNewer, len(subs)-len(left))
	count(subRefused, res.Refused)
	count(subRestored, len(left)-res.Refused)
	if len(left) == 0 {
		return lookupEmpty, nil
	}
	return lookupRestored, nil
}

// settle waits until the sink's writers have stored what stands before a connect in its partition, which is where the client's
// earlier subscribes are. They may lag: then, a while after began, what is stored already has to do.
func (r *Replayer) settle(ctx context.Context, sink string, tp TP, offset int64, began time.Time) error {
	if offset == 0 {
		return nil
	}
	const most = 500 * time.Millisecond
	for attempt := 1; ; attempt++ {
		at, err := r.Reader.Committed(ctx, r.Sinks[sink].Tail.Group, tp.Topic, tp.Part)
		if err == nil && at[tp.Part] >= offset {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		left := r.Limits.LookupPatience - time.Since(began)
		if left <= 0 {
			break
		}
		if err := Sleep(ctx, min(r.Backoff.Delay(attempt), most, left)); err != nil {
			return err
		}
	}
	r.Metrics.LookupEarly.Inc()
	return nil
}

// readable leaves out rows that are no subscription.
func (l *lookup) readable(subs []sinks.Sub) []sinks.Sub {
	out := slices.DeleteFunc(slices.Clone(subs), func(s sinks.Sub) bool { return s.Filter.IsZero() || s.QoS > 2 })
	l.o.r.Metrics.LookupSubs.WithLabelValues(subUnreadable).Add(float64(len(subs) - len(out)))
	return out
}

// left are the subscriptions of which the client has not spoken itself.
func (l *lookup) left(subs []sinks.Sub) []sinks.Sub {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(subs), func(s sinks.Sub) bool {
		_, ok := l.said[s.Filter.String()]
		return ok
	})
}

// spoke notes that the client has subscribed to a filter or unsubscribed from it.
func (c *client) spoke(filter string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range []map[string]*lookup{c.lookups, c.owed} {
		for _, l := range of {
			l.mu.Lock()
			l.said[filter] = struct{}{}
			l.mu.Unlock()
		}
	}
}

// addLookup is false when one of the same sink runs already.
func (c *client) addLookup(l *lookup) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lookups[l.rs.Sink] != nil {
		return false
	}
	c.lookups[l.rs.Sink] = l
	return true
}

// removeLookup forgets a lookup that has ended. What it has not restored is owed to the client, should its session be resumed.
func (c *client) removeLookup(l *lookup, outcome string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lookups[l.rs.Sink] != l {
		return // cancelled
	}
	delete(c.lookups, l.rs.Sink)
	if outcome == lookupGone {
		c.owed[l.rs.Sink] = l
	}
}

// cancelLookups ends the lookups that match. They are owed to the client from then on.
func (c *client) cancelLookups(match func(*lookup) bool, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for sink, l := range c.lookups {
		if match(l) {
			l.cancel(why)
			delete(c.lookups, sink)
			c.owed[sink] = l
		}
	}
}

// takeOwed returns what was not restored, by sink, and forgets it.
func (c *client) takeOwed() map[string]*lookup {
	c.mu.Lock()
	defer c.mu.Unlock()
	owed := c.owed
	c.owed = make(map[string]*lookup)
	return owed
}
