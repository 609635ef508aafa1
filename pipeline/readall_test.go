package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

// sips is a log that gives a few records at a time.
type sips struct{ pipeline.Log }

func (s sips) Open(ctx context.Context, tp pipeline.TP, from int64) (pipeline.Stream, error) {
	stream, err := s.Log.Open(ctx, tp, from)
	return sip{stream}, err
}

type sip struct{ pipeline.Stream }

func (s sip) Fetch(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	return s.Stream.Fetch(ctx, min(limit, 4), wait)
}

func TestReadAllGivesEveryRecordOnceWhateverFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tp := pipeline.TP{Topic: "x"}
		cluster := fakelog.New(fakelog.Config{Partitions: map[string]int{"x": 1}})
		var want []string
		for i := range 30 {
			want = append(want, fmt.Sprint(i))
			cluster.Put(pipeline.Outgoing{Topic: "x", Wire: event.Wire{Value: []byte(want[i]), Time: time.Now()}})
			if i%7 == 0 {
				cluster.Mark(tp) // an offset without a record
			}
		}
		cluster.Mark(tp)
		c := cluster.Client()
		calls, since := 0, time.Now()
		var failing func() error
		c.Hook = func(context.Context, fakelog.Call) fakelog.Verdict {
			calls++
			return fakelog.Verdict{Err: failing()}
		}
		read := func(to int64, refuse string) (got []string, err error) {
			since, calls = time.Now(), 0
			err = pipeline.ReadAll(t.Context(), sips{c.Log()}, tp, 0, to, time.Minute, func(r pipeline.Record) error {
				if string(r.Value) == refuse {
					return errDown
				}
				got = append(got, string(r.Value))
				return nil
			})
			return got, err
		}
		end := cluster.Span(tp).End
		failing = func() error {
			if calls%3 == 0 {
				return errDown
			}
			return nil
		}
		got, err := read(end, "")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		failing = func() error { return nil }
		if got, err = read(5, ""); len(got) != 4 || err != nil { // one of the offsets has no record
			t.Errorf("below offset 5: %q, %v", got, err)
		}
		if got, err = read(end, "9"); len(got) != 9 || !errors.Is(err, errDown) || time.Since(since) > 0 {
			t.Errorf("a record that is refused: %q, %v after %v", got, err, time.Since(since))
		}
		failing = func() error { return errDown }
		if _, err = read(end, ""); !errors.Is(err, errDown) || time.Since(since) < time.Minute || time.Since(since) > 2*time.Minute {
			t.Errorf("a log that is away: %v after %v", err, time.Since(since))
		}
		failing = func() error { return fault.Fatal(errDown) }
		if _, err = read(end, ""); !fault.IsFatal(err) || time.Since(since) > 0 {
			t.Errorf("a login that is refused: %v after %v", err, time.Since(since))
		}
		failing = func() error { return nil }
		cluster.Retain(tp, 3)
		if _, err = read(end, ""); !errors.Is(err, pipeline.ErrGap) || time.Since(since) > 0 {
			t.Errorf("a log that was cut: %v after %v", err, time.Since(since))
		}
	})
}
