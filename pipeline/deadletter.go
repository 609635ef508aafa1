package pipeline

import (
	"context"
	"log/slog"
	"time"
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
	// Now stamps the letters; nil = time.Now.
	Now func() time.Time
}

// Bury returns nil when the record is durable in the dead-letter topic with its key, value and headers. A failure to write it
// is transient: it is retried until ctx ends. The same record may be buried twice, after a crash before the commit.
//
// A letter is stamped with the time of its burial: by the record's own time, which may be of any clock, retention could remove
// it before anybody has looked.
func (d *DeadLetters) Bury(ctx context.Context, r Record, reason Reason, cause error) error {
	o := Outgoing{Topic: d.Topic, Wire: r.Wire}
	o.Headers = Obituary{
		Reason: reason, Cause: cause.Error(), Topic: r.Topic, Part: r.Part, Offset: r.Offset, By: d.Group, Time: r.Time,
	}.Append(r.Headers)
	o.Time = time.Now()
	if d.Now != nil {
		o.Time = d.Now()
	}
	for attempt := 1; ; attempt++ {
		err := appendAndWait(ctx, d.Producer, o)
		if err == nil {
			d.Metrics.DeadLetters.WithLabelValues(d.Component, string(reason)).Inc()
			d.Log.ErrorContext(ctx, "record is in the dead letters", "topic", r.Topic, "partition", r.Part, "offset", r.Offset, "reason", string(reason), "err", cause)
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
