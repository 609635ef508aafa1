// Package audit compares what stands in the log with what stands in a store, by the positions of the store's writers, and names
// each difference. It changes nothing, and the pipeline may go on meanwhile: what is on its way is no difference.
package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// Kind is what is wrong.
type Kind string

// The kinds of differences.
const (
	// Missing: the message is in the log below the committed offset, was not acknowledged, has not expired, is in no dead letter,
	// and is not in the store.
	Missing Kind = "missing"
	// Undeleted: the message was acknowledged below the committed offset, and is in the store.
	Undeleted Kind = "undeleted"
	// Unknown: the message is in the store and never was in the log, which reaches back far enough.
	Unknown Kind = "unknown"
	// Stale: the retained message in the store is older than one below the committed offset.
	Stale Kind = "stale"
	// Differs: the message in the store is not what was published.
	Differs Kind = "differs"
	// Unburied: a record below the committed offset is no event of ours, and is in no dead letter.
	Unburied Kind = "unburied"
	// Skipped: retention has removed records before the writers had committed them.
	Skipped Kind = "skipped"
	// Beyond: the committed offset is behind the end of the log, so that what comes next is not read.
	Beyond Kind = "beyond"
)

// Kinds are all of them.
var Kinds = []Kind{Missing, Undeleted, Unknown, Stale, Differs, Unburied, Skipped, Beyond}

// Difference is one thing that does not agree.
type Difference struct {
	Kind    Kind
	Topic   event.Topic // zero where it is not about a message
	Message event.ID    // zero where it is not about a message
	TP      pipeline.TP // of the log
	Offset  int64       // of the record that it is about, < 0 = there is none
	// Says is a sentence with what was seen.
	Says string
}

// Books are the messages that were compared, by where they are. Every published one is in exactly one place.
type Books struct {
	Published int `json:"published"` // in the log, each id once
	Stored    int `json:"stored"`
	Acked     int `json:"acked"`     // acknowledged, and not in the store
	Expired   int `json:"expired"`   // not acknowledged, and not in the store any more
	Refused   int `json:"refused"`   // in the dead letters, and not in the store
	InFlight  int `json:"in_flight"` // not committed yet, and not in the store
	Missing   int `json:"missing"`   // see [Missing]
	// Undecided are in the log and not in the store, and so old that their ack may have been before the log's beginning.
	Undecided int `json:"undecided"`
	// Older are in the store and older than the log, which cannot say anything of them. They are not among Published.
	Older int `json:"older"`
	// Strangers are in the store and never were in the log: see [Unknown]. They are not among Published.
	Strangers int `json:"strangers"`
	// Retained are the retained messages in the store. They are not among Published.
	Retained int `json:"retained"`
	// Records is how many records were read.
	Records int `json:"records"`
}

// Add adds other books.
func (b *Books) Add(o Books) {
	b.Published += o.Published
	b.Stored += o.Stored
	b.Acked += o.Acked
	b.Expired += o.Expired
	b.Refused += o.Refused
	b.InFlight += o.InFlight
	b.Missing += o.Missing
	b.Undecided += o.Undecided
	b.Older += o.Older
	b.Strangers += o.Strangers
	b.Retained += o.Retained
	b.Records += o.Records
}

// Audit is the audit of one sink.
type Audit struct {
	Log    pipeline.Log
	Topics pipeline.Topics
	// Parts is the configured number of partitions of the messages topic, SessionParts and DeadParts are those of the others.
	Parts, SessionParts, DeadParts int
	// Partition is the producer's: murmur2(key) mod Parts.
	Partition func(key string) int
	Group     string           // of the sink's writers
	Plan      pipeline.Planner // of the sink
	Store     sinks.Reader
	// Retained says that rules of the sink store retained messages: they are compared too.
	Retained bool
	// Filter selects topics. Since and Until bound the times of the message ids: Since ≤ time < Until; zero = no bound.
	Filter       event.Filter
	Since, Until time.Time
	Now          func() time.Time
	// Patience is how long Kafka may give nothing before Run returns an error.
	Patience time.Duration
	// Found is told of each difference. An error of it ends the audit.
	Found func(Difference) error

	committed map[int]int64
	letters   letters
	topics    map[int][]event.Topic // of the store, by partition
	retained  map[int]map[event.Topic]sinks.Message
}

const (
	// slack is how far the time of a record may lie from that of its message's id: an id is within 5 minutes of its publish, and a
	// publish within 5 minutes of its record.
	slack = 10 * time.Minute
	page  = 500
)

// Run compares one partition after another. An error says that the audit is not complete; the differences that were found stand.
//
// The order of reading makes it right beside running writers. What was committed before anything else was read must have had its
// effect by then; and the end of the log is read last, so that whatever had an effect on what was read from the store is in it.
func (a *Audit) Run(ctx context.Context) (Books, error) {
	var all Books
	parts := a.parts()
	err := a.again(ctx, func() (err error) {
		a.committed, err = a.Log.Committed(ctx, a.Group, a.Topics.Messages, parts...)
		return err
	})
	if err != nil {
		return all, err
	}
	if a.letters, err = a.readLetters(ctx); err != nil {
		return all, fmt.Errorf("read the dead letters: %w", err)
	}
	if a.topics, err = a.storedTopics(ctx); err != nil {
		return all, fmt.Errorf("read the topics of the store: %w", err)
	}
	if a.retained, err = a.readRetained(ctx); err != nil {
		return all, fmt.Errorf("read the retained messages of the store: %w", err)
	}
	if err := a.sessions(ctx); err != nil {
		return all, fmt.Errorf("audit %s: %w", a.Topics.Sessions, err)
	}
	for _, n := range parts {
		b, err := a.partition(ctx, n)
		all.Add(b)
		if err != nil {
			return all, fmt.Errorf("audit %s/%d: %w", a.Topics.Messages, n, err)
		}
	}
	return all, nil
}

// sessions looks at the positions of the writers in the sessions topic. What its events lead to is not compared.
func (a *Audit) sessions(ctx context.Context) error {
	var committed map[int]int64
	parts := pipeline.Parts(a.SessionParts)
	err := a.again(ctx, func() (err error) {
		committed, err = a.Log.Committed(ctx, a.Group, a.Topics.Sessions, parts...)
		return err
	})
	if err != nil {
		return err
	}
	for _, n := range parts {
		tp := pipeline.TP{Topic: a.Topics.Sessions, Part: n}
		span, err := a.span(ctx, tp)
		if err != nil {
			return err
		}
		if err := a.position(tp, span, committed[n]); err != nil {
			return err
		}
	}
	return nil
}

// position looks at a committed offset alone.
func (a *Audit) position(tp pipeline.TP, span pipeline.Span, committed int64) error {
	d := Difference{TP: tp, Offset: committed}
	switch {
	case committed > span.End:
		d.Kind = Beyond
		d.Says = fmt.Sprintf("the writers have committed offset %d, and the log ends at %d: what comes next is not read", committed, span.End)
	case committed >= 0 && committed < span.First:
		d.Kind = Skipped
		d.Says = fmt.Sprintf("the writers have committed offset %d, and the log begins at %d: %d records are gone that they have not stored", committed, span.First, span.First-committed)
	default:
		return nil
	}
	return a.Found(d)
}

// parts are the partitions that the filter's topics can be in.
func (a *Audit) parts() []int {
	if t, ok := a.Filter.Exact(); ok {
		return []int{a.Partition(t.String())}
	}
	return pipeline.Parts(a.Parts)
}

// storedTopics are the topics of the store that the filter matches.
func (a *Audit) storedTopics(ctx context.Context) (map[int][]event.Topic, error) {
	out := make(map[int][]event.Topic)
	for after := (event.Topic{}); ; {
		var ts []event.Topic
		err := a.again(ctx, func() (err error) {
			ts, err = a.Store.Topics(ctx, a.Filter, after, page)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, t := range ts {
			n := a.Partition(t.String())
			out[n] = append(out[n], t)
		}
		if len(ts) < page {
			return out, nil
		}
		after = ts[len(ts)-1]
	}
}

// within reports whether a message id is in the range of time.
func (a *Audit) within(id event.ID) bool {
	t := id.Time()
	return (a.Since.IsZero() || !t.Before(a.Since)) && (a.Until.IsZero() || t.Before(a.Until))
}

// partition compares one partition.
func (a *Audit) partition(ctx context.Context, n int) (Books, error) {
	b, err := a.open(ctx, n)
	if err != nil {
		return Books{}, err
	}
	if err := a.position(b.tp, b.span, b.committed); err != nil {
		return b.sum, err
	}
	if err := b.read(ctx); err != nil {
		return b.sum, err
	}
	for _, t := range b.listed() {
		if err := b.compare(ctx, t); err != nil {
			return b.sum, err
		}
	}
	if err := b.readOn(ctx); err != nil {
		return b.sum, err
	}
	return b.sum, b.judge()
}

// open finds where the log of a partition begins and how far back it can speak.
func (a *Audit) open(ctx context.Context, n int) (*book, error) {
	tp := pipeline.TP{Topic: a.Topics.Messages, Part: n}
	span, err := a.span(ctx, tp)
	if err != nil {
		return nil, err
	}
	b := &book{
		a: a, tp: tp, span: span, from: span.First, committed: a.committed[n], entries: make(map[key]*entry), names: make(map[event.Topic]event.Topic),
		retained: make(map[event.Topic]*kept), rows: a.retained[n],
	}
	if !a.Since.IsZero() {
		err := a.again(ctx, func() (err error) {
			b.from, err = a.Log.OffsetAt(ctx, tp, a.Since.Add(-slack))
			return err
		})
		if err != nil {
			return nil, err
		}
		b.from = max(b.from, span.First)
	}
	b.to = b.from
	b.whole = span.First == 0 || b.from > span.First
	return b, nil
}

// span is what a partition holds now.
func (a *Audit) span(ctx context.Context, tp pipeline.TP) (pipeline.Span, error) {
	var spans map[int]pipeline.Span
	err := a.again(ctx, func() (err error) {
		spans, err = a.Log.Spans(ctx, tp.Topic, tp.Part)
		return err
	})
	return spans[tp.Part], err
}

// again is [pipeline.Patiently]: what is transient is no end.
func (a *Audit) again(ctx context.Context, fn func() error) error {
	return pipeline.Patiently(ctx, a.Patience, fn)
}

// letters are the dead letters that the writers of the sink wrote, and how far back they reach.
type letters struct {
	at    map[pipeline.TP]map[int64]bool // of their records
	reach time.Time                      // zero = all that there ever were
}

func (l letters) has(r pipeline.Record) bool { return l.at[r.TP][r.Offset] }

func (a *Audit) readLetters(ctx context.Context) (letters, error) {
	out := letters{at: make(map[pipeline.TP]map[int64]bool)}
	for n := range a.DeadParts {
		tp := pipeline.TP{Topic: a.Topics.Dead, Part: n}
		span, err := a.span(ctx, tp)
		if err != nil {
			return out, err
		}
		first := true
		err = pipeline.ReadAll(ctx, a.Log, tp, span.First, span.End, a.Patience, func(r pipeline.Record) error {
			if first && span.First > 0 && r.Time.After(out.reach) {
				out.reach = r.Time
			}
			first = false
			o, _, ok := pipeline.ReadObituary(r.Headers)
			if !ok || o.By != a.Group || o.Offset == pipeline.NoOffset {
				return nil
			}
			tp := pipeline.TP{Topic: o.Topic, Part: o.Part}
			if out.at[tp] == nil {
				out.at[tp] = make(map[int64]bool)
			}
			out.at[tp][o.Offset] = true
			return nil
		})
		if err != nil {
			return out, err
		}
		if first && span.First > 0 { // all that there was is gone
			out.reach = a.Now()
		}
	}
	return out, nil
}

// errGapped is what retention does to an audit that is slower.
var errGapped = errors.New("retention has removed records while they were read: begin again, or give a range of time")
