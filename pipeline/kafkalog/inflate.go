package kafkalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/segmentio/kafka-go/compress"

	"github.com/restante/restante/fault"
)

// largest is the most bytes of an answer, and the most that a batch may inflate to: beyond any fetch that can be configured.
const largest = 64 << 20

var errTooLarge = fmt.Errorf("the batch is larger than the %d MiB that a batch may be inflated", largest>>20)

// unzstd decodes into the space that it is given, so that a frame's own idea of its size allocates nothing.
var unzstd = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(0))
})

// inflate appends the records of a compressed batch to dst.
func inflate(dst []byte, codec uint16, b []byte) ([]byte, error) {
	var err error
	switch c := compress.Compression(codec); c { //nolint:gosec // three bits
	case compress.Gzip, compress.Lz4:
		r := c.Codec().NewReader(bytes.NewReader(b))
		dst, err = readUpTo(dst, r, len(b))
		_ = r.Close() // it only goes back to its pool
	case compress.Snappy:
		dst, err = inflateSnappy(dst, b)
	case compress.Zstd:
		dst, err = inflateZstd(dst, b)
	case compress.None:
		return append(dst, b...), nil
	default:
		return dst, fault.Fatal(fmt.Errorf("compression %d is not known to this program", codec))
	}
	switch {
	case errors.Is(err, errTooLarge):
		return dst, fault.Fatal(err)
	case err != nil:
		return dst, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return dst, nil
}

// readUpTo reads r to its end and grows with what comes.
func readUpTo(dst []byte, r io.Reader, packed int) ([]byte, error) {
	dst = slices.Grow(dst, 2*packed+512)
	for {
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		switch {
		case len(dst) > largest:
			return dst, errTooLarge
		case err == io.EOF:
			return dst, nil
		case err != nil:
			return dst, err
		case len(dst) == cap(dst):
			dst = slices.Grow(dst, len(dst))
		}
	}
}

// xerial is how Java's producers begin a snappy batch: blocks follow, each after its length.
var xerial = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const xerialHeader = 16

func inflateSnappy(dst, b []byte) ([]byte, error) {
	if len(b) < xerialHeader || !bytes.HasPrefix(b, xerial) {
		return snappyBlock(dst, b)
	}
	for b = b[xerialHeader:]; len(b) > 0; {
		if len(b) < 4 {
			return dst, io.ErrUnexpectedEOF
		}
		n := binary.BigEndian.Uint32(b)
		if b = b[4:]; uint64(n) > uint64(len(b)) {
			return dst, io.ErrUnexpectedEOF
		}
		var err error
		if dst, err = snappyBlock(dst, b[:n]); err != nil {
			return dst, err
		}
		b = b[n:]
	}
	return dst, nil
}

// snappyBlock believes a block's length only as far as the format can compress.
func snappyBlock(dst, b []byte) ([]byte, error) {
	const best = 64 // bytes out of a copy of at least two, with room
	n, err := snappy.DecodedLen(b)
	switch {
	case err != nil:
		return dst, err
	case n > largest-len(dst):
		return dst, errTooLarge
	case n > best*len(b):
		return dst, snappy.ErrCorrupt
	}
	dst = slices.Grow(dst, n)
	got, err := snappy.Decode(dst[len(dst):len(dst)+n], b)
	return dst[:len(dst)+len(got)], err
}

func inflateZstd(dst, b []byte) ([]byte, error) {
	z, err := unzstd()
	if err != nil {
		return dst, err
	}
	for room := max(4*len(b), 64<<10); ; room *= 4 {
		room = min(room, largest)
		dst = slices.Grow(dst[:0], room)
		out, err := z.DecodeAll(b, dst[:0:room])
		switch {
		case !errors.Is(err, zstd.ErrDecoderSizeExceeded):
			return out, err
		case room == largest:
			return dst, errTooLarge
		}
	}
}
