package embedded

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// office is a broker that a test sees from within, with the connection of one client.
type office struct {
	*hook
	ctx context.Context //nolint:containedctx // of the test
	cl  *mochi.Client
	w   *wire
	s   *session
}

func open(t *testing.T) *office {
	t.Helper()
	secret, err := mqtt.NewSecret([]byte("a key of the test, long enough"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(Config{
		Listen: "127.0.0.1:0", Source: "restante/test", Minter: &event.Minter{Node: 7, Now: time.Now}, Secret: secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { // the clean-up waits for it
		ended <- b.Run(run, func(context.Context, event.Event) (pipeline.Receipt, error) {
			return nil, nil //nolint:nilnil // durable at once
		})
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		cancel()
	})
	o := &office{hook: &hook{Broker: b}, ctx: ctx}
	dev, err := o.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dev.Cut)
	o.cl, _ = b.server.Clients.Get("dev")
	o.w = wireOf(o.cl)
	<-o.w.up
	o.s = o.w.session.Load()
	return o
}

func (o *office) dial() (*mqtttest.Client, error) {
	return mqtttest.Dial(o.ctx, o.Addr().String(), mqtttest.Options{ID: "dev", KeepSession: true})
}

// delivery comes into the client's in-flight map as mochi puts it there.
func (o *office) delivery(payload string, id uint16) packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: "t", Payload: []byte(payload), PacketID: id,
	}
	setMark(&pk, mark{id: o.cfg.Minter.Mint()})
	o.cl.State.Inflight.Set(pk)
	return pk
}

func (o *office) holds(t *testing.T, pk packets.Packet) {
	t.Helper()
	if entry, ok := o.cl.State.Inflight.Get(pk.PacketID); !ok || markOf(entry) != markOf(pk) {
		t.Errorf("in flight is %+v, %t", entry, ok)
	}
}

// A live delivery is parked after its session's new connection has read what is in flight and before it has put that into
// order, and the connection after that has copied the map by then.
func TestWhatIsParkedDuringAResumeOutlivesATakeOver(t *testing.T) {
	t.Parallel()
	o := open(t)
	o.s.mu.Lock()
	o.w.unparked = false // as before the end of its resend
	o.s.mu.Unlock()
	pk := o.delivery("kept", 9)
	out := o.copied(o.cl, o.w)
	o.OnQosPublish(o.cl, pk, 0, 0)

	o.s.mu.Lock()
	var next *mqtttest.Client
	dialed := make(chan error, 1)
	go func() { // received from below
		var err error
		next, err = o.dial()
		dialed <- err
	}()
	for now := o.cl; now == o.cl && o.ctx.Err() == nil; now, _ = o.server.Clients.Get("dev") {
		time.Sleep(time.Millisecond)
	}
	o.s.arrange(o.cl, o.w, out)
	o.s.mu.Unlock()
	if err := <-dialed; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Cut)
	m, err := next.Receive(o.ctx)
	if err != nil || string(m.Payload) != "kept" {
		t.Errorf("received %q: %v", m.Payload, err)
	}
}

// Its publisher sleeps between the in-flight map and the hook, while the next connection gets the delivery and acknowledges it.
func TestADeliveryThatWasCopiedIsNotMoved(t *testing.T) {
	t.Parallel()
	o := open(t)
	pk := o.delivery("once", 9)
	next, err := o.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Cut)
	if m, err := next.Receive(o.ctx); err != nil || string(m.Payload) != "once" {
		t.Fatalf("received %q: %v", m.Payload, err)
	}
	if err := next.Ping(o.ctx); err != nil { // the ack was handled
		t.Fatal(err)
	}
	o.OnQosPublish(o.cl, pk, 0, 0)
	if more := next.Quiet(100 * time.Millisecond); len(more) > 0 {
		t.Errorf("received another time: %+v", more)
	}
}

var withID = []packets.Packet{
	{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: "up"},
	{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}},
	{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}},
	{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}},
}

// mochi marks a connection as taken over right before it copies what is in flight.
func TestAConnectionThatWasTakenOverTakesNothingOutOfFlight(t *testing.T) {
	t.Parallel()
	o := open(t)
	next, err := o.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Cut)
	if !o.cl.IsTakenOver() {
		t.Fatal("not taken over")
	}
	pk := o.delivery("kept", 9)
	for _, in := range append(slices.Clip(withID),
		packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}},
		packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrec}},
	) {
		in.PacketID = pk.PacketID
		if _, err := o.OnPacketRead(o.cl, in); !errors.Is(err, packets.ErrRejectPacket) {
			t.Errorf("packet of type %d: %v", in.FixedHeader.Type, err)
		}
	}
	o.holds(t, pk)
}

// Else its id would be free for another delivery, and a take-over in this moment would copy the map without it.
func TestADeliveryStaysInFlightWhileAPacketOfItsIDIsInHand(t *testing.T) {
	t.Parallel()
	o := open(t)
	pk := o.delivery("kept", 1)
	for _, in := range withID {
		in.PacketID = pk.PacketID
		got, err := o.OnPacketRead(o.cl, in)
		if err != nil || got.PacketID == pk.PacketID || got.PacketID == 0 {
			t.Errorf("packet of type %d goes by id %d: %v", in.FixedHeader.Type, got.PacketID, err)
		}
		o.holds(t, pk)
	}
}

// mochi forgets a client id some time after it has found that its connection was not taken over.
func TestAClientThatComesWhileItsConnectionEndsIsNotForgotten(t *testing.T) {
	t.Parallel()
	forget := func(o *office) {
		o.cl.ClearInflights()
		o.server.UnsubscribeClient(o.cl)
		o.server.Clients.Delete("dev")
	}
	for name, c := range map[string]struct{ ends, isOver func(*office) }{
		"clean session":   {func(o *office) { o.OnDisconnect(o.cl, nil, true) }, func(o *office) { forget(o); o.w.unlock() }},
		"expired session": {func(o *office) { o.OnClientExpired(o.cl) }, func(o *office) { o.server.Clients.Delete("dev") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := open(t)
			c.ends(o)
			dialed := make(chan *mqtttest.Client, 1)
			go func() { // received from below
				next, err := o.dial()
				if err != nil {
					t.Error(err)
				}
				dialed <- next
			}()
			time.Sleep(100 * time.Millisecond) // it would have come
			c.isOver(o)
			next := <-dialed
			if next == nil {
				return
			}
			t.Cleanup(next.Cut)
			// A client that is forgotten gets no replay.
			if codes, err := next.Subscribe(o.ctx, 1, "t"); err != nil || len(codes) != 1 || codes[0] != 1 {
				t.Fatalf("subscribed with %v: %v", codes, err)
			}
			topic, _ := event.ParseTopic("t")
			m := sinks.Message{ID: o.cfg.Minter.Mint(), Topic: topic, Payload: []byte("kept"), QoS: 1}
			out, err := o.Publish(o.ctx, "dev", pipeline.Outgo{Message: m, QoS: 1})
			if err != nil || out.NoSubscriber {
				t.Fatalf("published with %+v: %v", out, err)
			}
			if m, err := next.Receive(o.ctx); err != nil || string(m.Payload) != "kept" {
				t.Errorf("received %q: %v", m.Payload, err)
			}
		})
	}
}

// A session expires at the moment at which its client is back: mochi forgets the id all the same.
func TestAnExpiredSessionTakesNoConnectionWithIt(t *testing.T) {
	t.Parallel()
	o := open(t)
	next, err := o.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Cut)
	now, _ := o.server.Clients.Get("dev")
	if now == o.cl {
		t.Fatal("it has not taken over")
	}
	o.OnClientExpired(o.cl)
	o.server.Clients.Delete("dev")
	for got := (*mochi.Client)(nil); got != now && o.ctx.Err() == nil; got, _ = o.server.Clients.Get("dev") {
		time.Sleep(time.Millisecond)
	}
	if o.ctx.Err() != nil {
		t.Error("its connection is forgotten")
	}
}
