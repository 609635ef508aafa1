package spool

import (
	"time"

	"github.com/restante/restante/pipeline"
)

// flight is a record that the inner producer has, or is being given.
type flight struct {
	out     pipeline.Outgoing
	at      time.Time
	receipt promise
	inner   pipeline.Receipt // nil until it is taken
	settled bool             // the inner producer has said whether it takes it
	refused bool             // it does not: the caller knows
}

// over reports whether nothing is left to be waited for.
func (f *flight) over() bool {
	if !f.settled || f.refused || f.inner == nil {
		return f.refused
	}
	select {
	case <-f.inner.Done():
		return true
	default:
		return false
	}
}

// flights are a queue.
type flights struct {
	list []*flight
	head int
}

func (q *flights) push(f *flight) { q.list = append(q.list, f) }

func (q *flights) front() *flight {
	if q.head == len(q.list) {
		return nil
	}
	return q.list[q.head]
}

func (q *flights) pop() {
	q.list[q.head] = nil
	q.head++
	switch {
	case q.head == len(q.list):
		q.list, q.head = q.list[:0], 0
	case q.head > len(q.list)/2 && q.head > 64:
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
}
