package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

const after = 500 * time.Millisecond

// setup is a producer on a disk in memory before a log that can be away.
type setup struct {
	*Producer
	t    *testing.T
	log  *text
	disk *memory
}

func start(t *testing.T, d *memory, k *kafka, change ...func(*Config)) *setup {
	t.Helper()
	log := &text{}
	cfg := Config{
		Size: 1 << 20, After: after, Inner: k, Topics: topics, Now: time.Now, Metrics: NewMetrics(nil),
		Log: slog.New(slog.NewTextHandler(log, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	p, err := open(cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // its timers would go on in the bubble for ever
		k.set(false)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := p.Close(ctx); err != nil && !errors.Is(err, errClosed) {
			t.Errorf("close: %v", err)
		}
	})
	return &setup{p, t, log, d}
}

func (s *setup) append(o pipeline.Outgoing) pipeline.Receipt {
	s.t.Helper()
	r, err := s.Append(s.t.Context(), o)
	if err != nil {
		s.t.Fatalf("append %s: %v", o.Value, err)
	}
	return r
}

func (s *setup) wait(r pipeline.Receipt) {
	s.t.Helper()
	if err := pipeline.Wait(s.t.Context(), r); err != nil {
		s.t.Fatal(err)
	}
}

func (s *setup) close() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		s.t.Errorf("close: %v", err)
	}
}

func (s *setup) spools() bool { return testutil.ToFloat64(s.cfg.Metrics.spooling) == 1 }

func open3(t *testing.T, r pipeline.Receipt) bool {
	t.Helper()
	select {
	case <-r.Done():
		return false
	default:
		return true
	}
}

func compare(t *testing.T, what string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestWhileKafkaAnswersTheDiskIsNotTouched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(3 * time.Millisecond)
		s := start(t, newMemory(), k)
		s.disk.be(func(string) error { return errIO })
		for _, v := range numbered("m", 100) {
			began := time.Now()
			s.wait(s.append(message("t/1", v)))
			if took := time.Since(began); took != 3*time.Millisecond {
				t.Fatalf("a receipt took %v, want Kafka's 3 ms", took)
			}
		}
		s.wait(s.append(alias("alias")))
		s.disk.be(nil)
		s.close()
		compare(t, "the log", append(numbered("m", 100), "alias"), k.values(""))
		if n := len(s.disk.names(segmentExt)); n > 0 {
			t.Errorf("%d segments", n)
		}
	})
}

func TestWhenKafkaIsAwayRecordsAreDurableOnDiskAndComeFirstAfterwards(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(3 * time.Millisecond)
		s := start(t, newMemory(), k)
		s.wait(s.append(message("t/1", "m000")))
		k.set(true)
		began := time.Now()
		inFlight := s.append(message("t/1", "m001"))
		late := s.append(alias("alias"))
		time.Sleep(after - time.Millisecond)
		if !open3(t, inFlight) {
			t.Fatal("a receipt was resolved before anything was durable")
		}
		s.wait(inFlight)
		if took := time.Since(began); took != after {
			t.Errorf("spooled after %v, want %v", took, after)
		}
		if err := pipeline.Wait(t.Context(), late); !errors.Is(err, ErrSpooling) {
			t.Errorf("the alias in flight: %v, want ErrSpooling", err)
		}
		if !s.spools() {
			t.Error("the metric says that it does not spool")
		}
		if _, err := s.Append(t.Context(), alias("alias")); !errors.Is(err, ErrSpooling) {
			t.Errorf("an alias while spooling: %v, want ErrSpooling", err)
		}
		for _, v := range numbered("m", 50)[2:] {
			began := time.Now()
			s.wait(s.append(message("t/1", v)))
			if took := time.Since(began); took > 0 {
				t.Errorf("%s took %v on a disk that takes no time", v, took)
			}
		}
		s.wait(s.append(session("s000")))
		compare(t, "the log while Kafka is away", []string{"m000"}, k.values(""))
		if n := testutil.ToFloat64(s.cfg.Metrics.records); n != 50 {
			t.Errorf("%v records in the spool, want 50", n)
		}
		k.set(false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		compare(t, "messages", append(append(numbered("m", 2), "alias"), numbered("m", 50)[2:]...), k.values(topics.Messages))
		compare(t, "the last", []string{"s000"}, k.values("")[51:])
		if s.spools() {
			t.Error("it still spools")
		}
		if n := s.disk.names(segmentExt); len(n) > 0 {
			t.Errorf("%v are left", n)
		}
		if n := testutil.ToFloat64(s.cfg.Metrics.bytes) + testutil.ToFloat64(s.cfg.Metrics.records); n != 0 {
			t.Errorf("bytes and records in the spool: %v", n)
		}
		s.wait(s.append(alias("alias2")))
		s.close()
		for text, n := range map[string]int{"spooling begins": 1, "spooling ended": 1} {
			if got := strings.Count(s.log.String(), text); got != n {
				t.Errorf("%q is in the log %d times, want %d:\n%s", text, got, n, s.log)
			}
		}
	})
}

func TestASessionEventWaitsForEveryMessageBeforeIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(50 * time.Millisecond) // keys are in no order among each other
		k.set(true)
		s := start(t, newMemory(), k)
		s.wait(s.append(message("d", "d000")))
		var want []string
		for i := range 30 {
			for _, key := range []string{"a", "b", "c"} {
				s.append(message(key, numbered(key, 30)[i]))
			}
			s.append(session(numbered("s", 30)[i]))
			want = append(want, numbered("s", 30)[i])
		}
		time.Sleep(time.Minute)
		k.set(false)
		time.Sleep(time.Minute)
		before := map[string]int{}
		for _, v := range k.values("") {
			before[v[:1]]++
			if n := before["s"]; v[0] == 's' && (before["d"] == 0 || before["a"] < n || before["b"] < n || before["c"] < n) {
				t.Errorf("%s is before a message that came before it: %v", v, before)
			}
		}
		compare(t, "sessions", want, k.values(topics.Sessions))
		s.close()
	})
}

// Where the inner producer has no room it does not take a record, and says so only when it is told to give up.
func TestARecordThatIsNotTakenGoesToTheDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(0)
		k.room = 3
		k.set(true)
		s := start(t, newMemory(), k)
		var receipts []pipeline.Receipt
		began := time.Now()
		for _, v := range numbered("m", 10) {
			receipts = append(receipts, s.append(message("t", v)))
		}
		if took := time.Since(began); took != after {
			t.Errorf("Append was blocked for %v, want %v", took, after)
		}
		for _, r := range receipts {
			s.wait(r)
		}
		k.set(false)
		time.Sleep(10 * time.Second)
		compare(t, "the log", numbered("m", 10), k.values(""))
		s.close()
	})
}

// Nothing is in flight, and the inner producer takes nothing either.
func TestARecordThatIsTheOnlyOneIsNotForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(0)
		k.stuck = true
		s := start(t, newMemory(), k)
		time.Sleep(time.Hour)
		began := time.Now()
		s.wait(s.append(message("t", "only")))
		if took := time.Since(began); took != after {
			t.Errorf("it was durable after %v, want %v", took, after)
		}
		k.unstick()
		time.Sleep(time.Minute)
		compare(t, "the log", []string{"only"}, k.values(""))
		s.close()
	})
}

func TestAFullSpoolHoldsAppendBackUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(0)
		k.set(true)
		s := start(t, newMemory(), k, func(c *Config) { c.Size = 64 << 10 })
		s.wait(s.append(message("t", "first")))
		value := strings.Repeat("x", 1000)
		n := 1
		var err error
		for ; err == nil; n++ {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err = s.Append(ctx, message("t", value))
			cancel()
		}
		if n < 50 || n > 64 {
			t.Errorf("%d records of 1 kB were taken by 64 KiB", n-1)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("full: %v, want the end of ctx", err)
		}
		if used, size := testutil.ToFloat64(s.cfg.Metrics.bytes), testutil.ToFloat64(s.cfg.Metrics.size); used > size || size != 64<<10 {
			t.Errorf("%v of %v bytes are used", used, size)
		}
		if got := strings.Count(s.log.String(), "spool is full"); got != 1 {
			t.Errorf("it is said %d times that the spool is full", got)
		}
		waiting := make(chan error, 1)
		go func() {
			r, err := s.Append(t.Context(), message("t", "late"+value))
			if err == nil {
				err = pipeline.Wait(t.Context(), r)
			}
			waiting <- err
		}()
		time.Sleep(time.Minute)
		if len(waiting) > 0 {
			t.Error("a record was taken by a full spool")
		}
		k.set(false)
		if err := <-waiting; err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		if got := k.values(""); len(got) != n || got[n-1] != "late"+value {
			t.Errorf("%d records in the log, want %d and the late one at the end", len(got), n)
		}
		s.close()
	})
}

func TestSteadyLoadDoesNotKeepItSpooling(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(4 * time.Millisecond)
		k.set(true)
		s := start(t, newMemory(), k)
		var worst time.Duration
		n := 0
		load := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); n++ {
				began := time.Now()
				s.wait(s.append(message("t", fmt.Sprintf("m%03d", n))))
				worst = max(worst, time.Since(began))
				time.Sleep(7 * time.Millisecond)
			}
		}
		load(2 * time.Second)
		k.set(false)
		load(2 * time.Second)
		if s.spools() {
			t.Error("it still spools")
		}
		if worst > after+tryFinish {
			t.Errorf("the slowest receipt took %v", worst)
		}
		s.close()
		compare(t, "the log", numbered("m", n), k.values(""))
	})
}

func TestWhatKafkaNeverTakesStopsNothingAndIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(0)
		k.poison = func(o pipeline.Outgoing) string {
			v := string(o.Value)
			switch {
			case strings.HasPrefix(v, "huge"), v == "large" && o.Topic != topics.Dead:
				return "append"
			case v == "odd" && o.Topic != topics.Dead:
				return "receipt"
			}
			return ""
		}
		s := start(t, newMemory(), k)
		// As long as Kafka answers, the caller hears of it.
		if _, err := s.Append(t.Context(), message("t", "large")); !fault.IsPoison(err) {
			t.Errorf("at once: %v, want poison", err)
		}
		if err := pipeline.Wait(t.Context(), s.append(message("t", "odd"))); !fault.IsPoison(err) {
			t.Errorf("by the receipt: %v, want poison", err)
		}
		k.set(true)
		s.wait(s.append(message("t", "m000")))
		for _, v := range []string{"large", "odd", "huge one", "m001"} {
			s.wait(s.append(message("t", v)))
		}
		k.set(false)
		time.Sleep(10 * time.Second)
		compare(t, "messages", []string{"m000", "m001"}, k.values(topics.Messages))
		dead := k.values(topics.Dead)
		slices.Sort(dead)
		compare(t, "dead letters", []string{"large", "odd"}, dead)
		files := s.disk.names(rejectedExt)
		if len(files) != 1 {
			t.Fatalf("files of what nobody takes: %v, want one", files)
		}
		b := s.disk.get(t, files[0])
		h, err := parseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		p := parser{seed: h.seed(), last: h.first - 1, b: b, off: headerSize}
		if e, ok := p.next(); !ok || string(e.out.Value) != "huge one" || e.out.Topic != topics.Messages {
			t.Errorf("the file holds %+v, %v", e, ok)
		}
		if n := testutil.ToFloat64(s.cfg.Metrics.rejected); n != 3 {
			t.Errorf("%v counted, want 3", n)
		}
		if s.spools() {
			t.Error("it still spools")
		}
		s.close()
	})
}
