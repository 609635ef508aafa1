package kafkalog

import (
	"fmt"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// keeper copies records out of the buffer of their fetch. Small ones share pieces of memory, which are small too: who keeps one
// record for long keeps, beside it, no more than the piece that it lies in and the pieces of the few whose headers lie beside
// its own. Large values and headers have memory of their own, which ends with them.
type keeper struct {
	bytes   []byte
	headers []event.Header
	names   map[string]string
	lately  [16]string // names by their place in the record: records are much like those before
}

const (
	pieceBytes   = 8 << 10
	pieceHeaders = 64
	ownBytes     = 512 // from here on bytes have memory of their own
	ownHeaders   = 16

	mostNames = 64 // header names that are remembered
	longName  = 64 // bytes of the longest one
)

// empty is the value of a record without bytes, and of one without a value: a payload is never nil.
var empty = []byte{}

func (k *keeper) keep(b []byte) []byte {
	switch n := len(b); {
	case b == nil:
		return nil
	case n == 0:
		return empty
	case n >= ownBytes:
		return append([]byte(nil), b...)
	case n > cap(k.bytes)-len(k.bytes):
		k.bytes = make([]byte, 0, pieceBytes)
	}
	at := len(k.bytes)
	k.bytes = append(k.bytes, b...)
	return k.bytes[at:len(k.bytes):len(k.bytes)]
}

// room is for the headers of a record; own is set when their bytes are not within a piece.
func (k *keeper) room(n int, own bool) []event.Header {
	if own || n >= ownHeaders {
		return make([]event.Header, n)
	}
	if n > len(k.headers) {
		k.headers = make([]event.Header, pieceHeaders)
	}
	h := k.headers[:n:n]
	k.headers = k.headers[n:]
	return h
}

// name is the text of header number i's name.
func (k *keeper) name(i int, b []byte) string {
	if i < len(k.lately) && k.lately[i] == string(b) {
		return k.lately[i]
	}
	s, ok := k.names[string(b)]
	if !ok {
		s = string(b)
		if len(k.names) < mostNames && len(b) <= longName {
			if k.names == nil {
				k.names = make(map[string]string)
			}
			k.names[s] = s
			ok = true
		}
	}
	if ok && i < len(k.lately) {
		k.lately[i] = s
	}
	return s
}

// record copies a record into r, and returns the number of bytes of its key, value and headers.
func (k *keeper) record(r *pipeline.Record, tp pipeline.TP, raw *rawRecord) (size int, err error) {
	r.TP, r.Offset, r.Time = tp, raw.offset, raw.time()
	size = len(raw.key) + len(raw.value)
	if raw.count > 0 {
		// The headers are read twice: a set of them that is cut must not leave half of it.
		if size, err = k.copyHeaders(r, raw, size); err != nil {
			return 0, err
		}
	}
	r.Key = k.keep(raw.key)
	if r.Value = k.keep(raw.value); r.Value == nil {
		r.Value = empty
	}
	return size, nil
}

func (k *keeper) copyHeaders(r *pipeline.Record, raw *rawRecord, size int) (int, error) {
	own := len(raw.headers) >= ownBytes
	f := fields{b: k.keep(raw.headers)}
	r.Headers = k.room(raw.count, own)
	for i := range r.Headers {
		h := &r.Headers[i]
		name := f.take(f.varint())
		h.Value = f.bytes()
		h.Key = k.name(i, name)
		size += len(name) + len(h.Value)
	}
	if f.bad || len(f.b) > 0 {
		return 0, fmt.Errorf("%w: the %d headers at offset %d do not fit", errCorrupt, raw.count, raw.offset)
	}
	return size, nil
}
