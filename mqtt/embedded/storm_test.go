package embedded_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/mqtttest"
)

// storm is a device with a session that outlives its connections, of which it makes many.
type storm struct {
	*stack
	*rand.Rand
	version byte

	mu     sync.Mutex
	wanted map[string]bool // what was published, by topic and payload
	ids    map[string]event.ID

	first map[string]string // topic to the newest first delivery
	seen  map[string]uint16 // to the packet id
	under map[uint16]string // the last QoS 2 delivery of a packet id
}

func (d *storm) want(topic, payload string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted[topic+" "+payload] = true
}

func (d *storm) missing() (keys []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key := range d.wanted {
		if _, ok := d.seen[key]; !ok {
			keys = append(keys, key)
		}
	}
	return keys
}

func (d *storm) connect(ctx context.Context, manual bool) (*mqtttest.Client, error) {
	o := mqtttest.Options{ID: "dev", Version: d.version, KeepSession: true, ManualAck: manual}
	if d.version == mqtttest.V5 {
		o.SessionExpiry, o.ReceiveMaximum = time.Hour, uint16(1+d.IntN(5))
	}
	return mqtttest.Dial(ctx, d.addr, o)
}

// note judges a delivery.
func (d *storm) note(t *testing.T, m mqtttest.Message) {
	key := m.Topic + " " + string(m.Payload)
	id, again := d.seen[key]
	switch {
	case !again && string(m.Payload) <= d.first[m.Topic]:
		t.Errorf("%s comes after %s", key, d.first[m.Topic])
	case !again:
		d.first[m.Topic] = string(m.Payload)
	case m.QoS == 2 && id != m.ID:
		t.Errorf("%s comes again with packet id %d, had %d: the client takes it for another", key, m.ID, id)
	}
	d.seen[key] = m.ID
	if m.QoS < 2 {
		return
	}
	if was := d.under[m.ID]; was != "" && was != key && !d.acked(was) {
		t.Errorf("%s comes with packet id %d, which is still that of %s: the client takes it for that", key, m.ID, was)
	}
	d.under[m.ID] = key
}

// acked tells whether there is an ack of a message.
func (d *storm) acked(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range all[event.Published](d.ledger) {
		if k := p.Topic.String() + " " + string(p.Payload); d.ids[k].IsZero() {
			d.ids[k] = p.ID
		}
	}
	for _, a := range all[event.Acked](d.ledger) {
		if a.Message == d.ids[key] {
			return true
		}
	}
	return false
}

// use reads from a connection for a moment, acknowledges the most of what comes, in order, and publishes with packet ids
// that deliveries have.
func (d *storm) use(t *testing.T, c *mqtttest.Client) {
	ctx, cancel := context.WithTimeout(d.ctx, time.Duration(d.IntN(20))*time.Millisecond)
	defer cancel()
	acking := true
	for {
		m, err := c.Receive(ctx)
		if err != nil {
			return
		}
		d.note(t, m)
		if acking = acking && d.IntN(12) > 0; acking {
			_ = c.Ack(m)
		}
		if d.IntN(6) == 0 {
			_, _ = c.Post(mqtttest.Message{ID: m.ID, Topic: "up", QoS: event.QoS(1 + d.IntN(2)), Payload: []byte("up")})
		}
	}
}

func TestSessionOutlivesAStormOfReconnects(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			const publishers, each = 3, 120
			d := &storm{
				stack: start(t, nil), Rand: rand.New(rand.NewPCG(seed, 1)), version: mqtttest.V5 - byte(seed%2),
				wanted: map[string]bool{}, ids: map[string]event.ID{}, first: map[string]string{}, seen: map[string]uint16{},
				under: map[uint16]string{},
			}
			var done context.CancelFunc
			d.ctx, done = context.WithTimeout(context.Background(), 2*time.Minute) // for a busy machine
			t.Cleanup(done)
			dev, err := d.connect(d.ctx, true)
			if err != nil {
				t.Fatal(err)
			}
			d.subscribe(t, dev, 2, "t/#")
			var wg sync.WaitGroup
			for p := range publishers {
				c := d.dial(t, mqtttest.Options{ID: fmt.Sprint("pub", p)})
				wg.Go(func() {
					for i := range each {
						topic, payload := fmt.Sprint("t/", p), fmt.Sprintf("%03d", i)
						d.want(topic, payload)
						if err := c.Publish(d.ctx, mqtttest.Message{Topic: topic, QoS: event.QoS(1 + (i+p)%2), Payload: []byte(payload)}); err != nil {
							t.Errorf("publish: %v", err)
							return
						}
					}
				})
			}
			wg.Go(func() {
				for i := range each {
					m := stored(t, d.stack, "t/direct", fmt.Sprintf("%03d", i), event.QoS(1+i%2))
					d.mu.Lock()
					d.ids["t/direct "+string(m.Payload)] = m.ID
					d.mu.Unlock()
					out, err := d.Publish(d.ctx, "dev", m)
					if err != nil {
						t.Errorf("deliver: %v", err)
						return
					}
					if !out.NoSubscriber {
						d.want("t/direct", string(m.Payload))
					}
				}
			})
			published := make(chan struct{})
			go func() {
				wg.Wait()
				close(published)
			}()
			for done := false; !done; {
				select {
				case <-published:
					done = true
				default:
				}
				d.use(t, dev)
				dev = d.again(t, dev)
			}
			dev.Cut()
			d.settle(t)
		})
	}
}

// again makes the next connection: by take-over, twice at once, or after the end of the one before.
func (d *storm) again(t *testing.T, old *mqtttest.Client) *mqtttest.Client {
	var rival sync.WaitGroup
	switch d.IntN(4) {
	case 0:
		old.Cut()
	case 1:
		old.Disconnect()
	case 2:
		dialed := make(chan struct{})
		defer func() { <-dialed }() // either may win
		rival.Go(func() {
			o := mqtttest.Options{ID: "dev", Version: d.version, KeepSession: true, SessionExpiry: time.Hour, ManualAck: true}
			c, err := mqtttest.Dial(d.ctx, d.addr, o)
			close(dialed)
			if err == nil {
				defer c.Cut()
				<-c.Done() // the other one takes over, at the latest that of the next round
			}
		})
	}
	t.Cleanup(rival.Wait)
	for {
		c, err := d.connect(d.ctx, true)
		if err == nil {
			old.Cut()
			for _, m := range old.Quiet(0) {
				d.note(t, m)
			}
			return c
		}
		if d.ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// settle takes what is left on a last connection, and judges the whole.
func (d *storm) settle(t *testing.T) {
	dev, err := d.connect(d.ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dev.Cut)
	for len(d.missing()) > 0 {
		m, err := dev.Receive(d.ctx)
		if err != nil {
			t.Fatalf("missing of %d messages: %q, counted %v: %v", len(d.wanted), d.missing(), d.counts, err)
		}
		d.note(t, m)
	}
	for key := range d.wanted {
		for !d.acked(key) {
			if d.ctx.Err() != nil {
				t.Fatalf("no ack of %s", key)
			}
			time.Sleep(time.Millisecond)
		}
	}
	n := map[event.ID]int{}
	for _, a := range all[event.Acked](d.ledger) {
		if n[a.Message]++; n[a.Message] > 1 {
			t.Errorf("message %s of %s is acked %d times", a.Message, a.Topic, n[a.Message])
		}
	}
}
