package audit

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// change is what one record does to the retained message of its topic.
type change struct {
	stamp   int64 // µs
	removes bool
	id      event.ID // of the publish
	offset  int64
	expires time.Time // zero = never
}

// beats reports whether the change stands where both were made, in whichever order: [sinks.Merge]'s rule.
func (c change) beats(o change) bool {
	if n := cmp.Compare(c.stamp, o.stamp); n != 0 {
		return n > 0
	}
	if c.removes != o.removes {
		return c.removes
	}
	return c.id.Compare(o.id) > 0
}

// kept is what the log says of the retained message of a topic.
type kept struct {
	below  *change // what stands of all that is below the commit; nil = nothing
	newest *change // what stands of all
	known  bool    // the stored one is in the log
	same   bool    // with the payload and QoS that it has in the store
	offset int64   // its offset
}

// readRetained reads the retained messages of the store, by partition and topic.
func (a *Audit) readRetained(ctx context.Context) (map[int]map[event.Topic]sinks.Message, error) {
	out := make(map[int]map[event.Topic]sinks.Message)
	if !a.Retained {
		return out, nil
	}
	for after := (event.Topic{}); ; {
		var ms []sinks.Message
		err := a.again(ctx, func() (err error) {
			ms, err = a.Store.Retained(ctx, a.Filter, after, page)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			n := a.Partition(m.Topic.String())
			if out[n] == nil {
				out[n] = make(map[event.Topic]sinks.Message)
			}
			out[n][m.Topic] = m
		}
		if len(ms) < page {
			return out, nil
		}
		after = ms[len(ms)-1].Topic
	}
}

// retain notes what a publish does to the retained message of its topic.
func (b *book) retain(r pipeline.Record, e event.Published) {
	for _, op := range b.a.Plan(e).Ops {
		c := change{stamp: sinks.Stamp(op), id: e.ID, offset: r.Offset}
		switch op := op.(type) {
		case sinks.PutRetained:
			c.expires = op.Expires
		case sinks.DeleteRetained:
			c.removes = true
		case sinks.PutMessage, sinks.DeleteMessage, sinks.PutAcked, sinks.DeleteAcked, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
			continue
		}
		k := b.retained[e.Topic]
		if k == nil {
			k = &kept{}
			b.retained[e.Topic] = k
		}
		if row, ok := b.rows[e.Topic]; ok && !c.removes && row.ID == e.ID {
			k.known, k.offset = true, r.Offset
			k.same = k.same || sumOf(row.Payload, row.QoS) == sumOf(e.Payload, e.QoS)
		}
		if b.a.letters.has(r) {
			continue
		}
		if k.newest == nil || c.beats(*k.newest) {
			k.newest = &c
		}
		if r.Offset < b.committed && (k.below == nil || c.beats(*k.below)) {
			k.below = &c
		}
	}
}

// judgeRetained compares the retained messages of the partition.
func (b *book) judgeRetained(now time.Time) error {
	topics := slices.AppendSeq(slices.Collect(maps.Keys(b.retained)), maps.Keys(b.rows))
	slices.SortFunc(topics, func(x, y event.Topic) int { return cmp.Compare(x.String(), y.String()) })
	for _, t := range slices.Compact(topics) {
		k := b.retained[t]
		if k == nil {
			k = &kept{}
		}
		row, stored := b.rows[t]
		var err error
		switch {
		case stored && b.a.within(row.ID):
			b.sum.Retained++
			err = b.keptRow(key{t, row.ID}, k, row)
		case !stored && k.below != nil && b.a.within(k.below.id):
			err = b.noRow(t, k, now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keptRow judges a retained message that is in the store.
func (b *book) keptRow(at key, k *kept, row sinks.Message) error {
	have := change{stamp: row.ID.Micros(), id: row.ID}
	switch {
	case k.below != nil && k.below.beats(have) && k.below.removes:
		return b.found(Undeleted, at, k.below.offset, "offset %d, below the committed offset %d, removes the topic's retained message, and it is in the store",
			k.below.offset, b.committed)
	case k.below != nil && k.below.beats(have):
		return b.found(Stale, at, k.below.offset, "it is the topic's retained message in the store, and offset %d, below the committed offset %d, has a later one",
			k.below.offset, b.committed)
	case !k.known && b.speaks(row.ID):
		b.sum.Strangers++
		return b.found(Unknown, at, -1, "it is a retained message in the store and never was in the log, which begins at offset %d", b.from)
	case !k.known:
		b.sum.Older++
	case !k.same:
		return b.found(Differs, at, k.offset, "the payload or QoS of the retained message in the store is not that of offset %d", k.offset)
	}
	return nil
}

// noRow judges a topic that has no retained message in the store.
func (b *book) noRow(t event.Topic, k *kept, now time.Time) error {
	want := k.below
	switch {
	case want.removes, want.id != k.newest.id, !b.speaks(want.id), !want.expires.IsZero() && !want.expires.After(now.Add(almost)):
		return nil // it is gone as it should be, or may be
	}
	return b.found(Missing, key{t, want.id}, want.offset, "it is the topic's retained message at offset %d, below the committed offset %d, and the store has none",
		want.offset, b.committed)
}
