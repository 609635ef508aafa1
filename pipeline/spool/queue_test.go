package spool

import (
	"bytes"
	"context"
	"encoding/binary"
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

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// opened is a queue on a disk in memory, with its log.
type opened struct {
	*queue
	t   *testing.T
	log *bytes.Buffer
}

func openOn(t *testing.T, d disk) *opened {
	t.Helper()
	log := &bytes.Buffer{}
	q, err := openQueue(d, 1<<20, slog.New(slog.NewTextHandler(log, nil)), NewMetrics(nil), func(string) error { return nil })
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

// written is a disk with these values in one segment.
func written(t *testing.T, values ...string) (d *memory, segment string) {
	t.Helper()
	d = newMemory()
	o := openOn(t, d)
	o.add(values...)
	o.flushed()
	o.end()
	names := d.names(segmentExt)
	if len(names) != 1 {
		t.Fatalf("%v, want one segment", names)
	}
	return d, names[0]
}

func copyOf(d *memory) *memory { return d.kill(func(n int) int { return n }) }

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	at := time.UnixMicro(1795376856413001)
	want := []pipeline.Outgoing{
		message("t/1", "hello"),
		{Topic: topics.Dead, Wire: event.Wire{Key: []byte{}, Value: []byte{}}},
		{Topic: topics.Sessions, Wire: event.Wire{Key: []byte("k\x00"), Value: bytes.Repeat([]byte{0xff}, 1<<20), Time: at, Headers: []event.Header{{Key: "", Value: []byte{}}, {Key: "ü", Value: []byte{0}}}}},
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

func TestATornEndCostsNoRecordThatWasSyncedAndIsKept(t *testing.T) {
	t.Parallel()
	values := numbered("value ", 5)
	d, name := written(t, values...)
	whole := d.get(t, name)
	ends := []int{headerSize}
	p := parser{b: whole, off: headerSize}
	h, err := parseHeader(whole)
	if err != nil {
		t.Fatal(err)
	}
	p.seed = h.seed()
	for {
		if _, ok := p.next(); !ok {
			break
		}
		ends = append(ends, p.off)
	}
	for _, junk := range [][]byte{nil, make([]byte, 4096), bytes.Repeat([]byte{0xff}, 100)} {
		for size := range len(whole) + 1 {
			d := newMemory()
			d.put(name, append(slices.Clone(whole[:size]), junk...))
			o := openOn(t, d)
			n, same := -1, size // junk may happen to be what follows
			for same < len(whole) && same-size < len(junk) && whole[same] == junk[same-size] {
				same++
			}
			for _, e := range ends {
				if e <= same {
					n++
				}
			}
			got, _ := o.take()
			compare(t, fmt.Sprintf("cut at %d, then %d bytes", size, len(junk)), values[:max(n, 0)], append([]string{}, got...))
			torn := size + len(junk)
			if n >= 0 {
				torn -= ends[n]
			}
			kept := 0
			for _, aside := range d.names(damagedExt) {
				kept += len(d.get(t, aside))
			}
			if kept != torn || testutil.ToFloat64(o.metrics.damaged) != float64(torn) {
				t.Errorf("cut at %d: %d bytes are kept and %v counted, want %d", size, kept, testutil.ToFloat64(o.metrics.damaged), torn)
			}
			o.add("new")
			o.flushed()
			o.end()
			o = openOn(t, d)
			got, _ = o.take()
			compare(t, "the next", append(slices.Clone(values[:max(n, 0)]), "new"), got)
			if testutil.ToFloat64(o.metrics.damaged) != 0 {
				t.Error("what was cut off is found again")
			}
			o.end()
		}
	}
}

func TestADamageInTheMiddleCostsNoMoreThanItsRecord(t *testing.T) {
	t.Parallel()
	values := numbered("value ", 6)
	d, name := written(t, values...)
	whole := d.get(t, name)
	for at := range whole {
		for _, bit := range []byte{1, 0x80, 0xff} {
			d := newMemory()
			b := slices.Clone(whole)
			b[at] ^= bit
			d.put(name, b)
			o := openOn(t, d)
			got, last := o.take()
			want := len(values) - 1
			if at < headerSize {
				want = 0
			}
			if len(got) != want || !slices.IsSorted(got) {
				t.Fatalf("byte %d damaged: got %q", at, got)
			}
			for _, v := range got {
				if !slices.Contains(values, v) {
					t.Fatalf("byte %d damaged: %q was never written", at, v)
				}
			}
			kept := d.names(damagedExt)
			if len(kept) != 1 || testutil.ToFloat64(o.metrics.damaged) != float64(len(d.get(t, kept[0]))) || !strings.Contains(o.log.String(), kept[0]) {
				t.Fatalf("byte %d damaged: kept %v, counted %v, said:\n%s", at, kept, testutil.ToFloat64(o.metrics.damaged), o.log)
			}
			o.drained(last, len(got))
			if !o.empty() {
				t.Fatalf("byte %d damaged: the spool is never empty", at)
			}
			o.end()
		}
	}
}

// A client may publish what looks like a frame. Behind a damage it must not become a record.
func TestAPayloadNeverBecomesARecord(t *testing.T) {
	t.Parallel()
	e := entry{2, message("t/forged", "forged")}
	var forged []byte
	for salt := range uint64(64) {
		forged = appendFrame(forged, segmentHeader{salt: salt}.seed(), &e)
	}
	forged = appendFrame(forged, 0, &e)
	d, name := written(t, "one", string(forged), "three")
	b := d.get(t, name)
	at := bytes.Index(b, forged)
	b[at-20] ^= 1
	d = newMemory()
	d.put(name, b)
	got, _ := openOn(t, d).take()
	compare(t, "records", []string{"one", "three"}, got)
}

func TestASegmentOfALaterVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	d, name := written(t, "one")
	b := d.get(t, name)
	h, err := parseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	h.version++
	d.put(name, h.append(nil))
	if _, err := openQueue(d, 1<<20, slog.New(slog.DiscardHandler), NewMetrics(nil), func(string) error { return nil }); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("open: %v, want a word on version 2", err)
	}
	if len(d.names(segmentExt)) != 1 {
		t.Error("the segment is gone")
	}
}

func TestRecordsOfATopicThatIsNotConfiguredStopTheStart(t *testing.T) {
	t.Parallel()
	d, _ := written(t, "one")
	cfg := Config{Size: 1 << 20, Topics: pipeline.Topics{Messages: "x.messages", Sessions: "x.sessions", Dead: "x.dead"}, Metrics: NewMetrics(nil), Log: slog.New(slog.DiscardHandler)}
	if _, err := open(cfg, d); err == nil || !strings.Contains(err.Error(), topics.Messages) {
		t.Errorf("open: %v, want a word on %s", err, topics.Messages)
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
					ill := true
					d.ill = func(c string) error {
						if ill && c == call {
							return errIO
						}
						return nil
					}
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
					ill = false
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
		s.disk.mu.Lock()
		s.disk.ill = func(c string) error {
			if c == "write" || c == "sync" {
				return errIO
			}
			return nil
		}
		s.disk.mu.Unlock()
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
		d.mu.Lock()
		d.ill = func(string) error { return errIO }
		d.mu.Unlock()
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

func TestAnUnreadableCursorRepeatsAndLosesNothing(t *testing.T) {
	t.Parallel()
	values := numbered("v", 10)
	d, _ := written(t, values...)
	o := openOn(t, d)
	if got, _ := o.take(); len(got) != 10 {
		t.Fatal(got)
	}
	o.drained(4, 4)
	o.end()
	d2 := copyOf(d)
	o = openOn(t, d2)
	got, _ := o.take()
	compare(t, "behind the cursor", values[4:], got)
	o.end()
	for _, cursor := range [][]byte{nil, {1}, appendCursor(nil, 7)[:15], append(appendCursor(nil, 7), 0)} {
		d3 := copyOf(d2)
		d3.put(cursorFile, cursor)
		got, _ := openOn(t, d3).take()
		compare(t, "without a cursor", values, got)
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

func FuzzSegment(f *testing.F) {
	h := segmentHeader{version: version, salt: 7, first: 1}
	b := h.append(nil)
	for i := range 4 {
		b = appendFrame(b, h.seed(), &entry{uint64(i + 1), message("t", fmt.Sprint("value ", i))})
	}
	f.Add(b, uint64(0))
	f.Add(b[headerSize:], uint64(3))
	f.Add([]byte{}, uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, last uint64) {
		_, _ = parseHeader(b)
		_, _ = parseCursor(b)
		p := parser{seed: h.seed(), last: last, b: b}
		covered := 0
		for {
			from := p.off
			e, ok := p.next()
			if !ok {
				break
			}
			if e.seq <= last {
				t.Fatalf("seq %d after %d", e.seq, last)
			}
			last = e.seq
			covered += p.off - from
			again := appendFrame(nil, h.seed(), &e)
			q := parser{seed: h.seed(), last: last - 1, b: again}
			if got, ok := q.next(); !ok || !cmp.Equal(e.out, got.out) {
				t.Fatalf("%+v is read back as %+v", e, got)
			}
		}
		if p.off != len(b) {
			t.Fatalf("ended at %d of %d", p.off, len(b))
		}
		prev := int64(0)
		for _, s := range p.bad {
			if s.from < prev || s.to <= s.from || s.to > int64(len(b)) {
				t.Fatalf("damaged pieces %v of %d bytes", p.bad, len(b))
			}
			prev = s.to
		}
		// A frame whose checksum is right is a record, or damaged, and never a panic.
		if len(b) >= leastBody && len(b) < 1<<16 {
			frame := append(make([]byte, frameHead), b...)
			binary.LittleEndian.PutUint32(frame, uint32(len(b)))
			binary.LittleEndian.PutUint32(frame[4:], frameSum(h.seed(), frame))
			q := parser{seed: h.seed(), b: frame}
			for {
				if _, ok := q.next(); !ok {
					break
				}
			}
		}
	})
}
