package sinks_test

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// sameOp compares ops; a location is no part of a time.
var sameOp = cmp.Options{
	cmp.Comparer(func(a, b event.ID) bool { return a == b }),
	cmp.Comparer(func(a, b event.Topic) bool { return a == b }),
	cmp.Comparer(func(a, b event.Filter) bool { return a == b }),
}

// draws from few values, so that rows, stamps and values collide.
func drawTopic(t *rapid.T) event.Topic {
	topic, err := event.ParseTopic(rapid.SampledFrom([]string{"t/1", "t/2"}).Draw(t, "topic"))
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

func drawFilter(t *rapid.T) event.Filter {
	f, err := event.ParseFilter(rapid.SampledFrom([]string{"t/#", "$share/g/t/#"}).Draw(t, "filter"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func drawStamp(t *rapid.T) int64 { return rapid.Int64Range(1, 4).Draw(t, "stamp") }

func drawID(t *rapid.T) event.ID {
	return event.IDOf(drawStamp(t), 1, rapid.Uint16Range(1, 2).Draw(t, "seq"))
}

func drawTime(t *rapid.T) time.Time {
	if ms := rapid.Int64Range(0, 2).Draw(t, "ms"); ms > 0 {
		return time.UnixMilli(ms)
	}
	return time.Time{}
}

func drawMessage(t *rapid.T) sinks.Message {
	m := sinks.Message{
		ID: drawID(t), Topic: drawTopic(t), Sender: rapid.SampledFrom([]event.ClientID{"", "p"}).Draw(t, "sender"),
		QoS: event.QoS(rapid.ByteRange(0, 2).Draw(t, "qos")), Retain: rapid.Bool().Draw(t, "retain"),
		Payload: []byte(rapid.SampledFrom([]string{"", "x"}).Draw(t, "payload")), Arrived: drawTime(t), Expires: drawTime(t),
	}
	// Two sources may tell of one message, and one of them may not know its properties.
	if rapid.Bool().Draw(t, "has properties") {
		m.Properties = event.Properties{
			ContentType:   rapid.SampledFrom([]string{"", "a"}).Draw(t, "content type"),
			ResponseTopic: rapid.SampledFrom([]string{"", "a"}).Draw(t, "response topic"),
			PayloadFormat: rapid.ByteRange(0, 1).Draw(t, "payload format"),
		}
		if rapid.Bool().Draw(t, "has user property") {
			m.Properties.User = []event.UserProperty{{Key: "k", Value: rapid.SampledFrom([]string{"", "v"}).Draw(t, "user")}}
		}
		if rapid.Bool().Draw(t, "has correlation data") {
			m.Properties.CorrelationData = []byte{rapid.ByteRange(0, 1).Draw(t, "correlation")}
		}
	}
	return m
}

func drawOp(t *rapid.T) sinks.Op {
	client := rapid.SampledFrom([]event.ClientID{"a", "b"}).Draw(t, "client")
	switch rapid.IntRange(0, 8).Draw(t, "op") {
	case 0:
		return sinks.PutMessage{Message: drawMessage(t), History: rapid.Bool().Draw(t, "history")}
	case 1:
		return sinks.DeleteMessage{Topic: drawTopic(t), ID: drawID(t), Stamp: drawStamp(t)}
	case 2:
		return sinks.PutAcked{Client: client, Topic: drawTopic(t).String(), Message: drawID(t), Stamp: drawStamp(t)}
	case 3:
		return sinks.DeleteAcked{Client: client, Topic: drawTopic(t).String(), Stamp: drawStamp(t)}
	case 4:
		return sinks.PutRetained{Message: drawMessage(t)}
	case 5:
		return sinks.DeleteRetained{Topic: drawTopic(t), Stamp: drawStamp(t)}
	case 6:
		return drawClient(t, client)
	case 7:
		return sinks.PutSub{Client: client, Filter: drawFilter(t), QoS: event.QoS(rapid.ByteRange(0, 2).Draw(t, "qos")), Stamp: drawStamp(t)}
	default:
		return sinks.DeleteSub{Client: client, Filter: drawFilter(t), Stamp: drawStamp(t)}
	}
}

// drawOpOf draws an op of the row that o changes.
func drawOpOf(t *rapid.T, o sinks.Op) sinks.Op {
	deletes := rapid.IntRange(0, 2).Draw(t, "deletes") == 0
	message := func(topic event.Topic, id event.ID) sinks.Op {
		if deletes {
			return sinks.DeleteMessage{Topic: topic, ID: id, Stamp: drawStamp(t)}
		}
		m := drawMessage(t)
		m.Topic, m.ID = topic, id
		return sinks.PutMessage{Message: m, History: rapid.Bool().Draw(t, "history")}
	}
	acked := func(client event.ClientID, topic string) sinks.Op {
		if deletes {
			return sinks.DeleteAcked{Client: client, Topic: topic, Stamp: drawStamp(t)}
		}
		return sinks.PutAcked{Client: client, Topic: topic, Message: drawID(t), Stamp: drawStamp(t)}
	}
	retained := func(topic event.Topic) sinks.Op {
		if deletes {
			return sinks.DeleteRetained{Topic: topic, Stamp: drawStamp(t)}
		}
		m := drawMessage(t)
		m.Topic = topic
		return sinks.PutRetained{Message: m}
	}
	sub := func(client event.ClientID, f event.Filter) sinks.Op {
		if deletes {
			return sinks.DeleteSub{Client: client, Filter: f, Stamp: drawStamp(t)}
		}
		return sinks.PutSub{Client: client, Filter: f, QoS: event.QoS(rapid.ByteRange(0, 2).Draw(t, "qos")), Stamp: drawStamp(t)}
	}
	switch o := o.(type) {
	case sinks.PutMessage:
		return message(o.Topic, o.ID)
	case sinks.DeleteMessage:
		return message(o.Topic, o.ID)
	case sinks.PutAcked:
		return acked(o.Client, o.Topic)
	case sinks.DeleteAcked:
		return acked(o.Client, o.Topic)
	case sinks.PutRetained:
		return retained(o.Topic)
	case sinks.DeleteRetained:
		return retained(o.Topic)
	case sinks.PutSub:
		return sub(o.Client, o.Filter)
	case sinks.DeleteSub:
		return sub(o.Client, o.Filter)
	case sinks.PutClient:
		return drawClient(t, o.Client)
	}
	t.Fatalf("no op for the row of a %T", o)
	return nil
}

func drawClient(t *rapid.T, client event.ClientID) sinks.PutClient {
	o := sinks.PutClient{Client: client}
	if rapid.Bool().Draw(t, "up") {
		o.Up = sinks.ClientUp{Node: rapid.SampledFrom([]string{"", "n"}).Draw(t, "node"), OnlineAt: drawTime(t), Stamp: drawStamp(t)}
	}
	if rapid.Bool().Draw(t, "down") {
		o.Down = sinks.ClientDown{OfflineAt: drawTime(t), Stamp: drawStamp(t)}
	}
	return o
}

func TestMergeIsCommutativeAssociativeAndIdempotent(t *testing.T) {
	t.Parallel()
	check := func(t *rapid.T, law string, x, y sinks.Op) {
		if diff := cmp.Diff(x, y, sameOp); diff != "" {
			t.Fatalf("not %s (-left +right):\n%s", law, diff)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a := drawOp(t)
		b, c := drawOpOf(t, a), drawOpOf(t, a)
		check(t, "idempotent", a, sinks.Merge(a, a))
		check(t, "commutative", sinks.Merge(a, b), sinks.Merge(b, a))
		check(t, "associative", sinks.Merge(sinks.Merge(a, b), c), sinks.Merge(a, sinks.Merge(b, c)))
		if got := sinks.Merge(a, b).Row(); got != a.Row() {
			t.Fatalf("the row is %q, was %q", got, a.Row())
		}
		if got, want := sinks.Stamp(sinks.Merge(a, b)), max(sinks.Stamp(a), sinks.Stamp(b)); got != want {
			t.Fatalf("the stamp is %d, want the later one, %d", got, want)
		}
	})
}

func TestCoalesceGivesTheSameRowsInAnyOrder(t *testing.T) {
	t.Parallel()
	rows := func(ops []sinks.Op) map[string]sinks.Op {
		m := map[string]sinks.Op{}
		for _, o := range ops {
			m[o.Row()] = o
		}
		return m
	}
	rapid.Check(t, func(t *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(drawOp), 0, 30).Draw(t, "ops")
		shuffled := rapid.Permutation(ops).Draw(t, "shuffled")
		merged, from := sinks.Coalesce(ops)
		other, _ := sinks.Coalesce(append(shuffled, ops[:len(ops)/2]...))
		if diff := cmp.Diff(rows(merged), rows(other), sameOp); diff != "" {
			t.Fatalf("another order with repeats gives other rows (-in order +shuffled):\n%s", diff)
		}
		if len(rows(merged)) != len(merged) || len(from) != len(merged) {
			t.Fatalf("%d ops for %d rows, from has %d", len(merged), len(rows(merged)), len(from))
		}
		var covered []int
		last := -1
		for i, at := range from {
			if !slices.IsSorted(at) || len(at) == 0 || at[0] <= last {
				t.Fatalf("from is not in the order of first ops: %v", from)
			}
			last = at[0]
			covered = append(covered, at...)
			for _, j := range at {
				if ops[j].Row() != merged[i].Row() {
					t.Fatalf("op %d of row %q went into row %q", j, ops[j].Row(), merged[i].Row())
				}
			}
		}
		slices.Sort(covered)
		for i, j := range covered {
			if i != j {
				t.Fatalf("from covers %v, want each of %d ops once", covered, len(ops))
			}
		}
		if len(covered) != len(ops) {
			t.Fatalf("from covers %d of %d ops", len(covered), len(ops))
		}
	})
}

func TestMergeDecides(t *testing.T) {
	t.Parallel()
	topic, err := event.ParseTopic("t/1")
	if err != nil {
		t.Fatal(err)
	}
	id := event.IDOf(100, 1, 1)
	put := sinks.PutMessage{Message: sinks.Message{ID: id, Topic: topic, QoS: 1, Payload: []byte("x")}}
	history := put
	history.History = true
	retained, typed := put, put
	retained.Retain = true
	typed.Properties = event.Properties{User: []event.UserProperty{{Key: "k", Value: "v"}}}
	up := sinks.PutClient{Client: "c", Up: sinks.ClientUp{Node: "n2", OnlineAt: time.UnixMilli(2), Stamp: 2000}}
	late := sinks.PutClient{Client: "c", Down: sinks.ClientDown{OfflineAt: time.UnixMilli(3), Stamp: 1001}}
	for _, c := range []struct {
		sentence   string
		a, b, want sinks.Op
	}{
		{"an ack removes its message", put, sinks.DeleteMessage{Topic: topic, ID: id, Stamp: 101}, sinks.DeleteMessage{Topic: topic, ID: id, Stamp: 101}},
		{"at equal stamps a deletion wins", put, sinks.DeleteMessage{Topic: topic, ID: id, Stamp: 100}, sinks.DeleteMessage{Topic: topic, ID: id, Stamp: 100}},
		{"a message that one rule wants pending is pending", put, history, put},
		{"of two sources the one that saw the retain flag wins", put, retained, retained},
		{"of two sources the one that saw the properties wins", put, typed, typed},
		{
			"in queue mode the newest acked message wins",
			sinks.PutAcked{Client: "c", Topic: "t/1", Message: event.IDOf(9, 1, 1), Stamp: 9},
			sinks.PutAcked{Client: "c", Topic: "t/1", Message: id, Stamp: 100},
			sinks.PutAcked{Client: "c", Topic: "t/1", Message: id, Stamp: 100},
		},
		{
			"in pub/sub the latest move wins, backwards too",
			sinks.PutAcked{Client: "c", Topic: "t/#", Message: id, Stamp: 200},
			sinks.PutAcked{Client: "c", Topic: "t/#", Message: event.IDOf(9, 1, 1), Stamp: 201},
			sinks.PutAcked{Client: "c", Topic: "t/#", Message: event.IDOf(9, 1, 1), Stamp: 201},
		},
		{
			"a late disconnect of an older connection stands beside the newer connect", up, late,
			sinks.PutClient{Client: "c", Up: up.Up, Down: late.Down},
		},
	} {
		for order, got := range map[string]sinks.Op{"in order": sinks.Merge(c.a, c.b), "turned round": sinks.Merge(c.b, c.a)} {
			if diff := cmp.Diff(c.want, got, sameOp); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", c.sentence, order, diff)
			}
		}
	}
}

func TestApplyErrorShowsItsFirstCausesAndUnwrapsAll(t *testing.T) {
	t.Parallel()
	err := &sinks.ApplyError{Failed: map[int]error{7: io.EOF, 1: io.ErrShortWrite, 3: io.ErrNoProgress, 9: io.ErrClosedPipe}}
	want := "4 ops are not stored; op 1: short write; op 3: multiple Read calls return no data or error; op 7: EOF; …"
	if got := err.Error(); got != want {
		t.Errorf("text is %q, want %q", got, want)
	}
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Error("a cause that is not shown cannot be found")
	}
}
