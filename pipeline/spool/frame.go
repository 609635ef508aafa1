package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// A segment is a header and frames, all numbers little-endian:
//
//	header  magic 8, version u32, salt u64, first u64, CRC u32 of what stands before it
//	frame   length of the body u32, CRC u32, body
//	body    seq u64, record time in µs i64, topic, key, value, number of headers, headers; texts behind their length
//
// Checksums are CRC32C. A frame's begins with the segment's salt, which is drawn by chance: when frames are looked for behind a
// damage, a message whose payload looks like a frame must not become one.
const (
	magic      = "restspol"
	version    = 1
	headerSize = 8 + 4 + 8 + 8 + 4
	frameHead  = 4 + 4
	bodyHead   = 8 + 8
	leastBody  = bodyHead + 4

	// furthest is how far the seq behind a damage may be ahead of the one before it.
	furthest = 1 << 24
	noTime   = math.MinInt64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errNoSegment = errors.New("no segment of a spool")
	errBody      = errors.New("not a record")
)

// entry is one record in its place: seq grows by one with each record and is never used again.
type entry struct {
	seq uint64
	out pipeline.Outgoing
}

// segmentHeader is what stands before the frames.
type segmentHeader struct {
	version uint32
	salt    uint64
	first   uint64 // no frame has a lower seq
}

func (h segmentHeader) append(b []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, h.version)
	b = binary.LittleEndian.AppendUint64(b, h.salt)
	b = binary.LittleEndian.AppendUint64(b, h.first)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseHeader(b []byte) (h segmentHeader, err error) {
	const sum = headerSize - 4
	if len(b) < headerSize || string(b[:8]) != magic || crc32.Checksum(b[:sum], castagnoli) != binary.LittleEndian.Uint32(b[sum:]) {
		return h, errNoSegment
	}
	return segmentHeader{binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint64(b[12:]), binary.LittleEndian.Uint64(b[20:])}, nil
}

// seed is the checksum that frames begin with.
func (h segmentHeader) seed() uint32 {
	return crc32.Checksum(binary.LittleEndian.AppendUint64(nil, h.salt), castagnoli)
}

// sizeOf is at least what the record takes in a segment.
func sizeOf(o *pipeline.Outgoing) int64 {
	const text = binary.MaxVarintLen32
	n := frameHead + bodyHead + text + len(o.Topic) + text + len(o.Key) + text + len(o.Value) + text
	for i := range o.Headers {
		n += text + len(o.Headers[i].Key) + text + len(o.Headers[i].Value)
	}
	return int64(n)
}

func appendFrame(b []byte, seed uint32, e *entry) []byte {
	start := len(b)
	b = append(b, make([]byte, frameHead)...)
	b = binary.LittleEndian.AppendUint64(b, e.seq)
	at := int64(noTime)
	if !e.out.Time.IsZero() {
		at = e.out.Time.UnixMicro()
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(at)) //nolint:gosec // two's complement
	b = append(binary.AppendUvarint(b, uint64(len(e.out.Topic))), e.out.Topic...)
	b = append(binary.AppendUvarint(b, uint64(len(e.out.Key))), e.out.Key...)
	b = append(binary.AppendUvarint(b, uint64(len(e.out.Value))), e.out.Value...)
	b = binary.AppendUvarint(b, uint64(len(e.out.Headers)))
	for _, h := range e.out.Headers {
		b = append(binary.AppendUvarint(b, uint64(len(h.Key))), h.Key...)
		b = append(binary.AppendUvarint(b, uint64(len(h.Value))), h.Value...)
	}
	frame := b[start:]
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-frameHead)) //nolint:gosec // a record, which Kafka bounds
	binary.LittleEndian.PutUint32(frame[4:], frameSum(seed, frame))
	return b
}

func frameSum(seed uint32, frame []byte) uint32 {
	return crc32.Update(crc32.Update(seed, castagnoli, frame[:4]), castagnoli, frame[frameHead:])
}

// span is a piece of a segment, from the first byte to the one behind the last.
type span struct{ from, to int64 }

// parser walks the frames of a segment. What is damaged it leaves out, and goes on behind it. It allocates nothing by a length
// that it has not compared with the bytes at hand.
type parser struct {
	seed   uint32
	last   uint64 // the seq of the frame before
	b      []byte
	base   int64 // where b begins in its segment
	off    int   // in b
	bad    []span
	topics map[string]string
}

// next returns the next record, false at the end of the bytes. Its key, value and headers lie in the bytes given.
func (p *parser) next() (e entry, ok bool) {
	for p.off < len(p.b) {
		if n := p.frame(p.b[p.off:], math.MaxUint64); n > 0 {
			body := p.b[p.off+frameHead : p.off+n]
			e, err := p.body(body)
			if err != nil {
				p.bad = append(p.bad, span{p.base + int64(p.off), p.base + int64(p.off+n)})
			}
			p.off += n
			p.last = binary.LittleEndian.Uint64(body)
			if err == nil {
				return e, true
			}
			continue
		}
		begin := p.off
		for p.off++; p.off < len(p.b) && p.frame(p.b[p.off:], furthest) == 0; p.off++ {
		}
		p.bad = append(p.bad, span{p.base + int64(begin), p.base + int64(p.off)})
	}
	return e, false
}

// frame is the length of the frame that b begins with, 0 when it does not. ahead bounds the seq.
func (p *parser) frame(b []byte, ahead uint64) int {
	if len(b) < frameHead+leastBody {
		return 0
	}
	n := int64(binary.LittleEndian.Uint32(b)) + frameHead
	if n < frameHead+leastBody || n > int64(len(b)) {
		return 0
	}
	if seq := binary.LittleEndian.Uint64(b[frameHead:]); seq <= p.last || seq-p.last > ahead {
		return 0
	}
	if b = b[:n]; frameSum(p.seed, b) != binary.LittleEndian.Uint32(b[4:]) {
		return 0
	}
	return int(n)
}

func (p *parser) body(b []byte) (e entry, err error) {
	e.seq = binary.LittleEndian.Uint64(b)
	if at := int64(binary.LittleEndian.Uint64(b[8:])); at != noTime { //nolint:gosec // two's complement
		e.out.Time = time.UnixMicro(at)
	}
	f := fields{b: b[bodyHead:]}
	topic := f.text()
	e.out.Key, e.out.Value = f.text(), f.text()
	n := f.number()
	if n > uint64(len(f.b)/2) {
		return e, errBody
	}
	if n > 0 {
		e.out.Headers = make([]event.Header, n)
	}
	for i := range e.out.Headers {
		key := f.text()
		e.out.Headers[i] = event.Header{Key: p.intern(key), Value: f.text()}
	}
	if f.bad || len(f.b) > 0 {
		return e, errBody
	}
	e.out.Topic = p.intern(topic)
	return e, nil
}

// intern keeps one text of each topic and header name: there are few.
func (p *parser) intern(b []byte) string {
	const most = 1024
	if s, ok := p.topics[string(b)]; ok {
		return s
	}
	s := string(b)
	if p.topics == nil {
		p.topics = make(map[string]string)
	}
	if len(p.topics) < most {
		p.topics[s] = s
	}
	return s
}

// fields are the fields of a body. What does not fit leaves it bad, and empty.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) number() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.b, f.bad = nil, true
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) text() []byte {
	n := f.number()
	if n > uint64(len(f.b)) {
		f.b, f.bad = nil, true
		return []byte{}
	}
	t := f.b[:n:n]
	f.b = f.b[n:]
	return t
}

const cursorSize = 8 + 8 + 4

// The cursor file says up to which seq everything is in Kafka.
func appendCursor(b []byte, seq uint64) []byte {
	start := len(b)
	b = append(b, "restcurs"...)
	b = binary.LittleEndian.AppendUint64(b, seq)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseCursor(b []byte) (uint64, error) {
	if len(b) != cursorSize || string(b[:8]) != "restcurs" || crc32.Checksum(b[:16], castagnoli) != binary.LittleEndian.Uint32(b[16:]) {
		return 0, fmt.Errorf("%d bytes are no cursor of a spool", len(b))
	}
	return binary.LittleEndian.Uint64(b[8:]), nil
}
