package fakelog_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func record(topic, key string, i int) pipeline.Outgoing {
	return pipeline.Outgoing{Topic: topic, Wire: event.Wire{Key: []byte(key), Value: fmt.Append(nil, i)}}
}

func values(recs []pipeline.Record) []string {
	var out []string
	for _, r := range recs {
		out = append(out, string(r.Value))
	}
	return out
}

func TestAppendKeepsTheOrderOfAPartitionAndCopiesWholeBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakelog.New(fakelog.Config{Partitions: map[string]int{"t": 1}})
		cl := c.Client()
		batches := 0
		cl.Landing = func(pipeline.TP, int) (time.Duration, int) {
			batches++
			return time.Second, min(batches, 2)
		}
		p := cl.Producer()
		var last pipeline.Receipt
		for i := range 3 {
			r, err := p.Append(t.Context(), record("t", "k", i))
			if err != nil {
				t.Fatal(err)
			}
			last = r
		}
		if err := pipeline.Wait(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{"0", "1", "2", "1", "2"}
		if diff := cmp.Diff(want, values(c.Records(pipeline.TP{Topic: "t"}))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestFetchWaitsAndSeesGaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakelog.New(fakelog.Config{Partitions: map[string]int{"t": 1}})
		l := c.Client().Log()
		tp := pipeline.TP{Topic: "t"}
		s, err := l.Open(t.Context(), tp, 0)
		if err != nil {
			t.Fatal(err)
		}
		if recs, err := s.Fetch(t.Context(), 10, time.Second); err != nil || len(recs) > 0 {
			t.Fatalf("fetch of an empty log: %v, %v", recs, err)
		}
		time.AfterFunc(time.Second, func() { c.Put(record("t", "k", 1), record("t", "k", 2)) })
		recs, err := s.Fetch(t.Context(), 1, time.Minute)
		if diff := cmp.Diff([]string{"1"}, values(recs)); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
		c.Retain(tp, 2)
		if _, err := s.Fetch(t.Context(), 1, time.Minute); !errors.Is(err, pipeline.ErrGap) {
			t.Fatalf("fetch below the first offset: %v, want ErrGap", err)
		}
	})
}

func TestAnOldGenerationIsFenced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakelog.New(fakelog.Config{Partitions: map[string]int{"t": 2}})
		tp := pipeline.TP{Topic: "t"}
		c.Put(record("t", "k", 1))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a, b := c.Client(), c.Client()
		one, two := a.Group("g", "t"), b.Group("g", "t")
		old, err := one.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(old.Assigned()) != 2 {
			t.Fatalf("assigned %v, want both partitions", old.Assigned())
		}
		drained := make(chan error, 1)
		old.Start(func(ctx context.Context) {
			<-ctx.Done()
			drained <- old.Commit(context.Background(), map[pipeline.TP]pipeline.Next{tp: pipeline.Record{TP: tp, Offset: 0}.Next()})
		})
		both := make(chan pipeline.Generation, 2)
		for _, g := range []pipeline.Group{one, two} {
			go func() {
				gen, err := g.Next(ctx)
				if err != nil {
					t.Error(err)
				}
				both <- gen
			}()
		}
		first, second := <-both, <-both
		if err := <-drained; err != nil {
			t.Errorf("commit while the group prepares: %v", err)
		}
		var parts []string
		for _, g := range []pipeline.Generation{first, second} {
			if len(g.Assigned()) != 1 {
				t.Errorf("assigned %v, want one partition", g.Assigned())
			}
			for tp, o := range g.Assigned() {
				parts = append(parts, fmt.Sprint(tp, "@", o))
			}
		}
		slices.Sort(parts)
		if diff := cmp.Diff([]string{"t/0@1", "t/1@-1"}, parts); diff != "" {
			t.Error(diff)
		}
		if err := old.Commit(ctx, map[pipeline.TP]pipeline.Next{tp: pipeline.Record{TP: tp}.Next()}); !errors.Is(err, pipeline.ErrFenced) {
			t.Errorf("commit of an old generation: %v, want ErrFenced", err)
		}
		a.Kill(0)
		b.Expel(0)
		third, err := two.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(third.Assigned()) != 2 {
			t.Errorf("assigned %v after the other member died, want both partitions", third.Assigned())
		}
		cancel()
		for _, g := range []pipeline.Group{one, two} {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute) // the timers of the group end
	})
}
