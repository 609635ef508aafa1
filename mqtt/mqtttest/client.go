// Package mqtttest is a small MQTT 3.1.1 and 5 client on a raw socket, for tests and the demo. It does nothing by itself:
// no reconnect, no keepalive, no resend; a test says when it acknowledges, with which packet id it publishes, and when the
// wire is cut.
package mqtttest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Options say how a client connects.
type Options struct {
	// ID is the client id; empty = the broker assigns one.
	ID string
	// Version is V311 (the default) or V5.
	Version byte
	// KeepSession is clean session 0, or in MQTT 5 clean start 0.
	KeepSession bool
	// SessionExpiry, ReceiveMaximum and MaximumPacket need MQTT 5; zero = not sent.
	SessionExpiry  time.Duration
	ReceiveMaximum uint16
	MaximumPacket  uint32
	// Keepalive is in seconds; zero = none.
	Keepalive uint16
	Username  string
	Password  string
	Will      *Message
	WillDelay time.Duration
	// ManualAck leaves every acknowledgment to [Client.Ack].
	ManualAck bool
	TLS       *tls.Config
}

// ErrRefused is what Dial returns when the broker's CONNACK says no.
var ErrRefused = errors.New("the broker refused the connection")

// ErrReason is what a call returns when the broker's answer has an error reason code.
var ErrReason = errors.New("the broker answered with an error")

// Client is one connection. Its methods are safe for concurrent use.
type Client struct {
	// SessionPresent is the flag of the CONNACK; Props are its properties (MQTT 5).
	SessionPresent bool
	Props          map[byte][]byte

	opts Options
	conn net.Conn
	in   *bufio.Reader
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	err     error // why the connection ended
	nextID  uint16
	waiting map[uint32]chan Packet // by packet type and id
	queue   []Message
	arrived chan struct{} // closed and renewed when queue grows
	out     sync.Mutex    // one writer at a time
}

// Dial connects and waits for the CONNACK.
func Dial(ctx context.Context, addr string, o Options) (*Client, error) {
	if o.Version == 0 {
		o.Version = V311
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if o.TLS != nil {
		conn = tls.Client(conn, o.TLS)
	}
	c := &Client{
		opts: o, conn: conn, in: bufio.NewReader(conn), done: make(chan struct{}), waiting: map[uint32]chan Packet{},
		arrived: make(chan struct{}),
	}
	if err := c.handshake(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	go c.read() // ends when the connection does; Disconnect and Cut wait for it
	return c, nil
}

// Send writes any packet: the tool for tests of what a well-behaved client never does.
func (c *Client) Send(typ, flags byte, body []byte) error {
	c.out.Lock()
	defer c.out.Unlock()
	_, err := c.conn.Write(frame(typ, flags, body))
	return err
}

func (c *Client) read() {
	defer close(c.done)
	for {
		p, err := readPacket(c.in)
		if err == nil {
			err = c.handle(p)
		}
		if err != nil {
			_ = c.conn.Close()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.err = err
			for _, w := range c.waiting {
				close(w)
			}
			c.waiting = nil
			close(c.arrived)
			return
		}
	}
}

func (c *Client) handle(p Packet) error {
	switch p.Type {
	case Publish:
		m, err := decodePublish(c.opts.Version, p)
		if err != nil {
			return fmt.Errorf("read PUBLISH: %w", err)
		}
		if !c.opts.ManualAck {
			if err := c.Ack(m); err != nil {
				return err
			}
		}
		c.mu.Lock()
		c.queue = append(c.queue, m)
		close(c.arrived)
		c.arrived = make(chan struct{})
		c.mu.Unlock()
	case Pubrel:
		if len(p.Body) < 2 {
			return errShort
		}
		return c.Send(Pubcomp, 0, p.Body[:2])
	case Disconnect:
		var code byte
		if len(p.Body) > 0 {
			code = p.Body[0]
		}
		return fmt.Errorf("%w: DISCONNECT 0x%02x", ErrReason, code)
	case Pingresp:
		c.deliver(p, 0)
	default:
		if len(p.Body) < 2 {
			return errShort
		}
		c.deliver(p, binary.BigEndian.Uint16(p.Body))
	}
	return nil
}

func key(typ byte, id uint16) uint32 { return uint32(typ)<<16 | uint32(id) }

func (c *Client) deliver(p Packet, id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.waiting[key(p.Type, id)]; ok {
		delete(c.waiting, key(p.Type, id))
		w <- p
	}
}

// expect registers for an answer; it must be called before the question is sent.
func (c *Client) expect(typ byte, id uint16) (<-chan Packet, error) {
	w := make(chan Packet, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return nil, fmt.Errorf("the connection is closed: %w", c.err)
	}
	c.waiting[key(typ, id)] = w
	return w, nil
}

func (c *Client) await(ctx context.Context, w <-chan Packet) (Packet, error) {
	select {
	case p, ok := <-w:
		if !ok {
			return Packet{}, fmt.Errorf("the connection is closed: %w", c.Err())
		}
		return p, nil
	case <-ctx.Done():
		return Packet{}, context.Cause(ctx)
	}
}

// Err says why the connection ended, nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

func (c *Client) id() uint16 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	if c.nextID == 0 {
		c.nextID = 1
	}
	return c.nextID
}

// Publish sends a message and, at QoS 1 and 2, waits for the PUBACK or PUBCOMP. An error reason code is [ErrReason].
func (c *Client) Publish(ctx context.Context, m Message) error {
	if m.QoS > 0 && m.ID == 0 {
		m.ID = c.id()
	}
	body, flags := encodePublish(c.opts.Version, m)
	if m.QoS == 0 {
		return c.Send(Publish, flags, body)
	}
	first := Puback
	if m.QoS == 2 {
		first = Pubrec
	}
	p, err := c.ask(ctx, Publish, flags, body, first, m.ID)
	if err != nil {
		return fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	if len(p.Body) > 2 && p.Body[2] != 0 && p.Body[2] != 0x10 { // those two are the only ones that mean success
		return fmt.Errorf("publish to %q: %w: 0x%02x", m.Topic, ErrReason, p.Body[2])
	}
	if m.QoS == 2 {
		_, err = c.ask(ctx, Pubrel, 2, p.Body[:2], Pubcomp, m.ID)
	}
	return err
}

// Post sends a PUBLISH and waits for nothing. It returns the packet id.
func (c *Client) Post(m Message) (uint16, error) {
	if m.QoS > 0 && m.ID == 0 {
		m.ID = c.id()
	}
	body, flags := encodePublish(c.opts.Version, m)
	return m.ID, c.Send(Publish, flags, body)
}

func (c *Client) ask(ctx context.Context, typ, flags byte, body []byte, answer byte, id uint16) (Packet, error) {
	w, err := c.expect(answer, id)
	if err != nil {
		return Packet{}, err
	}
	if err := c.Send(typ, flags, body); err != nil {
		return Packet{}, err
	}
	return c.await(ctx, w)
}

// Subscribe subscribes to filters with one QoS and returns the granted codes. Options of MQTT 5 may be or-ed into qos
// (no local 4, retain as published 8, retain handling << 4).
func (c *Client) Subscribe(ctx context.Context, qos byte, filters ...string) ([]byte, error) {
	return c.SubscribeID(ctx, c.id(), qos, filters...)
}

// SubscribeID is Subscribe with a packet id of the caller's choice.
func (c *Client) SubscribeID(ctx context.Context, id uint16, qos byte, filters ...string) ([]byte, error) {
	w := c.head(id)
	for _, f := range filters {
		w.str(f)
		w.byte(qos)
	}
	return c.codes(c.ask(ctx, Subscribe, 2, w.b, Suback, id))
}

// Unsubscribe ends subscriptions and returns the codes (none in MQTT 3.1.1).
func (c *Client) Unsubscribe(ctx context.Context, filters ...string) ([]byte, error) {
	id := c.id()
	w := c.head(id)
	for _, f := range filters {
		w.str(f)
	}
	return c.codes(c.ask(ctx, Unsubscribe, 2, w.b, Unsuback, id))
}

func (c *Client) head(id uint16) *buffer {
	w := &buffer{}
	w.u16(id)
	if c.opts.Version == V5 {
		w.block(&buffer{})
	}
	return w
}

func (c *Client) codes(p Packet, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	r := reader{b: p.Body[2:]}
	if c.opts.Version == V5 {
		r.properties()
	}
	return r.b, r.err
}

// Receive returns the next message that came, in the order of arrival.
func (c *Client) Receive(ctx context.Context) (Message, error) {
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			m := c.queue[0]
			c.queue = c.queue[1:]
			c.mu.Unlock()
			return m, nil
		}
		err, arrived := c.err, c.arrived
		c.mu.Unlock()
		if err != nil {
			return Message{}, fmt.Errorf("the connection is closed: %w", err)
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return Message{}, context.Cause(ctx)
		}
	}
}

// ReceiveN returns the next n messages.
func (c *Client) ReceiveN(ctx context.Context, n int) ([]Message, error) {
	got := make([]Message, 0, n)
	for len(got) < n {
		m, err := c.Receive(ctx)
		if err != nil {
			return got, fmt.Errorf("after %d of %d messages: %w", len(got), n, err)
		}
		got = append(got, m)
	}
	return got, nil
}

// Quiet returns the messages that come within d: none is what a test hopes for.
func (c *Client) Quiet(d time.Duration) []Message {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var got []Message
	for {
		m, err := c.Receive(ctx)
		if err != nil {
			return got
		}
		got = append(got, m)
	}
}

// Ack acknowledges a received message: PUBACK at QoS 1, PUBREC at QoS 2 (the PUBCOMP follows by itself).
func (c *Client) Ack(m Message) error {
	body := binary.BigEndian.AppendUint16(nil, m.ID)
	switch m.QoS {
	case 1:
		return c.Send(Puback, 0, body)
	case 2:
		return c.Send(Pubrec, 0, body)
	}
	return nil
}

// Ping waits for the answer to a PINGREQ: all that was sent before has been read by the broker.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.ask(ctx, Pingreq, 0, nil, Pingresp, 0)
	return err
}

// Disconnect takes leave and closes the connection.
func (c *Client) Disconnect() {
	_ = c.Send(Disconnect, 0, nil)
	c.Cut()
}

// Cut closes the connection without a word and waits until the reader has ended.
func (c *Client) Cut() {
	_ = c.conn.Close()
	<-c.done
}
