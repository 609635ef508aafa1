package embedded_test

import (
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestReceiveMaximumIsObeyedAndNoAckIsLost(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	sub := s.dial(t, mqtttest.Options{ID: "sub", Version: mqtttest.V5, ReceiveMaximum: 3, ManualAck: true})
	s.subscribe(t, sub, 1, "t/#")
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	for i := range 30 {
		s.publish(t, pub, 1, "t/1", string(rune('A'+i)))
	}
	var got []mqtttest.Message
	for len(got) < 30 {
		batch, err := sub.ReceiveN(s.ctx, min(3, 30-len(got)))
		if err != nil {
			t.Fatal(err)
		}
		if more := sub.Quiet(5 * time.Millisecond); len(more) > 0 {
			t.Fatalf("more than 3 in flight: %d", len(batch)+len(more))
		}
		got = append(got, batch...)
		for _, m := range batch {
			if err := sub.Ack(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	acks, pubs := await[event.Acked](t, s.ledger, 30), all[event.Published](s.ledger)
	for i := range 30 {
		if string(got[i].Payload) != string(pubs[i].Payload) || acks[i].Message != pubs[i].ID {
			t.Fatalf("message %d: got %s, acked %s, want %s %s", i, got[i].Payload, acks[i].Message, pubs[i].Payload, pubs[i].ID)
		}
	}
}

// A client may use one packet id in both directions at once. The broker must not lose the delivery, nor refuse a SUBSCRIBE.
func TestDeliverySurvivesAnInboundPacketOfTheSameID(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		for _, qos := range []event.QoS{1, 2} {
			s := start(t, nil)
			o := mqtttest.Options{ID: "dev", Version: version, KeepSession: true, ManualAck: true}
			if version == mqtttest.V5 {
				o.SessionExpiry = time.Hour
			}
			dev := s.dial(t, o)
			s.subscribe(t, dev, 2, "down/#")
			pub := s.dial(t, mqtttest.Options{ID: "pub"})
			s.publish(t, pub, 2, "down/1", "held")
			m := s.receive(t, dev)
			// The same id inbound: a publish, then a subscribe.
			if err := dev.Publish(s.ctx, mqtttest.Message{ID: m.ID, Topic: "up/1", QoS: qos, Payload: []byte("up")}); err != nil {
				t.Fatal(err)
			}
			if codes, err := dev.SubscribeID(s.ctx, m.ID, 1, "other/#"); err != nil || codes[0] != 1 {
				t.Fatalf("subscribe with the packet id of a delivery: codes %v, %v", codes, err)
			}
			dev.Cut()
			await[event.Disconnected](t, s.ledger, 1)
			again := s.dial(t, o)
			r := s.receive(t, again)
			if string(r.Payload) != "held" || !r.Dup || r.ID != m.ID {
				t.Fatalf("sent again: %+v", r)
			}
			if err := again.Ack(r); err != nil {
				t.Fatal(err)
			}
			a := await[event.Acked](t, s.ledger, 1)[0]
			if a.Message != all[event.Published](s.ledger)[0].ID {
				t.Errorf("acked %s", a.Message)
			}
		}
	})
}

// While an inbound QoS 2 publish waits for its PUBREL, a PUBACK of the same id is a delivery's.
func TestBothDirectionsOfOneIDAreAcknowledgedApart(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	dev := s.dial(t, mqtttest.Options{ID: "dev", ManualAck: true})
	s.subscribe(t, dev, 1, "down/#")
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	s.publish(t, pub, 1, "down/1", "held")
	m := s.receive(t, dev)
	if _, err := dev.Post(mqtttest.Message{ID: m.ID, Topic: "up/1", QoS: 2, Payload: []byte("up")}); err != nil {
		t.Fatal(err)
	}
	if err := dev.Ping(s.ctx); err != nil { // PUBREC has come, PUBREL is held back
		t.Fatal(err)
	}
	if err := dev.Ack(m); err != nil {
		t.Fatal(err)
	}
	a := await[event.Acked](t, s.ledger, 1)[0]
	if a.Message != all[event.Published](s.ledger)[0].ID {
		t.Errorf("acked %s", a.Message)
	}
	// An ack of nothing must not cost the inbound half either.
	if err := dev.Ack(m); err != nil {
		t.Fatal(err)
	}
	// The repeated QoS 2 publish is known: no second event.
	if err := dev.Publish(s.ctx, mqtttest.Message{ID: m.ID, Topic: "up/1", QoS: 2, Payload: []byte("up"), Dup: true}); err != nil {
		t.Fatal(err)
	}
	if n := len(all[event.Published](s.ledger)); n != 2 {
		t.Errorf("%d published events, want 2", n)
	}
}
