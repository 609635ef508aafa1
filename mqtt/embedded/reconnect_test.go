package embedded_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/mqtttest"
)

// A session is handed from connection to connection while messages for it come in: each must come out, in the order of its
// publisher, and each ack must find its id.
func TestNothingIsLostOverReconnects(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		const publishers, each = 3, 150
		s := start(t, nil)
		o := mqtttest.Options{ID: "dev", Version: version, KeepSession: true}
		if version == mqtttest.V5 {
			o.SessionExpiry, o.ReceiveMaximum = time.Hour, 7
		}
		dev := s.dial(t, o)
		s.subscribe(t, dev, 1, "t/#")
		var wg sync.WaitGroup
		published := make(chan struct{})
		for p := range publishers {
			c := s.dial(t, mqtttest.Options{ID: fmt.Sprint("pub", p)})
			wg.Go(func() {
				for i := range each {
					m := mqtttest.Message{Topic: fmt.Sprint("t/", p), QoS: 1, Payload: fmt.Appendf(nil, "%03d", i)}
					if err := c.Publish(s.ctx, m); err != nil {
						t.Errorf("publish: %v", err)
						return
					}
				}
			})
		}
		go func() {
			wg.Wait()
			close(published)
		}()
		first := map[string]string{} // topic to the newest first delivery
		seen := map[string]bool{}
		read := func(c *mqtttest.Client, d time.Duration) {
			ctx, cancel := context.WithTimeout(s.ctx, d)
			defer cancel()
			for len(seen) < publishers*each {
				m, err := c.Receive(ctx)
				if err != nil {
					return
				}
				key := m.Topic + " " + string(m.Payload)
				if !seen[key] && string(m.Payload) <= first[m.Topic] {
					t.Errorf("%s comes after %s", key, first[m.Topic])
				}
				if !seen[key] {
					seen[key], first[m.Topic] = true, string(m.Payload)
				}
			}
		}
		for done := false; !done; {
			select {
			case <-published:
				done = true
			default:
			}
			read(dev, 15*time.Millisecond)
			if !done {
				old := dev
				dev = s.dial(t, o) // takes over
				if !dev.SessionPresent {
					t.Fatal("the session is gone")
				}
				<-old.Done()
				read(old, time.Millisecond)
			}
		}
		read(dev, 40*time.Second)
		if len(seen) != publishers*each {
			t.Fatalf("received %d of %d messages", len(seen), publishers*each)
		}
		ids := map[event.ID]bool{}
		for _, e := range all[event.Published](s.ledger) {
			ids[e.ID] = true
		}
		acked := map[event.ID]bool{}
		for deadline := time.Now().Add(40 * time.Second); len(acked) < len(ids) && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond) // acks lost with a connection come with the repeated message
			for _, a := range all[event.Acked](s.ledger) {
				if !ids[a.Message] {
					t.Fatalf("ack of unknown message %s", a.Message)
				}
				acked[a.Message] = true
			}
		}
		if len(acked) != len(ids) {
			t.Errorf("%d messages acked of %d", len(acked), len(ids))
		}
	})
}
