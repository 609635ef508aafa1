// Package trace tells what has happened to one message or to one client: from the log, the dead letters and the stores, one line an
// event. It only reads.
package trace

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
	"github.com/restante/restante/sinks"
)

// What is what a line is about. The set is closed.
type What string

// The kinds of lines.
const (
	Published    What = "published"
	Acked        What = "acked"
	ReplayAcked  What = "replay acked"
	Replayed     What = "replayed" // the broker has named a replay; sources that tell more need no such event
	Dropped      What = "dropped"  // the broker gave up a delivery
	Subscribed   What = "subscribed"
	Unsubscribed What = "unsubscribed"
	Connected    What = "connected"
	Disconnected What = "disconnected"
	Continued    What = "continued" // a long replay went on in another slice
	DeadLetter   What = "dead letter"
	Stored       What = "stored"     // it is in a store now
	NotStored    What = "not stored" // it is not in a store, and that is right
	Missing      What = "missing"    // it is not in a store, and should be
	State        What = "state"      // of a client, as a store has it now
)

// Line is one thing that happened, or that holds now.
type Line struct {
	At      time.Time // zero = it holds now
	What    What
	TP      pipeline.TP // of the record; the zero TP where it is about a store
	Offset  int64       // of the record
	Sink    string      // "" = it is about no sink
	Topic   event.Topic
	Client  event.ClientID
	Message event.ID
	Says    string // a sentence with what else is known
}

// Sink is a store to be asked.
type Sink struct {
	Name  string
	Group string           // of its writers
	Plan  pipeline.Planner // of the sink
	Store sinks.Reader
}

// Tracer reads. One value makes one trace.
type Tracer struct {
	Log    pipeline.Log
	Topics pipeline.Topics
	// Parts, SessionParts and DeadParts are the configured numbers of partitions.
	Parts, SessionParts, DeadParts int
	// Partition is the producer's: where a key is, among so many partitions.
	Partition func(key string, parts int) int
	Sinks     []Sink
	// Since is where the log is read from; zero = its beginning.
	Since time.Time
	// Most is how many lines are kept, the newest; 0 = all.
	Most int
	// Hold is how long writers hold fresh messages: one that is acknowledged within that may never have been written.
	Hold time.Duration
	Now  func() time.Time
	// Patience is how long Kafka and the stores may give nothing before a call returns an error.
	Patience time.Duration

	lines []Line
	cut   bool
}

// errGapped is what retention does to a trace that is slower.
var errGapped = errors.New("retention has removed records while they were read: begin again")

// again is [pipeline.Patiently].
func (t *Tracer) again(ctx context.Context, fn func() error) error {
	return pipeline.Patiently(ctx, t.Patience, fn)
}

// add keeps a line. The oldest go where there are too many.
func (t *Tracer) add(l Line) {
	t.lines = append(t.lines, l)
	if t.Most > 0 && len(t.lines) >= 2*t.Most {
		t.sort()
		t.lines = slices.Clone(t.lines[len(t.lines)-t.Most:])
		t.cut = true
	}
}

// sort orders the lines by time, those that hold now at the end.
func (t *Tracer) sort() {
	slices.SortStableFunc(t.lines, func(a, b Line) int {
		if a.At.IsZero() != b.At.IsZero() {
			if a.At.IsZero() {
				return 1
			}
			return -1
		}
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.TP.Topic, b.TP.Topic), cmp.Compare(a.TP.Part, b.TP.Part), cmp.Compare(a.Offset, b.Offset))
	})
}

// done are the lines; cut says that older ones were left out.
func (t *Tracer) done() (lines []Line, cut bool) {
	t.sort()
	if t.Most > 0 && len(t.lines) > t.Most {
		return t.lines[len(t.lines)-t.Most:], true
	}
	return t.lines, t.cut
}

// read calls each for the records since the beginning of the trace that have any of the marks: in the key, or as the value of a header.
func (t *Tracer) read(ctx context.Context, tp pipeline.TP, marked func(pipeline.Record) bool, each func(pipeline.Record)) error {
	var span pipeline.Span
	from := int64(0)
	err := t.again(ctx, func() error {
		spans, err := t.Log.Spans(ctx, tp.Topic, tp.Part)
		if err != nil {
			return err
		}
		span = spans[tp.Part]
		from = span.First
		if !t.Since.IsZero() {
			var at int64
			if at, err = t.Log.OffsetAt(ctx, tp, t.Since); err == nil {
				from = max(from, at)
			}
		}
		return err
	})
	if err != nil || from >= span.End {
		return err
	}
	err = pipeline.ReadAll(ctx, t.Log, tp, from, span.End, t.Patience, func(r pipeline.Record) error {
		if marked(r) {
			each(r)
		}
		return nil
	})
	if errors.Is(err, pipeline.ErrGap) {
		return fmt.Errorf("%w: %w", errGapped, err)
	}
	return err
}

// everywhere reads all partitions of a topic.
func (t *Tracer) everywhere(ctx context.Context, topic string, parts int, marked func(pipeline.Record) bool, each func(pipeline.Record)) error {
	for n := range parts {
		if err := t.read(ctx, pipeline.TP{Topic: topic, Part: n}, marked, each); err != nil {
			return err
		}
	}
	return nil
}

// has reports whether a header of the record has the value.
func has(r pipeline.Record, key string, value []byte) bool {
	for i := range r.Headers {
		if r.Headers[i].Key == key && bytes.Equal(r.Headers[i].Value, value) {
			return true
		}
	}
	return false
}

// line is what a record says.
func line(r pipeline.Record, e event.Event) Line {
	l := Line{At: r.Time.UTC(), TP: r.TP, Offset: r.Offset}
	switch e := e.(type) {
	case event.Published:
		l.What, l.Topic, l.Client, l.Message = Published, e.Topic, e.Sender, e.ID
		l.Says = fmt.Sprintf("QoS %d, %d bytes", e.QoS, len(e.Payload))
		if e.Retain {
			l.Says += ", retained"
		}
		if e.Expiry > 0 {
			l.Says += ", expires after " + e.Expiry.String()
		}
	case event.Acked:
		l.What, l.Topic, l.Client, l.Message = Acked, e.Topic, e.Client, e.Message
		if e.Replayed {
			l.What = ReplayAcked
		}
		if !e.BrokerID.IsZero() {
			l.Says = "by the broker's id " + e.BrokerID.String()
		}
	case event.Replayed:
		l.What, l.Topic, l.Client, l.Message = Replayed, e.Topic, e.Client, e.Message
		l.Says = "the broker calls it " + e.BrokerID.String()
	case event.Dropped:
		l.What, l.Topic, l.Client, l.Message, l.Says = Dropped, e.Topic, e.Client, e.Message, e.Reason
	case event.Subscribed:
		l.What, l.Client, l.Says = Subscribed, e.Client, fmt.Sprintf("%s at QoS %d", e.Filter, e.QoS)
		if e.New == event.No {
			l.Says += ", which it had before"
		}
	case event.Unsubscribed:
		l.What, l.Client, l.Says = Unsubscribed, e.Client, e.Filter.String()
	case event.Connected:
		l.What, l.Client, l.Says = Connected, e.Client, connected(e)
	case event.Disconnected:
		l.What, l.Client, l.Says = Disconnected, e.Client, e.Reason
	case event.ReplayContinued:
		l.What, l.Client, l.Says = Continued, e.Client, fmt.Sprintf("%s by rule %s, slice %d", e.Filter, e.Rule, e.Slice+1)
	}
	return l
}

func connected(e event.Connected) string {
	text := "session unknown"
	switch {
	case e.SessionPresent == event.Yes:
		text = "session resumed"
	case fresh(e):
		text = "new session"
	}
	if e.Node != "" {
		text += " on " + e.Node
	}
	return text
}

// letters tells of the dead letters that are wanted.
func (t *Tracer) letters(ctx context.Context, f dead.Filter, wanted func(*dead.Letter) bool) (found int, err error) {
	office := dead.Office{Log: t.Log, Topics: t.Topics, Parts: t.DeadParts, Patience: t.Patience}
	box, err := office.Open(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the dead letters: %w", err)
	}
	err = box.Each(ctx, f, func(l dead.Letter) error {
		if !wanted(&l) {
			return nil
		}
		found++
		says := fmt.Sprintf("letter %s by %s, %s: %s: %s", l.At, l.By, l.State, l.Reason, l.Cause)
		t.add(Line{At: l.BuriedAt.UTC(), What: DeadLetter, TP: pipeline.TP{Topic: t.Topics.Dead, Part: l.At.Part}, Offset: l.At.Offset, Says: says})
		return nil
	})
	return found, err
}
