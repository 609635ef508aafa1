package pipeline

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/restante/restante/event"
)

// Headers that a dead letter has beside those of its record.
const (
	HeaderDeadReason    = "restante_dead_reason"
	HeaderDeadError     = "restante_dead_error"
	HeaderDeadTopic     = "restante_dead_topic"
	HeaderDeadPartition = "restante_dead_partition"
	HeaderDeadOffset    = "restante_dead_offset"
	HeaderDeadBy        = "restante_dead_by" // the consumer group
)

// DeadLetters writes what can never be processed, whole, to the dead-letter topic.
type DeadLetters struct {
	Producer  Producer
	Topic     string // full name
	Group     string
	Component string // writer or replayer
	Backoff   Backoff
	Metrics   *Metrics
	Log       *slog.Logger
}

// Bury returns nil when the record is durable in the dead-letter topic with its key, value and headers. A failure to write it
// is transient: it is retried until ctx ends. The same record may be buried twice, after a crash before the commit.
func (d *DeadLetters) Bury(ctx context.Context, r Record, reason string, cause error) error {
	const longest = 2000 // bytes of an error's text
	text := cause.Error()
	if len(text) > longest {
		text = text[:longest]
	}
	w := r.Wire
	w.Headers = append(append([]event.Header(nil), r.Headers...),
		event.Header{Key: HeaderDeadReason, Value: []byte(reason)},
		event.Header{Key: HeaderDeadError, Value: []byte(text)},
		event.Header{Key: HeaderDeadTopic, Value: []byte(r.Topic)},
		event.Header{Key: HeaderDeadPartition, Value: strconv.AppendInt(nil, int64(r.Part), 10)},
		event.Header{Key: HeaderDeadOffset, Value: strconv.AppendInt(nil, r.Offset, 10)},
		event.Header{Key: HeaderDeadBy, Value: []byte(d.Group)},
	)
	for attempt := 1; ; attempt++ {
		err := appendAndWait(ctx, d.Producer, Outgoing{Topic: d.Topic, Wire: w})
		if err == nil {
			d.Metrics.DeadLetters.WithLabelValues(d.Component, reason).Inc()
			d.Log.ErrorContext(ctx, "record is in the dead letters", "topic", r.Topic, "partition", r.Part, "offset", r.Offset, "reason", reason, "err", cause)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.Metrics.DeadErrors.WithLabelValues(d.Component).Inc()
		if attempt == 1 {
			d.Log.WarnContext(ctx, "dead letter not written, will retry", "topic", d.Topic, "err", err)
		}
		if err := Sleep(ctx, d.Backoff.Delay(attempt)); err != nil {
			return err
		}
	}
}

func appendAndWait(ctx context.Context, p Producer, o Outgoing) error {
	r, err := p.Append(ctx, o)
	if err != nil {
		return err
	}
	return Wait(ctx, r)
}

// sinceRecord is how long ago the record's event was, never negative.
func sinceRecord(r Record, now time.Time) time.Duration { return max(now.Sub(r.Time), 0) }
