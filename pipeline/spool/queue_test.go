package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// opened is a queue on a disk in memory, with its log.
type opened struct {
	*queue
	t   *testing.T
	log *text
}

func openOn(t *testing.T, d Disk) *opened {
	t.Helper()
	log := &text{}
	q, err := openQueue(d, 1<<20, pipeline.DefaultBackoff, slog.New(slog.NewTextHandler(log, nil)), NewMetrics(nil), func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.end() })
	return &opened{q, t, log}
}

// end closes the queue, once.
func (q *queue) end() {
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if !closed {
		q.close()
	}
}

func (o *opened) add(values ...string) []*promise {
	o.t.Helper()
	var out []*promise
	for _, v := range values {
		m := message("t", v)
		p := newPromise()
		if err := o.reserve(o.t.Context(), sizeOf(&m)); err != nil {
			o.t.Fatal(err)
		}
		if _, err := o.push(m, sizeOf(&m), p); err != nil {
			o.t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// take fetches until nothing more comes.
func (o *opened) take() (values []string, last uint64) {
	o.t.Helper()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		list, err := o.fetch(ended) // it gives what there is all the same
		if err != nil {
			return values, last
		}
		for _, f := range list {
			last = f.seq
			if !f.gone() {
				values = append(values, string(f.out.Value))
			}
		}
	}
}

func (o *opened) flushed() {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := o.flush(ctx); err != nil {
		o.t.Fatal(err)
	}
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	at := time.UnixMicro(1795376856413001)
	want := []pipeline.Outgoing{
		message("t/1", "hello"),
		{Topic: topics.Dead, Wire: event.Wire{Key: []byte{}, Value: []byte{}}},
		{Topic: topics.Sessions, Wire: event.Wire{Key: []byte("k\x00"), Value: bytes.Repeat([]byte{0xff}, 1<<12), Time: at, Headers: []event.Header{{Key: "", Value: []byte{}}, {Key: "ü", Value: []byte{0}}}}},
	}
	d := newMemory()
	o := openOn(t, d)
	for _, m := range want {
		o.room.force(sizeOf(&m))
		if _, err := o.push(m, sizeOf(&m), newPromise()); err != nil {
			t.Fatal(err)
		}
	}
	o.flushed()
	for _, again := range []bool{false, true} {
		if again {
			o.end()
			o = openOn(t, d)
		}
		var got []pipeline.Outgoing
		for len(got) < len(want) {
			list, err := o.fetch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				got = append(got, f.out)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("again %v (-want +got):\n%s", again, diff)
		}
	}
}

// What a failed sync was to make durable is written anew into another file, and the first is not synced again.
func TestAFailedWriteOrSyncIsNeverTakenForDurable(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"write", "sync", "open"} {
		for _, begun := range []bool{false, true} {
			t.Run(fmt.Sprint(call, begun), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					d := newMemory()
					o := openOn(t, d)
					var want []string
					if begun {
						want = []string{"before"}
						o.add(want...)
						o.flushed()
					}
					d.be(func(c string) error {
						if c == call {
							return errIO
						}
						return nil
					})
					if begun && call == "open" {
						return // the file is open
					}
					receipts := o.add("one", "two")
					time.Sleep(3 * time.Minute)
					for _, r := range receipts {
						if !open3(t, r) {
							t.Fatal("a receipt was resolved while nothing could be written")
						}
					}
					if said := strings.Count(o.log.String(), "spool cannot be written"); said < 3 || said > 4 {
						t.Errorf("said %d times in 3 minutes", said)
					}
					if n := testutil.ToFloat64(o.metrics.writeErrors); n < 30 {
						t.Errorf("%v errors counted", n)
					}
					d.be(nil)
					time.Sleep(10 * time.Second)
					for _, r := range receipts {
						if open3(t, r) || r.Err() != nil {
							t.Fatal("a receipt was not resolved when the disk was well again")
						}
					}
					want = append(want, "one", "two")
					got, _ := o.take()
					compare(t, "records", want, got)
					after := copyOf(d)
					o.end()
					got, _ = openOn(t, after).take()
					compare(t, "records after a kill", want, got)
				})
			})
		}
	}
}

// Kafka is back and the disk is not: what waits for the disk goes to Kafka.
func TestAnIllDiskHoldsUpNothingThatKafkaTakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(0)
		k.set(true)
		s := start(t, newMemory(), k)
		s.wait(s.append(message("t", "m000")))
		s.disk.be(func(c string) error {
			if c == "write" || c == "sync" {
				return errIO
			}
			return nil
		})
		late := s.append(message("t", "m001"))
		time.Sleep(time.Minute)
		if !open3(t, late) {
			t.Fatal("durable nowhere, and resolved")
		}
		k.set(false)
		s.wait(late)
		for _, v := range numbered("m", 50)[2:] {
			s.wait(s.append(message("t", v)))
		}
		time.Sleep(time.Minute)
		compare(t, "the log", numbered("m", 50), k.values(""))
		if s.spools() {
			t.Error("it still spools")
		}
		s.close()
	})
}

func TestACloseThatCannotKeepARecordSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(0)
		k.set(true)
		d := newMemory()
		s := start(t, d, k)
		d.be(func(string) error { return errIO })
		r := s.append(message("t", "m"))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err == nil {
			t.Error("close: nil, want an error")
		}
		if open3(t, r) || r.Err() == nil {
			t.Errorf("the receipt: %v, want an error", r.Err())
		}
		if _, err := s.Append(t.Context(), message("t", "m")); !errors.Is(err, errClosed) {
			t.Errorf("append: %v, want %v", err, errClosed)
		}
	})
}

func TestTwoProcessesDoNotShareADirectory(t *testing.T) {
	t.Parallel()
	cfg := func() Config {
		return Config{
			Dir: t.TempDir(), Size: 128 << 20, After: after, Inner: newKafka(0), Topics: topics, Now: time.Now, Metrics: NewMetrics(nil),
			Log: slog.New(slog.DiscardHandler),
		}
	}
	first := cfg()
	p, err := Open(first)
	if err != nil {
		t.Fatal(err)
	}
	second := cfg()
	second.Dir = first.Dir
	if _, err := Open(second); err == nil || !strings.Contains(err.Error(), "is in use by process") {
		t.Errorf("open: %v, want a word on who has it", err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	p, err = Open(second)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDrainedSegmentsGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newMemory()
		o := openOn(t, d)
		o.segment = 1000
		for i := range 100 {
			o.add(fmt.Sprintf("%03d", i))
			o.flushed()
		}
		before := len(d.names(segmentExt))
		if before < 5 {
			t.Fatalf("%d segments", before)
		}
		got, last := o.take()
		if len(got) != 100 {
			t.Fatalf("%d records", len(got))
		}
		used := o.room.inUse()
		o.drained(50, 50)
		time.Sleep(time.Second)
		if n, now := len(d.names(segmentExt)), o.room.inUse(); n >= before || n == 0 || now >= used || now < used/3 {
			t.Errorf("half is drained: %d of %d segments, %d of %d bytes", n, before, now, used)
		}
		o.drained(last, 50)
		o.rest()
		time.Sleep(time.Second)
		if n, now := len(d.names(segmentExt)), o.room.inUse(); n != 0 || now != 0 {
			t.Errorf("all is drained: %d segments, %d bytes", n, now)
		}
		o.add("next")
		o.flushed()
		next, _ := o.take()
		compare(t, "the next", []string{"next"}, next)
	})
}
