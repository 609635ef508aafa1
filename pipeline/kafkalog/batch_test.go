package kafkalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go/compress"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// testBatch is a record batch as a broker may send it.
type testBatch struct {
	base       int64
	last       int32 // highest delta; < 0 = that of the last record
	attributes uint16
	first, max int64
	count      int32 // < 0 = that of the records
	records    []testRecord
	tail       []byte // after the last record
}

type testRecord struct {
	delta, millis int64
	key, value    []byte
	headers       []event.Header
}

func appendBytes(b, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(v))), v...)
}

func (r testRecord) append(b []byte) []byte {
	body := binary.AppendVarint(binary.AppendVarint([]byte{0}, r.millis), r.delta)
	body = appendBytes(appendBytes(body, r.key), r.value)
	body = binary.AppendVarint(body, int64(len(r.headers)))
	for _, h := range r.headers {
		body = appendBytes(appendBytes(body, []byte(h.Key)), h.Value)
	}
	return append(binary.AppendVarint(b, int64(len(body))), body...)
}

func (t testBatch) bytes(tb testing.TB) []byte {
	tb.Helper()
	var records []byte
	for _, r := range t.records {
		records = r.append(records)
	}
	records = append(records, t.tail...)
	if c := compress.Compression(t.attributes & codecBits); c != compress.None {
		var packed bytes.Buffer
		w := c.Codec().NewWriter(&packed)
		_, err := w.Write(records)
		if err := errors.Join(err, w.Close()); err != nil {
			tb.Fatal(err)
		}
		records = packed.Bytes()
	}
	if t.last < 0 && len(t.records) > 0 {
		t.last = int32(t.records[len(t.records)-1].delta)
	}
	if t.count < 0 {
		t.count = int32(len(t.records))
	}
	return t.around(records)
}

// around is the batch with the records given, which may be anything.
func (t testBatch) around(records []byte) []byte {
	e := binary.BigEndian
	b := e.AppendUint64(nil, uint64(t.base))
	b = e.AppendUint32(b, uint32(batchHeader-12+len(records)))
	b = append(e.AppendUint32(b, 0), 2, 0, 0, 0, 0) // epoch, magic, checksum
	b = e.AppendUint32(e.AppendUint16(b, t.attributes), uint32(t.last))
	b = e.AppendUint64(e.AppendUint64(b, uint64(t.first)), uint64(t.max))
	b = e.AppendUint32(append(b, make([]byte, 14)...), uint32(t.count))
	b = append(b, records...)
	return sum(b)
}

// sum puts the right checksum in.
func sum(b []byte) []byte {
	binary.BigEndian.PutUint32(b[batchCRC:], crc32.Checksum(b[batchChecked:], castagnoli))
	return b
}

// batchOf is a batch of records with the values given.
func batchOf(base int64, values ...string) testBatch {
	t := testBatch{base: base, last: -1, count: -1, first: 1_700_000_000_000, max: 1_700_000_000_999}
	for i, v := range values {
		t.records = append(t.records, testRecord{
			delta: int64(i), millis: int64(i), key: []byte("k"), value: []byte(v), headers: []event.Header{{Key: "h", Value: []byte("x")}},
		})
	}
	return t
}

// parse reads a set from an offset on, as a stream does, some at a time.
func parse(set []byte, from int64, some int) (got []pipeline.Record, pos int64, err error) {
	s := recordSet{pos: from}
	s.reset(set, nil)
	var k keeper
	for {
		n := 0
		var raw rawRecord
		for ; n < some && s.next(&raw); n++ {
			var r pipeline.Record
			if _, err := k.record(&r, tp0, &raw); err != nil {
				s.refuse(&raw, err)
				break
			}
			got = append(got, r)
		}
		s.advance()
		if n < some {
			return got, s.pos, s.err
		}
	}
}

func offsets(rs []pipeline.Record) []int64 {
	out := []int64{}
	for _, r := range rs {
		out = append(out, r.Offset)
	}
	return out
}

func TestRecordSetsAsBrokersSendThem(t *testing.T) {
	t.Parallel()
	join := func(bs ...testBatch) []byte {
		var all []byte
		for _, b := range bs {
			all = append(all, b.bytes(t)...)
		}
		return all
	}
	gaps := batchOf(10, "a", "b", "c")
	gaps.records[1].delta, gaps.records[2].delta, gaps.last = 3, 7, 9 // compacted, the end of the batch too
	marker := batchOf(20, "commit")
	marker.attributes = controlBit
	emptied := testBatch{base: 30, last: 4} // compaction keeps a batch for its producer's sequence
	transactional := batchOf(10, "a", "b")
	transactional.attributes = 0x10
	two := join(batchOf(10, "a", "b"), batchOf(12, "c"))
	for name, c := range map[string]struct {
		set  []byte
		from int64
		want []int64
		pos  int64
		err  error
	}{
		"nothing":                           {nil, 7, []int64{}, 7, nil},
		"two batches":                       {two, 10, []int64{10, 11, 12}, 13, nil},
		"a batch that begins before":        {two, 11, []int64{11, 12}, 13, nil},
		"a batch that lies before":          {two, 12, []int64{12}, 13, nil},
		"compacted":                         {join(gaps), 10, []int64{10, 13, 17}, 20, nil},
		"compacted, from within":            {join(gaps), 12, []int64{13, 17}, 20, nil},
		"compacted, from behind the last":   {join(gaps), 18, []int64{}, 20, nil},
		"a marker at the end":               {join(transactional, marker), 10, []int64{10, 11}, 21, nil},
		"a marker only":                     {join(marker), 20, []int64{}, 21, nil},
		"emptied":                           {join(emptied), 30, []int64{}, 35, nil},
		"emptied, between":                  {join(batchOf(29, "a"), emptied, batchOf(40, "b")), 29, []int64{29, 40}, 41, nil},
		"a last batch that is cut":          {two[:len(two)-1], 10, []int64{10, 11}, 12, nil},
		"a last batch cut in its prefix":    {two[:len(batchOf(10, "a", "b").bytes(t))+9], 10, []int64{10, 11}, 12, nil},
		"an only batch that is cut":         {join(batchOf(10, "a"))[:70], 10, []int64{}, 10, errCorrupt},
		"an only batch cut in its prefix":   {join(batchOf(10, "a"))[:9], 10, []int64{}, 10, errCorrupt},
		"the same batch twice":              {join(batchOf(10, "a"), batchOf(10, "a")), 10, []int64{10}, 11, errCorrupt},
		"the highest offset":                {join(batchOf(math.MaxInt64-1, "a")), math.MaxInt64 - 1, []int64{math.MaxInt64 - 1}, math.MaxInt64, nil},
		"an offset that cannot be followed": {join(batchOf(math.MaxInt64, "a")), 10, []int64{}, 10, errCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, some := range []int{1, 2, 100} {
				got, pos, err := parse(c.set, c.from, some)
				if !errors.Is(err, c.err) || c.err == nil && err != nil {
					t.Errorf("error %v, want %v", err, c.err)
				}
				if diff := cmp.Diff(c.want, offsets(got)); diff != "" || pos != c.pos {
					t.Errorf("position %d, want %d; offsets (-want +got):\n%s", pos, c.pos, diff)
				}
			}
		})
	}
}

func TestWhatIsNoBatchIsRefusedAndNotSkipped(t *testing.T) {
	t.Parallel()
	good := batchOf(10, "a", "b").bytes(t)
	after := batchOf(12, "c").bytes(t)
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	record := func(body ...byte) []byte {
		return batchOf(10).with(1, binary.AppendVarint(nil, int64(len(body))), body)
	}
	for name, set := range map[string][]byte{
		"a bit is wrong":                  change(func(b []byte) { b[len(b)-1] ^= 1 }),
		"negative length":                 change(func(b []byte) { b[8] = 0xff }),
		"shorter than its header":         change(func(b []byte) { binary.BigEndian.PutUint32(b[8:], 48) }),
		"more records than bytes":         sum(change(func(b []byte) { binary.BigEndian.PutUint32(b[batchCount:], math.MaxInt32) })),
		"negative count":                  sum(change(func(b []byte) { binary.BigEndian.PutUint32(b[batchCount:], math.MaxUint32) })),
		"fewer records than it says":      sum(change(func(b []byte) { binary.BigEndian.PutUint32(b[batchCount:], 3) })),
		"more records than it says":       sum(change(func(b []byte) { binary.BigEndian.PutUint32(b[batchCount:], 1) })),
		"negative last offset":            sum(change(func(b []byte) { b[batchLast] = 0xff })),
		"a record beyond the last offset": sum(change(func(b []byte) { b[batchLast+3] = 0 })),
		"negative base offset":            change(func(b []byte) { b[0] = 0xff }),
		"an offset twice": func() []byte {
			b := batchOf(10, "a", "b")
			b.records[1].delta, b.last = 0, 1
			return b.bytes(t)
		}(),
		"a record that is too long":   batchOf(10).with(1, binary.AppendVarint(nil, 1000), make([]byte, 20)),
		"a record of negative length": batchOf(10).with(1, binary.AppendVarint(nil, -1), make([]byte, 20)),
		"a key that is too long":      record(0, 0, 0, 100, 0, 0, 0, 0, 0, 0),
		"a key of negative length":    record(0, 0, 0, 3, 0, 0, 0, 0, 0, 0),
		"too many headers":            record(0, 0, 0, 1, 1, 100, 0, 0, 0, 0),
		"negative headers":            record(0, 0, 0, 1, 1, 1, 0, 0, 0, 0),
		"headers that do not fit":     record(0, 0, 0, 1, 1, 2, 8, 'a', 'b', 'c'),
		"a header without a name":     record(0, 0, 0, 1, 1, 2, 1, 1, 0, 0),
		"bytes behind the headers":    record(0, 0, 0, 1, 1, 2, 0, 0, 0, 0),
		"bytes behind no headers":     record(0, 0, 0, 1, 1, 0, 9, 9, 9, 9),
		"a varint without an end":     record(0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80),
		"gzip that is none":           testBatch{base: 10, last: 1, count: 1, attributes: 1}.around(make([]byte, 100)),
		"snappy that is none":         testBatch{base: 10, last: 1, count: 1, attributes: 2}.around(bytes.Repeat([]byte{0xff}, 100)),
		"lz4 that is none":            testBatch{base: 10, last: 1, count: 1, attributes: 3}.around(make([]byte, 100)),
		"zstd that is none":           testBatch{base: 10, last: 1, count: 1, attributes: 4}.around(make([]byte, 100)),
		"compressed and more than it says": func() []byte {
			b := batchOf(10, "a")
			b.attributes, b.tail = 4, []byte("more")
			return b.bytes(t)
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, pos, err := parse(append(bytes.Clone(set), after...), 10, 100)
			if !errors.Is(err, errCorrupt) || fault.IsFatal(err) {
				t.Errorf("got %v", err)
			}
			if len(got) > 2 || pos > 12 {
				t.Errorf("went on to %d: %v", pos, offsets(got))
			}
		})
	}
}

// with is the batch around count records of the bytes given.
func (t testBatch) with(count int32, parts ...[]byte) []byte {
	t.last, t.count = count, count
	return t.around(bytes.Join(parts, nil))
}

func TestFormatsThatAreNotReadAreFatal(t *testing.T) {
	t.Parallel()
	for _, magic := range []byte{0, 1, 3} {
		set := batchOf(10, "a").bytes(t)
		set[batchMagic] = magic
		if _, pos, err := parse(set, 10, 1); !fault.IsFatal(err) || pos != 10 {
			t.Errorf("magic %d: %v at %d", magic, err, pos)
		}
	}
	for codec := uint16(5); codec < 8; codec++ {
		set := testBatch{base: 10, count: 1, attributes: codec}.around(make([]byte, 100))
		if _, _, err := parse(set, 10, 1); !fault.IsFatal(err) {
			t.Errorf("compression %d: %v", codec, err)
		}
	}
}

// FuzzRecordBatch holds that no answer makes the parser panic, go back, or make more room than the bytes it has read deserve.
func FuzzRecordBatch(f *testing.F) {
	for codec := range uint16(8) {
		b := batchOf(3, "a", "", strings.Repeat("x", 600))
		b.records[1].value = nil
		if b.attributes = codec; codec > 4 {
			b.attributes = 0
		}
		set := append(b.bytes(f), batchOf(9, "b").bytes(f)...)
		f.Add(set, int64(4))
		f.Add(set[:len(set)-3], int64(3))
	}
	marker := batchOf(0, "m")
	marker.attributes = controlBit
	f.Add(append(marker.bytes(f), testBatch{base: 8, last: 4}.bytes(f)...), int64(0))
	f.Fuzz(func(t *testing.T, set []byte, from int64) {
		if from < 0 {
			from = 0
		}
		set = bytes.Clone(set)
		for b := set; len(b) > batchHeader; { // checksums that fit let the fuzzer further in
			n := int(int32(binary.BigEndian.Uint32(b[8:]))) + 12
			if n < batchHeader || n > len(b) {
				break
			}
			sum(b[:n])
			b = b[n:]
		}
		got, pos, err := parse(set, from, 3)
		last := from - 1
		for _, r := range got {
			if r.Offset <= last || r.Value == nil {
				t.Fatalf("offset %d follows %d", r.Offset, last)
			}
			last = r.Offset
		}
		if pos < from || pos <= last {
			t.Fatalf("position %d after offset %d from %d", pos, last, from)
		}
		if err != nil && !errors.Is(err, errCorrupt) && !fault.IsFatal(err) {
			t.Fatal(err)
		}
	})
}
