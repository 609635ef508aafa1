package sinktest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bent is a store that does one thing wrong.
type bent struct {
	*memory.Store
	// merge replaces sinks.Merge; nil as its result = the row is gone without a trace.
	merge func(old, o sinks.Op) sinks.Op
	// change is done to each batch first.
	change func([]sinks.Op) ([]sinks.Op, error)
	// messages, topics and acked replace a read.
	messages func(ctx context.Context, q sinks.Query, right []sinks.Message) []sinks.Message
	topics   func(f event.Filter, after event.Topic, right []event.Topic) []event.Topic
	clock    func() time.Time

	turn chan struct{}
	rows map[string]sinks.Op
}

func (b *bent) Apply(ctx context.Context, ops []sinks.Op) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	if b.change != nil {
		if ops, err = b.change(ops); len(ops) == 0 {
			return err
		}
	}
	if b.merge == nil {
		return errors.Join(b.Store.Apply(ctx, ops), err)
	}
	for _, o := range ops {
		row := o.Row()
		switch old, ok := b.rows[row]; {
		case ok:
			o = b.merge(old, o)
		default:
			o = b.merge(o, o)
		}
		if o == nil {
			delete(b.rows, row)
			continue
		}
		b.rows[row] = o
	}
	var all []sinks.Op
	for _, o := range b.rows {
		all = append(all, o)
	}
	*b.Store = memory.Store{Now: b.clock} // nobody else holds its mutex
	return b.Store.Apply(ctx, all)
}

func (b *bent) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	ms, err := b.Store.Messages(ctx, q)
	if b.messages != nil {
		ms = b.messages(ctx, q, ms)
	}
	return ms, err
}

func (b *bent) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	ts, err := b.Store.Topics(ctx, f, after, limit)
	if b.topics != nil {
		ts = b.topics(f, after, ts)
	}
	return ts, err
}

func bend(b *bent) *env {
	e := &env{ns: space()}
	b.Store, b.turn, b.rows, b.clock = &memory.Store{Now: e.clock.now}, make(chan struct{}, 1), map[string]sinks.Op{}, e.clock.now
	e.store = b
	return e
}

// Wrong ways to merge.
var (
	lastWins = func(_, o sinks.Op) sinks.Op { return o }
	// forgetful removes rows without a tombstone, as a store without timestamps does, but knows which of two puts is newer.
	forgetful = func(old, o sinks.Op) sinks.Op {
		if sinks.Deletes(o) {
			if sinks.Stamp(old) > sinks.Stamp(o) {
				return old
			}
			return nil
		}
		return sinks.Merge(old, o)
	}
	putWinsTies = func(old, o sinks.Op) sinks.Op {
		if sinks.Stamp(old) == sinks.Stamp(o) && sinks.Deletes(old) != sinks.Deletes(o) {
			if sinks.Deletes(old) {
				return o
			}
			return old
		}
		return sinks.Merge(old, o)
	}
	firstWinsTies = func(old, o sinks.Op) sinks.Op {
		if _, ok := old.(sinks.PutAcked); ok && sinks.Stamp(old) == sinks.Stamp(o) {
			return old
		}
		return sinks.Merge(old, o)
	}
	latestClientWhole = func(old, o sinks.Op) sinks.Op {
		if _, ok := o.(sinks.PutClient); ok && sinks.Stamp(o) >= sinks.Stamp(old) {
			return o
		}
		return sinks.Merge(old, o)
	}
)

// find runs schedules until one fails, each on a new store.
func find(t *testing.T, store func() *bent, inOrder bool) error {
	t.Helper()
	const runs = 200
	gen := genCommute
	if inOrder {
		gen = genReplay
	}
	for seed := range runs {
		if err := bend(store()).judge(t.Context(), gen.Example(seed), inOrder); err != nil {
			return err
		}
	}
	return nil
}

// TestLawsFindTheirBugs: each store below breaks a law, and the law's schedules find it.
func TestLawsFindTheirBugs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		merge           func(old, o sinks.Op) sinks.Op
		commute, replay bool // found by it
	}{
		"right":                            {sinks.Merge, false, false},
		"the last write wins":              {lastWins, true, true},
		"removals leave no tombstone":      {forgetful, true, false},
		"a put wins a tie":                 {putWinsTies, true, true},
		"the first position wins a tie":    {firstWinsTies, true, true},
		"a disconnect forgets the connect": {latestClientWhole, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := func() *bent { return &bent{merge: c.merge} }
			if err := find(t, store, false); (err != nil) != c.commute {
				t.Errorf("commute: found = %v, want %v: %v", err != nil, c.commute, err)
			}
			if err := find(t, store, true); (err != nil) != c.replay {
				t.Errorf("replay: found = %v, want %v: %v", err != nil, c.replay, err)
			}
		})
	}
}

// TestLawsFindLostWrites: an op that is dropped now and then is found by both laws.
func TestLawsFindLostWrites(t *testing.T) {
	t.Parallel()
	for _, inOrder := range []bool{false, true} {
		n := 0
		store := func() *bent {
			return &bent{change: func(ops []sinks.Op) ([]sinks.Op, error) {
				n++
				if n%10 == 0 {
					return ops[:len(ops)-1], nil
				}
				return ops, nil
			}}
		}
		if find(t, store, inOrder) == nil {
			t.Errorf("in order = %v: not found", inOrder)
		}
	}
}

// TestChecksFindTheirBugs: each store below breaks a promise, and the check of that promise says so.
func TestChecksFindTheirBugs(t *testing.T) {
	t.Parallel()
	each := func(fn func(sinks.Op) sinks.Op) func([]sinks.Op) ([]sinks.Op, error) {
		return func(ops []sinks.Op) ([]sinks.Op, error) {
			ops = slices.Clone(ops)
			for i, o := range ops {
				ops[i] = fn(o)
			}
			return ops, nil
		}
	}
	message := func(fn func(*sinks.Message)) func([]sinks.Op) ([]sinks.Op, error) {
		return each(func(o sinks.Op) sinks.Op {
			if o, ok := o.(sinks.PutMessage); ok {
				fn(&o.Message)
				return o
			}
			return o
		})
	}
	for name, c := range map[string]struct {
		check string
		store bent
	}{
		"After is included": {"pages of messages are complete and ascending", bent{
			messages: func(_ context.Context, q sinks.Query, ms []sinks.Message) []sinks.Message {
				if q.After.IsZero() || len(ms) == 0 {
					return ms
				}
				return append([]sinks.Message{{ID: q.After, Topic: q.Topic}}, ms...)
			},
		}},
		"the newest come newest first": {"pages of messages are complete and ascending", bent{
			messages: func(_ context.Context, q sinks.Query, ms []sinks.Message) []sinks.Message {
				if q.Newest {
					slices.Reverse(ms)
				}
				return ms
			},
		}},
		"a/# does not match a": {"topics are found by filter", bent{
			topics: func(f event.Filter, _ event.Topic, ts []event.Topic) []event.Topic {
				return slices.DeleteFunc(ts, func(t event.Topic) bool { return t.String()+"/#" == f.String() })
			},
		}},
		"topics come in the order of levels": {"topics are found by filter", bent{
			topics: func(_ event.Filter, _ event.Topic, ts []event.Topic) []event.Topic {
				slices.SortFunc(ts, func(a, b event.Topic) int {
					return slices.Compare(mustFilter(a.String()).Levels(), mustFilter(b.String()).Levels())
				})
				return ts
			},
		}},
		"the last page is lost": {"topics are found by filter", bent{
			topics: func(_ event.Filter, after event.Topic, ts []event.Topic) []event.Topic {
				if !after.IsZero() {
					return nil
				}
				return ts
			},
		}},
		"payloads are text": {"payloads come back byte for byte", bent{change: message(func(m *sinks.Message) {
			m.Payload = []byte(string([]rune(string(m.Payload))))
		})}},
		"empty payloads are nil": {"payloads come back byte for byte", bent{change: message(func(m *sinks.Message) {
			if len(m.Payload) == 0 {
				m.Payload = nil
			}
		})}},
		"properties are forgotten": {"properties come back", bent{change: message(func(m *sinks.Message) { m.Properties.CorrelationData = nil })}},
		"expiry is forgotten":      {"expired messages are neither written nor read", bent{change: message(func(m *sinks.Message) { m.Expires = time.Time{} })}},
		"a late write begins a new life": {"expired messages are neither written nor read", bent{change: message(func(m *sinks.Message) {
			if !m.Expires.IsZero() {
				m.Expires = time.Now().Add(time.Hour)
			}
		})}},
		"history is pending": {"what is stored for the record only is not pending", bent{change: each(func(o sinks.Op) sinks.Op {
			if o, ok := o.(sinks.PutMessage); ok {
				o.History = false
				return o
			}
			return o
		})}},
		"clients are one register": {"a client's state is its latest connection's", bent{merge: latestClientWhole}},
		"positions go by the id": {"positions are kept per client and topic", bent{change: each(func(o sinks.Op) sinks.Op {
			if o, ok := o.(sinks.PutAcked); ok {
				o.Stamp = o.Message.Micros()
				return o
			}
			return o
		})}},
		"retained go by arrival": {"retained messages replace each other by id", bent{merge: lastWins}},
		"batches are cut":        {"a large mixed batch is stored whole", bent{change: func(ops []sinks.Op) ([]sinks.Op, error) { return ops[:min(1000, len(ops))], nil }}},
		"poison takes the batch with it": {"poison is named and spares the others", bent{change: func(ops []sinks.Op) ([]sinks.Op, error) {
			for i, o := range ops {
				if tooLong(o) {
					return nil, &sinks.ApplyError{Failed: map[int]error{i: fault.Poison(errors.New("too long"))}}
				}
			}
			return ops, nil
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := slices.IndexFunc(checks(), func(k check) bool { return k.name == c.check })
			if i < 0 {
				t.Fatalf("there is no check %q", c.check)
			}
			e := bend(&c.store)
			e.cfg.Poison = poisonOp
			err := checks()[i].run(t.Context(), e)
			if err == nil {
				t.Fatal("not found")
			}
			t.Log(err)
		})
	}
}

func poisonOp(t event.Topic) sinks.Op {
	return sinks.PutMessage{Message: sinks.Message{ID: event.IDOf(1, 1, 1), Topic: t, Payload: make([]byte, 1<<20)}}
}

func tooLong(o sinks.Op) bool {
	m, ok := o.(sinks.PutMessage)
	return ok && len(m.Payload) == 1<<20
}
