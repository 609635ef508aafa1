package pipeline

import (
	"context"
	"time"

	"github.com/restante/restante/event"
)

// Where a replay is acknowledged by an id that the broker gave it, the owner of the client's partition finds its message by the alias
// that stands before the ack, and sends the ack on to messages, to the writers and whoever reads the tail.
//
// The alias of a replay that still waits for its ack stands behind the event that began it, which is not committed until then. So who
// takes the partition over reads it again. Only an ack that comes after its replay was given up may need one from below the commit.
const (
	aliasLife   = 10 * time.Minute
	mostAliases = 50_000 // of one partition, in each half of that
)

// resolve sends an ack on with the id of its message. The replay learns of it, and the record counts as finished, when that is durable.
// An ack without an alias is one of a replay that was given up long ago, or of somebody whom the replay was not for: the message stays,
// to be acknowledged by whom it is for.
func (o *owner) resolve(ctx context.Context, rec Record, e event.Acked) {
	r := o.r
	if e.Message = o.aliases.Get(e.BrokerID); e.Message.IsZero() {
		r.Metrics.Skipped.WithLabelValues("replayer", SkipUnknownAlias).Inc()
		return
	}
	e.Replayed, e.Watched, e.BrokerID = true, false, event.ID{}
	o.moved(rec, e)
	c := o.client(e.Client)
	o.begin(rec)
	o.jobs.Go(func() { // ends with the ack's way into the log, or with ctx; Own waits for it
		w := event.Encode(e, event.Route{Kind: event.Messages, Key: e.Topic.String()}, r.Now())
		out := Outgoing{Topic: r.Topics.Messages, Wire: w}
		if err := r.retry(ctx, "log the ack", "", func() error { return appendAndWait(ctx, r.Producer, out) }); err != nil {
			return // not finished: who owns the partition then reads it again
		}
		c.ack(e.Message)
		o.done(rec.Offset)
	})
}

// recall reads the aliases of the last minutes below the commit. What it cannot read costs at most one more delivery.
func (o *owner) recall(ctx context.Context) {
	if !o.r.Aliases || o.next <= 0 {
		return
	}
	from, err := o.r.Reader.OffsetAt(ctx, o.tp, o.r.Now().Add(-aliasLife))
	if err == nil {
		err = readRange(ctx, o.r.Reader, o.tp, max(from, o.next-2*mostAliases), o.next, func(rec Record) {
			if e, err := event.Decode(event.Sessions, rec.Wire); err == nil {
				if a, ok := e.(event.Replayed); ok {
					o.aliases.Put(a.BrokerID, a.Message)
				}
			}
		})
	}
	if err != nil && ctx.Err() == nil {
		o.r.Log.WarnContext(ctx, "aliases below the commit not read, a late ack of a replay may not be understood", "topic", o.tp.Topic,
			"partition", o.tp.Part, "err", err)
	}
}
