package stack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// cqlConn is one connection by Cassandra's native protocol, version 4: as much of it as it takes to log in and to run statements.
// A driver would do more than that while a server starts: it would log, reconnect in the background and look for other nodes.
type cqlConn struct {
	conn    net.Conn
	release func() bool // of the context that ends it
}

// The opcodes of the frames that are used here.
const (
	opError        = 0x00
	opStartup      = 0x01
	opReady        = 0x02
	opAuthenticate = 0x03
	opQuery        = 0x07
	opResult       = 0x08
	opAuthResponse = 0x0f
	opAuthSuccess  = 0x10
)

const (
	errBadCredentials = 0x0100
	consistencyOne    = 0x0001
	maxFrame          = 16 << 20 // bytes
)

// cqlError is an ERROR frame.
type cqlError struct {
	code    int32
	message string
}

func (e *cqlError) Error() string {
	return fmt.Sprintf("cassandra error 0x%04x: %s", e.code, e.message)
}

// cqlLogin connects and logs in. The connection ends with ctx at the latest.
func cqlLogin(ctx context.Context, address, user, password string) (_ *cqlConn, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	c := &cqlConn{conn: conn, release: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	startup := cqlString(cqlString(binary.BigEndian.AppendUint16(nil, 1), "CQL_VERSION"), "3.0.0")
	op, _, err := c.call(opStartup, startup)
	if err != nil {
		return nil, err
	}
	if op == opReady {
		return nil, errors.New("cassandra asks for no password: that is not the server these tests need")
	}
	if op != opAuthenticate {
		return nil, fmt.Errorf("log in: unexpected frame 0x%02x", op)
	}
	if op, _, err = c.call(opAuthResponse, cqlBytes("\x00"+user+"\x00"+password)); err != nil {
		return nil, fmt.Errorf("log in as %s: %w", user, err)
	}
	if op != opAuthSuccess {
		return nil, fmt.Errorf("log in as %s: unexpected frame 0x%02x", user, op)
	}
	return c, nil
}

// query runs one statement and gives the body of its answer.
func (c *cqlConn) query(statement string) ([]byte, error) {
	body := binary.BigEndian.AppendUint16(cqlBytes(statement), consistencyOne)
	op, result, err := c.call(opQuery, append(body, 0)) // no flags
	if err != nil {
		return nil, fmt.Errorf("run %q: %w", statement, err)
	}
	if op != opResult {
		return nil, fmt.Errorf("run %q: unexpected frame 0x%02x", statement, op)
	}
	return result, nil
}

func (c *cqlConn) close() {
	c.release()
	_ = c.conn.Close()
}

// call sends a frame and reads the one that answers it.
func (c *cqlConn) call(op byte, body []byte) (byte, []byte, error) {
	frame := []byte{4, 0, 0, 0, op}                                 // version, flags, stream (two bytes), opcode
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(body))) //nolint:gosec // statements of ours are short
	if _, err := c.conn.Write(append(frame, body...)); err != nil {
		return 0, nil, err
	}
	var head [9]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[5:])
	if length > maxFrame {
		return 0, nil, fmt.Errorf("read a frame: %d bytes are over the limit of %d", length, maxFrame)
	}
	answer := make([]byte, length)
	if _, err := io.ReadFull(c.conn, answer); err != nil {
		return 0, nil, err
	}
	if head[4] != opError {
		return head[4], answer, nil
	}
	if len(answer) < 6 {
		return 0, nil, errors.New("read an error frame: it is cut")
	}
	code := int32(binary.BigEndian.Uint32(answer)) //nolint:gosec // the bits of an int32
	return 0, nil, &cqlError{code: code, message: string(bytes.ToValidUTF8(answer[6:], nil))}
}

func cqlString(to []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(to, uint16(len(s))), s...) //nolint:gosec // short names of ours
}

// cqlBytes is a value with its length in four bytes.
func cqlBytes(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) //nolint:gosec // short values of ours
}
