package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

func holdFilter(s string) event.Filter {
	f, err := event.ParseFilter(s)
	if err != nil {
		panic(err)
	}
	return f
}

func holdTopic(s string) event.Topic {
	t, err := event.ParseTopic(s)
	if err != nil {
		panic(err)
	}
	return t
}

// holding drives a hold with events of one client and the topic t/1; the rules are those of a queue with retained messages.
type holding struct {
	hold
	plan   Planner
	offset int64
	start  time.Time
}

func newHolding(more ...Rule) *holding {
	rules := append(Rule{Topic: holdFilter("t/#"), Action: SaveOfflineMessages, Sink: "s"}.Expand(),
		Rule{Hook: MessagePublish, Topic: holdFilter("#"), Action: OnMessageRetain, Sink: "s"})
	compiled, err := Compile(append(rules, more...), "")
	if err != nil {
		panic(err)
	}
	h := &holding{plan: compiled.ForSink("s"), offset: 100, start: time.UnixMilli(1_700_000_000_000)}
	h.puts = make(map[msgKey]int64)
	h.mem = Recent[msgKey, memState]{Limit: 1000, Age: 5 * time.Minute}
	h.skew = 2 * time.Second
	h.mark = mark{set: true, offset: 100, at: h.start}
	return h
}

// id is minted so long after the mark.
func (h *holding) id(after time.Duration) event.ID { return event.FirstIDAt(h.start.Add(after)) }

func (h *holding) take(e event.Event) {
	h.add(&Record{Offset: h.offset, Wire: event.Wire{Value: []byte("payload")}}, time.Time{}, h.plan(e), nil)
	h.offset++
}

func (h *holding) publish(id event.ID) {
	h.take(event.Published{Head: event.Head{ID: id, At: id.Time()}, Topic: holdTopic("t/1"), QoS: 1, Payload: []byte("payload")})
}

func (h *holding) publishRetained(id event.ID) {
	h.take(event.Published{Head: event.Head{ID: id, At: id.Time()}, Topic: holdTopic("t/1"), QoS: 1, Retain: true, Payload: []byte("payload")})
}

func (h *holding) ack(id event.ID) {
	h.take(event.Acked{Head: event.Head{ID: id, At: id.Time()}, Topic: holdTopic("t/1"), Client: "c", Message: id})
}

// ops are the kinds of the ops that each held record still leads to.
func (h *holding) ops() []string {
	out := []string{}
	for _, r := range h.recs {
		var kinds []string
		for _, o := range r.ops {
			kinds = append(kinds, strings.TrimPrefix(fmt.Sprintf("%T", o), "sinks."))
		}
		out = append(out, strings.Join(kinds, "+"))
	}
	return out
}

const (
	kept    = "PutMessage"
	deleted = "DeleteMessage+PutAcked"
	late    = 3 * time.Second // after the mark, beyond the skew
)

func TestElisionKeepsEachOfItsClauses(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		do     func(h *holding)
		want   []string
		elided int
	}{
		"a publish and its ack annihilate, with the acked row": {
			func(h *holding) { h.publish(h.id(late)); h.ack(h.id(late)) },
			[]string{"", ""},
			1,
		},
		"not without a mark": {
			func(h *holding) { h.mark = mark{}; h.publish(h.id(late)); h.ack(h.id(late)) },
			[]string{kept, deleted},
			0,
		},
		"not when the publish lies below the mark": {
			func(h *holding) { h.mark.offset = 101; h.publish(h.id(late)); h.ack(h.id(late)) },
			[]string{kept, deleted},
			0,
		},
		"not when the mark came between two copies of the publish": {
			func(h *holding) {
				h.mark.offset = 101
				h.publish(h.id(late))
				h.publish(h.id(late))
				h.ack(h.id(late))
			},
			[]string{kept, kept, deleted},
			0,
		},
		"not when the ack lies below the mark": { // its offset can only be lower than the publish's when the log was cut
			func(h *holding) {
				h.offset = 200
				h.publish(h.id(late))
				h.offset = 99
				h.ack(h.id(late))
			},
			[]string{kept, deleted},
			0,
		},
		"not when the id was minted before the mark": {
			func(h *holding) { h.publish(h.id(-time.Second)); h.ack(h.id(-time.Second)) },
			[]string{kept, deleted},
			0,
		},
		"not when the id was minted within the skew of the mark": {
			func(h *holding) { h.publish(h.id(2 * time.Second)); h.ack(h.id(2 * time.Second)) },
			[]string{kept, deleted},
			0,
		},
		"right behind the skew it does": {
			func(h *holding) {
				h.publish(h.id(2*time.Second + time.Microsecond))
				h.ack(h.id(2*time.Second + time.Microsecond))
			},
			[]string{"", ""},
			1,
		},
		"not when this owner has written the id": {
			func(h *holding) {
				h.publish(h.id(late))
				h.wrote(1)
				h.drop(1)
				h.publish(h.id(late)) // a copy
				h.ack(h.id(late))
			},
			[]string{kept, deleted},
			0,
		},
		"not when this owner has tried to write the id, and it is still held": {
			func(h *holding) {
				h.publish(h.id(late))
				h.wrote(1) // the flush failed
				h.ack(h.id(late))
			},
			[]string{kept, deleted},
			0,
		},
		"not when the log below the commit has the id": {
			func(h *holding) {
				h.recall(h.plan(event.Published{Head: event.Head{ID: h.id(late)}, Topic: holdTopic("t/1"), QoS: 1, Payload: []byte{}}))
				h.publish(h.id(late))
				h.ack(h.id(late))
			},
			[]string{kept, deleted},
			0,
		},
		"all copies before the ack annihilate": {
			func(h *holding) { h.publish(h.id(late)); h.publish(h.id(late)); h.ack(h.id(late)) },
			[]string{"", "", ""},
			1,
		},
		"a copy after the ack leads to nothing": {
			func(h *holding) { h.publish(h.id(late)); h.ack(h.id(late)); h.publish(h.id(late)) },
			[]string{"", "", ""},
			1,
		},
		"a copy after a deletion that is held leads to nothing": {
			func(h *holding) { h.mark = mark{}; h.publish(h.id(late)); h.ack(h.id(late)); h.publish(h.id(late)) },
			[]string{kept, deleted, ""},
			0,
		},
		"a copy after an ack below the commit leads to nothing": {
			func(h *holding) {
				h.recall(h.plan(event.Acked{Head: event.Head{ID: h.id(late)}, Topic: holdTopic("t/1"), Client: "c", Message: h.id(late)}))
				h.publish(h.id(late))
			},
			[]string{""},
			0,
		},
		"an ack without its publish is written": {
			func(h *holding) { h.ack(h.id(late)) },
			[]string{deleted},
			0,
		},
		"an ack inverted before its publish is written, the publish is not": {
			func(h *holding) { h.ack(h.id(late)); h.publish(h.id(late)) },
			[]string{deleted, ""},
			0,
		},
		"a second ack is written": {
			func(h *holding) { h.publish(h.id(late)); h.ack(h.id(late)); h.ack(h.id(late)) },
			[]string{"", "", deleted},
			1,
		},
		"another message stays": {
			func(h *holding) { h.publish(h.id(late)); h.publish(h.id(2 * late)); h.ack(h.id(late)) },
			[]string{"", kept, ""},
			1,
		},
		"the retained row of the same record stays": {
			func(h *holding) { h.publishRetained(h.id(late)); h.ack(h.id(late)) },
			[]string{"PutRetained", ""},
			1,
		},
		"the retained row of a copy after the ack stays": {
			func(h *holding) { h.publish(h.id(late)); h.ack(h.id(late)); h.publishRetained(h.id(late)) },
			[]string{"", "", "PutRetained"},
			1,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHolding()
			c.do(h)
			if diff := cmp.Diff(c.want, h.ops()); diff != "" {
				t.Error(diff)
			}
			if h.elided != c.elided {
				t.Errorf("elided %d, want %d", h.elided, c.elided)
			}
		})
	}
}

func TestOnlyTopicsInQueueModeElide(t *testing.T) {
	t.Parallel()
	h := newHolding(Rule{Hook: MessagePublish, Topic: holdFilter("t/1"), Action: OnMessageStore, Sink: "s"})
	h.publish(h.id(late))
	h.ack(h.id(late))
	h.publish(h.id(late)) // nor is a copy dropped
	if diff := cmp.Diff([]string{kept + "+" + kept, deleted, kept + "+" + kept}, h.ops()); diff != "" {
		t.Error(diff)
	}
}

func TestAnElidedRecordKeepsItsPlaceAndGivesBackItsBytes(t *testing.T) {
	t.Parallel()
	h := newHolding()
	h.publish(h.id(2 * late))
	before := h.bytes
	h.publish(h.id(late))
	h.publish(h.id(late))
	full := h.bytes
	h.ack(h.id(late))
	if len(h.recs) != 4 {
		t.Fatalf("held %d, want 4", len(h.recs))
	}
	ack := h.recs[3].size
	if want := full + ack - 2*len("payload"); h.bytes != want {
		t.Errorf("held %d bytes, want %d (of %d before)", h.bytes, want, before)
	}
	h.drop(4)
	if h.bytes != 0 || len(h.recs) != 0 || len(h.puts) != 0 {
		t.Errorf("after all are dropped %d bytes, %d records and %d publishes are held", h.bytes, len(h.recs), len(h.puts))
	}
}

func TestTheRipePrefixHasNoHoles(t *testing.T) {
	t.Parallel()
	start := time.Now()
	op := []sinks.Op{sinks.PutMessage{}}
	at := func(age time.Duration, ops []sinks.Op, dead error) held {
		return held{at: start.Add(-age), ops: ops, dead: dead}
	}
	bad := errors.New("bad")
	for name, c := range map[string]struct {
		recs []held
		want int
	}{
		"nothing is held":                            {nil, 0},
		"all are fresh":                              {[]held{at(0, op, nil), at(0, op, nil)}, 0},
		"as old as the hold":                         {[]held{at(time.Second, op, nil), at(999*time.Millisecond, op, nil)}, 1},
		"elided ones at the head are ripe":           {[]held{at(0, nil, nil), at(0, nil, nil), at(0, op, nil)}, 2},
		"elided ones behind a fresh one are not":     {[]held{at(0, op, nil), at(0, nil, nil)}, 0},
		"elided ones behind a ripe one are":          {[]held{at(time.Second, op, nil), at(0, nil, nil), at(0, op, nil)}, 2},
		"a fresh dead letter waits":                  {[]held{at(0, nil, bad)}, 0},
		"a ripe dead letter goes":                    {[]held{at(time.Second, nil, bad)}, 1},
		"an old one behind a fresh one is not taken": {[]held{at(0, op, nil), at(time.Hour, op, nil)}, 0},
	} {
		h := hold{recs: c.recs}
		if got := h.ripe(start, time.Second); got != c.want {
			t.Errorf("%s: got %d, want %d", name, got, c.want)
		}
	}
}

func TestTheMemoryTurnsOverByCountAndByAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		key := func(i uint64) msgKey { return msgKey{topic: i} }
		m := Recent[msgKey, memState]{Limit: 2, Age: time.Minute}
		if m.Get(key(1)) != 0 {
			t.Error("an empty memory knows something")
		}
		for i := range uint64(4) {
			m.Put(key(i), memWritten)
		}
		for i := range uint64(4) {
			if m.Get(key(i)) != memWritten {
				t.Errorf("entry %d of 4 is forgotten, the halves hold 2 each", i)
			}
		}
		m.Put(key(4), memAcked)
		if m.Get(key(0)) != 0 || m.Get(key(1)) != 0 || m.Get(key(2)) != memWritten || m.Get(key(4)) != memAcked {
			t.Error("the elder half does not go when the younger one is full")
		}
		m.Put(key(2), memAcked)
		if m.Get(key(2)) != memAcked {
			t.Error("the elder half hides what is newer")
		}
		time.Sleep(59 * time.Second)
		m.Tick(time.Now())
		if m.Get(key(4)) == 0 {
			t.Error("turned over before its age")
		}
		time.Sleep(time.Second)
		m.Tick(time.Now())
		if m.Get(key(4)) != memAcked {
			t.Error("the younger half is forgotten after one age")
		}
		time.Sleep(time.Minute)
		m.Tick(time.Now())
		if m.Get(key(4)) != 0 {
			t.Error("still remembered after two ages")
		}
	})
}

// step is one thing that happens to a hold and to a plain model of it.
type step struct {
	kind string // publish, ack, flush, crash
	msg  int
}

// TestElisionEndsInTheSameStoreAsWritingEverything drives random histories of few messages, each published and acked several
// times in any order, with flushes of prefixes, through the hold, and compares the store with one that everything is written to.
func TestElisionEndsInTheSameStoreAsWritingEverything(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{rapid.SampledFrom([]string{"publish", "publish", "ack", "flush"}).Draw(rt, "kind"), rapid.IntRange(0, 3).Draw(rt, "msg")}
		}), 0, 40).Draw(rt, "steps")
		at := rapid.IntRange(0, 10).Draw(rt, "mark")
		h := newHolding()
		h.mark.offset += int64(at)
		got, want := map[string]sinks.Op{}, map[string]sinks.Op{}
		apply := func(store map[string]sinks.Op, ops []sinks.Op) {
			for _, o := range ops {
				if _, ok := o.(sinks.PutAcked); ok {
					continue // elided with its pair
				}
				if old, ok := store[o.Row()]; ok {
					o = sinks.Merge(old, o)
				}
				store[o.Row()] = o
			}
		}
		flush := func(n int) {
			h.wrote(n)
			for _, r := range h.recs[:n] {
				apply(got, r.ops)
			}
			h.drop(n)
		}
		for _, s := range steps {
			id := h.id(late + time.Duration(s.msg)*time.Second)
			n := len(h.recs)
			switch s.kind {
			case "publish":
				h.publish(id)
				apply(want, []sinks.Op{sinks.PutMessage{Message: sinks.Message{ID: id, Topic: holdTopic("t/1")}}})
			case "ack":
				h.ack(id)
				apply(want, []sinks.Op{sinks.DeleteMessage{Topic: holdTopic("t/1"), ID: id, Stamp: id.Micros() + 1}})
			case "flush":
				flush(min(n, s.msg*3))
			}
		}
		flush(len(h.recs))
		alive := func(store map[string]sinks.Op) (out []string) {
			for row, o := range store {
				if !sinks.Deletes(o) {
					out = append(out, row)
				}
			}
			slices.Sort(out)
			return out
		}
		if diff := cmp.Diff(alive(want), alive(got)); diff != "" {
			rt.Fatalf("messages left in the store differ:\n%s", diff)
		}
	})
}
