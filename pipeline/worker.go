package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
)

var (
	errDrainOver = errors.New("the time to finish what is held is over")
	errStopped   = errors.New("partition stopped")
)

// Limits say how much a worker holds and for how long.
type Limits struct {
	// Hold is how long fresh records wait before they are written; a publish and its ack that meet within it are never
	// written. 0 = write at once.
	Hold time.Duration
	// Records and Bytes bound what one partition holds; when either is reached all of it is written.
	Records, Bytes int
	// Fetch is the most records of one fetch.
	Fetch int
	// Drain is how long what is held may still be finished after the generation has ended.
	Drain time.Duration
	// Session is the group's session time-out: a worker that had no answer from Kafka for that long proves that it still owns
	// the partition before it writes.
	Session time.Duration
	// MarkAfter is how long after the assignment an earlier owner may still write: session time-out + flush time-out. 0 = no
	// earlier owner can be alive.
	MarkAfter time.Duration
	// ClockSkew is how far the clocks that mint ids may be apart.
	ClockSkew time.Duration
	// Memory is how many written or acked messages are remembered, Recall how much of the log below the commit fills that
	// memory at assignment.
	Memory int
	Recall time.Duration
}

// DefaultLimits are the limits of DESIGN §6 and §9.
var DefaultLimits = Limits{
	Hold: time.Second, Records: 20_000, Bytes: 4 << 20, Fetch: 2000, Drain: 20 * time.Second, Session: 30 * time.Second,
	MarkAfter: 40 * time.Second, ClockSkew: 2 * time.Second, Memory: 200_000, Recall: 2 * time.Minute,
}

// Worker owns one partition for one generation of a sink's writer group: fetch, decode, hold, make durable, commit, in that
// order, in one goroutine.
type Worker struct {
	TP         TP
	Kind       event.Kind
	From       int64 // the committed offset; < 0 = none
	Group      string
	Generation Generation
	Reader     Log
	Plan       Planner
	Storing    *Storing
	Dead       *DeadLetters
	Limits     Limits
	Metrics    *Metrics
	Log        *slog.Logger
	Now        func() time.Time // wall clock

	hold      hold
	next      int64     // offset of the next record to fetch
	lastGood  time.Time // last answer from Kafka that shows that it was reached
	doubt     bool      // whether the partition is still ours must be asked before writing
	markAfter time.Time // when the mark is tried to be read
	lastFlush time.Time
	wroteAt   time.Time // when the store had the last flush, by Now
	recalled  bool
	received  receiving
	stopped   prometheus.Gauge // != nil: the partition stands still
}

// Run works until ctx, the generation, ends, or work, the process, does; then it finishes what it holds within the drain time.
// It returns nil when everything held is committed or belongs to another owner now, and an error only for what the process
// cannot work with (fault.Fatal) or what was still held when time ran out; that is read again by the next owner.
func (w *Worker) Run(ctx, work context.Context) error {
	hard, cancel := drainContext(ctx, work, w.Limits.Drain)
	defer cancel()
	w.hold.puts = make(map[msgKey]int64)
	w.hold.skew = w.Limits.ClockSkew
	w.hold.mem = Recent[msgKey, memState]{Limit: max(w.Limits.Memory/2, 1), Age: 5 * time.Minute}
	w.hold.unstored = Recent[msgKey, bool]{Limit: max(w.Limits.Memory/2, 1), Age: 5 * time.Minute}
	now := time.Now()
	w.received = w.Metrics.receiving(w.Group, w.TP.Topic, w.Now())
	w.lastGood, w.lastFlush, w.markAfter = now, now, now.Add(w.Limits.MarkAfter)
	defer func() { w.measure(0, 0) }()

	err := w.loop(ctx, hard)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrFenced):
		w.Log.InfoContext(ctx, "partition belongs to another owner", "topic", w.TP.Topic, "partition", w.TP.Part, "held", len(w.hold.recs))
		return nil
	case errors.Is(err, errStopped):
		<-ctx.Done()
		w.stopped.Dec()
		return nil
	case fault.IsFatal(err):
		return err
	}
	w.Metrics.Undrained.WithLabelValues("writer").Add(float64(len(w.hold.recs)))
	return fmt.Errorf("%s: %d records were held and not committed in time; they are read again: %w", w.TP, len(w.hold.recs), err)
}

func (w *Worker) loop(ctx, hard context.Context) error {
	if err := w.seek(ctx); err != nil {
		return w.ended(ctx, err)
	}
	var stream Stream
	closeStream := func() {
		if stream != nil {
			_ = stream.Close() // nothing is lost with a reader
			stream = nil
		}
	}
	defer closeStream()
	for attempt := 1; ctx.Err() == nil; {
		w.tryMark(ctx)
		var err error
		if stream == nil {
			stream, err = w.Reader.Open(ctx, w.TP, w.next)
		}
		var recs []Record
		if err == nil {
			recs, err = stream.Fetch(ctx, w.Limits.Fetch, w.patience())
		}
		switch {
		case err == nil:
			if attempt = 1; len(recs) > 0 { // none may also mean that no broker answered
				w.good()
			}
		case ctx.Err() != nil:
		case errors.Is(err, ErrGap):
			return w.stop(ctx, hard, stopGap, fmt.Errorf("offset %d of %s: %w: what lay there was removed before it was stored; "+
				"set the group's offset (kafka-consumer-groups --reset-offsets) once that is understood", w.next, w.TP, err))
		default:
			closeStream()
			if attempt == 1 {
				w.Log.WarnContext(ctx, "fetch failed, will retry", "topic", w.TP.Topic, "partition", w.TP.Part, "err", err)
			}
			_ = Sleep(ctx, w.Storing.Backoff.Delay(attempt)) // the loop asks ctx
			attempt++
		}
		if err := w.take(ctx, recs); err != nil {
			return w.stop(ctx, hard, stopMajor, err)
		}
		if err := w.flush(hard, false); err != nil {
			return err
		}
	}
	return w.flush(hard, true)
}

// ended turns an error into nil when it only says that ctx is over.
func (w *Worker) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// good notes an answer from Kafka. When none came for as long as a session lasts, this process may have been frozen, and
// another owner may have gone further: a fetch does not tell, a commit does.
func (w *Worker) good() {
	now := time.Now()
	w.doubt = w.doubt || now.Sub(w.lastGood) > w.Limits.Session
	w.lastGood = now
}

// seek finds where to begin.
func (w *Worker) seek(ctx context.Context) error {
	if w.next = w.From; w.From >= 0 {
		return nil
	}
	for attempt := 1; ; attempt++ {
		spans, err := w.Reader.Spans(ctx, w.TP.Topic, w.TP.Part)
		if err == nil {
			w.next = spans[w.TP.Part].First
			return nil
		}
		if attempt == 1 {
			w.Log.WarnContext(ctx, "start offset unknown, will retry", "topic", w.TP.Topic, "partition", w.TP.Part, "err", err)
		}
		if err := Sleep(ctx, w.Storing.Backoff.Delay(attempt)); err != nil {
			return err
		}
	}
}

// tryMark reads the mark once an earlier owner can no longer write. Until that succeeds nothing elides.
func (w *Worker) tryMark(ctx context.Context) {
	if w.hold.mark.set || time.Now().Before(w.markAfter) || w.Kind != event.Messages {
		return
	}
	spans, err := w.Reader.Spans(ctx, w.TP.Topic, w.TP.Part)
	if err != nil {
		w.markAfter = time.Now().Add(w.Storing.Backoff.Most)
		w.Log.DebugContext(ctx, "mark not read, will retry", "topic", w.TP.Topic, "partition", w.TP.Part, "err", err)
		return
	}
	w.hold.mark = mark{set: true, offset: spans[w.TP.Part].End, at: w.Now()}
}

// patience is how long a fetch may wait: until something held gets ripe, or the mark is due.
func (w *Worker) patience() time.Duration {
	const longest = time.Second
	wait := longest
	if len(w.hold.recs) > 0 {
		wait = min(wait, time.Until(w.flushDue()))
	}
	if !w.hold.mark.set && w.Kind == event.Messages {
		wait = min(wait, time.Until(w.markAfter))
	}
	return max(wait, time.Millisecond)
}

// flushDue is when the next flush is: when the eldest record gets ripe, but not more than four flushes in a hold.
func (w *Worker) flushDue() time.Time {
	due := w.hold.recs[0].at.Add(w.Limits.Hold)
	if pause := w.lastFlush.Add(w.Limits.Hold / 4); pause.After(due) {
		return pause
	}
	return due
}

// take decodes and holds what was fetched. It returns an error only for an event of an unknown schema major.
func (w *Worker) take(ctx context.Context, recs []Record) error {
	if len(recs) == 0 {
		return nil
	}
	if err := w.recall(ctx, recs[0]); err != nil {
		return nil //nolint:nilerr // ctx is over: what was fetched is read again by the next owner
	}
	defer w.count()
	w.received.fetched(recs, w.Now())
	now := time.Now()
	w.hold.mem.Tick(now)
	w.hold.unstored.Tick(now)
	for i := range recs {
		r := &recs[i]
		e, err := event.Decode(w.Kind, r.Wire)
		if errors.Is(err, event.ErrUnknownMajor) {
			return fmt.Errorf("offset %d of %s: %w", r.Offset, w.TP, err)
		}
		var p Plan
		// What stands in sessions too is a copy for the replayer.
		if err == nil && (w.Kind == event.Messages || e.Routes()[0].Kind == w.Kind) {
			p = w.Plan(e)
			if p.Skipped != "" && w.Kind == event.Messages { // of session events it is the replayer's business
				w.Metrics.Skipped.WithLabelValues("writer", p.Skipped).Inc()
			}
		}
		w.hold.add(r, now, p, err)
		if w.Kind == event.Messages {
			w.hold.note(e, p)
		}
		w.next = r.Offset + 1
	}
	return nil
}

// count reports what take has changed.
func (w *Worker) count() {
	w.Metrics.Elided.WithLabelValues(w.Storing.Sink).Add(float64(w.hold.elided))
	w.Metrics.Duplicates.WithLabelValues(w.Storing.Sink).Add(float64(w.hold.duplicates))
	w.hold.elided, w.hold.duplicates = 0, 0
	w.measure(len(w.hold.recs), w.hold.bytes)
}

// measure reports what is held, as the change since the last report: the gauge is shared by the sink's workers.
func (w *Worker) measure(records, bytes int) {
	w.Metrics.Buffered.WithLabelValues(w.Storing.Sink).Add(float64(records - w.hold.shown.records))
	w.Metrics.BufferedBytes.WithLabelValues(w.Storing.Sink).Add(float64(bytes - w.hold.shown.bytes))
	w.hold.shown.records, w.hold.shown.bytes = records, bytes
}

// recall fills the memory of written and acked messages from the last minutes of the log below the commit. Without it a publish
// that is repeated after its elision would be stored again, so it is tried until it succeeds or ctx ends. What retention has
// removed is too old to be repeated. A log that answers and does not give what it should hold (offsets without records) must not
// stop the partition for ever: then nothing elides that was minted before now.
func (w *Worker) recall(ctx context.Context, first Record) error {
	if w.recalled || w.Kind != event.Messages || w.Limits.Recall <= 0 {
		return nil
	}
	const patience = 5 // attempts
	silent := 0
	for attempt := 1; ; attempt++ {
		err := w.readBelow(ctx, first)
		if errors.Is(err, errNoAnswer) {
			silent++
		}
		switch {
		case err == nil, errors.Is(err, ErrGap):
			w.recalled = true
			return nil
		case silent >= patience:
			w.recalled = true
			w.hold.mark.at = w.Now()
			w.Log.WarnContext(ctx, "log below the commit not read, repeated publishes of that time are stored again", "topic", w.TP.Topic,
				"partition", w.TP.Part, "err", err)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case attempt == 1:
			w.Log.WarnContext(ctx, "log below the commit not read, will retry", "topic", w.TP.Topic, "partition", w.TP.Part, "err", err)
		}
		if err := Sleep(ctx, w.Storing.Backoff.Delay(attempt)); err != nil {
			return err
		}
	}
}

func (w *Worker) readBelow(ctx context.Context, first Record) error {
	from, err := w.Reader.OffsetAt(ctx, w.TP, first.Time.Add(-w.Limits.Recall))
	if err != nil {
		return err
	}
	from = max(from, first.Offset-int64(w.Limits.Memory/2))
	return readRange(ctx, w.Reader, w.TP, from, first.Offset, func(r Record) {
		if e, err := event.Decode(w.Kind, r.Wire); err == nil {
			w.hold.recall(w.Plan(e))
		}
	})
}

// stop finishes what is held and lets the partition stand still, uncommitted from there on, until somebody acts.
func (w *Worker) stop(ctx, hard context.Context, reason string, cause error) error {
	if err := w.flush(hard, true); err != nil {
		return err
	}
	w.Log.ErrorContext(ctx, "partition stands still", "topic", w.TP.Topic, "partition", w.TP.Part, "reason", reason, "err", cause)
	w.stopped = w.Metrics.Stopped.WithLabelValues(w.Group, reason)
	w.stopped.Inc()
	return errStopped
}

// errNoAnswer says that records which are known to be in the log do not come: an empty fetch is never taken for the end.
var errNoAnswer = errors.New("the log does not give what it holds")

// readRange reads the records [from, to) of a partition. It returns nil only when it has them all.
func readRange(ctx context.Context, l Log, tp TP, from, to int64, each func(Record)) error {
	if from >= to {
		return nil
	}
	s, err := l.Open(ctx, tp, from)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	for empty := 0; from < to && empty < 3; {
		recs, err := s.Fetch(ctx, int(min(to-from, 5000)), 200*time.Millisecond)
		if err != nil {
			return err
		}
		if empty++; len(recs) > 0 {
			empty = 0
		}
		for _, r := range recs {
			if r.Offset >= to {
				return nil
			}
			each(r)
			from = r.Offset + 1
		}
		if at := s.Position(); at > from { // offsets that hold no record
			from, empty = at, 0
		}
	}
	if from < to {
		return fmt.Errorf("offset %d of %s: %w", from, tp, errNoAnswer)
	}
	return nil
}
