package up

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/iotest"
)

// fed is a connection that gives what it holds, in pieces.
type fed struct {
	net.Conn
	r io.Reader
}

func (f fed) Read(p []byte) (int, error) { return f.r.Read(p) }

func frame(size int) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(size)), bytes.Repeat([]byte{7}, size)...)
}

func TestRequestsPassUnchanged(t *testing.T) {
	t.Parallel()
	want := bytes.Join([][]byte{frame(0), frame(1), frame(3), frame(70000), frame(5)}, nil)
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(want), "byte by byte": iotest.OneByteReader(bytes.NewReader(want))} {
		got, err := io.ReadAll(&framed{Conn: fed{r: r}})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}

func TestAStrayRequestIsRefusedBeforeItsSizeIsBelieved(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x10\x00\x00\x00\x00"} {
		c := &framed{Conn: fed{r: iotest.OneByteReader(bytes.NewReader([]byte(text)))}}
		size := make([]byte, 4)
		if n, err := io.ReadFull(c, size); err == nil {
			t.Errorf("%q: read %d bytes without an error", text, n)
		}
	}
}
