package dead

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Office is where the dead letters are.
type Office struct {
	Log    pipeline.Log
	Topics pipeline.Topics
	Parts  int // of the dead-letter topic
	// Patience is how long Kafka may give nothing before a call returns with an error.
	Patience time.Duration
}

// Box is what the dead-letter topic held at one time. It is not safe for concurrent use.
type Box struct {
	office Office
	spans  map[int]pipeline.Span
	marks  map[Place]mark
	// first is a letter of each record, kin are the others of the few that have several.
	first map[origin]Place
	kin   map[origin][]Place
}

// Open reads the whole topic for its marks, which stand behind their letters.
func (o Office) Open(ctx context.Context) (*Box, error) {
	spans, err := o.Log.Spans(ctx, o.Topics.Dead, pipeline.Parts(o.Parts)...)
	if err != nil {
		return nil, err
	}
	b := &Box{office: o, spans: spans, marks: make(map[Place]mark), first: make(map[origin]Place), kin: make(map[origin][]Place)}
	return b, b.scan(ctx, func(r pipeline.Record) error {
		if p, m, ok := readMark(r); ok {
			if old, twice := b.marks[p]; !twice || !m.at.Before(old.at) {
				b.marks[p] = m
			}
			return nil
		}
		l := newLetter(r, o.Topics)
		who, place := l.origin(), l.At
		switch _, known := b.first[who]; {
		case who == origin{}:
		case known:
			b.kin[who] = append(b.kin[who], place)
		default:
			b.first[who] = place
		}
		return nil
	})
}

// scan calls each for all records, partition by partition.
func (b *Box) scan(ctx context.Context, each func(pipeline.Record) error) error {
	for n := range b.office.Parts {
		span, tp := b.spans[n], pipeline.TP{Topic: b.office.Topics.Dead, Part: n}
		err := pipeline.ReadAll(ctx, b.office.Log, tp, span.First, span.End, b.office.Patience, each)
		if errors.Is(err, pipeline.ErrGap) {
			return fmt.Errorf("%w: retention has removed letters meanwhile: begin again", err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Each calls fn for each letter that the filter selects, in the order of their places. An error of fn ends it and is returned.
// The letter is fn's.
func (b *Box) Each(ctx context.Context, f Filter, fn func(Letter) error) error {
	return b.scan(ctx, func(r pipeline.Record) error {
		if _, _, ok := readMark(r); ok {
			return nil
		}
		l := newLetter(r, b.office.Topics)
		if m, ok := b.marks[l.At]; ok {
			l.State, l.MarkedAt = m.state, m.at
		}
		if !f.Match(&l) {
			return nil
		}
		return fn(l)
	})
}

// errFound ends a search.
var errFound = errors.New("found")

// Letter returns the letter at a place, and false when none is there.
func (b *Box) Letter(ctx context.Context, at Place) (l Letter, found bool, err error) {
	span, ok := b.spans[at.Part]
	if !ok || at.Offset < span.First || at.Offset >= span.End {
		return Letter{}, false, nil
	}
	one := &Box{office: b.office, marks: b.marks, spans: map[int]pipeline.Span{at.Part: {First: at.Offset, End: at.Offset + 1}}}
	err = one.Each(ctx, Filter{}, func(x Letter) error {
		l = x
		return errFound
	})
	if errors.Is(err, errFound) {
		return l, true, nil
	}
	return Letter{}, false, err
}

// others are the places of all letters of the same record, without its own.
func (b *Box) others(l *Letter) []Place {
	who := l.origin()
	if who == (origin{}) {
		return nil
	}
	all := append([]Place{b.first[who]}, b.kin[who]...)
	return slices.DeleteFunc(all, func(p Place) bool { return p == l.At })
}

// kind is which of the topics a letter came from, "" = none of ours.
func (o Office) kind(l *Letter) event.Kind {
	switch l.Topic {
	case o.Topics.Messages:
		return event.Messages
	case o.Topics.Sessions:
		return event.Sessions
	}
	return ""
}
