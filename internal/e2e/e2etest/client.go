package e2etest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/restante/restante/mqtt/mqtttest"
)

// Patience is how long something may take that must happen. It is far more than it takes, for the machine that runs all the other
// tests at the same time.
const Patience = 3 * time.Minute

// Dial connects an MQTT 5 client that acknowledges at once. A broker that does not listen yet is waited for.
func Dial(t *testing.T, addr, id string) *mqtttest.Client {
	t.Helper()
	return DialWith(t, addr, mqtttest.Options{ID: id, Version: mqtttest.V5})
}

// DialWith is Dial with options.
func DialWith(t *testing.T, addr string, o mqtttest.Options) *mqtttest.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	for {
		c, err := mqtttest.Dial(ctx, addr, o)
		if err == nil {
			t.Cleanup(c.Cut)
			return c
		}
		var netErr net.Error
		if ctx.Err() != nil || !errors.Is(err, syscall.ECONNREFUSED) && !errors.As(err, &netErr) {
			t.Fatalf("connect %s to %s: %v", o.ID, addr, err)
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// Message is a message of QoS 1.
func Message(topic, payload string) mqtttest.Message {
	return mqtttest.Message{Topic: topic, Payload: []byte(payload), QoS: 1}
}

var publishers atomic.Int64

// Publish publishes payloads at QoS 1, one after another; each has its PUBACK when it returns.
func Publish(t *testing.T, addr, topic string, payloads ...string) {
	t.Helper()
	c := Dial(t, addr, "publisher-"+strconv.FormatInt(publishers.Add(1), 10))
	defer c.Disconnect()
	for _, p := range payloads {
		Send(t, c, topic, p)
	}
}

// Send publishes one message at QoS 1 and waits for its PUBACK.
func Send(t *testing.T, c *mqtttest.Client, topic, payload string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := c.Publish(ctx, Message(topic, payload)); err != nil {
		t.Fatal(err)
	}
}

// Subscribe connects a client and subscribes it at QoS 1.
func Subscribe(t *testing.T, addr, id string, filters ...string) *mqtttest.Client {
	t.Helper()
	c := Dial(t, addr, id)
	More(t, c, filters...)
	return c
}

// More subscribes a client at QoS 1.
func More(t *testing.T, c *mqtttest.Client, filters ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	codes, err := c.Subscribe(ctx, 1, filters...)
	if err != nil || len(codes) != len(filters) || codes[0] != 1 {
		t.Fatalf("subscribe to %q: codes %v, %v", filters, codes, err)
	}
}

// Receive takes the next n messages.
func Receive(t *testing.T, c *mqtttest.Client, n int) []mqtttest.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	got, err := c.ReceiveN(ctx, n)
	if err != nil {
		t.Fatalf("received %q, want %d messages: %v", Payloads(got), n, err)
	}
	return got
}

// Quiet fails when a message comes within a while.
func Quiet(t *testing.T, c *mqtttest.Client, d time.Duration) {
	t.Helper()
	if got := c.Quiet(d); len(got) > 0 {
		t.Errorf("%q came, want nothing", Payloads(got))
	}
}

// Payloads are the payloads of messages.
func Payloads(ms []mqtttest.Message) []string {
	out := make([]string, 0, len(ms))
	for _, m := range ms {
		out = append(out, string(m.Payload))
	}
	return out
}

// Replays says what is wrong with messages that must be replays, each with an id of its own, in the order of the ids; nil when
// nothing is.
func Replays(ms []mqtttest.Message) error {
	last := ""
	for i, m := range ms {
		id := m.User("offline-msgid")
		if len(id) != 32 || id <= last {
			return fmt.Errorf("message %d (%q) has offline-msgid %q after %q", i, m.Payload, id, last)
		}
		last = id
	}
	return nil
}
