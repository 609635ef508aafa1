package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

var quiet = slog.New(slog.DiscardHandler)

func newMetrics() *pipeline.Metrics {
	return pipeline.NewMetrics(prometheus.NewRegistry(), []string{writerGroup, replayGroup}, []string{"s"})
}

// store is the memory store behind a hook, which may refuse a batch, before or after it is applied.
type store struct {
	memory.Store
	hook func(ctx context.Context, ops []sinks.Op, apply func() error) error // nil = apply

	mu      sync.Mutex
	batches [][]sinks.Op // that were asked for
}

func (s *store) Apply(ctx context.Context, ops []sinks.Op) error {
	s.mu.Lock()
	s.batches = append(s.batches, slices.Clone(ops))
	hook := s.hook
	s.mu.Unlock()
	apply := func() error { return s.Store.Apply(ctx, ops) }
	if hook == nil {
		return apply()
	}
	return hook(ctx, ops, apply)
}

func (s *store) set(hook func(ctx context.Context, ops []sinks.Op, apply func() error) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *store) asked() [][]sinks.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.batches)
}

// payloads are what is stored of a topic, in order.
func (s *store) payloads(t testing.TB, topic string) []string {
	t.Helper()
	found, err := s.Messages(context.Background(), sinks.Query{Topic: eventtest.Topic(t, topic), Until: event.LastIDAt(time.Now().Add(time.Hour)), Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range found {
		out = append(out, string(m.Payload))
	}
	return out
}

func storing(s sinks.Writer, m *pipeline.Metrics) *pipeline.Storing {
	return &pipeline.Storing{Sink: "s", Store: s, Backoff: pipeline.DefaultBackoff, Metrics: m, Log: quiet}
}

// puts are n messages of the topic t/1.
func puts(t testing.TB, n int) []sinks.Op {
	t.Helper()
	var ops []sinks.Op
	for i := range n {
		ops = append(ops, sinks.PutMessage{Message: sinks.Message{
			ID: event.IDOf(time.Now().UnixMicro()+int64(i), 1, 1), Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: fmt.Append(nil, i),
		}})
	}
	return ops
}

func payloadOf(o sinks.Op) string { return string(o.(sinks.PutMessage).Payload) }

func holds(ops []sinks.Op, payload string) bool {
	return slices.ContainsFunc(ops, func(o sinks.Op) bool { return payloadOf(o) == payload })
}

var errDown = errors.New("the store is down")

func TestAnUnmarkedErrorIsRetriedForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMetrics(), &store{}
		began := time.Now()
		s.hook = func(_ context.Context, _ []sinks.Op, apply func() error) error {
			if time.Since(began) < time.Hour {
				return errDown
			}
			return apply()
		}
		done := make(chan error, 1)
		go func() {
			poison, err := storing(s, m).Persist(t.Context(), puts(t, 3))
			if len(poison) > 0 {
				err = fmt.Errorf("poison: %v", poison)
			}
			done <- err
		}()
		time.Sleep(30 * time.Minute)
		if got := testutil.ToFloat64(m.Stalled.WithLabelValues("s")); got != 1 {
			t.Errorf("stalled %v while the store is down, want 1", got)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := time.Since(began); got < time.Hour || got > time.Hour+10*time.Second {
			t.Errorf("persisted after %v, want soon after an hour", got)
		}
		if got := testutil.ToFloat64(m.Stalled.WithLabelValues("s")); got != 0 {
			t.Errorf("stalled %v at the end, want 0", got)
		}
		if got := testutil.ToFloat64(m.Persisted.WithLabelValues("s")); got != 3 {
			t.Errorf("persisted %v, want 3", got)
		}
		if diff := cmp.Diff([]string{"0", "1", "2"}, s.payloads(t, "t/1")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestOnlyTheFailedOpsAreTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMetrics(), &store{}
		tries := 0
		s.hook = func(_ context.Context, ops []sinks.Op, apply func() error) error {
			if tries++; tries > 2 {
				return apply()
			}
			failed := map[int]error{}
			for i := range ops {
				if i%2 == 1 {
					failed[i] = errDown
				}
			}
			var good []sinks.Op
			for i, o := range ops {
				if failed[i] == nil {
					good = append(good, o)
				}
			}
			if err := s.Store.Apply(context.Background(), good); err != nil {
				return err
			}
			return fmt.Errorf("apply: %w", &sinks.ApplyError{Failed: failed})
		}
		if _, err := storing(s, m).Persist(t.Context(), puts(t, 8)); err != nil {
			t.Fatal(err)
		}
		var got [][]string
		for _, b := range s.asked() {
			var names []string
			for _, o := range b {
				names = append(names, payloadOf(o))
			}
			got = append(got, names)
		}
		want := [][]string{{"0", "1", "2", "3", "4", "5", "6", "7"}, {"1", "3", "5", "7"}, {"3", "7"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if got := len(s.payloads(t, "t/1")); got != 8 {
			t.Errorf("%d are stored, want 8", got)
		}
		if got := testutil.ToFloat64(m.Stalled.WithLabelValues("s")); got != 0 {
			t.Errorf("stalled %v at the end, want 0", got)
		}
	})
}

func TestThePoisonRowIsFoundByBisecting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMetrics(), &store{}
		s.hook = func(_ context.Context, ops []sinks.Op, apply func() error) error {
			if holds(ops, "41") {
				return fault.Poison(errors.New("the batch holds something that cannot be stored"))
			}
			return apply()
		}
		poison, err := storing(s, m).Persist(t.Context(), puts(t, 64))
		if err != nil {
			t.Fatal(err)
		}
		if len(poison) != 1 || poison[41] == nil {
			t.Errorf("poison %v, want op 41", poison)
		}
		if got := s.payloads(t, "t/1"); len(got) != 63 || slices.Contains(got, "41") {
			t.Errorf("%d are stored, want 63 and not 41", len(got))
		}
		if n := len(s.asked()); n > 13 {
			t.Errorf("the store was asked %d times, want 2·log₂ 64 + 1", n)
		}
		if got := testutil.ToFloat64(m.Persisted.WithLabelValues("s")); got != 63 {
			t.Errorf("persisted %v, want 63", got)
		}
	})
}

func TestAPoisonRowIsToldForEachOpThatWentIntoIt(t *testing.T) {
	t.Parallel()
	s := &store{hook: func(_ context.Context, ops []sinks.Op, apply func() error) error {
		failed := map[int]error{}
		for i, o := range ops {
			if payloadOf(o) == "0" {
				failed[i] = fault.Poison(errors.New("too long"))
			}
		}
		if len(failed) == 0 {
			return apply()
		}
		return &sinks.ApplyError{Failed: failed}
	}}
	ops := puts(t, 3)
	ops = append(ops, ops[0], ops[1]) // copies
	poison, err := storing(s, newMetrics()).Persist(t.Context(), ops)
	if err != nil {
		t.Fatal(err)
	}
	if len(poison) != 2 || poison[0] == nil || poison[3] == nil {
		t.Errorf("poison %v, want ops 0 and 3", poison)
	}
	for i, b := range s.asked() {
		rows := map[string]bool{}
		for _, o := range b {
			if rows[o.Row()] {
				t.Errorf("batch %d holds %q twice", i, o.Row())
			}
			rows[o.Row()] = true
		}
	}
}

func TestAFatalErrorEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, err := range map[string]error{
			"for the batch":   fault.Fatal(errors.New("no table")),
			"for one op":      &sinks.ApplyError{Failed: map[int]error{1: fault.Fatal(errors.New("no table")), 0: errDown}},
			"beside a poison": fmt.Errorf("apply: %w", &sinks.ApplyError{Failed: map[int]error{0: fault.Poison(errDown), 1: fault.Fatal(errors.New("no table"))}}),
		} {
			m := newMetrics()
			tries := 0
			s := &store{hook: func(context.Context, []sinks.Op, func() error) error {
				if tries++; tries < 3 {
					return errDown
				}
				return err
			}}
			_, got := storing(s, m).Persist(t.Context(), puts(t, 2))
			if !fault.IsFatal(got) || !strings.Contains(got.Error(), "no table") {
				t.Errorf("%s: got %v, want the fatal error", name, got)
			}
			if got := testutil.ToFloat64(m.Stalled.WithLabelValues("s")); got != 0 {
				t.Errorf("%s: stalled %v at the end, want 0", name, got)
			}
		}
	})
}

func TestTheEndOfTimeSaysThatNothingIsDurable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics()
		why := errors.New("time is over")
		ctx, cancel := context.WithCancelCause(t.Context())
		s := &store{hook: func(context.Context, []sinks.Op, func() error) error { return errDown }}
		time.AfterFunc(time.Minute, func() { cancel(why) })
		poison, err := storing(s, m).Persist(ctx, puts(t, 2))
		if !errors.Is(err, why) || poison != nil {
			t.Errorf("got %v, %v; want the cause of the end and no poison", poison, err)
		}
		if got := testutil.ToFloat64(m.Stalled.WithLabelValues("s")); got != 0 {
			t.Errorf("stalled %v at the end, want 0", got)
		}
	})
}

func TestAnAttemptThatIsCutOffIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns, tries := 0, 0
		s := &store{}
		s.hook = func(ctx context.Context, _ []sinks.Op, apply func() error) error {
			if tries++; tries == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return apply()
		}
		st := storing(s, newMetrics())
		st.Timeout, st.Turn = 10*time.Second, func() { turns++ }
		if _, err := st.Persist(t.Context(), puts(t, 1)); err != nil {
			t.Fatal(err)
		}
		if turns != 2 {
			t.Errorf("told %d attempts, want 2", turns)
		}
	})
}

// TestWhatPersistReturnsIsTrue lets a store fail each batch at random: transiently, in part, by poison it can or cannot name.
func TestWhatPersistReturnsIsTrue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(rt, "ops")
		bad := rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 0, min(n, 4), rapid.ID).Draw(rt, "poison")
		moods := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 60).Draw(rt, "moods")
		var poison map[int]error
		var stored []string
		var perr error
		var stalled float64
		synctest.Test(t, func(t *testing.T) {
			m, s := newMetrics(), &store{}
			call := 0
			s.hook = func(_ context.Context, ops []sinks.Op, apply func() error) error {
				mood := 5
				if call < len(moods) {
					mood = moods[call]
				}
				call++
				var good []sinks.Op
				failed := map[int]error{}
				for i, o := range ops {
					switch {
					case slices.ContainsFunc(bad, func(b int) bool { return fmt.Sprint(b) == payloadOf(o) }):
						failed[i] = fault.Poison(errDown)
					case mood == 1 && i%3 == 0:
						failed[i] = errDown
					default:
						good = append(good, o)
					}
				}
				switch {
				case mood == 0:
					return errDown
				case mood == 2:
					_ = apply()
					return errDown // unknown, though it was applied
				case len(failed) == 0:
					return apply()
				case mood >= 4 && len(failed) > 0:
					return fault.Poison(errDown) // none is applied, none is named
				}
				if err := s.Store.Apply(context.Background(), good); err != nil {
					return err
				}
				return &sinks.ApplyError{Failed: failed}
			}
			poison, perr = storing(s, m).Persist(t.Context(), puts(t, n))
			stored = s.payloads(t, "t/1")
			stalled = testutil.ToFloat64(m.Stalled.WithLabelValues("s"))
		})
		if perr != nil || stalled != 0 {
			rt.Fatalf("error %v, stalled %v", perr, stalled)
		}
		for i := range n {
			isBad := slices.Contains(bad, i)
			if (poison[i] != nil) != isBad {
				rt.Fatalf("op %d: told as poison %v, is poison %v", i, poison[i] != nil, isBad)
			}
			if !isBad && !slices.Contains(stored, fmt.Sprint(i)) {
				rt.Fatalf("op %d is told durable and is not stored", i)
			}
		}
	})
}

func TestTheBackOffDoublesWithinItsBounds(t *testing.T) {
	t.Parallel()
	for attempt := 1; attempt < 200; attempt++ {
		full := 5 * time.Second
		if attempt < 8 {
			full = min(full, 50*time.Millisecond<<(attempt-1))
		}
		for draw, want := range map[float64]time.Duration{0: full / 2, 0.5: full/2 + full/4, 0.999999: full - full/1_000_000} {
			b := pipeline.DefaultBackoff
			b.Rand = func() float64 { return draw }
			if got := b.Delay(attempt); got < want-time.Millisecond || got > want+time.Millisecond {
				t.Fatalf("attempt %d, draw %v: %v, want %v", attempt, draw, got, want)
			}
		}
		if got := pipeline.DefaultBackoff.Delay(attempt); got < full/2 || got > full {
			t.Fatalf("attempt %d: %v is not in [%v, %v]", attempt, got, full/2, full)
		}
	}
}
