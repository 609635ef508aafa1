package up

import (
	"encoding/binary"
	"fmt"
	"net"
)

// maxFrame is the largest request that the embedded Kafka is given, in bytes. It takes the memory for a request before it reads
// it, so that four stray bytes, such as the beginning of an HTTP request, would cost a gigabyte.
const maxFrame = 64 << 20

// frames is a listener whose connections end at a request that is too large.
type frames struct{ net.Listener }

func (l frames) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &framed{Conn: c}, nil
}

// framed follows the frames that are read: four bytes of length, then the request.
type framed struct {
	net.Conn
	head [4]byte
	n    int   // bytes of head that are read
	left int64 // bytes of the request that are not read
}

func (c *framed) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return c.Conn.Read(p)
	}
	if c.left > 0 {
		n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
		c.left -= int64(n)
		return n, err
	}
	n, err := c.Conn.Read(p[:min(len(p), len(c.head)-c.n)])
	copy(c.head[c.n:], p[:n])
	if c.n += n; c.n < len(c.head) {
		return n, err
	}
	c.n = 0
	if c.left = int64(binary.BigEndian.Uint32(c.head[:])); c.left > maxFrame {
		return 0, fmt.Errorf("a request of %d bytes is none of Kafka's", c.left)
	}
	return n, err
}
