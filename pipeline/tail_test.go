package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

// calls notes what is asked of the log.
type calls struct {
	mu   sync.Mutex
	made []fakelog.Call
	then func(ctx context.Context, c fakelog.Call) fakelog.Verdict
}

func (c *calls) hook(ctx context.Context, call fakelog.Call) fakelog.Verdict {
	c.mu.Lock()
	c.made = append(c.made, call)
	then := c.then
	c.mu.Unlock()
	if then != nil {
		return then(ctx, call)
	}
	return fakelog.Verdict{}
}

// since returns what was asked since the last call.
func (c *calls) since() []fakelog.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.made
	c.made = nil
	return out
}

func ops(made []fakelog.Call) []string {
	var out []string
	for _, c := range made {
		out = append(out, c.Op)
	}
	return out
}

// startTail runs a tail until the test ends.
func startTail(s *stack, seen *calls, change func(*pipeline.Tail)) *pipeline.Tail {
	c := s.cluster.Client()
	c.Hook = seen.hook
	return runTail(s, s.tail(c, change))
}

func runTail(s *stack, tail *pipeline.Tail) *pipeline.Tail {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tail.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
	return tail
}

func view(t *testing.T, tail *pipeline.Tail, filter string) *pipeline.View {
	t.Helper()
	v, err := tail.View(t.Context(), eventtest.Filter(t, filter))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAViewHoldsThePublishesOfTheTailAndHonoursItsAcks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := startTail(s, &calls{}, nil)
		s.publish("t/1", "a")
		b := s.publish("t/1", "b")
		s.publish("t/2", "other")
		s.publish("u/1", "no rule")
		c := s.publish("t/1", "c")
		s.ack("c", b)
		s.put(c) // repeated
		v := view(t, tail, "t/1")
		topic := eventtest.Topic(t, "t/1")
		if diff := cmp.Diff([]string{"a", "c"}, v.Pending(topic)); diff != "" || !v.Complete {
			t.Errorf("complete %v; pending:\n%s", v.Complete, diff)
		}
		if !slices.Equal(v.Gone(topic), []event.ID{b.ID}) {
			t.Errorf("gone %v, want %v", v.Gone(topic), b.ID)
		}
		if got := v.Pending(eventtest.Topic(t, "t/2")); got != nil {
			t.Errorf("the view of t/1 holds %v of t/2", got)
		}
		all := view(t, tail, "#").Topics()
		if len(all) != 2 || all[0].String() != "t/1" || all[1].String() != "t/2" {
			t.Errorf("topics %v, want t/1 and t/2", all)
		}
	})
}

func TestPendingIsInTheOrderOfIds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := startTail(s, &calls{}, nil)
		var made []event.Published
		for _, p := range []string{"1", "2", "3"} {
			made = append(made, event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte(p)})
		}
		for _, i := range []int{2, 0, 1} {
			s.put(made[i])
		}
		if diff := cmp.Diff([]string{"1", "2", "3"}, view(t, tail, "t/1").Pending(eventtest.Topic(t, "t/1"))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestBelowTheCommitOnlyAcksCountWithinTheLookBack(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		pause time.Duration // between the ack and the repeated publish
		want  []string
	}{
		"within it": {1900 * time.Millisecond, nil},
		"before it": {2100 * time.Millisecond, []string{"a"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				tail := startTail(s, &calls{}, nil)
				m := s.publish("t/1", "a")
				s.ack("c", m)
				s.cluster.Reset(writerGroup, s.messages(0), 2)
				time.Sleep(c.pause)
				s.put(event.Published{Head: event.Head{ID: m.ID, Source: "x", At: time.Now()}, Topic: m.Topic, QoS: 1, Payload: m.Payload}) // repeated, above the commit
				if diff := cmp.Diff(c.want, view(t, tail, "t/1").Pending(m.Topic)); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestAnAckThatCameJustBeforeItsPublishCountsHoweverOldBothAre: two ingest processes start again, and each brings what has waited for it.
func TestAnAckThatCameJustBeforeItsPublishCountsHoweverOldBothAre(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := startTail(s, &calls{}, nil)
		m := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), Sender: "pub", QoS: 1, Payload: []byte("a")}
		ack := event.Acked{Head: s.head(), Topic: m.Topic, Client: "c", Message: m.ID}
		time.Sleep(20 * time.Second)
		s.put(ack)
		s.publish("t/1", "b")
		view(t, tail, "t/1")
		s.cluster.Reset(writerGroup, s.messages(0), 1)
		time.Sleep(time.Second)
		view(t, tail, "t/1")
		s.put(m)
		if diff := cmp.Diff([]string{"b"}, view(t, tail, "t/1").Pending(m.Topic)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAPublishBelowTheCommitIsTheStores(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := startTail(s, &calls{}, nil)
		s.publish("t/1", "a")
		if got := view(t, tail, "t/1").Pending(eventtest.Topic(t, "t/1")); len(got) != 1 {
			t.Fatalf("pending %v", got)
		}
		s.cluster.Reset(writerGroup, s.messages(0), 1)
		s.publish("t/1", "b")
		if diff := cmp.Diff([]string{"b"}, view(t, tail, "t/1").Pending(eventtest.Topic(t, "t/1"))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestARoundReadsEndsThenCommitsThenTheLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		seen := &calls{}
		tail := startTail(s, seen, nil)
		s.publish("t/1", "a")
		view(t, tail, "t/1")
		if diff := cmp.Diff([]string{"spans", "committed", "open", "fetch"}, ops(seen.since())); diff != "" {
			t.Error(diff)
		}
	})
}

func TestOnlyWhatIsNewIsRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		seen := &calls{}
		tail := startTail(s, seen, nil)
		for i := range 100 {
			s.publish("t/1", fmt.Sprint(i))
		}
		view(t, tail, "t/1")
		seen.since()
		view(t, tail, "t/1")
		if diff := cmp.Diff([]string{"spans", "committed"}, ops(seen.since())); diff != "" {
			t.Errorf("nothing is new:\n%s", diff)
		}
		s.publish("t/1", "new")
		v := view(t, tail, "t/1")
		made := seen.since()
		if diff := cmp.Diff([]string{"spans", "committed", "fetch"}, ops(made)); diff != "" || made[2].Offset != 100 {
			t.Errorf("one record is new, fetched from %d:\n%s", made[len(made)-1].Offset, diff)
		}
		if got := len(v.Pending(eventtest.Topic(t, "t/1"))); got != 101 {
			t.Errorf("%d pending, want 101", got)
		}
	})
}

func TestWhatIsFarBelowTheCommitIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		seen := &calls{}
		tail := startTail(s, seen, func(t *pipeline.Tail) { t.Budget = 3000 })
		for round := range 20 { // each round fills half of the budget
			for i := range 5 {
				s.publish("t/1", fmt.Sprintf("%d.%d", round, i))
			}
			time.Sleep(5 * time.Second)
			v := view(t, tail, "t/1")
			if got := len(v.Pending(eventtest.Topic(t, "t/1"))); got != 5 || !v.Complete {
				t.Fatalf("round %d: %d pending, complete %v; want 5, true", round, got, v.Complete)
			}
			s.cluster.Reset(writerGroup, s.messages(0), int64(5*(round+1)))
		}
	})
}

func TestATailOverTheBudgetIsNotComplete(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := startTail(s, &calls{}, func(t *pipeline.Tail) { t.Budget = 5000 })
		for i := range 6000 {
			s.publish("t/1", fmt.Sprint(i))
		}
		if v := view(t, tail, "t/1"); v.Complete {
			t.Fatal("the view of 6,000 messages is complete with room for 30")
		}
		s.cluster.Reset(writerGroup, s.messages(0), 5995)
		v := view(t, tail, "t/1")
		if diff := cmp.Diff([]string{"5995", "5996", "5997", "5998", "5999"}, v.Pending(eventtest.Topic(t, "t/1"))); diff != "" || !v.Complete {
			t.Errorf("complete %v; pending:\n%s", v.Complete, diff)
		}
	})
}

func TestAnErrorIsNeverNothing(t *testing.T) {
	t.Parallel()
	for _, op := range []string{fakelog.OpSpans, fakelog.OpCommitted, fakelog.OpOpen, fakelog.OpFetch, fakelog.OpOffsetAt} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				var failed bool
				seen := &calls{then: func(_ context.Context, c fakelog.Call) fakelog.Verdict {
					if c.Op == op && !failed {
						failed = true
						return fakelog.Verdict{Err: errDown}
					}
					return fakelog.Verdict{}
				}}
				tail := startTail(s, seen, nil)
				m := s.publish("t/1", "a")
				s.ack("c", m)
				s.cluster.Reset(writerGroup, s.messages(0), 2)
				s.put(m)
				s.publish("t/1", "b")
				if v, err := tail.View(t.Context(), eventtest.Filter(t, "t/1")); err == nil {
					t.Errorf("the view is %v and no error", v.Pending(m.Topic))
				}
				if diff := cmp.Diff([]string{"b"}, view(t, tail, "t/1").Pending(m.Topic)); diff != "" {
					t.Error(diff)
				}
				if _, err := tail.View(t.Context(), eventtest.Filter(t, "t/+")); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestASilentBrokerIsNotAnEmptyTail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := s.tail(s.cluster.Client(), nil)
		tail.Reader = mute{tail.Reader, 1}
		runTail(s, tail)
		s.publish("t/1", "a")
		if v, err := tail.View(t.Context(), eventtest.Filter(t, "t/1")); err == nil {
			t.Errorf("nobody answers, and the view is %v", v.Pending(eventtest.Topic(t, "t/1")))
		}
	})
}

// Another producer's transaction may end the partition: its marker takes an offset, and no record ever comes for it.
func TestATailThatEndsInOffsetsWithoutRecordsIsComplete(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := startTail(s, &calls{}, nil)
		s.publish("t/1", "a")
		s.cluster.Mark(s.messages(0))
		s.publish("t/1", "b")
		s.cluster.Mark(s.messages(0))
		s.cluster.Mark(s.messages(0))
		began := time.Now()
		v, err := tail.View(t.Context(), eventtest.Filter(t, "t/1"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a", "b"}, v.Pending(eventtest.Topic(t, "t/1"))); diff != "" || !v.Complete || time.Since(began) > time.Second {
			t.Errorf("after %v, complete %v; pending:\n%s", time.Since(began), v.Complete, diff)
		}
	})
}

func TestAnExactFilterReadsOnePartitionAWildcardAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const parts = 4
		s := newStack(t, parts)
		seen := &calls{}
		tail := startTail(s, seen, nil)
		for i := range 40 {
			s.publish(fmt.Sprintf("t/%d", i), "x")
		}
		read := func() map[int]bool {
			out := map[int]bool{}
			for _, c := range seen.since() {
				if c.Op == fakelog.OpFetch {
					out[c.TP.Part] = true
				}
			}
			return out
		}
		view(t, tail, "t/7")
		if got := read(); len(got) != 1 || !got[fakelog.Partition("t/7", parts)] {
			t.Errorf("an exact filter read the partitions %v, want %d only", got, fakelog.Partition("t/7", parts))
		}
		if got := len(view(t, tail, "t/+").Topics()); got != 40 {
			t.Errorf("a wildcard sees %d topics, want 40", got)
		}
		if got := read(); len(got) != parts-1 {
			t.Errorf("a wildcard read the partitions %v, want the %d that were not read yet", got, parts-1)
		}
	})
}

func TestARoundServesAllThatWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 2)
		seen := &calls{}
		tail := startTail(s, seen, nil)
		s.publish("t/1", "a")
		view(t, tail, "t/1")
		seen.since()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if v, err := tail.View(t.Context(), eventtest.Filter(t, "t/1")); err != nil || len(v.Pending(eventtest.Topic(t, "t/1"))) != 1 {
					t.Error(err, v)
				}
			})
		}
		wg.Wait()
		if diff := cmp.Diff([]string{"spans", "committed"}, ops(seen.since())); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAPartitionThatWasResetIsReadAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		tail := startTail(s, &calls{}, nil)
		for i := range 6 {
			s.publish("t/1", fmt.Sprint(i))
		}
		s.cluster.Reset(writerGroup, s.messages(0), 4)
		topic := eventtest.Topic(t, "t/1")
		if diff := cmp.Diff([]string{"4", "5"}, view(t, tail, "t/1").Pending(topic)); diff != "" {
			t.Error(diff)
		}
		s.cluster.Reset(writerGroup, s.messages(0), 2) // by hand
		if diff := cmp.Diff([]string{"2", "3", "4", "5"}, view(t, tail, "t/1").Pending(topic)); diff != "" {
			t.Errorf("after the group was set back:\n%s", diff)
		}
		for i := range 3 {
			s.publish("t/1", fmt.Sprint(6+i))
		}
		s.cluster.Retain(s.messages(0), 8) // retention goes beyond the commit, and beyond what was read
		if diff := cmp.Diff([]string{"8"}, view(t, tail, "t/1").Pending(topic)); diff != "" {
			t.Errorf("after retention:\n%s", diff)
		}
	})
}

func TestAViewThatNobodyServesEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		seen := &calls{then: func(ctx context.Context, _ fakelog.Call) fakelog.Verdict {
			<-ctx.Done()
			return fakelog.Verdict{Err: context.Cause(ctx)}
		}}
		tail := startTail(s, seen, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tail.View(ctx, eventtest.Filter(t, "t/1")); err == nil {
			t.Error("a view without a round")
		}
	})
}
