package kafkalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/restante/restante/fault"
)

// The layout of a record batch (message format v2). Every number is big-endian, but for the varints within records.
const (
	batchPrefix    = 8 + 4 // base offset, length of what follows
	batchMagic     = 16    // where the magic byte lies; it lies there in the older formats too
	batchCRC       = 17
	batchChecked   = 21 // the checksum covers the rest of the batch
	batchLast      = 23
	batchFirstTime = 27
	batchLastTime  = 35
	batchCount     = 57
	batchHeader    = 61
	leastRecord    = 7 // bytes of a record without anything in it

	codecBits     = 0x07
	appendTimeBit = 0x08
	controlBit    = 0x20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errCorrupt is data that is no Kafka record batch. It is fetched again, and never skipped.
var errCorrupt = errors.New("the batch is corrupt")

// recordSet walks the records of one answer to a fetch. It allocates nothing by a length or a count that it has not compared
// with the bytes at hand; only what a batch inflates to is kept apart, up to [largest].
type recordSet struct {
	set  []byte // batches that are not begun
	pos  int64  // all offsets below are done with
	err  error  // why nothing follows
	done int    // batches that were begun

	rest     []byte // records of the batch under way
	left     int    // their number
	base     int64  // offset that the deltas of the batch start from
	last     int64  // the highest offset that the batch covers, with or without a record
	prev     int64  // offset of the record before
	first    int64  // time that the deltas start from, ms
	stamp    int64  // time of all records where the broker has set it, ms; else -1
	inflated []byte // what rest lies in when it was compressed
}

// rawRecord is a record whose bytes belong to the recordSet: they are overwritten by the next answer.
type rawRecord struct {
	offset     int64
	millis     int64
	key, value []byte // nil = null
	count      int    // of headers
	headers    []byte
}

// reset starts on the records of an answer; inflated is memory to be used.
func (s *recordSet) reset(set, inflated []byte) {
	*s = recordSet{set: set, pos: s.pos, prev: -1, inflated: inflated}
}

// next returns the next record, or false: then err says why, and nil is the end of the set.
func (s *recordSet) next(r *rawRecord) bool {
	for {
		s.advance()
		if s.left == 0 {
			return false
		}
		if err := s.record(r); err != nil {
			s.fail(err)
			return false
		}
		if r.offset >= s.pos { // a batch may begin below the offset that was asked for
			s.pos = r.offset + 1
			return true
		}
	}
}

func (s *recordSet) fail(err error) {
	s.err = fmt.Errorf("read the batch at offset %d: %w", s.base, err)
	s.set, s.rest, s.left = nil, nil, 0
}

// refuse goes back to before the record, which is not what it seemed to be.
func (s *recordSet) refuse(r *rawRecord, err error) {
	s.pos = r.offset
	s.fail(err)
}

// ended reports that nothing is left, not even an error.
func (s *recordSet) ended() bool { return s.left == 0 && len(s.set) == 0 && s.err == nil }

// end forgets what is left, and hands back the memory that it was given or has made.
func (s *recordSet) end() (inflated []byte) {
	inflated = s.inflated
	*s = recordSet{pos: s.pos}
	return inflated
}

// advance begins the next batch that has records, if the one under way has none left. Batches without any (transaction markers,
// what compaction has emptied) only move pos. The bytes of the record before may be overwritten.
func (s *recordSet) advance() {
	for s.left == 0 && s.err == nil {
		if s.done > 0 {
			if len(s.rest) > 0 {
				s.fail(fmt.Errorf("%w: %d bytes follow its last record", errCorrupt, len(s.rest)))
				return
			}
			s.pos = max(s.pos, s.last+1)
		}
		more, err := s.begin()
		if err != nil {
			s.fail(err)
		}
		if !more {
			return
		}
	}
}

// begin takes the next batch off the set. false without an error is the end: an answer may be cut within its last batch.
func (s *recordSet) begin() (more bool, err error) {
	b := s.set
	if len(b) <= batchMagic {
		return false, s.cut()
	}
	s.base = int64(binary.BigEndian.Uint64(b)) //nolint:gosec // two's complement on the wire
	switch magic := b[batchMagic]; {
	case magic < 2:
		return false, fault.Fatal(fmt.Errorf("messages of format v%d, from before Kafka 0.11, have no headers and are not read: "+
			"nothing of this program writes them; move the group's offset beyond them", magic))
	case magic > 2:
		return false, fault.Fatal(fmt.Errorf("record batches of format v%d are not known to this program", magic))
	}
	length := int(int32(binary.BigEndian.Uint32(b[8:]))) //nolint:gosec // two's complement on the wire
	if length < batchHeader-batchPrefix {
		return false, fmt.Errorf("%w: a length of %d", errCorrupt, length)
	}
	if length > len(b)-batchPrefix {
		return false, s.cut()
	}
	b, s.set = b[:batchPrefix+length], b[batchPrefix+length:]
	if have, want := crc32.Checksum(b[batchChecked:], castagnoli), binary.BigEndian.Uint32(b[batchCRC:]); have != want {
		return false, fmt.Errorf("%w: checksum %08x, not %08x", errCorrupt, have, want)
	}
	return true, s.open(b)
}

// cut is the end of the answer. Kafka gives at least the first batch as a whole, however large it is.
func (s *recordSet) cut() error {
	if len(s.set) > 0 && s.done == 0 {
		return fmt.Errorf("%w: the answer ends within it", errCorrupt)
	}
	s.set = nil
	return nil
}

func (s *recordSet) open(b []byte) (err error) {
	var (
		attributes = binary.BigEndian.Uint16(b[batchChecked:])
		last       = int32(binary.BigEndian.Uint32(b[batchLast:]))  //nolint:gosec // two's complement on the wire
		count      = int32(binary.BigEndian.Uint32(b[batchCount:])) //nolint:gosec // two's complement on the wire
		before     = s.last
	)
	if last < 0 || count < 0 || s.base < 0 || s.base > math.MaxInt64-1-int64(last) || s.done > 0 && s.base <= before {
		return fmt.Errorf("%w: %d records to offset %d+%d, after offset %d", errCorrupt, count, s.base, last, before)
	}
	s.done++
	s.last, s.rest, s.left = s.base+int64(last), nil, 0
	if attributes&controlBit != 0 || count == 0 || s.last < s.pos {
		return nil
	}
	s.first = int64(binary.BigEndian.Uint64(b[batchFirstTime:])) //nolint:gosec // two's complement on the wire
	s.stamp = -1
	if attributes&appendTimeBit != 0 {
		s.stamp = int64(binary.BigEndian.Uint64(b[batchLastTime:])) //nolint:gosec // two's complement on the wire
	}
	s.rest = b[batchHeader:]
	if codec := attributes & codecBits; codec != 0 {
		if s.inflated, err = inflate(s.inflated[:0], codec, s.rest); err != nil {
			return err
		}
		s.rest = s.inflated
	}
	if int(count) > len(s.rest)/leastRecord {
		return fmt.Errorf("%w: %d bytes hold no %d records", errCorrupt, len(s.rest), count)
	}
	s.left = int(count)
	return nil
}

// record takes the next record off the batch.
func (s *recordSet) record(r *rawRecord) error {
	f := fields{b: s.rest}
	length := f.varint()
	body := fields{b: f.take(length)}
	body.take(1) // attributes, of which there are none yet
	millis, delta := body.varint(), body.varint()
	r.key = body.bytes()
	r.value = body.bytes()
	count := body.varint()
	if f.bad || body.bad || delta < 0 || delta > s.last-s.base || count < 0 || count > int64(len(body.b)/2) ||
		count == 0 && len(body.b) > 0 {
		return fmt.Errorf("%w: a record of %d bytes at offset +%d with %d headers", errCorrupt, length, delta, count)
	}
	r.offset, r.millis = s.base+delta, s.first+millis
	if s.stamp >= 0 {
		r.millis = s.stamp
	}
	r.count, r.headers = int(count), body.b
	if r.offset <= s.prev {
		return fmt.Errorf("%w: offset %d follows %d", errCorrupt, r.offset, s.prev)
	}
	s.rest, s.prev = f.b, r.offset
	s.left--
	return nil
}

// fields are the fields of a record. What does not fit leaves it bad, and empty.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int64) []byte {
	if n < 0 || n > int64(len(f.b)) {
		f.b, f.bad = nil, true
		return nil
	}
	taken := f.b[:n:n]
	f.b = f.b[n:]
	return taken
}

func (f *fields) varint() int64 {
	if len(f.b) > 0 && f.b[0] < 0x80 { // most are short
		u := f.b[0]
		f.b = f.b[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	v, n := binary.Varint(f.b)
	if n <= 0 {
		f.b, f.bad = nil, true
		return 0
	}
	f.b = f.b[n:]
	return v
}

// bytes are preceded by their length; -1 is null.
func (f *fields) bytes() []byte {
	n := f.varint()
	if n == -1 {
		return nil
	}
	return f.take(n)
}

func (r *rawRecord) time() time.Time {
	if r.millis <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(r.millis).UTC()
}
