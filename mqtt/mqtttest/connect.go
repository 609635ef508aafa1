package mqtttest

import (
	"context"
	"fmt"
	"time"
)

func (c *Client) handshake(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.Send(Connect, 0, c.connectBody()); err != nil {
		return fmt.Errorf("send CONNECT: %w", err)
	}
	p, err := readPacket(c.in)
	switch {
	case err != nil:
		return fmt.Errorf("read CONNACK: %w", err)
	case p.Type != Connack || len(p.Body) < 2:
		return fmt.Errorf("read CONNACK: packet of type %d with %d bytes", p.Type, len(p.Body))
	case p.Body[1] != 0:
		return fmt.Errorf("%w: code 0x%02x", ErrRefused, p.Body[1])
	}
	c.SessionPresent = p.Body[0]&1 != 0
	if c.opts.Version == V5 {
		r := reader{b: p.Body[2:]}
		c.Props, _ = r.properties()
		return r.err
	}
	return nil
}

func (c *Client) connectBody() []byte {
	o := c.opts
	var w buffer
	w.str("MQTT")
	w.byte(o.Version)
	var flags byte
	if !o.KeepSession {
		flags |= 2
	}
	if o.Will != nil {
		flags |= 4 | byte(o.Will.QoS)<<3
		if o.Will.Retain {
			flags |= 32
		}
	}
	if o.Username != "" {
		flags |= 128
	}
	if o.Password != "" {
		flags |= 64
	}
	w.byte(flags)
	w.u16(o.Keepalive)
	if o.Version == V5 {
		var p buffer
		if o.SessionExpiry > 0 {
			p.byte(propSessionExpiry)
			p.u32(uint32(o.SessionExpiry / time.Second)) //nolint:gosec // tests use short times
		}
		if o.ReceiveMaximum > 0 {
			p.byte(propReceiveMaximum)
			p.u16(o.ReceiveMaximum)
		}
		if o.MaximumPacket > 0 {
			p.byte(propMaximumPacket)
			p.u32(o.MaximumPacket)
		}
		w.block(&p)
	}
	w.str(o.ID)
	if o.Will != nil {
		if o.Version == V5 {
			p := publishProperties(*o.Will)
			if o.WillDelay > 0 {
				p.byte(propWillDelay)
				p.u32(uint32(o.WillDelay / time.Second)) //nolint:gosec // tests use short times
			}
			w.block(p)
		}
		w.str(o.Will.Topic)
		w.str(string(o.Will.Payload))
	}
	if o.Username != "" {
		w.str(o.Username)
	}
	if o.Password != "" {
		w.str(o.Password)
	}
	return w.b
}
