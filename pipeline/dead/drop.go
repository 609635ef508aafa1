package dead

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/restante/restante/pipeline"
)

// Drop marks letters as not needed. They stay where they are, until retention removes them, and are listed as dropped.
type Drop struct {
	Filter   Filter
	Producer pipeline.Producer
	DryRun   bool // appends nothing
	Now      func() time.Time
	// Told is told the fate of each letter, in no order; nil = nobody.
	Told func(l *Letter, f Fate)
}

// errNoFilter is what a drop without a filter gets: nobody drops everything by a slip.
var errNoFilter = errors.New("drop needs a filter or the names of letters")

// Run marks what the filter selects and waits for somebody, and counts it. A letter counts as dropped when its mark is durable.
// When ctx ends what is on its way is finished while work lasts.
func (d *Drop) Run(ctx, work context.Context, b *Box) (Tally, error) {
	if d.Filter.IsZero() {
		return nil, errNoFilter
	}
	tally := Tally{}
	tell := func(l *Letter, f Fate) {
		tally[f]++
		if d.Told != nil {
			d.Told(l, f)
		}
	}
	var open []away
	settle := func() error {
		for i := range open {
			if err := pipeline.Wait(work, open[i].receipt); err != nil {
				return fmt.Errorf("mark letter %s: %w", open[i].letter.At, err)
			}
			tell(&open[i].letter, FateDropped)
		}
		open = nil
		return nil
	}
	err := b.Each(ctx, d.Filter, func(l Letter) error {
		switch {
		case l.State != Waiting:
			tell(&l, LeftMarked)
			return nil
		case d.DryRun:
			tell(&l, FateDropped)
			return nil
		}
		r, err := d.Producer.Append(ctx, newMark(b.office.Topics.Dead, l.Record.Key, l.At, Dropped, d.Now()))
		if err != nil {
			return fmt.Errorf("mark letter %s: %w", l.At, err)
		}
		l.Record.Value = nil
		if open = append(open, away{l, r}); len(open) < window {
			return nil
		}
		return settle()
	})
	return tally, errors.Join(err, settle())
}
