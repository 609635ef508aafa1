package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// book is what the log and the store say of the messages of one partition.
type book struct {
	a         *Audit
	tp        pipeline.TP
	span      pipeline.Span
	from, to  int64 // what was read of the log
	committed int64 // < 0 = nothing
	// whole says that no message in the range of time was published before what was read; else it speaks from begins on.
	whole   bool
	begins  time.Time
	entries map[key]*entry
	names   map[event.Topic]event.Topic
	// retained is what the log says of the topics' retained messages, rows are those in the store.
	retained map[event.Topic]*kept
	rows     map[event.Topic]sinks.Message
	sum      Books
}

// key names a message.
type key struct {
	topic event.Topic
	id    event.ID
}

// entry is what is known of one message.
type entry struct {
	offset  int64     // of the first record that has it stored, < 0 = none; see below
	below   bool      // a record below the commit has it stored
	refused bool      // a record of it is in the dead letters
	ack     int64     // offset of its first ack, < 0 = none
	expires time.Time // of the copy that lives longest; zero = never
	forever bool
	sums    []uint64 // of what was published under this id

	published bool // it stands in the log, whether it is to be stored or not
	stored    bool
	row       uint64 // sum of what is stored
}

var (
	seed = maphash.MakeSeed()
	// endOfTime is later than any message, whatever its clock.
	endOfTime = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
)

// almost is how much earlier than it should a message may go: a store counts in whole seconds, by a clock of its own.
const almost = 10 * time.Second

// sumOf is a sum of what a subscriber would get.
func sumOf(payload []byte, qos event.QoS) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_ = h.WriteByte(byte(qos)) // it never fails
	_, _ = h.Write(payload)    // it never fails
	return h.Sum64()
}

func (b *book) entry(t event.Topic, id event.ID) *entry {
	e := b.entries[key{t, id}]
	if e == nil {
		name, known := b.names[t]
		if !known { // all messages of a topic share the text of one
			name, b.names[t] = t, t
		}
		e = &entry{offset: -1, ack: -1}
		b.entries[key{name, id}] = e
	}
	return e
}

// speaks reports whether the log would show a publish of that id.
func (b *book) speaks(id event.ID) bool { return b.whole || !id.Time().Before(b.begins.Add(slack)) }

// read reads the log as far as it goes now.
func (b *book) read(ctx context.Context) error {
	if b.from >= b.span.End && !b.whole {
		b.begins = b.a.Now()
	}
	return b.readTo(ctx, b.span.End)
}

// readOn reads what has come since: the acks of what has gone from the store meanwhile are in it.
func (b *book) readOn(ctx context.Context) error {
	span, err := b.a.span(ctx, b.tp)
	if err != nil {
		return err
	}
	return b.readTo(ctx, span.End)
}

func (b *book) readTo(ctx context.Context, end int64) error {
	if b.to >= end {
		return nil
	}
	err := pipeline.ReadAll(ctx, b.a.Log, b.tp, b.to, end, b.a.Patience, b.take)
	if errors.Is(err, pipeline.ErrGap) {
		return fmt.Errorf("%w: %w", errGapped, err)
	}
	b.to = end
	return err
}

// take notes what one record says.
func (b *book) take(r pipeline.Record) error {
	b.sum.Records++
	if b.begins.IsZero() {
		b.begins = r.Time
	}
	e, err := event.Decode(event.Messages, r.Wire)
	if err != nil {
		return b.malformed(r, err)
	}
	switch e := e.(type) {
	case event.Published:
		if !b.a.Filter.Match(e.Topic) {
			return nil
		}
		if b.a.Retained && e.Retain {
			b.retain(r, e)
		}
		if b.a.within(e.ID) {
			b.publish(r, e)
		}
	case event.Acked:
		if b.a.Filter.Match(e.Topic) && b.a.within(e.Message) {
			b.acked(r, e)
		}
	case event.Replayed, event.Dropped, event.Subscribed, event.Unsubscribed, event.Connected, event.Disconnected, event.ReplayContinued:
		// they belong in sessions, and Decode has refused them here
	}
	return nil
}

func (b *book) publish(r pipeline.Record, e event.Published) {
	for _, op := range b.a.Plan(e).Ops {
		m, ok := op.(sinks.PutMessage)
		if !ok || m.History {
			continue
		}
		x := b.entry(e.Topic, e.ID)
		if x.offset < 0 {
			x.offset = r.Offset
		}
		if b.a.letters.has(r) {
			x.refused = true
		} else if r.Offset < b.committed {
			x.below = true
		}
		if m.Expires.IsZero() {
			x.forever = true
		} else if m.Expires.After(x.expires) {
			x.expires = m.Expires
		}
		if s := sumOf(e.Payload, e.QoS); !slices.Contains(x.sums, s) {
			x.sums = append(x.sums, s)
		}
	}
	b.entry(e.Topic, e.ID).published = true
}

func (b *book) acked(r pipeline.Record, e event.Acked) {
	for _, op := range b.a.Plan(e).Ops {
		if d, ok := op.(sinks.DeleteMessage); ok && !b.a.letters.has(r) {
			if x := b.entry(d.Topic, d.ID); x.ack < 0 {
				x.ack = r.Offset
			}
		}
	}
}

func (b *book) malformed(r pipeline.Record, why error) error {
	switch {
	case r.Offset >= b.committed, errors.Is(why, event.ErrUnknownMajor), b.a.letters.has(r):
		return nil
	case !b.a.letters.reach.IsZero() && !r.Time.After(b.a.letters.reach.Add(slack)):
		return nil // its letter may be gone
	}
	if _, exact := b.a.Filter.Exact(); exact { // it has no topic that could match
		return nil
	}
	return b.found(Unburied, key{}, r.Offset, "%v; it is below the committed offset %d and in no dead letter", why, b.committed)
}

// listed are the topics that the log or the store has messages of, sorted.
func (b *book) listed() []event.Topic {
	all := slices.Clone(b.a.topics[b.tp.Part])
	for k := range b.entries {
		all = append(all, k.topic)
	}
	slices.SortFunc(all, func(x, y event.Topic) int { return cmp.Compare(x.String(), y.String()) })
	return slices.Compact(all)
}

// compare reads the stored messages of a topic.
func (b *book) compare(ctx context.Context, t event.Topic) error {
	q := sinks.Query{Topic: t, Until: event.LastIDAt(endOfTime), Limit: page}
	if !b.a.Until.IsZero() {
		q.Until = event.FirstIDAt(b.a.Until).Before()
	}
	if !b.a.Since.IsZero() {
		q.After = event.FirstIDAt(b.a.Since).Before()
	}
	for {
		var ms []sinks.Message
		err := b.a.again(ctx, func() (err error) {
			ms, err = b.a.Store.Messages(ctx, q)
			return err
		})
		if err != nil {
			return fmt.Errorf("read the messages of %q: %w", t, err)
		}
		for i := range ms {
			x := b.entry(t, ms[i].ID)
			x.stored, x.row = true, sumOf(ms[i].Payload, ms[i].QoS)
		}
		if len(ms) < page {
			return nil
		}
		q.After = ms[len(ms)-1].ID
	}
}

// judge says of each message where it is, and what is wrong with it.
func (b *book) judge() error {
	keys := make([]key, 0, len(b.entries))
	for k := range b.entries {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(x, y key) int {
		return cmp.Or(cmp.Compare(x.topic.String(), y.topic.String()), x.id.Compare(y.id))
	})
	now := b.a.Now()
	for _, k := range keys {
		var err error
		if x := b.entries[k]; x.stored {
			err = b.present(k, x)
		} else {
			err = b.absent(k, x, now)
		}
		if err != nil {
			return err
		}
	}
	return b.judgeRetained(now)
}

// present judges a message that is in the store.
func (b *book) present(k key, x *entry) error {
	if x.offset >= 0 {
		b.sum.Published++
		b.sum.Stored++
	}
	switch {
	case x.ack >= 0 && x.ack < b.committed:
		return b.found(Undeleted, k, x.ack, "it was acknowledged at offset %d, below the committed offset %d, and is in the store", x.ack, b.committed)
	case x.offset < 0 && x.published: // the rules were others when it came
	case x.offset < 0 && !b.speaks(k.id):
		b.sum.Older++
	case x.offset < 0:
		b.sum.Strangers++
		return b.found(Unknown, k, -1, "it is in the store and never was in the log, which begins at offset %d", b.from)
	case !slices.Contains(x.sums, x.row):
		return b.found(Differs, k, x.offset, "its payload or QoS in the store is not that of offset %d", x.offset)
	}
	return nil
}

// absent judges a message that is not in the store.
func (b *book) absent(k key, x *entry, now time.Time) error {
	if x.offset < 0 {
		return nil // an ack alone, or a message that is not to be stored
	}
	b.sum.Published++
	switch {
	case x.ack >= 0:
		b.sum.Acked++
	case !x.forever && !x.expires.After(now.Add(almost)):
		b.sum.Expired++
	case x.below && !b.speaks(k.id):
		b.sum.Undecided++
	case x.below:
		b.sum.Missing++
		return b.found(Missing, k, x.offset, "it is in the log at offset %d, below the committed offset %d, not acknowledged, and not in the store", x.offset, b.committed)
	case x.refused:
		b.sum.Refused++
	default:
		b.sum.InFlight++
	}
	return nil
}

func (b *book) found(kind Kind, k key, offset int64, format string, args ...any) error {
	return b.a.Found(Difference{Kind: kind, Topic: k.topic, Message: k.id, TP: b.tp, Offset: offset, Says: fmt.Sprintf(format, args...)})
}
