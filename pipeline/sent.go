package pipeline

import (
	"context"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// repeats reports whether the replay is at QoS 0 and waits for nothing.
func (j *job) repeats() bool { return j.replay.QoS == 0 && !j.replay.Once }

// published books a message that the broker has taken. Where that is the evidence, its ack goes to the log now.
func (j *job) published(ctx context.Context, m sinks.Message, f *flight) error {
	r := j.o.r
	f.at = time.Now()
	j.sent[m.ID] = f
	j.count++
	if j.repeats() {
		j.c.giveUp(m.ID, f) // for another replay of the client it is not delivered
		r.Metrics.ReplayMessages.WithLabelValues(messageQoS0).Inc()
	} else {
		j.order = append(j.order, m.ID)
		j.dealt(m.Topic, m.ID, true)
		r.Metrics.ReplayUnacked.Inc()
	}
	if !j.started {
		j.started = true
		ObserveExample(r.Metrics.ReplayFirst, max(0, sinceRecord(j.event, r.Now())-j.delay).Seconds(), exampleMessage, m.ID.String())
	}
	switch evident := r.Evidence == EvidencePuback && !j.repeats() || j.replay.Once; {
	case evident && j.pos != nil:
		j.c.ack(m.ID) // no writer has to know
	case evident:
		e := event.Acked{
			Head:  event.Head{ID: r.Minter.Mint(), Source: r.Source, At: r.Now()},
			Topic: m.Topic, Client: j.c.id, Message: m.ID, Replayed: true,
		}
		o := Outgoing{Topic: r.Topics.Messages, Wire: event.Encode(e, e.Routes()[0], r.Now())}
		if err := j.retry(ctx, "log the ack", func() error { return appendAndWait(ctx, r.Producer, o) }); err != nil {
			return err
		}
		j.c.ack(m.ID)
	}
	j.collect()
	return nil
}

// collect forgets the un-acked messages whose ack has come.
func (j *job) collect() {
	j.order = slices.DeleteFunc(j.order, func(id event.ID) bool {
		if !j.sent[id].isAcked() {
			return false
		}
		j.o.r.Metrics.ReplayMessages.WithLabelValues(messageAcked).Inc()
		j.o.r.Metrics.ReplayUnacked.Dec()
		j.landed(id)
		j.retries = 0
		return true
	})
}
