package cassandra

import (
	"context"
	"slices"
	"time"

	"github.com/gocql/gocql"

	"github.com/restante/restante/event"
)

// The low mark of a topic: no message has an id below it, but in the hours that are listed as late. Without it a read begins at
// the oldest id and has to walk over the tombstones of all that was acknowledged in the last gc_grace_seconds.
//
// Nothing is ever hidden by it, for these reasons:
//
//  1. A mark moves only over ids that a read from the mark before has just found empty, at a consistency at which it must
//     have seen all that was durable (session.overlap).
//  2. It stays an hour behind the reader's clock. A message that becomes durable later than that read was judged at most five
//     minutes earlier (applyTime). Either it was younger than 30 minutes then (lateAge), so its id is above the mark as long as
//     the clocks are no further apart than the 25 minutes between; or its hour was listed, durably, before it was written.
//  3. A listed hour is never taken back: it goes with its time to live, which is longer than that of the messages it was listed
//     for. That an hour is empty says nothing: a writer may have listed it for a message that is not there yet.
//  4. The list is read before the messages, so that a message whose Apply returned before the read began is in the ranges.
//  5. A mark is a register of the greatest: it is written at its own time, so two readers cannot move it back, nor is a mark that
//     comes late of any effect. It expires after a while; then a read begins at the oldest id again, which is right, only slow.
//  6. Somebody else who writes the table lists no hours. Where rows are seen that are not ours, the topic's mark is neither used nor
//     moved for 30 days since the last was seen. Who loads old rows into topics that only Restante used sets Config.Foreign.
//
// An hour stays in the list as long as its messages could live. So that reads need not walk over all that was acknowledged in it,
// it has a mark of its own: late.go.
const (
	markBehind = time.Hour
	markStep   = 10 * time.Minute // a mark that only time would move, by less, stays
	markLife   = 30 * 24 * time.Hour
	othersLife = 30 * 24 * time.Hour
	othersStep = 24 * time.Hour
	// slowRead and slowRow, for each row that came, are how long a read takes that is worth a mark even if no server warned.
	slowRead = 25 * time.Millisecond
	slowRow  = 50 * time.Microsecond
)

// lowRow is a row of mqtt_topic_low.
type lowRow struct {
	low    event.ID
	late   []int64 // hours since 1970
	props  bool
	others time.Time // when rows were seen that are not ours, zero = never

	sums map[int64]string   // the late hours' tokens
	from map[int64]event.ID // the marks of late hours that are to be trusted
}

func (s *Store) lowOf(ctx context.Context, t event.Topic) (lowRow, error) {
	var low string
	var row lowRow
	var tokens map[string]int64
	var seen map[int64]string
	_, err := s.read(ctx, reading{
		st: statement{selectLow, []any{t.String()}}, rows: 1,
		begin: func() { low, row, tokens, seen = "", lowRow{}, nil, nil },
		scan:  func(i *gocql.Iter) bool { return i.Scan(&low, &row.late, &row.props, &row.others, &tokens, &seen) },
	})
	if err != nil {
		return lowRow{}, err
	}
	if low != "" {
		if row.low, err = event.ParseID(low); err != nil {
			s.cfg.Metrics.Count(Unreadable, 1) // without a mark all is read
			row.low = event.ID{}
		}
	}
	slices.Sort(row.late)
	if !row.judge(tokens, seen) {
		s.cfg.Metrics.Count(Unreadable, 1) // so is all of each late hour
	}
	return row, nil
}

// trusted reports whether the mark may be used and moved.
func (s *Store) trusted(r lowRow) bool { return !s.cfg.Foreign && r.others.IsZero() }

// span is a range of ids: after < id ≤ until.
type span struct{ after, until event.ID }

func (p span) empty() bool { return p.after.Compare(p.until) >= 0 }

// spans are the ranges in (after, until] that may hold messages, ascending: the late hours below the mark, and all from it on.
// The last one begins at the mark, or after.
func (r lowRow) spans(after, until event.ID) []span {
	var all []span
	add := func(p span) {
		if p.after.Compare(after) < 0 {
			p.after = after
		}
		if p.until.Compare(until) > 0 {
			p.until = until
		}
		switch last := len(all) - 1; {
		case p.empty():
		case last >= 0 && all[last].until.Compare(p.after) >= 0:
			if all[last].until.Compare(p.until) < 0 {
				all[last].until = p.until
			}
		default:
			all = append(all, p)
		}
	}
	if low := r.bottom(); !low.IsZero() {
		before := low.Before()
		for _, hour := range r.late {
			p := span{r.begin(hour).Before(), endOf(hour).Before()}
			if p.until.Compare(before) > 0 {
				p.until = before
			}
			if !p.empty() {
				add(p)
			}
		}
		if before.Compare(after) > 0 {
			after = before
		}
	}
	if p := (span{after, until}); !p.empty() {
		add(p)
	}
	return all
}

// bottom is the mark, or what the mark of the late hour that it stands in adds to it; zero = there is no mark.
func (r lowRow) bottom() event.ID {
	low := r.low
	if low.IsZero() {
		return low
	}
	for _, hour := range r.late {
		if from := r.begin(hour); low.Compare(beginOf(hour)) >= 0 && from.Compare(low) > 0 {
			low = from
		}
	}
	return low
}

// learn keeps what the read has shown for reads to come: that others write the table, or how far marks may move. Only a read that
// was slow moves marks. That they did not move is no error: the next read tries again.
func (w *walk) learn(ctx context.Context) error {
	s := w.store
	if s.cfg.Look {
		return nil
	}
	if w.others && !s.cfg.Foreign {
		return s.noteOthers(ctx, w.q.Topic, w.row) // a mark may hide what is not ours, unless this is known
	}
	if !w.dear || w.others || !s.trusted(w.row) {
		return nil
	}
	moves := w.moves(s.cfg.Now())
	if len(moves) == 0 {
		return nil
	}
	l, err := s.link.get(ctx)
	if err != nil || !l.overlap {
		return nil //nolint:nilerr // the read itself is done
	}
	if err := s.exec(ctx, l, moves); err != nil {
		s.cfg.Log.DebugContext(ctx, "low marks not moved", "topic", w.q.Topic.String(), "err", err)
		return nil
	}
	s.cfg.Metrics.Count(Marks, len(moves))
	return nil
}

// moves are the marks that the read moves.
func (w *walk) moves(now time.Time) []statement {
	most := event.FirstIDAt(now.Add(-markBehind))
	all := w.sightings(now, most)
	low := w.row.bottom()
	if first, ok := w.least(low); ok {
		if first, ok = moved(low, first, most); ok {
			all = append(all, setMark(w.q.Topic, first))
		}
	}
	return all
}

func setMark(t event.Topic, low event.ID) statement {
	return statement{setLow, []any{low.Micros(), int(markLife / time.Second), low.String(), t.String()}}
}

// moved is where a mark goes when first is the least id above it, not beyond most; false when it stays.
func moved(from, first, most event.ID) (event.ID, bool) {
	step := int64(0)
	if first.Compare(most) > 0 {
		first, step = most, markStep.Microseconds() // else each read would move it
	}
	return first, first.Compare(from) > 0 && first.Micros()-from.Micros() >= step
}

// noteOthers says durably that rows were seen that are not ours, so that no mark can hide more of them.
func (s *Store) noteOthers(ctx context.Context, t event.Topic, row lowRow) error {
	now := s.cfg.Now()
	if now.Sub(row.others).Abs() < othersStep {
		return nil
	}
	l, err := s.link.get(ctx)
	if err != nil {
		return err
	}
	return s.exec(ctx, l, []statement{{setOthers, []any{now.UnixMicro(), int(othersLife / time.Second), now, t.String()}}})
}
