package spool

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/pipeline"
)

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
	if _, err := openQueue(d, 1<<20, pipeline.DefaultBackoff, slog.New(slog.DiscardHandler), NewMetrics(nil), func(string) error { return nil }); err == nil || !strings.Contains(err.Error(), "version 2") {
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

func FuzzSegment(f *testing.F) {
	h := segmentHeader{version: version, salt: 7, first: 1}
	b := h.append(nil)
	for i := range 4 {
		m := message("t", fmt.Sprint("value ", i))
		m.Time = time.UnixMicro(1795376856413000)
		b = appendFrame(b, h.seed(), &entry{uint64(i + 1), m})
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
