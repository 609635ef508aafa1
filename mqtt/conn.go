package mqtt

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// conn is one connection of a source: paho's callback fills a queue, one goroutine hands events over in its order, one
// waits for their receipts and acknowledges in the same order.
type conn struct {
	*Source
	k          int
	filters    []string
	subscribed atomic.Bool
	acks       *acks

	mu    sync.Mutex
	queue []*item
	wake  chan struct{}
	gen   int // of the connection: counts its ends
}

// item is a packet from its arrival to its ack.
type item struct {
	packet   *paho.Publish
	client   *paho.Client
	at       time.Time
	gen      int
	place    *list.Element
	events   []event.Event
	receipts []pipeline.Receipt
}

func newConn(s *Source, k int, filters []string) *conn {
	return &conn{Source: s, k: k, filters: filters, wake: make(chan struct{}, 1), acks: newAcks()}
}

func (c *conn) run(ctx, work context.Context, accept pipeline.Accept) error {
	ups := make(chan struct{}, 1)
	dialing, hangUp := context.WithCancel(work)
	defer hangUp()
	l, err := c.cfg.Server.dial(dialing, c.cfg.Log, c.client(), c.cfg.Lost, func(_ *link, ack *paho.Connack) {
		if ack.SessionPresent {
			c.forget()
		}
		c.acks.connected()
		select {
		case ups <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	taken := make(chan *item, c.cfg.ReceiveMaximum)
	var wg sync.WaitGroup
	wg.Go(func() { c.subscribe(ctx, l, ups) })           // ends with ctx
	wg.Go(func() { c.acknowledge(work, accept, taken) }) // ends when taken is closed
	c.hand(ctx, work, accept, taken)                     // ends with ctx
	close(taken)
	wg.Wait()
	c.Source.subscribed(c, false)
	c.acks.wait(work, ackPatience)
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return l.close(bye)
}

func (c *conn) client() autopaho.ClientConfig {
	expiry, most := uint32(c.cfg.SessionExpiry/time.Second), c.cfg.ReceiveMaximum //nolint:gosec // checked
	return autopaho.ClientConfig{
		SessionExpiryInterval: expiry,
		ConnectPacketBuilder: func(p *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			p.CleanStart = false
			// Brokers must leave user properties on messages in either case, but not all do, and without them no replay is known.
			p.Properties = &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: &most, RequestProblemInfo: true}
			return p, nil
		},
		OnConnectionDown: func() bool { // all that came on the connection is in the queue by now
			c.mu.Lock()
			c.gen++
			c.mu.Unlock()
			return true
		},
		ClientConfig: paho.ClientConfig{
			ClientID:                   fmt.Sprintf("%singest-%d-%d", c.cfg.Prefix, c.cfg.Ordinal, c.k),
			EnableManualAcknowledgment: true,
			SendAcksInterval:           ackInterval,
			Session:                    c.acks,
			OnPublishReceived:          []func(paho.PublishReceived) (bool, error){c.receive},
		},
	}
}

// receive puts a packet into the queue and returns at once: paho reads on, so that the keepalive lives while the log does
// not. At QoS 1 and 2 the receive maximum bounds the queue; what is QoS 0 has to go when it is full.
func (c *conn) receive(r paho.PublishReceived) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Packet.QoS == 0 && len(c.queue) >= int(c.cfg.ReceiveMaximum) {
		c.cfg.Count(CountDroppedQoS0)
		return true, nil
	}
	c.queue = append(c.queue, &item{packet: r.Packet, client: r.Client, at: time.Now(), gen: c.gen, place: c.order.enter()})
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return true, nil
}

// forget drops from the queue what came on connections that are gone: the session that is there again repeats it.
func (c *conn) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = slices.DeleteFunc(c.queue, func(it *item) bool {
		again := it.gen < c.gen && it.packet.QoS > 0
		if again {
			c.order.leave(it.place)
		}
		return again
	})
}

// next is the oldest packet of the queue; nil with the end of ctx.
func (c *conn) next(ctx context.Context) *item {
	for ctx.Err() == nil {
		c.mu.Lock()
		if len(c.queue) > 0 {
			it := c.queue[0]
			c.queue[0] = nil
			c.queue = c.queue[1:]
			c.mu.Unlock()
			return it
		}
		c.mu.Unlock()
		select {
		case <-c.wake:
		case <-ctx.Done():
		}
	}
	return nil
}

// hand decodes and hands over what is in the queue.
func (c *conn) hand(ctx, work context.Context, accept pipeline.Accept, taken chan<- *item) {
	for it := c.next(ctx); it != nil; it = c.next(ctx) {
		p := packetOf(it)
		events, err := c.cfg.Decoder.Decode(p)
		switch {
		case err != nil:
			c.refused(it, err)
		case Claims(p.Properties.User):
			c.cfg.Count(CountForged)
		}
		it.events = events
		if slices.ContainsFunc(events, isSession) {
			// Every message that came before must be durable, or the replay would miss it.
			if err := c.order.oldest(ctx, it.place); err != nil {
				return
			}
		}
		if !c.take(work, accept, it) {
			return
		}
		taken <- it
	}
}

func isSession(e event.Event) bool {
	_, message := e.(event.Published)
	return !message
}

func packetOf(it *item) Packet {
	p := Packet{
		Topic: it.packet.Topic, Payload: it.packet.Payload, QoS: event.QoS(it.packet.QoS), Retain: it.packet.Retain, At: it.at,
	}
	if p.Payload == nil {
		p.Payload = []byte{}
	}
	if props := it.packet.Properties; props != nil {
		p.Properties = event.Properties{
			ContentType: props.ContentType, ResponseTopic: props.ResponseTopic, CorrelationData: props.CorrelationData,
		}
		if len(props.CorrelationData) == 0 {
			p.Properties.CorrelationData = nil
		}
		if props.PayloadFormat != nil {
			p.Properties.PayloadFormat = *props.PayloadFormat
		}
		if props.MessageExpiry != nil {
			p.Expiry = time.Duration(*props.MessageExpiry) * time.Second
		}
		for _, u := range props.User {
			p.Properties.User = append(p.Properties.User, event.UserProperty{Key: u.Key, Value: u.Value})
		}
	}
	return p
}

func (c *conn) refused(it *item, err error) {
	why := &Refusal{Counter: CountRefusedTopic}
	errors.As(err, &why)
	c.cfg.Count(why.Counter)
	if !errors.Is(err, ErrOwn) && !errors.Is(err, errIgnored) {
		c.refusals.Say(func(before int) {
			c.cfg.Log.Warn("packet refused", "topic", it.packet.Topic, "err", err, "unsaid", before)
		})
	}
}

// take hands an item's events over until they are taken; false with the end of work.
func (c *conn) take(work context.Context, accept pipeline.Accept, it *item) bool {
	it.receipts = it.receipts[:0]
	for _, e := range it.events {
		for attempt := 1; ; attempt++ {
			r, err := accept(work, e)
			if err == nil {
				if r != nil {
					it.receipts = append(it.receipts, r)
				}
				break
			}
			if fault.IsPoison(err) {
				c.cfg.Count(CountRefusedPoison)
				c.cfg.Log.WarnContext(work, "packet refused: the log can never take it", "topic", it.packet.Topic, "err", err)
				break
			}
			if !c.pause(work, attempt, "event was not taken", err) {
				return false
			}
		}
	}
	return true
}

// pause waits before the next attempt; false with the end of work.
func (c *conn) pause(work context.Context, attempt int, what string, err error) bool {
	if work.Err() != nil {
		c.cfg.Count(CountNotTaken)
		return false
	}
	c.cfg.Log.WarnContext(work, "source waits, will retry", "what", what, "attempt", attempt, "err", err)
	select {
	case <-time.After(backoff(attempt)):
		return true
	case <-work.Done():
		c.cfg.Count(CountNotTaken)
		return false
	}
}

// acknowledge waits for the receipts in order, and acknowledges. After an item that did not become durable it acknowledges
// nothing more.
func (c *conn) acknowledge(work context.Context, accept pipeline.Accept, taken <-chan *item) {
	alive := true
	for it := range taken {
		alive = alive && c.durable(work, accept, it)
		if !alive {
			continue
		}
		c.order.leave(it.place)
		if it.packet.QoS > 0 {
			c.acks.expect(it.packet.PacketID)
		}
		// An error means that the connection is gone: the broker repeats the message.
		if err := it.client.Ack(it.packet); err != nil {
			c.acks.settled(it.packet.PacketID)
			c.cfg.Log.DebugContext(work, "ack came too late", "client", c.k, "err", err)
		}
	}
}

func (c *conn) durable(work context.Context, accept pipeline.Accept, it *item) bool {
	for attempt := 1; ; attempt++ {
		var err error
		for _, r := range it.receipts {
			err = errors.Join(err, pipeline.Wait(work, r))
		}
		if err == nil {
			return true
		}
		if !c.pause(work, attempt, "event did not become durable", err) || !c.take(work, accept, it) {
			return false
		}
	}
}

// subscribe subscribes after each connect: the session may be a new one, or know other filters.
func (c *conn) subscribe(ctx context.Context, l *link, ups <-chan struct{}) {
	for {
		select {
		case <-ups:
		case <-ctx.Done():
			return
		}
		for attempt := 1; ; attempt++ {
			_, cut, err := l.wait(ctx)
			if err != nil {
				return
			}
			if err = c.subscribeOnce(ctx, l); err == nil {
				c.Source.subscribed(c, true)
				select {
				case <-cut:
					c.Source.subscribed(c, false)
				case <-ctx.Done():
					return
				}
				break
			}
			if ctx.Err() != nil {
				return
			}
			c.cfg.Log.ErrorContext(ctx, "cannot subscribe, will retry", "client", l.clientID, "filters", c.filters, "err", err,
				"hint", "give the user the right to subscribe to these filters")
			select {
			case <-cut:
			case <-time.After(backoff(attempt)):
			case <-ctx.Done():
				return
			}
		}
	}
}

func (c *conn) subscribeOnce(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, subscribeDeadline)
	defer cancel()
	s := &paho.Subscribe{}
	for _, f := range c.filters {
		// Retained messages were ingested when they were published: none are wanted again at a subscribe.
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: byte(c.cfg.QoS), RetainHandling: 2, RetainAsPublished: true})
	}
	ack, err := l.cm.Subscribe(ctx, s)
	if err != nil {
		return err
	}
	for i, code := range ack.Reasons {
		if i < len(c.filters) && code < byte(c.cfg.QoS) {
			c.cfg.Log.WarnContext(ctx, "broker grants less than was asked for: messages may be lost on the way",
				"filter", c.filters[i], "asked", c.cfg.QoS, "granted", code)
		}
	}
	return nil
}
