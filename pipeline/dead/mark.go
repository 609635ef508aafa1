package dead

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Headers of a mark. It has the key of its letter, and so lies in the same partition behind it, and outlives it there.
const (
	headerMark          = "restante_dead_mark" // the state
	headerMarkPartition = "restante_dead_mark_partition"
	headerMarkOffset    = "restante_dead_mark_offset"
)

// mark is what a letter has become.
type mark struct {
	state State
	at    time.Time
}

// newMark is the record that says that the letter at the place, of that key, is in the state.
func newMark(topic string, key []byte, p Place, s State, now time.Time) pipeline.Outgoing {
	return pipeline.Outgoing{Topic: topic, Wire: event.Wire{
		Key: key, Value: []byte{}, Time: now, Headers: []event.Header{
			{Key: headerMark, Value: []byte(s)},
			{Key: headerMarkPartition, Value: strconv.AppendInt(nil, int64(p.Part), 10)},
			{Key: headerMarkOffset, Value: strconv.AppendInt(nil, p.Offset, 10)},
		},
	}}
}

// readMark reads a mark; ok is false for any other record, such as a letter whose record has such headers itself.
func readMark(r pipeline.Record) (p Place, m mark, ok bool) {
	if len(r.Headers) != 3 || r.Headers[0].Key != headerMark || r.Headers[1].Key != headerMarkPartition || r.Headers[2].Key != headerMarkOffset {
		return Place{}, mark{}, false
	}
	p, err := ParsePlace(fmt.Sprintf("%s/%s", r.Headers[1].Value, r.Headers[2].Value))
	m = mark{State(r.Headers[0].Value), r.Time}
	return p, m, err == nil && m.state != Waiting && slices.Contains(States, m.state)
}
