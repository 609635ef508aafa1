package embedded_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestStopLetsPublishersFinishAndTellsOfDisconnects(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	idle, err := net.Dial("tcp", s.addr) // sends no CONNECT
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = idle.Close() })
	held := &receipt{done: make(chan struct{})}
	s.ledger.set(func(e event.Event) (*receipt, error) {
		if _, ok := e.(event.Published); ok {
			return held, nil
		}
		return nil, nil //nolint:nilnil // durable at once
	})
	c := s.dial(t, mqtttest.Options{ID: "dev"})
	answered := make(chan error, 1)
	go func() { answered <- c.Publish(s.ctx, mqtttest.Message{Topic: "t", QoS: 1}) }()
	await[event.Published](t, s.ledger, 1)
	time.AfterFunc(100*time.Millisecond, func() { close(held.done) })
	s.stop()
	if err := <-answered; err != nil {
		t.Errorf("publish under way: %v", err)
	}
	if e := all[event.Disconnected](s.ledger); len(e) != 1 || e[0].Reason != "server_shutdown" {
		t.Errorf("disconnected %+v", e)
	}
}

func TestStopEndsWithTheDrainTime(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *embedded.Config) { c.Drain = 200 * time.Millisecond })
	s.ledger.set(func(e event.Event) (*receipt, error) {
		if _, ok := e.(event.Published); ok {
			return &receipt{done: make(chan struct{})}, nil // never
		}
		return nil, nil //nolint:nilnil // durable at once
	})
	c := s.dial(t, mqtttest.Options{ID: "dev", Version: mqtttest.V5})
	answered := make(chan error, 1)
	go func() { answered <- c.Publish(s.ctx, mqtttest.Message{Topic: "t", QoS: 1}) }()
	await[event.Published](t, s.ledger, 1)
	began := time.Now()
	s.stop()
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("stop took %v", d)
	}
	if err := <-answered; err == nil {
		t.Error("acknowledged what is not durable")
	}
}

func TestClientThatDoesNotReadBlocksNobody(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *embedded.Config) { c.WriteTimeout, c.MaxPending = time.Hour, 4 })
	rawClient(t, s, "slow")
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	big := strings.Repeat("x", 256<<10)
	for range 60 { // more than all buffers on the way hold
		s.publish(t, pub, 1, "t/1", big)
	}
	if e := await[event.Dropped](t, s.ledger, 1); e[0].Client != "slow" || e[0].Reason != "queue_full" {
		t.Errorf("dropped %+v", e[0])
	}
}

func TestClientThatDoesNotReadIsDisconnected(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *embedded.Config) { c.WriteTimeout = 100 * time.Millisecond })
	rawClient(t, s, "slow")
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	big := strings.Repeat("x", 256<<10)
	for len(all[event.Disconnected](s.ledger)) == 0 {
		s.publish(t, pub, 1, "t/1", big)
	}
	if e := all[event.Disconnected](s.ledger)[0]; e.Client != "slow" || e.Reason != "slow_client" || s.counted(mqtt.CountSlowClient) != 1 {
		t.Errorf("disconnected %+v, counted %d", e, s.counted(mqtt.CountSlowClient))
	}
}

// rawClient connects and subscribes to t/# at QoS 1, and reads no more after the SUBACK.
func rawClient(t *testing.T, s *stack, id string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	connect := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, byte(len(id))}, id...)
	if _, err := conn.Write(append(connect, 0x82, 8, 0, 1, 0, 3, 't', '/', '#', 1)); err != nil {
		t.Fatal(err)
	}
	await[event.Subscribed](t, s.ledger, 1)
	return conn
}
