package dead_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
)

func TestARecordGoesBackAsItWas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		fresh, over := p.publish("t/1", "fresh"), p.publish("t/2", "over")
		odd := p.publish("t/3", "with headers like ours")
		odd.Headers = append(odd.Headers, event.Header{Key: pipeline.HeaderDeadReason, Value: []byte("oversize")})
		time.Sleep(2 * time.Minute) // a record has its own time, not that of its letter
		p.bury(writer, topics.Messages, 7, fresh, pipeline.ReasonRejected)
		p.oversize(over)
		p.bury(writer, topics.Messages, 8, odd, pipeline.ReasonRejected)
		want := []event.Wire{fresh, over, odd}
		time.Sleep(time.Minute)
		same(t, "tally", dead.Tally{dead.FateRedriven: 3}, p.redrive(dead.Redrive{}))
		sort := func(a, b event.Wire) int { return strings.Compare(string(a.Key), string(b.Key)) }
		got := p.records(topics.Messages, 3)
		slices.SortFunc(got, sort)
		for i := range want {
			want[i].Time = want[i].Time.Truncate(time.Millisecond)
			got[i].Time = got[i].Time.Truncate(time.Millisecond)
		}
		same(t, "records", want, got)
	})
}

// The row of a message is the same whenever it is put back: what makes it is in the record.
func TestAnOldRecordKeepsItsEvent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		w := p.publish("t/1", "old")
		w.Time = w.Time.Truncate(time.Millisecond) // as Kafka has it
		before, err := event.Decode(event.Messages, w)
		if err != nil {
			t.Fatal(err)
		}
		p.bury(writer, topics.Messages, 7, w, pipeline.ReasonRejected)
		time.Sleep(48 * time.Hour)
		p.redrive(dead.Redrive{})
		got := p.records(topics.Messages, 3)
		if len(got) != 1 {
			t.Fatalf("%d records", len(got))
		}
		after, err := event.Decode(event.Messages, got[0])
		if err != nil {
			t.Fatal(err)
		}
		same(t, "event", before.(event.Published).At.UnixMilli(), after.(event.Published).At.UnixMilli())
		same(t, "id", before.(event.Published).ID.String(), after.(event.Published).ID.String())
		if age := time.Since(got[0].Time); age != 0 {
			t.Errorf("the record is stamped %v ago: retention goes by that", age)
		}
	})
}

func TestALetterIsRedrivenOnceAndAgainOnlyOnDemand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		for i := range 500 { // more than are marked together
			p.bury(writer, topics.Messages, int64(i), p.publish(fmt.Sprintf("t/%d", i%7), fmt.Sprint(i)), pipeline.ReasonRejected)
		}
		same(t, "dry run", dead.Tally{dead.FateRedriven: 500}, p.redrive(dead.Redrive{DryRun: true}))
		if n := len(p.records(topics.Messages, 3)); n > 0 {
			t.Errorf("a dry run has written %d records", n)
		}
		same(t, "first", dead.Tally{dead.FateRedriven: 500}, p.redrive(dead.Redrive{}))
		same(t, "states", map[dead.State]int{dead.Redriven: 500}, p.states())
		same(t, "second", dead.Tally{dead.LeftMarked: 500}, p.redrive(dead.Redrive{}))
		if n := len(p.records(topics.Messages, 3)); n != 500 {
			t.Errorf("%d records, want 500", n)
		}
		for part := range 3 { // as they were in the dead letters
			last := map[string]int{}
			for _, r := range p.cluster.Records(pipeline.TP{Topic: topics.Messages, Part: part}) {
				var n int
				if _, err := fmt.Sscan(string(r.Value), &n); err != nil || n < last[string(r.Key)] {
					t.Errorf("%s: %d came after %d (%v)", r.Key, n, last[string(r.Key)], err)
				}
				last[string(r.Key)] = n
			}
		}
		same(t, "again", dead.Tally{dead.FateRedriven: 500}, p.redrive(dead.Redrive{Again: true}))
	})
}

// A mark says that the record is durable, so it must not be there before.
func TestALetterIsMarkedOnlyWhenItsRecordIsDurable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		p.bury(writer, topics.Messages, 1, p.publish("t/1", "one"), pipeline.ReasonRejected)
		c := p.cluster.Client()
		c.Landing = func(tp pipeline.TP, _ int) (time.Duration, int) {
			if tp.Topic == topics.Messages {
				return 10 * time.Second, 1
			}
			return 0, 1
		}
		done := make(chan error, 1)
		go func() { // ends with the redrive
			_, err := p.try(c, dead.Redrive{})
			done <- err
		}()
		time.Sleep(9 * time.Second)
		same(t, "states before it landed", map[dead.State]int{dead.Waiting: 1}, p.states())
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		same(t, "states", map[dead.State]int{dead.Redriven: 1}, p.states())
	})
}

// At whichever call it dies, what is marked is in its topic, and the next redrive brings the rest.
func TestARedriveThatIsKilledAnywhereGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const letters = 12
		errKilled := errors.New("killed")
		for at := range 2*letters + 1 {
			for _, landed := range []bool{false, true} { // what the call asked for may have been done
				p := newPost(t)
				want := map[string]bool{}
				for i := range letters {
					payload := fmt.Sprint("message ", i)
					want[payload] = true
					p.bury(writer, topics.Messages, int64(i), p.publish("t/1", payload), pipeline.ReasonRejected)
				}
				c := p.cluster.Client()
				calls := 0
				c.Hook = func(_ context.Context, call fakelog.Call) fakelog.Verdict {
					if call.Op != fakelog.OpAppend {
						return fakelog.Verdict{}
					}
					if calls++; calls == at+1 {
						return fakelog.Verdict{Err: errKilled, Done: landed}
					}
					if calls > at {
						return fakelog.Verdict{Err: errKilled}
					}
					return fakelog.Verdict{}
				}
				tally, err := p.try(c, dead.Redrive{})
				if killed := at < 2*letters; killed != errors.Is(err, errKilled) {
					t.Fatalf("killed at call %d: %v", at, err)
				}
				back := map[string]bool{}
				for _, r := range p.records(topics.Messages, 3) {
					back[string(r.Value)] = true
				}
				marked := 0
				for _, l := range p.list(dead.Filter{State: dead.Redriven}) {
					marked++
					if !back[string(l.Record.Value)] {
						t.Errorf("killed at call %d: %q is marked and was not put back", at, l.Record.Value)
					}
				}
				if tally[dead.FateRedriven] > marked {
					t.Errorf("killed at call %d: %d count as redriven, %d are marked", at, tally[dead.FateRedriven], marked)
				}
				p.redrive(dead.Redrive{})
				back = map[string]bool{}
				for _, r := range p.records(topics.Messages, 3) {
					back[string(r.Value)] = true
				}
				same(t, "back", want, back)
				same(t, "states", map[dead.State]int{dead.Redriven: letters}, p.states())
			}
		}
	})
}

func TestWhatWouldComeBackOrDoHarmIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		p.bury(writer, topics.Messages, 1, p.publish("t/old", "old"), pipeline.ReasonRejected)
		time.Sleep(73 * time.Hour)
		p.bury(writer, topics.Messages, 2, p.publish("t/good", "good"), pipeline.ReasonRejected)
		p.bury(writer, topics.Messages, 3, event.Wire{Key: []byte("k"), Value: []byte("v")}, pipeline.ReasonMalformed)
		p.bury(writer, "other.topic", 4, p.publish("t/other", "of another pipeline"), pipeline.ReasonRejected)
		p.bury(writer, topics.Sessions, 5, p.subscribe("device", "t/1"), pipeline.ReasonRejected)
		p.oversize(p.publish("t/large", strings.Repeat("x", 101)))
		p.oversize(p.publish("t/fits", strings.Repeat("x", 100)))
		p.cluster.Put(pipeline.Outgoing{Topic: topics.Dead, Wire: event.Wire{Key: []byte("k"), Value: []byte("somebody's")}})
		r := dead.Redrive{MaxPayload: 100, MaxAge: 72 * time.Hour}
		want := dead.Tally{
			dead.FateRedriven: 2, dead.LeftOld: 1, dead.LeftMalformed: 1, dead.LeftNowhere: 2, dead.LeftSession: 1, dead.LeftOversize: 1,
		}
		fates := map[string]dead.Fate{}
		r.Told = func(l *dead.Letter, f dead.Fate) { fates[string(l.Record.Key)] = f }
		same(t, "tally", want, p.redrive(r))
		same(t, "old", dead.LeftOld, fates["t/old"])
		same(t, "large", dead.LeftOversize, fates["t/large"])
		same(t, "fits", dead.FateRedriven, fates["t/fits"])
		if n := len(p.records(topics.Messages, 3)) + len(p.records(topics.Sessions, 2)); n != 2 {
			t.Errorf("%d records were put back, want 2", n)
		}
		r.MaxAge, r.Sessions, r.MaxPayload = 0, true, 101
		same(t, "on demand", dead.Tally{dead.FateRedriven: 3, dead.LeftMarked: 2, dead.LeftMalformed: 1, dead.LeftNowhere: 2}, p.redrive(r))
		if n := len(p.records(topics.Sessions, 2)); n != 1 {
			t.Errorf("%d session events were put back, want 1", n)
		}
	})
}

// A record that two sinks refuse, or that is buried twice, goes back once for both.
func TestLettersOfOneRecordAreRedrivenTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		w := p.publish("t/1", "one")
		for _, group := range []string{writer, "restante.writer.other", writer} {
			p.bury(group, topics.Messages, 7, w, pipeline.ReasonRejected)
		}
		over := p.publish("t/2", "two")
		p.oversize(over)
		p.oversize(over) // the source has sent it again
		same(t, "tally", dead.Tally{dead.FateRedriven: 1}, p.redrive(dead.Redrive{Filter: dead.Filter{By: "restante.writer.other"}}))
		same(t, "states", map[dead.State]int{dead.Redriven: 3, dead.Waiting: 2}, p.states())
		same(t, "tally", dead.Tally{dead.FateRedriven: 1, dead.FateSame: 1, dead.LeftMarked: 3}, p.redrive(dead.Redrive{}))
		if n := len(p.records(topics.Messages, 3)); n != 2 {
			t.Errorf("%d records, want 2", n)
		}
		// It dies again, at its new place.
		p.bury(writer, topics.Messages, 99, w, pipeline.ReasonRejected)
		same(t, "states", map[dead.State]int{dead.Redriven: 5, dead.Waiting: 1}, p.states())
	})
}

func TestDroppedLettersStayAndAreListed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		for i := range 5 {
			p.bury(writer, topics.Messages, int64(i), p.publish(fmt.Sprintf("t/%d", i), "x"), pipeline.ReasonRejected)
		}
		if tally, err := p.drop(dead.Drop{}); err == nil {
			t.Errorf("everything was dropped: %v", tally)
		}
		first := dead.Drop{Filter: dead.Filter{Topic: filter(t, "t/1")}, DryRun: true}
		tally, err := p.drop(first)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "dry run", dead.Tally{dead.FateDropped: 1}, tally)
		same(t, "states", map[dead.State]int{dead.Waiting: 5}, p.states())
		first.DryRun = false
		if tally, err = p.drop(first); err != nil {
			t.Fatal(err)
		}
		same(t, "drop", dead.Tally{dead.FateDropped: 1}, tally)
		same(t, "states", map[dead.State]int{dead.Dropped: 1, dead.Waiting: 4}, p.states())
		same(t, "redrive", dead.Tally{dead.FateRedriven: 4, dead.LeftMarked: 1}, p.redrive(dead.Redrive{}))
		if tally, err = p.drop(dead.Drop{Filter: dead.Filter{By: writer}}); err != nil {
			t.Fatal(err)
		}
		same(t, "drop of what is marked", dead.Tally{dead.LeftMarked: 5}, tally)
		same(t, "dropped, redriven again", dead.Tally{dead.FateRedriven: 1}, p.redrive(dead.Redrive{Again: true, Filter: dead.Filter{State: dead.Dropped}}))
		same(t, "states", map[dead.State]int{dead.Redriven: 5}, p.states())
	})
}

func TestTheRateIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		for i := range 50 {
			p.bury(writer, topics.Messages, int64(i), p.publish("t/1", "x"), pipeline.ReasonRejected)
		}
		began := time.Now()
		p.redrive(dead.Redrive{Rate: 10})
		if took := time.Since(began); took < 4900*time.Millisecond {
			t.Errorf("50 letters at 10 a second took %v", took)
		}
	})
}
