// Package embedded is a whole MQTT broker in the process, as a source of events and as a publisher of stored messages. It is
// class S: a publish is in the log before its publisher gets the PUBACK. It stands on mochi-mqtt v2.7.9 and mends around it
// what would lose messages or their acks; each mend says why it is there.
package embedded

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// Config is what the broker needs. Listen, Source and Minter are required.
type Config struct {
	// Listen is the TCP address; port 0 takes a free one, see [Broker.Addr].
	Listen string
	TLS    *tls.Config
	// Users maps user to password; nil lets everybody in.
	Users map[string]string
	// Source is the ce_source of the events, Node the name of this broker in them.
	Source string
	Node   string
	// Minter mints the ids of messages and events; its clock is the broker's.
	Minter *event.Minter

	// Secret recognises replays that come over TCP and signs direct ones. OwnPrefix is the client id prefix of our own
	// clients; Template is their delivery template when they deliver by prefix.
	Secret    mqtt.Secret
	OwnPrefix string
	Template  mqtt.Template

	// NoRetain says that the broker keeps no retained messages: it forwards them as others, and tells of them as they came.
	NoRetain bool

	// MaxPacket is the largest packet in bytes (1 MiB when 0), MaxClients the most connections (0 = no limit), MaxInflight
	// the most QoS 1 and 2 deliveries kept for one session (8192), MaxPending the most deliveries waiting to be written to
	// one connection (2048; eight bytes each are taken at once).
	MaxPacket   uint32
	MaxClients  int64
	MaxInflight uint16
	MaxPending  int32
	// SessionExpiry is how long a session outlives its connection at most (24 h).
	SessionExpiry time.Duration
	// ConnectTimeout is how long a connection may wait with its CONNECT, WriteTimeout how long a client may not read
	// (10 s each). Drain is how long a stop waits for what is under way (20 s).
	ConnectTimeout time.Duration
	WriteTimeout   time.Duration
	Drain          time.Duration

	// Count is called for each thing counted; nil counts nothing. Log may be nil.
	Count func(mqtt.Counter)
	Log   *slog.Logger
}

func (c Config) checked() (Config, error) {
	var errs []error
	if c.Listen == "" {
		errs = append(errs, errors.New("no address to listen on"))
	}
	if c.Source == "" {
		errs = append(errs, errors.New("no source name"))
	}
	if c.Minter == nil || c.Minter.Now == nil {
		errs = append(errs, errors.New("no minter"))
	}
	if c.SessionExpiry < 0 || c.SessionExpiry > math.MaxUint32*time.Second {
		errs = append(errs, fmt.Errorf("session expiry %v is out of range", c.SessionExpiry))
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("embedded broker: %w", err)
	}
	c.MaxPacket = cmp.Or(c.MaxPacket, 1<<20)
	c.MaxClients = cmp.Or(c.MaxClients, math.MaxInt64)
	c.MaxInflight = cmp.Or(c.MaxInflight, 8192)
	c.MaxPending = cmp.Or(c.MaxPending, 2048)
	c.SessionExpiry = cmp.Or(c.SessionExpiry, 24*time.Hour)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 10*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	c.Drain = cmp.Or(c.Drain, 20*time.Second)
	if c.Count == nil {
		c.Count = func(mqtt.Counter) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func (c Config) options(log *slog.Logger) *mochi.Options {
	caps := mochi.NewDefaultServerCapabilities()
	caps.MaximumClients = c.MaxClients
	caps.MaximumClientWritesPending = c.MaxPending
	caps.MaximumPacketSize = c.MaxPacket
	caps.MaximumInflight = c.MaxInflight
	caps.MaximumSessionExpiryInterval = uint32(c.SessionExpiry / time.Second) //nolint:gosec // checked
	// Only the publisher's own expiry counts: mochi would otherwise drop what waits for a session after a day.
	caps.MaximumMessageExpiryInterval = 0
	// A 3.1.1 client does not know a receive maximum and would be cut for exceeding it at QoS 2.
	caps.ReceiveMaximum = 8192
	caps.TopicAliasMaximum = 0
	caps.Compatibilities.NoInheritedPropertiesOnAck = true // mochi's acks would otherwise be invalid
	return &mochi.Options{
		Capabilities: caps,
		Logger:       log,
		// Without a write buffer: mochi flushes it only when its queue is empty, and a queue that waits for an ack of what
		// lies in the buffer would wait for ever.
		ClientNetWriteBufferSize: 1,
		ClientNetReadBufferSize:  2 << 10,
		SysTopicResendInterval:   60,
	}
}
