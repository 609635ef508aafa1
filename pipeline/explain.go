package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// LeftOut is why a stored message is none of a replay's, although its topic is.
type LeftOut string

// The reasons.
const (
	LeftAcked    LeftOut = "acked"              // it is acknowledged, and the store or the position does not know yet
	LeftExpired  LeftOut = "expired"            // its time is over
	LeftQoS0     LeftOut = "qos0"               // it was published at QoS 0
	LeftLater    LeftOut = "later"              // it is younger than the subscribe, and comes live
	LeftPosition LeftOut = "position"           // the client's position is behind it
	LeftAge      LeftOut = "time_range"         // it is older than the rule allows
	LeftCount    LeftOut = "max_returned_count" // there are so many younger ones
)

// LeftOuts are all of them.
var LeftOuts = []LeftOut{LeftAcked, LeftExpired, LeftQoS0, LeftLater, LeftPosition, LeftAge, LeftCount}

// ExplainedTopic is what a replay would send of one topic, and what it would not.
type ExplainedTopic struct {
	Topic    event.Topic
	Messages int
	Bytes    int      // of their payloads
	Oldest   event.ID // zero where there is none
	Newest   event.ID // zero where there is none
	Left     map[LeftOut]int
	// Excluded is why the whole topic is none of the replay's, or "". Then Messages is what waits there.
	Excluded Excluded
	// AtLeast says that counting has ended at [Explaining.Most], and that there is more.
	AtLeast bool
}

// Explaining is how a replay is explained.
type Explaining struct {
	SessionPart int // the partition of the client in the sessions topic
	Most        int // the most messages of a topic that are counted; 0 = all
	// Found is told of each topic that has anything, in ascending order. An error of it ends the explanation.
	Found func(ExplainedTopic) error
}

// Explained is what holds for a replay as a whole.
type Explained struct {
	// Complete is false when the writers lag so far that the log behind them was not read to its end: a replay would look again.
	Complete bool
	// First says that the client has no position of the filter yet, so that the rule says where it begins.
	First bool
	// Outside is how many stored topics match the subscription and not the rule.
	Outside int
	// Unfinished is how many subscribes of the client the replayers have not finished with: what those send counts as waiting here
	// until it is acknowledged.
	Unfinished int
}

// Explain says what a subscribe that asks for the replay would be sent now, by what replays decide by. It publishes, writes and commits
// nothing. It needs no Publisher, Producer or Dead; the tails must run.
func (r *Replayer) Explain(ctx context.Context, rp Replay, e event.Subscribed, x Explaining) (Explained, error) {
	if _, ok := r.Sinks[rp.Sink]; !ok {
		return Explained{}, fmt.Errorf("explain a replay: sink %s is not open", rp.Sink)
	}
	o := newOwner(ctx, r, TP{r.Topics.Sessions, x.SessionPart})
	for sink := range r.Sinks {
		o.keepers[sink] = &keeper{o: o, sink: sink} // nobody lets it write
	}
	c := o.client(e.Client)
	var all Explained
	var err error
	if all.Unfinished, err = o.overhear(ctx, c); err != nil {
		return all, err
	}
	if rp.Mode == Retained {
		err = o.explainRetained(ctx, c, rp, e, x, &all)
	} else {
		err = o.explain(ctx, c, rp, e, x, &all)
	}
	return all, err
}

// overhear takes over what the client has said and no replayer has finished with, and counts the subscribes among it.
func (o *owner) overhear(ctx context.Context, c *client) (subscribes int, err error) {
	r, tp := o.r, o.tp
	var from, to int64
	err = r.retry(ctx, "read offsets", tp.String(), func() error {
		spans, err := r.Reader.Spans(ctx, tp.Topic, tp.Part)
		if err != nil {
			return err
		}
		committed, err := r.Reader.Committed(ctx, r.Group, tp.Topic, tp.Part)
		if err != nil {
			return err
		}
		from, to = max(committed[tp.Part], spans[tp.Part].First), spans[tp.Part].End
		return nil
	})
	if err != nil || from >= to {
		return 0, err
	}
	err = ReadAll(ctx, r.Reader, tp, from, to, r.GiveUp, func(rec Record) error {
		if string(rec.Key) != string(c.id) {
			return nil // another client's
		}
		e, err := event.Decode(event.Sessions, rec.Wire)
		if err != nil {
			return nil //nolint:nilerr // the replayers' business
		}
		switch e := e.(type) {
		case event.Acked:
			if !e.Message.IsZero() {
				o.moved(rec, e)
			}
		case event.Dropped:
			o.lost(rec, e)
		case event.Unsubscribed:
			o.forgets(rec, e)
		case event.Subscribed, event.ReplayContinued:
			subscribes++
		case event.Published, event.Replayed, event.Connected, event.Disconnected:
		}
		return nil
	})
	return subscribes, err
}

// explain counts what a replay of pending messages would send.
func (o *owner) explain(ctx context.Context, c *client, rp Replay, e event.Subscribed, x Explaining, all *Explained) error {
	j := &job{o: o, c: c, replay: rp, at: e.At, bound: o.r.bound(e.Head), sent: make(map[event.ID]*flight)}
	if rp.Mode == Pubsub {
		l := o.ledger(c, rp.Sink)
		if err := j.retry(ctx, "read positions", func() error { return l.ready(ctx) }); err != nil {
			return err
		}
		l.mu.Lock()
		all.First = l.row(scopeOf(rp.Filter, rp.Within), kindFloor).gone
		l.mu.Unlock()
		o.follow(j, e.ID)
	}
	v, bound, err := j.view(ctx)
	if err != nil {
		return err
	}
	all.Complete = v.Complete
	sel, err := j.selects(ctx, v, bound)
	if err != nil {
		return err
	}
	wide := &job{o: o, c: c, replay: rp}
	wide.replay.Excludes = func(t event.Topic) Excluded {
		if rp.Filter.Match(t) {
			return ""
		}
		return ExcludedFilter
	}
	return wide.topics(ctx, v, event.Topic{}, 1, func(topics []event.Topic) error {
		for _, t := range topics {
			var found ExplainedTopic
			var err error
			switch why := rp.Excludes(t); why {
			case "":
				found, err = j.explainTopic(ctx, v, t, j.above(t, sel), x.Most)
			case ExcludedRule, ExcludedFilter:
				all.Outside++
				continue
			case ExcludedAddressee, ExcludedUnstored:
				found, err = wide.explainTopic(ctx, v, t, selection{until: bound, page: sel.page, now: sel.now, skip: sel.skip}, x.Most)
				found.Excluded = why
			}
			if err != nil {
				return err
			}
			if found.Messages > 0 || len(found.Left) > 0 {
				if err := x.Found(found); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// explainTopic counts what is selected of a topic, and what is left out of it.
func (j *job) explainTopic(ctx context.Context, v *View, t event.Topic, sel selection, most int) (ExplainedTopic, error) {
	found := ExplainedTopic{Topic: t, Left: make(map[LeftOut]int)}
	store := j.o.r.Sinks[j.replay.Sink].Store
	above := sel
	above.left = func(m sinks.Message, why LeftOut) {
		if sel.below(m.ID) == "" { // else it is counted below
			found.Left[why]++
		}
	}
	err := j.tally(ctx, newCursor(t, store, v, above), most, &found.AtLeast, func(m sinks.Message) {
		if found.Messages == 0 {
			found.Oldest = m.ID
		}
		found.Newest = m.ID
		found.Messages++
		found.Bytes += len(m.Payload)
	})
	if err != nil || sel.after().IsZero() {
		return found, err
	}
	below := sel
	below.floors, below.until = [floors]event.ID{}, sel.after()
	below.left = func(_ sinks.Message, why LeftOut) { found.Left[why]++ }
	return found, j.tally(ctx, newCursor(t, store, v, below), most, &found.AtLeast, func(m sinks.Message) { found.Left[sel.below(m.ID)]++ })
}

// tally calls each for what a cursor yields, up to so many.
func (j *job) tally(ctx context.Context, c *cursor, most int, more *bool, each func(sinks.Message)) error {
	for n := 0; ; n++ {
		if err := j.read(ctx, c); err != nil {
			return err
		}
		m, ok := c.next()
		switch {
		case !ok:
			return nil
		case most > 0 && n == most:
			*more = true
			return nil
		}
		each(m)
	}
}

// explainRetained counts what a lookup of retained messages would send. A topic has one.
func (o *owner) explainRetained(ctx context.Context, c *client, rp Replay, e event.Subscribed, x Explaining, all *Explained) error {
	var refused error
	l := &retainedLookup{
		errand: &errand{o: o, c: c, filter: rp.Filter, at: e.At}, replay: rp, bound: o.r.bound(e.Head), settled: time.Now(),
		sent: make(map[event.Topic]event.ID),
	}
	l.give = func(_ context.Context, out Outgo) error {
		return x.Found(ExplainedTopic{Topic: out.Topic, Messages: 1, Bytes: len(out.Payload), Oldest: out.ID, Newest: out.ID})
	}
	l.left = func(m sinks.Message, why LeftOut) {
		if refused == nil {
			refused = x.Found(ExplainedTopic{Topic: m.Topic, Left: map[LeftOut]int{why: 1}})
		}
	}
	var err error
	if all.Complete, err = l.pass(ctx); err == nil {
		err = refused
	}
	return err
}
