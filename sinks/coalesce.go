package sinks

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/restante/restante/event"
)

// Coalesce merges ops of one row into one, so that a batch holds at most one op a row. The order of the first op of each row
// is kept. from[i] lists the indexes in ops that went into merged[i], ascending.
func Coalesce(ops []Op) (merged []Op, from [][]int) {
	at := makeRows(len(ops))
	merged = make([]Op, 0, len(ops))
	from = make([][]int, 0, len(ops))
	first := make([]int, len(ops)) // what from begins with, in one piece
	for i, o := range ops {
		if j := at.place(o, len(merged)); j < len(merged) {
			merged[j] = Merge(merged[j], o)
			from[j] = append(from[j], i)
			continue
		}
		merged = append(merged, o)
		first[i] = i
		from = append(from, first[i:i+1:i+1])
	}
	return merged, from
}

// rows finds the place of a row. Nearly all are messages, and an id nearly always has one topic: those are found by the id alone.
type rows struct {
	messages map[event.ID]message
	others   map[row]int
}

type message struct {
	topic event.Topic
	place int
}

func makeRows(n int) rows {
	return rows{messages: make(map[event.ID]message, n), others: map[row]int{}}
}

// place is where the op's row is, or next, where it is from now on.
func (r rows) place(o Op, next int) int {
	if id, topic, ok := messageOf(o); ok {
		m, ok := r.messages[id]
		switch {
		case !ok:
			r.messages[id] = message{topic, next}
			return next
		case m.topic == topic:
			return m.place
		}
	}
	key := rowOf(o)
	if at, ok := r.others[key]; ok {
		return at
	}
	r.others[key] = next
	return next
}

func messageOf(o Op) (event.ID, event.Topic, bool) {
	if p, ok := o.(PutMessage); ok {
		return p.ID, p.Topic, true
	}
	d, ok := o.(DeleteMessage)
	return d.ID, d.Topic, ok
}

// row names the same row as [Op.Row] does, without a text to be made of it.
type row struct {
	table    byte
	id       event.ID
	key, sub string
}

func rowOf(o Op) row {
	const (
		message = iota
		acked
		retained
		client
		sub
	)
	switch o := o.(type) {
	case PutMessage:
		return row{message, o.ID, o.Topic.String(), ""}
	case DeleteMessage:
		return row{message, o.ID, o.Topic.String(), ""}
	case PutAcked:
		return row{acked, event.ID{}, string(o.Client), o.Topic}
	case DeleteAcked:
		return row{acked, event.ID{}, string(o.Client), o.Topic}
	case PutRetained:
		return row{retained, event.ID{}, o.Topic.String(), ""}
	case DeleteRetained:
		return row{retained, event.ID{}, o.Topic.String(), ""}
	case PutClient:
		return row{client, event.ID{}, string(o.Client), ""}
	case PutSub:
		return row{sub, event.ID{}, string(o.Client), o.Filter.String()}
	case DeleteSub:
		return row{sub, event.ID{}, string(o.Client), o.Filter.String()}
	}
	panic(fmt.Sprintf("sinks: no row for %T", o)) // unreachable: Op is sealed
}

// Stamp is the write timestamp of the op in µs; of a PutClient the later of its two.
func Stamp(o Op) int64 {
	switch o := o.(type) {
	case PutMessage:
		return o.ID.Micros()
	case DeleteMessage:
		return o.Stamp
	case PutAcked:
		return o.Stamp
	case DeleteAcked:
		return o.Stamp
	case PutRetained:
		return o.ID.Micros()
	case DeleteRetained:
		return o.Stamp
	case PutClient:
		return max(o.Up.Stamp, o.Down.Stamp)
	case PutSub:
		return o.Stamp
	case DeleteSub:
		return o.Stamp
	}
	panic(fmt.Sprintf("sinks: no stamp for %T", o)) // unreachable: Op is sealed
}

// Deletes reports whether the op removes its row.
func Deletes(o Op) bool {
	switch o.(type) {
	case DeleteMessage, DeleteAcked, DeleteRetained, DeleteSub:
		return true
	case PutMessage, PutAcked, PutRetained, PutClient, PutSub:
		return false
	}
	panic(fmt.Sprintf("sinks: unknown op %T", o)) // unreachable: Op is sealed
}

// Merge is the one op that does what both do, in either order. Both must change the same row. The later stamp wins; at equal
// stamps a deletion wins; else the larger value. It is commutative, associative and idempotent.
func Merge(a, b Op) Op {
	if a, ok := a.(PutClient); ok {
		return MergeClient(a, b.(PutClient))
	}
	if x, ok := a.(PutMessage); ok {
		if y, ok := b.(PutMessage); ok {
			m := x
			if x.ID.Micros() == y.ID.Micros() && compareMessage(y.Message, x.Message) > 0 {
				m = y
			}
			m.History = x.History && y.History
			return m
		}
	}
	if c := cmp.Compare(Stamp(a), Stamp(b)); c != 0 {
		if c > 0 {
			return a
		}
		return b
	}
	if Deletes(a) != Deletes(b) {
		if Deletes(a) {
			return a
		}
		return b
	}
	if compareValue(a, b) >= 0 {
		return a
	}
	return b
}

// MergeClient joins two states of one client, register by register.
func MergeClient(a, b PutClient) PutClient {
	if c := cmp.Or(cmp.Compare(a.Up.Stamp, b.Up.Stamp), a.Up.OnlineAt.Compare(b.Up.OnlineAt), cmp.Compare(a.Up.Node, b.Up.Node)); c < 0 {
		a.Up = b.Up
	}
	if c := cmp.Or(cmp.Compare(a.Down.Stamp, b.Down.Stamp), a.Down.OfflineAt.Compare(b.Down.OfflineAt)); c < 0 {
		a.Down = b.Down
	}
	return a
}

// compareValue orders two ops of one row, one kind and one stamp by their values.
func compareValue(a, b Op) int {
	switch a := a.(type) {
	case PutAcked:
		return a.Message.Compare(b.(PutAcked).Message)
	case PutSub:
		return cmp.Compare(a.QoS, b.(PutSub).QoS)
	case PutRetained:
		return compareMessage(a.Message, b.(PutRetained).Message)
	case PutMessage, DeleteMessage, DeleteAcked, DeleteRetained, DeleteSub, PutClient:
		return 0
	}
	panic(fmt.Sprintf("sinks: unknown op %T", a)) // unreachable: Op is sealed
}

// compareMessage is a total order: two sources may tell of one message, one of them without its retain flag or properties.
func compareMessage(a, b Message) int {
	return cmp.Or(a.ID.Compare(b.ID), bytes.Compare(a.Payload, b.Payload), cmp.Compare(a.QoS, b.QoS),
		cmp.Compare(a.Sender, b.Sender), a.Arrived.Compare(b.Arrived), a.Expires.Compare(b.Expires),
		compareBool(a.Retain, b.Retain), compareProperties(a.Properties, b.Properties))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func compareProperties(a, b event.Properties) int {
	return cmp.Or(cmp.Compare(a.ContentType, b.ContentType), cmp.Compare(a.ResponseTopic, b.ResponseTopic),
		bytes.Compare(a.CorrelationData, b.CorrelationData), cmp.Compare(a.PayloadFormat, b.PayloadFormat),
		slices.CompareFunc(a.User, b.User, func(x, y event.UserProperty) int {
			return cmp.Or(cmp.Compare(x.Key, y.Key), cmp.Compare(x.Value, y.Value))
		}))
}
