package pipeline

import (
	"context"
	"slices"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// pass sends what is pending in the view and the store, topics in turn, each oldest first.
func (j *job) pass(ctx context.Context, v *View, bound event.ID) error {
	const abreast = 64 // topics in turn
	sel, err := j.selects(ctx, v, bound)
	if err != nil {
		return err
	}
	store := j.o.r.Sinks[j.replay.Sink].Store
	j.kept = nil
	after := j.from
	j.from = event.Topic{}
	err = j.topics(ctx, v, after, abreast, func(topics []event.Topic) error {
		var turn []*cursor
		for _, t := range topics {
			c := newCursor(t, store, v, j.above(t, sel))
			if err := j.read(ctx, c); err != nil {
				return err
			}
			turn = append(turn, c)
		}
		err := j.turns(ctx, turn, after)
		after = topics[len(topics)-1]
		return err
	})
	if err != nil {
		return err
	}
	return j.offerNone(ctx)
}

// selects is what a pass reads of every topic.
func (j *job) selects(ctx context.Context, v *View, bound event.ID) (selection, error) {
	sel := selection{
		until: bound, page: j.o.r.Limits.Page, now: j.o.r.Now,
		skip: func(id event.ID) bool { _, ok := j.sent[id]; return ok },
	}
	if j.replay.TimeRange > 0 {
		sel.floors[byAge] = event.FirstIDAt(j.asked().Add(-j.replay.TimeRange))
	}
	return sel, j.limit(ctx, v, &sel)
}

// topics calls each with the topics behind after that may have pending messages, at most n at a time, in the order of their bytes.
func (j *job) topics(ctx context.Context, v *View, after event.Topic, n int, each func([]event.Topic) error) error {
	if t, ok := j.replay.Filter.Exact(); ok {
		if !j.replay.Selects(t) {
			return nil
		}
		return each([]event.Topic{t})
	}
	fresh := v.Topics()
	fresh = fresh[behind(fresh, after):]
	store := j.o.r.Sinks[j.replay.Sink].Store
	for more := true; more; {
		var page []event.Topic
		err := j.retry(ctx, "list topics", func() (err error) {
			page, err = store.Topics(ctx, j.replay.Filter, after, j.o.r.Limits.Page)
			return err
		})
		if err != nil {
			return err
		}
		more = len(page) == j.o.r.Limits.Page
		if len(page) > 0 {
			after = page[len(page)-1]
		}
		k := len(fresh)
		if more {
			k = behind(fresh, after)
		}
		page = append(page, fresh[:k]...)
		fresh = fresh[k:]
		slices.SortFunc(page, compareTopics)
		page = slices.DeleteFunc(slices.Compact(page), func(t event.Topic) bool { return !j.replay.Selects(t) })
		for chunk := range slices.Chunk(page, n) {
			if err := each(chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// behind is the index of the first of the sorted topics that is behind another.
func behind(topics []event.Topic, t event.Topic) int {
	i, found := slices.BinarySearchFunc(topics, t, compareTopics)
	if found {
		i++
	}
	return i
}

// turns sends one message of each topic in turn. The pass is done with the topics up to after.
func (j *job) turns(ctx context.Context, turn []*cursor, after event.Topic) error {
	for len(turn) > 0 {
		var left []*cursor
		for i, c := range turn {
			m, ok := c.next()
			if !ok {
				j.expire(c.expired)
				continue
			}
			if err := j.read(ctx, c); err != nil {
				return err
			}
			left = append(left, c)
			follow := 0
			for _, o := range left {
				follow += len(o.ready)
			}
			for _, o := range turn[i+1:] {
				follow += len(o.ready)
			}
			if err := j.offer(ctx, m, follow); err != nil {
				return err
			}
			j.keptAfter = after
		}
		turn = left
	}
	return nil
}

// expire counts what has expired, once a replay.
func (j *job) expire(ids []event.ID) {
	for _, id := range ids {
		j.sent[id] = nil
	}
	j.o.r.Metrics.ReplayMessages.WithLabelValues(messageExpired).Add(float64(len(ids)))
}

// offer sends the message that was offered before, now that one is known to follow it, and keeps this one back.
func (j *job) offer(ctx context.Context, m sinks.Message, follow int) error {
	if k := j.kept; k != nil {
		j.kept = nil
		if err := j.send(ctx, k.Message, max(k.Remaining, 1)); err != nil {
			return err
		}
	}
	j.kept = &Outgo{Message: m, Remaining: follow}
	return nil
}

// offerNone sends the last message of a pass: nothing is known to follow it.
func (j *job) offerNone(ctx context.Context) error {
	k := j.kept
	if j.kept = nil; k == nil {
		return nil
	}
	return j.send(ctx, k.Message, 0)
}

// read fills a cursor, for as long as it takes.
func (j *job) read(ctx context.Context, c *cursor) error {
	return j.retry(ctx, "read stored messages", func() error { return c.fill(ctx) })
}
