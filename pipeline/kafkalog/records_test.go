package kafkalog

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	field := rapid.Custom(func(rt *rapid.T) []byte {
		switch rapid.IntRange(0, 5).Draw(rt, "kind") {
		case 0:
			return nil
		case 1:
			return bytes.Repeat([]byte{'x'}, rapid.IntRange(0, 3*ownBytes).Draw(rt, "len"))
		}
		return append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(rt, "bytes")...)
	})
	rapid.Check(t, func(rt *rapid.T) {
		var (
			set  []byte
			want []pipeline.Record
			next = rapid.Int64Range(0, 1000).Draw(rt, "from")
			from = next
		)
		for range rapid.IntRange(0, 4).Draw(rt, "batches") {
			b := testBatch{base: next, count: -1, first: 1_700_000_000_000, max: 1_700_000_100_000}
			b.attributes = uint16(rapid.IntRange(0, 4).Draw(rt, "codec"))
			if rapid.Bool().Draw(rt, "append time") {
				b.attributes |= appendTimeBit
			}
			control := rapid.IntRange(0, 5).Draw(rt, "control") == 0
			if control {
				b.attributes |= controlBit
			}
			for range rapid.IntRange(0, 12).Draw(rt, "records") {
				b.last += int32(rapid.IntRange(0, 2).Draw(rt, "gap"))
				r := testRecord{
					delta: int64(b.last), millis: rapid.Int64Range(-1000, 100_000).Draw(rt, "time"), key: field.Draw(rt, "key"), value: field.Draw(rt, "value"),
				}
				for range rapid.IntRange(0, 20).Draw(rt, "headers") {
					r.headers = append(r.headers, event.Header{
						Key: rapid.SampledFrom([]string{"", "ce_id", "ce_type", strings.Repeat("n", longName+1)}).Draw(rt, "name"), Value: field.Draw(rt, "header"),
					})
				}
				b.last++
				b.records = append(b.records, r)
				if control {
					continue
				}
				at := b.first + r.millis
				if b.attributes&appendTimeBit != 0 {
					at = b.max
				}
				w := event.Wire{Key: r.key, Value: r.value, Headers: r.headers, Time: time.UnixMilli(at).UTC()}
				if w.Value == nil {
					w.Value = empty
				}
				want = append(want, pipeline.Record{TP: tp0, Offset: b.base + r.delta, Wire: w})
			}
			b.last += int32(rapid.IntRange(0, 2).Draw(rt, "gap at the end"))
			set = append(set, b.bytes(t)...)
			next = b.base + int64(b.last) + 1 + rapid.Int64Range(0, 3).Draw(rt, "gap between")
		}
		got, pos, err := parse(set, from, rapid.IntRange(1, 10).Draw(rt, "some"))
		if err != nil || pos > next {
			rt.Errorf("position %d of %d: %v", pos, next, err)
		}
		for i := range set { // nothing lies in the buffer of the fetch
			set[i] = 0xee
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestWhatIsKeptOfABatchDoesNotKeepTheBatch(t *testing.T) {
	// Not parallel: it looks at the heap.
	b := testBatch{base: 0, last: -1, count: -1}
	for i := range int64(2000) {
		r := testRecord{delta: i, key: []byte("t/1"), value: bytes.Repeat([]byte{'v'}, 400)}
		if i%100 == 50 {
			r.value = bytes.Repeat([]byte{'V'}, 100_000)
		}
		for range 7 {
			r.headers = append(r.headers, event.Header{Key: "ce_something", Value: []byte("a value")})
		}
		b.records = append(b.records, r)
	}
	set := b.bytes(t)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var kept []pipeline.Record
	before := heap()
	for i := range 50 {
		all, _, err := parse(set, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		r := all[1000+i] // an elided one keeps its place, and the large value beside it is gone
		r.Value = nil
		kept = append(kept, r)
	}
	each := (heap() - before) / int64(len(kept))
	runtime.KeepAlive(kept)
	runtime.KeepAlive(set)
	if each > 3*pieceBytes+pieceHeaders*64 {
		t.Errorf("a record of 500 bytes keeps %d", each)
	}
}
