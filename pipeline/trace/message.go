package trace

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
	"github.com/restante/restante/sinks"
)

// fate is what the log says of a message.
type fate struct {
	id        event.ID
	published []published
	topic     event.Topic
	acks      []Line
	letters   int
}

type published struct {
	at    pipeline.Record
	event event.Published
}

// Message traces a message. Its topic may be zero: then all partitions are read. cut says that older lines were left out.
func (t *Tracer) Message(ctx context.Context, id event.ID, topic event.Topic) (lines []Line, cut bool, err error) {
	f := &fate{id: id, topic: topic}
	text := []byte(id.String())
	mentioned := func(r pipeline.Record) bool { return has(r, "ce_id", text) || has(r, "ce_msgid", text) }
	take := func(r pipeline.Record) { t.takeMessage(f, r) }
	if topic.IsZero() {
		err = t.everywhere(ctx, t.Topics.Messages, t.Parts, mentioned, take)
	} else {
		err = t.read(ctx, pipeline.TP{Topic: t.Topics.Messages, Part: t.Partition(topic.String(), t.Parts)}, mentioned, take)
	}
	if err != nil {
		return nil, false, fmt.Errorf("read %s: %w", t.Topics.Messages, err)
	}
	if err := t.sessionsOf(ctx, id, text); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", t.Topics.Sessions, err)
	}
	f.letters, err = t.letters(ctx, dead.Filter{}, func(l *dead.Letter) bool {
		return l.Header("ce_id") == id.String() || l.Header("ce_msgid") == id.String()
	})
	if err != nil {
		return nil, false, err
	}
	if !f.topic.IsZero() {
		for _, s := range t.Sinks {
			if err := t.ask(ctx, f, s); err != nil {
				return nil, false, fmt.Errorf("sink %s: %w", s.Name, err)
			}
		}
	}
	lines, cut = t.done()
	return lines, cut, nil
}

func (t *Tracer) takeMessage(f *fate, r pipeline.Record) {
	e, err := event.Decode(event.Messages, r.Wire)
	if err != nil {
		return // the writers have buried it
	}
	l := line(r, e)
	if l.Message != f.id {
		return
	}
	switch e := e.(type) {
	case event.Published:
		if f.topic.IsZero() {
			f.topic = e.Topic
		}
		f.published = append(f.published, published{r, e})
	case event.Acked:
		f.acks = append(f.acks, l)
	case event.Replayed, event.Dropped, event.Subscribed, event.Unsubscribed, event.Connected, event.Disconnected, event.ReplayContinued:
	}
	t.add(l)
}

// sessionsOf reads what clients and the broker have said of a message: also what they say by the ids that the broker gave its replays.
func (t *Tracer) sessionsOf(ctx context.Context, id event.ID, text []byte) error {
	for n := range t.SessionParts {
		var names [][]byte // an ack comes behind the name of its replay, in the same partition
		tp := pipeline.TP{Topic: t.Topics.Sessions, Part: n}
		err := t.read(ctx, tp, func(r pipeline.Record) bool {
			return has(r, "ce_msgid", text) || slices.ContainsFunc(names, func(b []byte) bool { return has(r, "ce_brokerid", b) })
		}, func(r pipeline.Record) {
			e, err := event.Decode(event.Sessions, r.Wire)
			if err != nil {
				return
			}
			l := line(r, e)
			switch e := e.(type) {
			case event.Replayed:
				names = append(names, []byte(e.BrokerID.String()))
			case event.Acked:
				if !e.Message.IsZero() {
					return // it stands in messages too
				}
				l.Message = id
			case event.Dropped:
			case event.Published, event.Subscribed, event.Unsubscribed, event.Connected, event.Disconnected, event.ReplayContinued:
				return
			}
			t.add(l)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ask says where a message is in a store, and why it is not.
func (t *Tracer) ask(ctx context.Context, f *fate, s Sink) error {
	tp := pipeline.TP{Topic: t.Topics.Messages, Part: t.Partition(f.topic.String(), t.Parts)}
	var committed map[int]int64
	err := t.again(ctx, func() (err error) { // before the store: what is committed then is in it
		committed, err = t.Log.Committed(ctx, s.Group, tp.Topic, tp.Part)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the committed offsets: %w", err)
	}
	var found []sinks.Message
	err = t.again(ctx, func() (err error) {
		found, err = s.Store.Messages(ctx, sinks.Query{Topic: f.topic, After: f.id.Before(), Until: f.id, Limit: 1})
		return err
	})
	if err != nil {
		return fmt.Errorf("read the message: %w", err)
	}
	l := Line{What: NotStored, Sink: s.Name, Topic: f.topic, Message: f.id}
	if len(found) > 0 {
		l.What, l.Says = Stored, "it waits for a client"
		if x := found[0].Expires; !x.IsZero() {
			l.Says += ", until " + x.UTC().Format(time.RFC3339)
		}
	} else {
		l.What, l.Says = t.why(f, s, committed[tp.Part])
	}
	t.add(l)
	return nil
}

// why says why a message is not in a store.
func (t *Tracer) why(f *fate, s Sink, committed int64) (What, string) {
	var first *published
	var put *sinks.PutMessage
	for i := range f.published {
		for _, op := range s.Plan(f.published[i].event).Ops {
			if p, ok := op.(sinks.PutMessage); ok && first == nil {
				first, put = &f.published[i], &p
			}
		}
	}
	switch {
	case first == nil && len(f.published) > 0:
		return NotStored, "no rule of the sink stores it"
	case first == nil:
		return NotStored, "and its publish is not in the log, or before --since"
	case first.at.Offset >= committed:
		return NotStored, fmt.Sprintf("its writers have committed offset %d, and it is at %d: it waits for them", max(committed, 0), first.at.Offset)
	case put.History:
		return NotStored, "the sink keeps it as history, which is not read here"
	}
	for _, a := range f.acks {
		e := event.Acked{Head: event.Head{ID: f.id, At: a.At}, Topic: a.Topic, Client: a.Client, Message: f.id}
		if !slices.ContainsFunc(s.Plan(e).Ops, func(op sinks.Op) bool { _, ok := op.(sinks.DeleteMessage); return ok }) {
			continue
		}
		if a.At.Sub(first.at.Time) <= t.Hold {
			return NotStored, fmt.Sprintf("%s has acknowledged it %s after its publish: elided, or removed again", a.Client, a.At.Sub(first.at.Time))
		}
		return NotStored, fmt.Sprintf("%s has acknowledged it: it was removed", a.Client)
	}
	switch {
	case !put.Expires.IsZero() && !put.Expires.After(t.Now()):
		return NotStored, "it has expired at " + put.Expires.UTC().Format(time.RFC3339)
	case f.letters > 0:
		return NotStored, "it is in the dead letters"
	}
	return Missing, fmt.Sprintf("it is at offset %d, below the committed offset %d, nobody has acknowledged it, and it has not expired", first.at.Offset, committed)
}
