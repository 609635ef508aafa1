package kafkalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/segmentio/kafka-go/compress"

	"github.com/restante/restante/fault"
)

func TestInflatingIsBounded(t *testing.T) {
	t.Parallel()
	zeros := make([]byte, largest+1<<16)
	for _, codec := range []compress.Compression{compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		var packed bytes.Buffer
		w := codec.Codec().NewWriter(&packed)
		_, err := io.Copy(w, bytes.NewReader(zeros))
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		got, err := inflate(nil, uint16(codec), packed.Bytes())
		if !errors.Is(err, errTooLarge) || !fault.IsFatal(err) {
			t.Errorf("%v inflates %d bytes to %d: %v", codec, packed.Len(), len(got), err)
		}
	}
	// A size that a frame only says of itself makes no room for it.
	said := binary.AppendUvarint(nil, largest/2)
	frame := append(binary.LittleEndian.AppendUint64([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, 1<<40), 1, 0, 0)
	for codec, b := range map[uint16][]byte{2: append(said, 0), 4: frame} {
		if got, err := inflate(nil, codec, b); err == nil || codec == 2 && cap(got) > 1<<16 {
			t.Errorf("codec %d: %d bytes, %v", codec, cap(got), err)
		}
	}
}

func TestXerialAndBareSnappyAreRead(t *testing.T) {
	t.Parallel()
	want := bytes.Repeat([]byte("restante "), 20_000) // more than one block
	var framed bytes.Buffer
	w := compress.Snappy.Codec().NewWriter(&framed)
	_, err := w.Write(want)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(framed.Bytes(), xerial) {
		t.Fatal("kafka-go frames no more")
	}
	bare := compress.SnappyCodec
	bare.Framing = 1
	var unframed bytes.Buffer
	w = bare.NewWriter(&unframed)
	_, err = w.Write(want[:30_000])
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ packed, want []byte }{{framed.Bytes(), want}, {unframed.Bytes(), want[:30_000]}} {
		if got, err := inflate(nil, 2, c.packed); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%d bytes, want %d: %v", len(got), len(c.want), err)
		}
	}
	if got, err := inflate(nil, 2, framed.Bytes()[:framed.Len()-1]); err == nil {
		t.Errorf("a block that is cut: %d bytes", len(got))
	}
}
