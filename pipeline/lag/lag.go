// Package lag observes how far consumer groups are behind the log. It asks as somebody who is no member of them: what a group tells of
// itself is silent just when all its members are dead.
package lag

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/pipeline"
)

// Group is a consumer group and the full names of the topics that it reads.
type Group struct {
	Name   string
	Topics []string
}

// Counter tells how many partitions a topic has. It is asked from one goroutine.
type Counter interface {
	PartitionCount(ctx context.Context, topic string) (int, error)
}

// Observer looks at all partitions of its groups again and again. All fields are required; make it ready with [New].
type Observer struct {
	Reader     pipeline.Log
	Topics     Counter
	Groups     []Group
	Partitions map[string]int // as configured, of each topic
	Dead       string         // the topic of the dead letters
	Every      time.Duration  // from look to look
	Metrics    *Metrics
	Log        *slog.Logger
	Now        func() time.Time // wall clock

	ages map[place]age
	said pipeline.Rarely
}

// place is a partition as a group sees it, or, without one, whoever looks for its first record.
type place struct {
	group string
	tp    pipeline.TP
}

// age is the time of the record at an offset. What stands still is read once.
type age struct {
	offset int64
	at     time.Time
}

// New makes the unexported parts of o and returns it.
func New(o *Observer) *Observer {
	o.ages = map[place]age{}
	return o
}

// Run looks until ctx ends, and at once for the first time. A look that fails is said and tried again; what was seen before stays, and
// its age can be told by restante_kafka_lag_observed_timestamp_seconds. It returns nil.
func (o *Observer) Run(ctx context.Context) error {
	for {
		o.Look(ctx)
		if pipeline.Sleep(ctx, o.Every) != nil {
			return nil
		}
	}
}

// Look looks once.
func (o *Observer) Look(ctx context.Context) {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var errs []error
	for _, g := range o.Groups {
		err := o.group(ctx, g)
		if err == nil {
			o.Metrics.observed.WithLabelValues(g.Name).Set(float64(o.Now().UnixMilli()) / 1e3)
		}
		errs = append(errs, err)
	}
	for topic := range o.Partitions {
		n, err := o.Topics.PartitionCount(ctx, topic)
		if err == nil {
			o.Metrics.partitions.WithLabelValues(topic).Set(float64(n))
		}
		errs = append(errs, err)
	}
	errs = append(errs, o.dead(ctx))
	if err := errors.Join(errs...); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		o.said.Say(func(before int) {
			o.Log.WarnContext(ctx, "lag not observed, will be tried again", "err", err, "unsaid", before)
		})
	}
}

// group looks at one group: first at what it has committed, then at the ends, so that no lag is below 0.
func (o *Observer) group(ctx context.Context, g Group) error {
	var errs []error
	for _, topic := range g.Topics {
		parts := pipeline.Parts(o.Partitions[topic])
		committed, err := o.Reader.Committed(ctx, g.Name, topic, parts...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		spans, err := o.Reader.Spans(ctx, topic, parts...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		const atOnce = 8 // partitions that are read
		all, ctx := errgroup.WithContext(ctx)
		all.SetLimit(atOnce)
		found := make([]age, len(parts))
		for _, p := range parts {
			from := max(committed[p], spans[p].First) // < 0 = nothing is committed: all is before it
			o.Metrics.records.WithLabelValues(g.Name, topic, strconv.Itoa(p)).Set(float64(max(spans[p].End-from, 0)))
			tp := pipeline.TP{Topic: topic, Part: p}
			known := o.ages[place{g.Name, tp}]
			all.Go(func() error {
				var err error
				found[p], err = o.age(ctx, tp, from, spans[p].End, known)
				return err
			})
		}
		errs = append(errs, all.Wait())
		now := o.Now()
		for _, p := range parts {
			seconds, a := 0.0, found[p]
			switch {
			case a == age{}: // it could not be told
				continue
			case !a.at.IsZero():
				seconds = max(0, now.Sub(a.at).Seconds())
			}
			o.ages[place{g.Name, pipeline.TP{Topic: topic, Part: p}}] = a
			o.Metrics.seconds.WithLabelValues(g.Name, topic, strconv.Itoa(p)).Set(seconds)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("observe group %s: %w", g.Name, err)
	}
	return nil
}

// age is that of the first record in [from, end): with a zero time when there is none.
func (o *Observer) age(ctx context.Context, tp pipeline.TP, from, end int64, known age) (age, error) {
	const (
		wait     = time.Second
		attempts = 5
	)
	none := age{offset: -1}
	if from >= end {
		return none, nil
	}
	if known.offset == from && !known.at.IsZero() {
		return known, nil
	}
	s, err := o.Reader.Open(ctx, tp, from)
	if err != nil {
		return age{}, err
	}
	defer func() { _ = s.Close() }() // nothing is lost with a reader
	for range attempts {
		recs, err := s.Fetch(ctx, 1, wait)
		switch {
		case errors.Is(err, pipeline.ErrGap): // retention was faster; the next look sees it
			return age{}, nil
		case err != nil:
			return age{}, err
		case len(recs) > 0:
			return age{offset: from, at: recs[0].Time}, nil
		case s.Position() >= end: // offsets that hold no record
			return none, nil
		}
	}
	return age{}, fmt.Errorf("read %s at %d: no record came", tp, from)
}

// dead counts the dead letters, and finds the eldest.
func (o *Observer) dead(ctx context.Context) error {
	parts := pipeline.Parts(o.Partitions[o.Dead])
	spans, err := o.Reader.Spans(ctx, o.Dead, parts...)
	if err != nil {
		return fmt.Errorf("observe the dead letters: %w", err)
	}
	var n int64
	for _, s := range spans {
		n += s.End - s.First
	}
	o.Metrics.dead.WithLabelValues(o.Dead).Set(float64(n))
	var eldest time.Time // zero = there is none
	for _, p := range parts {
		at := place{tp: pipeline.TP{Topic: o.Dead, Part: p}}
		a, err := o.age(ctx, at.tp, spans[p].First, spans[p].End, o.ages[at])
		if err != nil {
			return fmt.Errorf("observe the dead letters: %w", err)
		}
		if a == (age{}) { // it could not be told
			return nil
		}
		o.ages[at] = a
		if !a.at.IsZero() && (eldest.IsZero() || a.at.Before(eldest)) {
			eldest = a.at
		}
	}
	seconds := 0.0
	if !eldest.IsZero() {
		seconds = float64(eldest.UnixMilli()) / 1e3
	}
	o.Metrics.eldest.WithLabelValues(o.Dead).Set(seconds)
	return nil
}
