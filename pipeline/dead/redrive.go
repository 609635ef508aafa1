package dead

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// Fate is what a redrive or a drop has done with a letter that was selected, or why it has left it.
type Fate string

// The fates.
const (
	// FateRedriven: the record is in its topic again, and the letter is marked; in a dry run, it would be.
	FateRedriven Fate = "redriven"
	// FateSame: another letter of the same record was redriven, and this one is marked with it.
	FateSame Fate = "same_record"
	// FateDropped: the letter is marked as dropped; in a dry run, it would be.
	FateDropped Fate = "dropped"
	// LeftMarked: it was redriven or dropped before.
	LeftMarked Fate = "left_marked"
	// LeftMalformed: it is still no event that can be made out, and would come back.
	LeftMalformed Fate = "left_malformed"
	// LeftOversize: its payload is still over ingest.max_payload.
	LeftOversize Fate = "left_oversize"
	// LeftOld: the stores may have forgotten that the message was acknowledged.
	LeftOld Fate = "left_old"
	// LeftSession: an event of a session says what was true then.
	LeftSession Fate = "left_session"
	// LeftNowhere: it does not say where it belongs, or in a topic that is not configured.
	LeftNowhere Fate = "left_nowhere"
	// LeftRefused: Kafka can never take the record.
	LeftRefused Fate = "left_refused"
)

// Fates are all of them.
var Fates = []Fate{
	FateRedriven, FateSame, FateDropped, LeftMarked, LeftMalformed, LeftOversize, LeftOld, LeftSession, LeftNowhere, LeftRefused,
}

// Tally counts letters by their fates.
type Tally map[Fate]int

// window is how many records are on their way before their letters are marked, and longest how long they wait for it: so many
// come again when a redrive is killed.
const (
	window  = 200
	longest = time.Second
)

// Redrive puts the records of letters back into the topics that they came from.
type Redrive struct {
	Filter   Filter
	Producer pipeline.Producer
	// DryRun appends nothing.
	DryRun bool
	// Again takes letters that were redriven or dropped before, too.
	Again bool
	// Sessions takes events of sessions, too.
	Sessions bool
	// MaxPayload is ingest's limit in bytes.
	MaxPayload int
	// MaxAge leaves letters whose event is older, 0 = none.
	MaxAge time.Duration
	// Rate is how many letters a second are put back, 0 = no limit.
	Rate float64
	Now  func() time.Time
	// Told is told the fate of each letter, in no order; nil = nobody.
	Told func(l *Letter, f Fate)

	box   *Box
	limit *rate.Limiter
	away  []away
	since time.Time // of the first of away
	done  map[Place]bool
	tally Tally
}

// away is a record on its way.
type away struct {
	letter  Letter
	receipt pipeline.Receipt
}

// Run puts back what the filter selects, and counts it. A letter counts as redriven when its record is durable with all replicas
// and its mark is too. When ctx ends what is on its way is finished while work lasts; the tally says how far it got, and the
// error is ctx's cause. Run is called once.
func (r *Redrive) Run(ctx, work context.Context, b *Box) (Tally, error) {
	r.box, r.tally, r.done = b, Tally{}, make(map[Place]bool)
	if r.Rate > 0 {
		r.limit = rate.NewLimiter(rate.Limit(r.Rate), 1)
	}
	err := b.Each(ctx, r.Filter, func(l Letter) error { return r.take(ctx, work, l) })
	return r.tally, errors.Join(err, r.settle(work))
}

func (r *Redrive) tell(l *Letter, f Fate) {
	r.tally[f]++
	if r.Told != nil {
		r.Told(l, f)
	}
}

// judge says why a letter is left where it is, or FateRedriven.
func (r *Redrive) judge(l *Letter) Fate {
	switch kind := r.box.office.kind(l); {
	case r.done[l.At]:
		return FateSame
	case l.State != Waiting && !r.Again:
		return LeftMarked
	case kind == "":
		return LeftNowhere
	case l.Event == nil:
		return LeftMalformed
	case kind == event.Sessions && !r.Sessions:
		return LeftSession
	case l.Reason == pipeline.ReasonOversize && len(l.Record.Value) > r.MaxPayload:
		return LeftOversize
	case r.MaxAge > 0 && r.Now().Sub(l.EventTime()) > r.MaxAge:
		return LeftOld
	}
	return FateRedriven
}

func (r *Redrive) take(ctx, work context.Context, l Letter) error {
	fate := r.judge(&l)
	if fate != FateRedriven {
		r.tell(&l, fate)
		return nil
	}
	if r.DryRun {
		r.together(&l)
		r.tell(&l, fate)
		return nil
	}
	if err := r.pause(ctx, work); err != nil {
		return err
	}
	// An old record keeps its event's time in a header: by its own time retention would remove it from its topic at once.
	receipt, err := r.Producer.Append(ctx, pipeline.Outgoing{Topic: l.Topic, Wire: event.Restamp(l.Record, r.Now())})
	switch {
	case fault.IsPoison(err):
		r.tell(&l, LeftRefused)
		return nil
	case err != nil:
		return fmt.Errorf("put letter %s back into %s: %w", l.At, l.Topic, err)
	}
	r.together(&l)
	if len(r.away) == 0 {
		r.since = time.Now()
	}
	l.Record.Value = nil // it is the producer's
	r.away = append(r.away, away{l, receipt})
	if len(r.away) < window && time.Since(r.since) < longest {
		return nil
	}
	return r.settle(work)
}

// pause keeps the rate. What is on its way does not wait for the next letter's turn to be marked.
func (r *Redrive) pause(ctx, work context.Context) error {
	if r.limit == nil {
		return nil
	}
	wait := r.limit.Reserve().Delay()
	if wait >= longest {
		if err := r.settle(work); err != nil {
			return err
		}
	}
	if err := pipeline.Sleep(ctx, wait); err != nil {
		return fmt.Errorf("wait for the next letter's turn: %w", err)
	}
	return nil
}

// together notes the other letters of the record: they are marked with this one.
func (r *Redrive) together(l *Letter) {
	for _, p := range r.box.others(l) {
		r.done[p] = true
	}
}

// settle waits until what is on its way is durable, and marks its letters then. Never in another order.
func (r *Redrive) settle(ctx context.Context) error {
	all := r.away
	r.away = nil
	var marks []pipeline.Receipt
	var marked []*Letter
	for i := range all {
		l := &all[i].letter
		if err := pipeline.Wait(ctx, all[i].receipt); fault.IsPoison(err) {
			r.tell(l, LeftRefused)
			continue
		} else if err != nil {
			return fmt.Errorf("put letter %s back into %s: %w", l.At, l.Topic, err)
		}
		for _, p := range append([]Place{l.At}, r.box.others(l)...) {
			m, err := r.Producer.Append(ctx, newMark(r.box.office.Topics.Dead, l.Record.Key, p, Redriven, r.Now()))
			if err != nil {
				return fmt.Errorf("mark letter %s: %w", p, err)
			}
			marks = append(marks, m)
		}
		marked = append(marked, l)
	}
	for _, m := range marks {
		if err := pipeline.Wait(ctx, m); err != nil {
			return fmt.Errorf("mark letters: %w", err)
		}
	}
	for _, l := range marked {
		r.tell(l, FateRedriven)
	}
	return nil
}
