package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// batch is one call of Apply.
type batch struct {
	s   *Store
	ops []sinks.Op
	now time.Time

	mu     sync.Mutex
	failed map[int]error
}

// fail notes that ops are not durable. An op keeps its first cause.
func (b *batch) fail(err error, ops ...int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, i := range ops {
		if b.failed[i] == nil {
			b.failed[i] = err
		}
	}
}

func (b *batch) ok(op int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed[op] == nil
}

// Apply writes the ops side by side. What belongs together is written in this order: the rows of the topic index, the messages,
// and their ids into the map, so that whatever is seen has all that belongs to it. Ops that are not durable are named.
func (s *Store) Apply(ctx context.Context, ops []sinks.Op) error {
	if s.cfg.ReadOnly {
		return fault.Fatal(errors.New("write into a dynamodb sink that is open for reading"))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	b := &batch{s: s, ops: ops, now: s.cfg.Now(), failed: make(map[int]error)}
	var messages, singles []int
	for i, o := range ops {
		if err := b.s.storable(o); err != nil {
			b.fail(fault.Poison(err), i)
			continue
		}
		switch o := o.(type) {
		case sinks.PutMessage:
			if !expired(o.Message, b.now) {
				messages = append(messages, i)
			}
		case sinks.DeleteMessage:
			if o.Stamp >= o.ID.Micros() {
				messages = append(messages, i)
			}
		case sinks.PutAcked, sinks.DeleteAcked, sinks.PutRetained, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
			singles = append(singles, i)
		default:
			panic(fmt.Sprintf("dynamodb: unknown op %T", o)) // unreachable: Op is sealed
		}
	}
	b.index(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		b.each(singles, func(i int) {
			if b.ok(i) {
				if err := s.change(ctx, ops[i], b.now); err != nil {
					b.fail(err, i)
				}
			}
		})
	})
	work.Go(func() {
		b.messages(ctx, messages)
		b.list(ctx, messages)
	})
	work.Wait()
	if len(b.failed) > 0 {
		return &sinks.ApplyError{Failed: b.failed}
	}
	return nil
}

// each calls fn for all, as many at once as there are places in the pool.
func (b *batch) each(ops []int, fn func(int)) {
	var g errgroup.Group
	g.SetLimit(cap(b.s.pool))
	for _, i := range ops {
		g.Go(func() error {
			fn(i)
			return nil
		})
	}
	_ = g.Wait() // fn notes what failed
}

// index writes what the topic index lacks for the topics of the batch.
func (b *batch) index(ctx context.Context) {
	type want struct {
		root  topicindex.Root
		topic event.Topic
		until int64
		ops   []int
	}
	wants := make(map[string]*want)
	var order []string
	for i, o := range b.ops {
		w := want{}
		switch o := o.(type) {
		case sinks.PutMessage:
			if o.History || expired(o.Message, b.now) {
				continue
			}
			w = want{root: topicindex.Messages, topic: o.Topic, until: untilOf(o.Expires)}
		case sinks.PutRetained:
			if expired(o.Message, b.now) {
				continue
			}
			w = want{root: topicindex.Retained, topic: o.Topic, until: untilOf(o.Expires)}
		case sinks.DeleteMessage, sinks.PutAcked, sinks.DeleteAcked, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
			continue
		}
		if !b.ok(i) {
			continue
		}
		key := string(w.root) + w.topic.String()
		if known, ok := b.s.nodes.get(key); ok && known >= w.until {
			continue
		}
		have := wants[key]
		if have == nil {
			have = &w
			wants[key] = have
			order = append(order, key)
		}
		have.until, have.ops = max(have.until, w.until), append(have.ops, i)
	}
	all := make([]int, len(order))
	for i := range all {
		all[i] = i
	}
	b.each(all, func(i int) {
		w := wants[order[i]]
		if err := b.s.index(ctx, w.root, w.topic, w.until); err != nil {
			b.fail(err, w.ops...)
		}
	})
}

// messages writes and removes items of mqtt_msg.
func (b *batch) messages(ctx context.Context, ops []int) {
	var writes, inserts []write
	keys := make(map[string]bool, len(ops))
	for _, i := range ops {
		if !b.ok(i) {
			continue
		}
		w := write{op: i}
		var err error
		switch o := b.ops[i].(type) {
		case sinks.PutMessage:
			w.key = b.s.id(o.ID)
			w.put, err = b.s.row(o.Message)
			if n := size(w.put); err == nil && n > maxItem {
				err = fmt.Errorf("store message %s into %s: its item would have %d bytes: DynamoDB takes %d", o.ID, tMsg, n, maxItem)
			}
		case sinks.DeleteMessage:
			w.key = b.s.id(o.ID)
			if b.s.cfg.Strict {
				w.put = item{aMsgID: str(w.key), aGone: num(1), aExpires: num(b.s.forgotten(b.now))}
			}
		case sinks.PutAcked, sinks.DeleteAcked, sinks.PutRetained, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
			continue // they have a row of their own
		}
		if err == nil && keys[w.key] {
			err = fmt.Errorf("store message %s into %s: two topics have a message of this id, and the table has one item an id", w.key, tMsg)
		}
		if err != nil {
			b.fail(fault.Poison(err), i)
			continue
		}
		keys[w.key] = true
		if _, removal := b.ops[i].(sinks.DeleteMessage); b.s.cfg.Strict && !removal {
			inserts = append(inserts, w)
		} else {
			writes = append(writes, w)
		}
	}
	var calls []func()
	for ; len(writes) > 0; writes = writes[min(manyWrites, len(writes)):] {
		some := writes[:min(manyWrites, len(writes))]
		calls = append(calls, func() { b.run(ctx, some, b.s.write) })
	}
	for ; len(inserts) > 0; inserts = inserts[min(manyWrites, len(inserts)):] {
		some := inserts[:min(manyWrites, len(inserts))]
		calls = append(calls, func() { b.run(ctx, some, b.s.insert) })
	}
	all := make([]int, len(calls))
	for i := range all {
		all[i] = i
	}
	b.each(all, func(i int) { calls[i]() })
}

// list brings the map up to date: ids of messages that are there come in, ids of those that are not go out.
func (b *batch) list(ctx context.Context, ops []int) {
	type ids struct {
		topic   event.Topic
		in, out []entry
		inOf    []int
		outOps  []int
	}
	topics := make(map[event.Topic]*ids)
	var order []*ids
	for _, i := range ops {
		if !b.ok(i) {
			continue
		}
		var topic event.Topic
		var e entry
		var in bool
		switch o := b.ops[i].(type) {
		case sinks.PutMessage:
			if o.History {
				continue
			}
			topic, e, in = o.Topic, entry{id: o.ID, text: b.s.id(o.ID), expires: o.Expires}, true
		case sinks.DeleteMessage:
			topic, e = o.Topic, entry{id: o.ID, text: b.s.id(o.ID)}
		case sinks.PutAcked, sinks.DeleteAcked, sinks.PutRetained, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
			continue // they have a row of their own
		}
		t := topics[topic]
		if t == nil {
			t = &ids{topic: topic}
			topics[topic], order = t, append(order, t)
		}
		if in {
			t.in, t.inOf = append(t.in, e), append(t.inOf, i)
		} else {
			t.out, t.outOps = append(t.out, e), append(t.outOps, i)
		}
	}
	all := make([]int, len(order))
	for i := range all {
		all[i] = i
	}
	b.each(all, func(i int) {
		t := order[i]
		if len(t.out) > 0 && len(topicKey(t.topic))+maxCellName <= maxHash {
			if err := b.s.unlist(ctx, t.topic, t.out); err != nil {
				b.fail(err, t.outOps...)
			}
		}
		if len(t.in) > 0 {
			if err := b.s.list(ctx, t.topic, t.in); err != nil {
				b.fail(err, t.inOf...)
			}
		}
	})
}
