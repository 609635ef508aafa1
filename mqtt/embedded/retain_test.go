package embedded_test

import (
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/mqtt/mqtttest"
)

// TestARetainedMessageIsDeliveredWithItsFlag: to the one client, at each QoS, and although it had the message live a moment ago.
func TestARetainedMessageIsDeliveredWithItsFlag(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, nil)
		dev := s.dial(t, mqtttest.Options{ID: "dev", Version: version})
		other := s.dial(t, mqtttest.Options{ID: "other", Version: version})
		s.subscribe(t, dev, 2, "t/#")
		s.subscribe(t, other, 2, "t/#")
		pub := s.dial(t, mqtttest.Options{ID: "pub"})
		s.publish(t, pub, 1, "t/1", "state")
		for _, c := range []*mqtttest.Client{dev, other} {
			s.receive(t, c)
		}
		await[event.Acked](t, s.ledger, 2)
		live := all[event.Published](s.ledger)[0]
		for _, qos := range []event.QoS{0, 1, 2} {
			m := stored(t, s, "t/1", "state", qos)
			m.ID, m.Retained = live.ID, true
			deliver(t, s, "dev", m)
			if got := s.receive(t, dev); string(got.Payload) != "state" || !got.Retain || got.QoS != qos {
				t.Errorf("QoS %d: received %+v", qos, got)
			}
			if qos > 0 {
				await[event.Acked](t, s.ledger, 2+int(qos))
			}
		}
		if got := other.Quiet(30 * time.Millisecond); len(got) > 0 {
			t.Errorf("another client received %v", got)
		}
		late := s.dial(t, mqtttest.Options{ID: "late", Version: version})
		s.subscribe(t, late, 1, "t/#")
		if got := late.Quiet(30 * time.Millisecond); len(got) > 0 {
			t.Errorf("the broker retained what was delivered: %v", got)
		}
	})
}

// TestABrokerWithoutRetainedMessagesTellsOfThem: it keeps none, not of wills either, and forwards them as others.
func TestABrokerWithoutRetainedMessagesTellsOfThem(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, func(c *embedded.Config) { c.NoRetain = true })
		sub := s.dial(t, mqtttest.Options{ID: "sub", Version: version})
		s.subscribe(t, sub, 1, "t/#")
		pub := s.dial(t, mqtttest.Options{
			ID: "pub", Version: version, Will: &mqtttest.Message{Topic: "t/will", QoS: 1, Retain: true, Payload: []byte("will")},
		})
		if err := pub.Publish(s.ctx, mqtttest.Message{Topic: "t/1", QoS: 1, Retain: true, Payload: []byte("state")}); err != nil {
			t.Fatal(err)
		}
		pub.Cut()
		for _, want := range []string{"state", "will"} {
			if got := s.receive(t, sub); string(got.Payload) != want || got.Retain {
				t.Errorf("received %+v, want %s", got, want)
			}
		}
		for _, e := range await[event.Published](t, s.ledger, 2) {
			if !e.Retain {
				t.Errorf("%s: the event says that it is not retained", e.Payload)
			}
		}
		late := s.dial(t, mqtttest.Options{ID: "late", Version: version})
		s.subscribe(t, late, 1, "t/#")
		if got := late.Quiet(30 * time.Millisecond); len(got) > 0 {
			t.Errorf("the broker retained %v", got)
		}
	})
}
