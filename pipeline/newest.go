package pipeline

import (
	"container/heap"
	"context"

	"github.com/restante/restante/event"
)

// What max_returned_count does: of all that is pending in a replay, whatever its topics, only the newest so many are sent. The rest stays
// stored.

// limit finds the floor below which a replay sends nothing, once there is one: a later look does not go on below it.
func (j *job) limit(ctx context.Context, v *View, sel *selection) error {
	if j.replay.MaxReturned == 0 {
		return nil
	}
	if j.floor.IsZero() {
		newest, err := j.newest(ctx, v, *sel)
		if err != nil {
			return err
		}
		if len(newest) < j.replay.MaxReturned {
			return nil // what comes late still has room
		}
		j.floor, j.uncounted = newest[0].Before(), &selection{floors: sel.floors, until: newest[0].Before()}
	}
	sel.floors[byCount] = j.floor
	return nil
}

// newest are the ids of the newest pending messages, as a heap whose first is the eldest.
func (j *job) newest(ctx context.Context, v *View, sel selection) (idHeap, error) {
	var ids idHeap
	sel.newest = j.replay.MaxReturned
	store := j.o.r.Sinks[j.replay.Sink].Store
	err := j.topics(ctx, v, event.Topic{}, 1, func(topics []event.Topic) error {
		for _, t := range topics {
			c := newCursor(t, store, v, j.above(t, sel))
			if err := j.read(ctx, c); err != nil {
				return err
			}
			for _, m := range c.ready {
				if heap.Push(&ids, m.ID); len(ids) > sel.newest {
					heap.Pop(&ids)
				}
			}
		}
		if len(ids) == sel.newest {
			sel.floors[byCount] = ids[0] // nothing below it can be among them any more
		}
		return nil
	})
	return ids, err
}

// countRest counts what the limit has left out, once, up to ten pages.
func (j *job) countRest(ctx context.Context, v *View) error {
	if j.uncounted == nil {
		return nil
	}
	r := j.o.r
	sel := *j.uncounted
	j.uncounted = nil
	sel.page, sel.now, sel.skip = r.Limits.Page, r.Now, func(event.ID) bool { return false }
	left := 10 * sel.page
	err := j.topics(ctx, v, event.Topic{}, 1, func(topics []event.Topic) error {
		for _, t := range topics {
			c := newCursor(t, r.Sinks[j.replay.Sink].Store, v, j.above(t, sel))
			for left > 0 {
				if err := j.read(ctx, c); err != nil {
					return err
				}
				if _, ok := c.next(); !ok {
					break
				}
				left--
			}
		}
		return nil
	})
	r.Metrics.ReplayMessages.WithLabelValues(messageLeftOut).Add(float64(10*sel.page - left))
	return err
}

// idHeap is a heap of message ids, the smallest first.
type idHeap []event.ID

func (h idHeap) Len() int           { return len(h) }
func (h idHeap) Less(a, b int) bool { return h[a].Compare(h[b]) < 0 }
func (h idHeap) Swap(a, b int)      { h[a], h[b] = h[b], h[a] }
func (h *idHeap) Push(x any)        { *h = append(*h, x.(event.ID)) }

func (h *idHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
