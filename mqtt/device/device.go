// Package device is a plain MQTT 5 client: what a device does, for the demonstration and for end-to-end tests.
package device

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

// Message is one message that the device received.
type Message struct {
	Topic   string
	Payload string
	QoS     byte
	User    map[string]string // user properties; of duplicates the first
}

// Options say who connects where.
type Options struct {
	Addr     string // host:port
	ClientID string
	User     string
	Password string
	TLS      *tls.Config // nil = none
	// Keep asks for a session that outlives the connection: clean start false, for an hour.
	Keep bool
}

// Device is a connected client. It acknowledges what it receives as soon as it has it.
type Device struct {
	client *paho.Client
	got    chan Message
	once   sync.Once
}

// Connect returns when the broker has accepted the connection.
func Connect(ctx context.Context, o Options) (*Device, error) {
	var conn net.Conn
	var err error
	if o.TLS != nil {
		conn, err = (&tls.Dialer{Config: o.TLS}).DialContext(ctx, "tcp", o.Addr)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", o.Addr)
	}
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", o.ClientID, err)
	}
	const backlog = 65536
	d := &Device{got: make(chan Message, backlog)}
	d.client = paho.NewClient(paho.ClientConfig{
		ClientID: o.ClientID, Conn: packets.NewThreadSafeConn(conn),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			m := Message{Topic: p.Packet.Topic, Payload: string(p.Packet.Payload), QoS: p.Packet.QoS, User: map[string]string{}}
			if p.Packet.Properties != nil {
				for _, u := range p.Packet.Properties.User {
					if _, ok := m.User[u.Key]; !ok {
						m.User[u.Key] = u.Value
					}
				}
			}
			d.got <- m
			return true, nil
		}},
	})
	cp := &paho.Connect{ClientID: o.ClientID, KeepAlive: 30, CleanStart: !o.Keep, Username: o.User, UsernameFlag: o.User != "", Password: []byte(o.Password), PasswordFlag: o.Password != ""}
	if o.Keep {
		hour := uint32(3600)
		cp.Properties = &paho.ConnectProperties{SessionExpiryInterval: &hour}
	}
	ack, err := d.client.Connect(ctx, cp)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect %s: %w", o.ClientID, err)
	}
	if ack.ReasonCode != 0 {
		_ = conn.Close()
		return nil, fmt.Errorf("connect %s: refused with reason 0x%02x", o.ClientID, ack.ReasonCode)
	}
	return d, nil
}

// Publish returns when the broker has taken the message.
func (d *Device) Publish(ctx context.Context, topic string, qos byte, payload string) error {
	r, err := d.client.Publish(ctx, &paho.Publish{Topic: topic, QoS: qos, Payload: []byte(payload)})
	if err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	if r != nil && r.ReasonCode >= 0x80 {
		return fmt.Errorf("publish to %s: refused with reason 0x%02x", topic, r.ReasonCode)
	}
	return nil
}

// Subscribe returns when the broker has granted the subscription.
func (d *Device) Subscribe(ctx context.Context, filter string, qos byte) error {
	ack, err := d.client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}})
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", filter, err)
	}
	if len(ack.Reasons) != 1 || ack.Reasons[0] >= 0x80 {
		return fmt.Errorf("subscribe %s: refused with reasons %x", filter, ack.Reasons)
	}
	return nil
}

// ErrNothing is what Next returns when no message came in time.
var ErrNothing = errors.New("no message came")

// Next returns the next message that was received, or ErrNothing after wait.
func (d *Device) Next(ctx context.Context, wait time.Duration) (Message, error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case m := <-d.got:
		return m, nil
	case <-t.C:
		return Message{}, ErrNothing
	case <-ctx.Done():
		return Message{}, context.Cause(ctx)
	}
}

// Close disconnects. It may be called twice.
func (d *Device) Close() {
	d.once.Do(func() {
		_ = d.client.Disconnect(&paho.Disconnect{}) // the connection may be gone already
		<-d.client.Done()
	})
}
