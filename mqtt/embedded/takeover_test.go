package embedded_test

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/mqtt/mqtttest"
)

// deaf connects with a kept session and never reads, so that the resend of what is in flight does not end.
func deaf(t *testing.T, s *stack, id string) {
	t.Helper()
	before := len(all[event.Connected](s.ledger))
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	connect := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 0, 0, byte(len(id))}, id...)
	if _, err := conn.Write(connect); err != nil {
		t.Fatal(err)
	}
	await[event.Connected](t, s.ledger, before+1)
}

// congest leaves more in flight for a client than all buffers on the way to it hold, and gives its publisher back.
func congest(t *testing.T, s *stack, o mqtttest.Options) (pub *mqtttest.Client, inflight int) {
	t.Helper()
	const n = 10
	o.ManualAck = true
	dev := s.dial(t, o)
	s.subscribe(t, dev, 2, "t/#")
	pub = s.dial(t, mqtttest.Options{ID: "pub", Version: mqtttest.V5})
	for range n {
		s.publish(t, pub, 1, "t/big", strings.Repeat("x", 900<<10))
	}
	if _, err := dev.ReceiveN(s.ctx, n); err != nil {
		t.Fatal(err)
	}
	return pub, n
}

func small(ms []mqtttest.Message) string {
	return payloads(slices.DeleteFunc(ms, func(m mqtttest.Message) bool { return len(m.Payload) > 100 }))
}

func TestWhatComesDuringAResendOutlivesTakeOvers(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	o := mqtttest.Options{ID: "dev", KeepSession: true}
	pub, n := congest(t, s, o)
	var want []string
	for i := range 3 {
		deaf(t, s, "dev")
		for j := range 4 {
			want = append(want, fmt.Sprint(i, "-", j))
			s.publish(t, pub, event.QoS(1+j%2), "t/small", want[len(want)-1])
		}
		if err := pub.Ping(s.ctx); err != nil { // they have been routed
			t.Fatal(err)
		}
	}
	got, err := s.dial(t, o).ReceiveN(s.ctx, n+len(want))
	if err != nil {
		t.Fatal(err)
	}
	if s := small(got); s != strings.Join(want, " ") {
		t.Errorf("received %s, want %v", s, want)
	}
	await[event.Acked](t, s.ledger, n+len(want))
}

func TestWhatComesDuringAResendIsBounded(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *embedded.Config) { c.MaxInflight = 13 })
	o := mqtttest.Options{ID: "dev", KeepSession: true}
	pub, n := congest(t, s, o)
	for i := range 2 {
		deaf(t, s, "dev")
		for j := range 4 {
			s.publish(t, pub, 1, "t/small", fmt.Sprint(i, "-", j))
		}
	}
	if err := pub.Ping(s.ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.counted(mqtt.CountDroppedInflight); got != 5 {
		t.Errorf("%d deliveries dropped, want 5", got)
	}
	got, err := s.dial(t, o).ReceiveN(s.ctx, n+3)
	if err != nil {
		t.Fatal(err)
	}
	if s := small(got); s != "0-0 0-1 0-2" {
		t.Errorf("received %s", s)
	}
}

func TestWhatComesDuringAResendExpires(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	o := mqtttest.Options{ID: "dev", KeepSession: true}
	pub, n := congest(t, s, o)
	deaf(t, s, "dev")
	for _, m := range []mqtttest.Message{
		{Topic: "t/small", QoS: 1, Payload: []byte("short"), Expiry: time.Second}, {Topic: "t/small", QoS: 1, Payload: []byte("long")},
	} {
		if err := pub.Publish(s.ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2200 * time.Millisecond)
	dev := s.dial(t, o)
	got, err := dev.ReceiveN(s.ctx, n+1)
	if err != nil {
		t.Fatal(err)
	}
	if s := small(append(got, dev.Quiet(50*time.Millisecond)...)); s != "long" {
		t.Errorf("received %s", s)
	}
}

func TestWhatIsParkedEndsWithItsSession(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	o := mqtttest.Options{ID: "dev", KeepSession: true}
	pub, _ := congest(t, s, o)
	deaf(t, s, "dev")
	s.publish(t, pub, 1, "t/small", "of the old session")
	if err := pub.Ping(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.dial(t, mqtttest.Options{ID: "dev"}).Disconnect()
	dev := s.dial(t, o)
	s.subscribe(t, dev, 1, "t/#")
	s.publish(t, pub, 1, "t/small", "of the new one")
	if got := payloads(append([]mqtttest.Message{s.receive(t, dev)}, dev.Quiet(50*time.Millisecond)...)); got != "of the new one" {
		t.Errorf("received %s", got)
	}
}

// A client that has got a QoS 2 message knows it by its packet id until the PUBREL comes.
func TestWhatAClientMayHaveGotKeepsItsPacketID(t *testing.T) {
	t.Parallel()
	for _, qos := range []event.QoS{1, 2} {
		s := start(t, nil)
		o := mqtttest.Options{
			ID: "dev", Version: mqtttest.V5, KeepSession: true, SessionExpiry: time.Hour, ReceiveMaximum: 5, ManualAck: true,
		}
		dev := s.dial(t, o)
		s.subscribe(t, dev, 2, "t/#")
		pub := s.dial(t, mqtttest.Options{ID: "pub"})
		for i := range 8 {
			s.publish(t, pub, qos, "t/1", fmt.Sprint(i))
		}
		ids := map[string]uint16{}
		got, err := dev.ReceiveN(s.ctx, 5)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range got {
			ids[string(m.Payload)] = m.ID
		}
		o.ReceiveMaximum = 2
		dev = s.dial(t, o)
		if _, err := dev.ReceiveN(s.ctx, 2); err != nil {
			t.Fatal(err)
		}
		dev = s.dial(t, o) // once more, while three of them are parked
		for i := range 8 {
			m := s.receive(t, dev)
			if !bytes.Equal(m.Payload, fmt.Append(nil, i)) {
				t.Fatalf("qos %d: message %d is %s", qos, i, m.Payload)
			}
			if id, ok := ids[string(m.Payload)]; m.Dup != ok || ok && m.ID != id {
				t.Errorf("qos %d: message %d came with packet id %d, dup %t; it had %d", qos, i, m.ID, m.Dup, id)
			}
			if err := dev.Ack(m); err != nil {
				t.Fatal(err)
			}
		}
		await[event.Acked](t, s.ledger, 8)
	}
}

// The client still counts what it has got and not acknowledged, whether the broker keeps it or not.
func TestExpiryDoesNotMakeRoomAtTheClient(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	dev := s.dial(t, mqtttest.Options{ID: "dev", Version: mqtttest.V5, ReceiveMaximum: 1, ManualAck: true})
	s.subscribe(t, dev, 1, "t/1")
	pub := s.dial(t, mqtttest.Options{ID: "pub", Version: mqtttest.V5})
	if err := pub.Publish(s.ctx, mqtttest.Message{Topic: "t/1", QoS: 1, Payload: []byte("short"), Expiry: time.Second}); err != nil {
		t.Fatal(err)
	}
	m := s.receive(t, dev)
	s.publish(t, pub, 1, "t/1", "next")
	if more := dev.Quiet(3500 * time.Millisecond); len(more) > 0 {
		t.Fatalf("more than the client takes: %s", payloads(more))
	}
	if err := dev.Ack(m); err != nil {
		t.Fatal(err)
	}
	if m := s.receive(t, dev); string(m.Payload) != "next" {
		t.Errorf("received %s", m.Payload)
	}
}

// A client that publishes counts its packet ids as the broker does: deliveries come to the same ids while the log is slow.
func TestDeliveryDuringASlowPublishOfTheSameIDIsKept(t *testing.T) {
	t.Parallel()
	for _, qos := range []event.QoS{1, 2} {
		s := start(t, nil)
		o := mqtttest.Options{ID: "dev", KeepSession: true, ManualAck: true}
		dev := s.dial(t, o)
		s.subscribe(t, dev, 1, "down")
		slow := &receipt{done: make(chan struct{})}
		s.ledger.set(func(e event.Event) (*receipt, error) {
			if p, ok := e.(event.Published); ok && p.Topic.String() == "up" {
				return slow, nil
			}
			return nil, nil //nolint:nilnil // durable at once
		})
		if _, err := dev.Post(mqtttest.Message{ID: 1, Topic: "up", QoS: qos, Payload: []byte("up")}); err != nil {
			t.Fatal(err)
		}
		await[event.Published](t, s.ledger, 1)
		s.publish(t, s.dial(t, mqtttest.Options{ID: "pub"}), 1, "down", "kept")
		m := s.receive(t, dev)
		close(slow.done)
		if err := dev.Ack(m); err != nil {
			t.Fatal(err)
		}
		if a := await[event.Acked](t, s.ledger, 1)[0]; a.Topic.String() != "down" {
			t.Errorf("acked %+v", a)
		}
	}
}
