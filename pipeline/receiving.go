package pipeline

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Receives makes the series of what the group reads from the topics, by their full names.
func (m *Metrics) Receives(group string, topics ...string) {
	for _, t := range topics {
		m.ReceiveDelay.WithLabelValues(group, t, phaseStarting)
		m.ReceiveDelay.WithLabelValues(group, t, phaseRunning)
	}
}

// receiving tells how old the records of a partition are when they are fetched. A backlog that was there before this member came is
// told apart from what lies around while it works. It belongs to one goroutine.
type receiving struct {
	delay    prometheus.Observer // of the present phase
	running  prometheus.Observer
	assigned time.Time // wall clock; zero = the backlog is done
}

// receiving begins for a partition that is assigned now.
func (m *Metrics) receiving(group, topic string, now time.Time) receiving {
	return receiving{
		delay:   m.ReceiveDelay.WithLabelValues(group, topic, phaseStarting),
		running: m.ReceiveDelay.WithLabelValues(group, topic, phaseRunning), assigned: now,
	}
}

// fetched notes what was fetched now, by the wall clock. Of many records it looks at some, at even distances: on the way of each one an
// observation would be felt.
func (r *receiving) fetched(recs []Record, now time.Time) {
	const looks = 64
	for i := 0; i < len(recs); i += 1 + len(recs)/looks {
		at := recs[i].Time
		if !r.assigned.IsZero() && !at.Before(r.assigned) {
			r.delay, r.assigned = r.running, time.Time{}
		}
		r.delay.Observe(max(0, now.Sub(at).Seconds()))
	}
}
