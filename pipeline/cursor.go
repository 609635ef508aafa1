package pipeline

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

func compareTopics(a, b event.Topic) int { return cmp.Compare(a.String(), b.String()) }

// selection bounds what a replay reads of each topic: above all its floors, up to until.
type selection struct {
	floors [floors]event.ID
	until  event.ID
	newest int // the newest so many only, 0 = all
	page   int // rows a read
	now    func() time.Time
	skip   func(event.ID) bool // sent already, or acknowledged
	// left is told of what is read and left out; nil = nobody asks.
	left func(sinks.Message, LeftOut)
}

// Why a replay begins where it does.
const (
	byPosition = iota // the client has all up to there
	byAge             // time_range
	byCount           // max_returned_count
	floors
)

// after is the floor that counts.
func (s *selection) after() (after event.ID) {
	for _, id := range s.floors {
		if id.Compare(after) > 0 {
			after = id
		}
	}
	return after
}

// cursor walks the pending messages of one topic in the order of their ids: the store's pages and the tail, merged.
type cursor struct {
	topic event.Topic
	store sinks.Reader
	tail  overlay
	sel   selection
	after event.ID // all up to there is read

	ready   []sinks.Message // ascending; merged and final
	more    bool            // the store may have more behind ready
	expired []event.ID
}

func newCursor(topic event.Topic, store sinks.Reader, v *View, sel selection) *cursor {
	c := &cursor{topic: topic, store: store, tail: v.topics[topic], sel: sel, after: sel.after(), more: true}
	c.tail.puts = slices.Clone(c.tail.puts)
	return c
}

// fill reads pages until a message is ready or nothing is left.
func (c *cursor) fill(ctx context.Context) error {
	for c.more && len(c.ready) <= 1 { // one in reserve, so that the last message is known to be the last
		limit := c.sel.page
		if c.sel.newest > 0 {
			limit = c.sel.newest + len(c.tail.gone) // as many as may fall away again
		}
		page, err := c.store.Messages(ctx, sinks.Query{
			Topic: c.topic, After: c.after, Until: c.sel.until, Limit: limit, Newest: c.sel.newest > 0,
		})
		if err != nil {
			return err
		}
		c.more = len(page) == limit && c.sel.newest == 0
		upTo := c.sel.until
		if c.more {
			upTo = page[len(page)-1].ID
		}
		c.merge(page, upTo)
		c.after = upTo
	}
	return nil
}

// merge adds a page and the tail's publishes up to the same id to what is ready.
func (c *cursor) merge(page []sinks.Message, upTo event.ID) {
	n := 0
	for n < len(c.tail.puts) && c.tail.puts[n].ID.Compare(upTo) <= 0 {
		n++
	}
	batch := append(page, c.tail.puts[:n]...)
	c.tail.puts = c.tail.puts[n:]
	slices.SortStableFunc(batch, func(a, b sinks.Message) int { return a.ID.Compare(b.ID) })
	batch = slices.CompactFunc(batch, func(a, b sinks.Message) bool { return a.ID == b.ID })
	now := c.sel.now()
	from := len(c.ready)
	for _, m := range batch {
		why := c.leaves(m, now)
		if why == "" {
			c.ready = append(c.ready, m)
			continue
		}
		if why == LeftExpired {
			c.expired = append(c.expired, m.ID)
		}
		if c.sel.left != nil {
			c.sel.left(m, why)
		}
	}
	if over := len(c.ready) - from - c.sel.newest; c.sel.newest > 0 && over > 0 {
		c.ready = slices.Delete(c.ready, from, from+over)
	}
}

// leaves says why a message is not sent, "" = it is.
func (c *cursor) leaves(m sinks.Message, now time.Time) LeftOut {
	_, gone := c.tail.gone[m.ID]
	switch {
	case gone, c.sel.skip(m.ID):
		return LeftAcked
	case m.QoS == 0:
		return LeftQoS0
	case m.ID.Compare(c.sel.until) > 0:
		return LeftLater
	}
	if why := c.sel.below(m.ID); why != "" {
		return why
	}
	if !m.Expires.IsZero() && !m.Expires.After(now) {
		return LeftExpired
	}
	return ""
}

// below says which floor an id does not reach, "" = it reaches all.
func (s *selection) below(id event.ID) LeftOut {
	for i, why := range [floors]LeftOut{byPosition: LeftPosition, byAge: LeftAge, byCount: LeftCount} {
		if id.Compare(s.floors[i]) <= 0 {
			return why
		}
	}
	return ""
}

// next takes the next message; false when nothing is left. fill must have been called.
func (c *cursor) next() (sinks.Message, bool) {
	if len(c.ready) == 0 {
		return sinks.Message{}, false
	}
	m := c.ready[0]
	c.ready[0] = sinks.Message{}
	c.ready = c.ready[1:]
	return m, true
}
