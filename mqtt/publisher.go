package mqtt

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// PublisherConfig is what a Publisher needs; Server.URLs and Prefix are required.
type PublisherConfig struct {
	Server Server
	// The client ids are <Prefix>replay-<Instance>-<k>, for k below Connections (4 when 0). Instance tells processes apart.
	Prefix      string
	Instance    string
	Connections int
	// Template is where replays go, a topic of its own for each client; the zero one = the message's own topic.
	Template Template
	// Secret signs the replays, so that sources know them.
	Secret Secret
	// Envelope publishes each replay in an [Envelope], for an ExHook server of ours. It needs the secret.
	Envelope bool
	// Answers asks the clients to say that they have a replay; the zero value asks nothing.
	Answers Answers
	// Up is told whether all connections are up, each time one comes up or goes; nil tells nobody.
	Up func(up bool)
	// Lost is told of each connection that ends by itself; nil tells nobody.
	Lost func(Loss)
	Now  func() time.Time
	Log  *slog.Logger
}

// Publisher publishes stored messages on MQTT 5 connections. One topic always uses the same connection, so that its order
// holds. Run must be running.
type Publisher struct {
	cfg   PublisherConfig
	conns []chan *link // holds the link of the connection once there is one

	mu sync.Mutex
	up int // connections
}

var _ pipeline.Publisher = (*Publisher)(nil)

// NewPublisher checks the configuration.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	if cfg.Connections == 0 {
		cfg.Connections = 4
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Lost == nil {
		cfg.Lost = func(Loss) {}
	}
	if cfg.Up == nil {
		cfg.Up = func(bool) {}
	}
	_, err := cfg.Server.Parse()
	if cfg.Prefix == "" {
		err = errors.Join(err, errors.New("no client id prefix"))
	}
	if cfg.Envelope && cfg.Secret.IsZero() {
		err = errors.Join(err, errors.New("envelopes need a secret"))
	}
	if !cfg.Answers.IsZero() && cfg.Answers.Secret.IsZero() {
		err = errors.Join(err, errors.New("no secret: answers of clients could not be told from forgeries"))
	}
	if err != nil {
		return nil, fmt.Errorf("mqtt publisher: %w", err)
	}
	p := &Publisher{cfg: cfg}
	for range cfg.Connections {
		p.conns = append(p.conns, make(chan *link, 1))
	}
	return p, nil
}

// Run keeps the connections up until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	var links []*link
	work := context.WithoutCancel(ctx)
	defer func() {
		const patience = 2 * time.Second
		stop, cancel := context.WithTimeout(work, patience)
		defer cancel()
		for _, l := range links {
			if err := l.close(stop); err != nil {
				p.cfg.Log.DebugContext(work, "connection ended badly", "client", l.clientID, "err", err)
			}
		}
	}()
	for k := range p.conns {
		l, err := p.cfg.Server.dial(work, p.cfg.Log, autopaho.ClientConfig{
			CleanStartOnInitialConnection: true, // what was not acknowledged is published again by its replay
			OnConnectionDown: func() bool {
				p.count(-1)
				return true
			},
			ClientConfig: paho.ClientConfig{ClientID: fmt.Sprintf("%sreplay-%s-%d", p.cfg.Prefix, p.cfg.Instance, k)},
		}, p.cfg.Lost, func(*link, *paho.Connack) { p.count(1) })
		if err != nil {
			return fault.Fatal(err)
		}
		links = append(links, l)
		p.conns[k] <- l
	}
	<-ctx.Done()
	return nil
}

// count notes that a connection has come up or gone. What Up is told keeps the order of what happened.
func (p *Publisher) count(change int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up += change
	p.cfg.Up(p.up == len(p.conns))
}

// link is the connection of a topic, as soon as Run has made it.
func (p *Publisher) link(ctx context.Context, topic string) (*link, error) {
	h := fnv.New32a()
	_, _ = io.WriteString(h, topic)              // a hash takes everything
	c := p.conns[h.Sum32()%uint32(len(p.conns))] //nolint:gosec // few
	select {
	case l := <-c:
		c <- l
		return l, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Publish returns when the broker has acknowledged the message. It waits for a connection until ctx ends. It returns
// pipeline.ErrExpired for a message past its time, and poison for one that the broker can never take.
func (p *Publisher) Publish(ctx context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	out, topic, err := p.packet(to, m)
	if err != nil {
		return pipeline.Outcome{}, err
	}
	l, err := p.link(ctx, topic)
	if err != nil {
		return pipeline.Outcome{}, fmt.Errorf("publish %s: %w", m.ID, err)
	}
	connack, cut, err := l.wait(ctx)
	if err != nil {
		return pipeline.Outcome{}, fmt.Errorf("publish %s: %w", m.ID, err)
	}
	if err := p.expire(out, m); err != nil { // the wait may have been long
		return pipeline.Outcome{}, err
	}
	if err := fit(out, connack); err != nil {
		return pipeline.Outcome{}, fault.Poison(fmt.Errorf("publish %s: %w", m.ID, err))
	}
	pctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() { // ends with the publish: a connection that is cut answers nothing any more
		select {
		case <-cut:
			cancel(errors.New("the connection was cut"))
		case <-done:
		}
	}()
	ack, err := l.cm.Publish(pctx, out)
	o, err := outcome(m.ID, ack, err)
	if p.enveloped(m) {
		o.NoSubscriber = false // or held back by our server, which the answer does not tell: the replay waits for the ack
	}
	return o, err
}

// enveloped reports whether the message goes in an envelope, which is there for its ack. A retained message waits for none, and an
// envelope that our server holds back is not sent again.
func (p *Publisher) enveloped(m pipeline.Outgo) bool { return p.cfg.Envelope && !m.Retained }

// fit makes the message fit the broker's limits, or says why it cannot.
func fit(out *paho.Publish, ack *paho.Connack) error {
	if ack.Properties == nil {
		return nil
	}
	if q := ack.Properties.MaximumQoS; q != nil {
		if *q == 0 {
			return errors.New("the broker takes QoS 0 only, which tells nothing of delivery")
		}
		out.QoS = min(out.QoS, *q)
	}
	if most := ack.Properties.MaximumPacketSize; most != nil {
		if size, err := out.Packet().WriteTo(io.Discard); err != nil || size > int64(*most) {
			return fmt.Errorf("a packet of %d bytes is larger than the %d that the broker takes", size, *most)
		}
	}
	return nil
}

// outcome puts the broker's answer into the pipeline's words (reason codes: MQTT 5.0 §3.4.2.1).
func outcome(id event.ID, ack *paho.PublishResponse, err error) (pipeline.Outcome, error) {
	if ack != nil {
		switch ack.ReasonCode {
		case 0x00:
			return pipeline.Outcome{}, nil
		case 0x10:
			return pipeline.Outcome{NoSubscriber: true}, nil
		case 0x90, 0x95, 0x99: // topic name invalid, packet too large, payload format invalid
			return pipeline.Outcome{}, fault.Poison(fmt.Errorf("publish %s: the broker refused it with reason 0x%02x", id, ack.ReasonCode))
		}
		if ack.ReasonCode >= 0x80 {
			return pipeline.Outcome{}, fmt.Errorf("publish %s: the broker refused it with reason 0x%02x; 0x87 = the user may not publish to this topic", id, ack.ReasonCode)
		}
	}
	if err != nil {
		return pipeline.Outcome{}, fmt.Errorf("publish %s: %w", id, err)
	}
	return pipeline.Outcome{}, nil
}

// packet is what is sent, and the topic that it is delivered on.
func (p *Publisher) packet(to event.ClientID, m pipeline.Outgo) (*paho.Publish, string, error) {
	topic, err := m.Topic, error(nil)
	if !p.cfg.Template.IsZero() {
		if topic, err = p.cfg.Template.For(to, topic.String()); err != nil {
			return nil, "", fault.Poison(fmt.Errorf("publish %s: %w", m.ID, err))
		}
	}
	sent := topic
	if p.enveloped(m) {
		if sent, err = p.cfg.Secret.Seal(Envelope{Message: m.ID, Client: to, Topic: topic}, m.Payload); err != nil {
			return nil, "", fault.Poison(fmt.Errorf("publish %s: %w", m.ID, err))
		}
	}
	if !p.cfg.Answers.IsZero() {
		if m.Properties, err = p.cfg.Answers.ask(to, m.Topic, m.ID, m.Properties); err != nil {
			return nil, "", fault.Poison(fmt.Errorf("publish %s: %w", m.ID, err))
		}
	}
	props := &paho.PublishProperties{
		ContentType: m.Properties.ContentType, ResponseTopic: m.Properties.ResponseTopic, CorrelationData: m.Properties.CorrelationData,
	}
	if f := m.Properties.PayloadFormat; f > 0 {
		props.PayloadFormat = &f
	}
	for _, u := range p.cfg.Secret.Properties(to, topic.String(), m) {
		props.User = append(props.User, paho.UserProperty{Key: u.Key, Value: u.Value})
	}
	qos := m.QoS
	if m.Confirm {
		qos = max(qos, 1) // the broker lowers it for its subscriber
	}
	out := &paho.Publish{Topic: sent.String(), QoS: byte(qos), Payload: m.Payload, Properties: props}
	return out, topic.String(), p.expire(out, m)
}

// expire sets how long the message lives from now on.
func (p *Publisher) expire(out *paho.Publish, m pipeline.Outgo) error {
	if m.Expires.IsZero() {
		return nil
	}
	left := m.Expires.Sub(p.cfg.Now())
	if left <= 0 {
		return pipeline.ErrExpired
	}
	seconds := uint32(min((left+time.Second-1)/time.Second, 1<<32-1))
	out.Properties.MessageExpiry = &seconds
	return nil
}
