package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

func topic(t *testing.T, s string) event.Topic {
	t.Helper()
	v, err := event.ParseTopic(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func stored(t *testing.T, s *stack, name, payload string, qos event.QoS) pipeline.Outgo {
	t.Helper()
	return pipeline.Outgo{
		QoS: qos, Remaining: 3,
		Message: sinks.Message{
			ID: s.minter.Mint(), Topic: topic(t, name), Sender: "someone", QoS: 2, Payload: []byte(payload),
			Arrived: time.UnixMilli(1_700_000_000_123),
			Properties: event.Properties{
				ContentType: "text/plain", ResponseTopic: "answer/here", CorrelationData: []byte{1, 0, 2}, PayloadFormat: 1,
				User: []event.UserProperty{{Key: "a", Value: "1"}, {Key: mqtt.PropMessageID, Value: "forged"}},
			},
		},
	}
}

func deliver(t *testing.T, s *stack, to event.ClientID, m pipeline.Outgo) {
	t.Helper()
	out, err := s.Publish(s.ctx, to, m)
	if err != nil || out.NoSubscriber {
		t.Fatalf("deliver to %q: %+v, %v", to, out, err)
	}
}

func TestDirectDeliveryReachesOneClientOnly(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		for _, qos := range []event.QoS{1, 2} {
			s := start(t, nil)
			a := s.dial(t, mqtttest.Options{ID: "a", Version: version})
			b := s.dial(t, mqtttest.Options{ID: "b", Version: version})
			s.subscribe(t, a, 2, "t/#")
			s.subscribe(t, b, 2, "t/#")
			m := stored(t, s, "t/1", "stored", qos)
			m.Expires = time.Now().Add(90 * time.Second)
			deliver(t, s, "a", m)
			got := s.receive(t, a)
			if got.Topic != "t/1" || string(got.Payload) != "stored" || got.QoS != qos || got.Retain || got.Dup {
				t.Errorf("received %+v", got)
			}
			ack := await[event.Acked](t, s.ledger, 1)[0]
			if ack.Message != m.ID || ack.Client != "a" || ack.Topic.String() != "t/1" || !ack.Replayed || !ack.Watched {
				t.Errorf("acked %+v", ack)
			}
			if others := b.Quiet(30 * time.Millisecond); len(others) > 0 {
				t.Errorf("another client received %v", others)
			}
			if n := len(all[event.Published](s.ledger)); n > 0 {
				t.Errorf("%d published events of a replay", n)
			}
			if version == mqtttest.V311 {
				continue
			}
			want := s.secret.Properties("a", "t/1", m)
			if !slices.Equal(got.Properties.User, want) || got.User(mqtt.PropMessageID) != m.ID.String() || got.User(mqtt.PropRemaining) != "3" {
				t.Errorf("user properties %v, want %v", got.Properties.User, want)
			}
			if id, client, ok := s.secret.Verify(got.Topic, got.Payload, got.Properties.User); !ok || id != m.ID || client != "a" {
				t.Error("the MAC does not verify")
			}
			if p := got.Properties; p.ContentType != "text/plain" || p.ResponseTopic != "answer/here" || string(p.CorrelationData) != "\x01\x00\x02" || p.PayloadFormat != 1 {
				t.Errorf("properties %+v", p)
			}
			if got.Expiry < 88*time.Second || got.Expiry > 91*time.Second {
				t.Errorf("expiry %v", got.Expiry)
			}
		}
	})
}

func TestDirectDeliveryToNobody(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	m := stored(t, s, "t/1", "x", 1)
	dev := s.dial(t, mqtttest.Options{ID: "dev", KeepSession: true})
	s.subscribe(t, dev, 1, "t/1")
	dev.Cut()
	await[event.Disconnected](t, s.ledger, 1)
	for _, to := range []event.ClientID{"unknown", "dev"} {
		if out, err := s.Publish(s.ctx, to, m); err != nil || !out.NoSubscriber {
			t.Errorf("%s: %+v, %v", to, out, err)
		}
	}
	m.Expires = time.Now().Add(-time.Second)
	s.dial(t, mqtttest.Options{ID: "here"})
	if _, err := s.Publish(s.ctx, "here", m); !errors.Is(err, mqtt.ErrExpired) {
		t.Errorf("expired: %v", err)
	}
	small := s.dial(t, mqtttest.Options{ID: "small", Version: mqtttest.V5, MaximumPacket: 200})
	big := stored(t, s, "t/1", strings.Repeat("x", 500), 1)
	if _, err := s.Publish(s.ctx, "small", big); !fault.IsPoison(err) {
		t.Errorf("too large: %v", err)
	}
	s.subscribe(t, small, 1, "t/1")
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	s.publish(t, pub, 1, "t/1", strings.Repeat("x", 500))
	s.publish(t, pub, 1, "t/1", "fits")
	if got := s.receive(t, small); string(got.Payload) != "fits" {
		t.Errorf("received %d bytes", len(got.Payload))
	}
	if e := await[event.Dropped](t, s.ledger, 2); e[1].Reason != "packet_too_large" || e[1].Client != "small" {
		t.Errorf("dropped %+v", e)
	}
	s.stop()
	if out, err := s.Publish(s.ctx, "here", stored(t, s, "t/1", "x", 1)); err != nil || !out.NoSubscriber {
		t.Errorf("stopped broker: %+v, %v", out, err)
	}
}

func TestDirectDeliveryWaitsForTheReceiveMaximum(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	dev := s.dial(t, mqtttest.Options{ID: "dev", Version: mqtttest.V5, ReceiveMaximum: 2, ManualAck: true})
	for i := range 2 {
		deliver(t, s, "dev", stored(t, s, "t/1", fmt.Sprint(i), 2))
	}
	ctx, cancel := context.WithTimeout(s.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.Publish(ctx, "dev", stored(t, s, "t/1", "late", 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("third in flight: %v", err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := s.Publish(s.ctx, "dev", stored(t, s, "t/1", "third", 1))
		sent <- err
	}()
	if err := dev.Ack(s.receive(t, dev)); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	s.receive(t, dev)
	if m := s.receive(t, dev); string(m.Payload) != "third" {
		t.Errorf("received %s", m.Payload)
	}
}

func TestLiveDeliveryIsNotRepeatedByADirectOne(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	dev := s.dial(t, mqtttest.Options{ID: "dev", ManualAck: true})
	s.subscribe(t, dev, 1, "t/1")
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	for _, acked := range []bool{false, true} {
		s.publish(t, pub, 1, "t/1", "live")
		live := s.receive(t, dev)
		pubs := all[event.Published](s.ledger)
		m := stored(t, s, "t/1", "live", 1)
		m.ID = pubs[len(pubs)-1].ID
		before := len(all[event.Acked](s.ledger))
		if acked {
			if err := dev.Ack(live); err != nil {
				t.Fatal(err)
			}
			await[event.Acked](t, s.ledger, before+1)
		}
		deliver(t, s, "dev", m)
		if again := dev.Quiet(30 * time.Millisecond); len(again) > 0 {
			t.Fatalf("delivered twice: %v", again)
		}
		if !acked {
			if err := dev.Ack(live); err != nil {
				t.Fatal(err)
			}
		}
		deadline := time.Now().Add(40 * time.Second)
		for {
			acks := all[event.Acked](s.ledger)
			if a := acks[max(len(acks)-1, 0):]; len(acks) > before && a[0].Message == m.ID && a[0].Replayed {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no ack for the replayer: %+v", acks)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestReplayOverTCPIsNotANewMessage(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		template, err := mqtt.ParseTemplate(mqtt.DefaultTemplate)
		if err != nil {
			t.Fatal(err)
		}
		s := start(t, func(c *embedded.Config) { c.Template = template })
		const id = "dev/+#%"
		dev := s.dial(t, mqtttest.Options{ID: id, Version: version})
		prefixed, err := template.For(id, "t/1")
		if err != nil {
			t.Fatal(err)
		}
		s.subscribe(t, dev, 1, "t/1", prefixed.String())
		replayer := s.dial(t, mqtttest.Options{ID: "restante-replay-0-0", Version: mqtttest.V5})
		for _, name := range []string{"t/1", prefixed.String()} {
			m := stored(t, s, "t/1", "stored", 1)
			before := len(all[event.Acked](s.ledger))
			err := replayer.Publish(s.ctx, mqtttest.Message{
				Topic: name, QoS: 1, Payload: m.Payload, Properties: event.Properties{User: s.secret.Properties(id, name, m)},
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := s.receive(t, dev); got.Topic != name {
				t.Errorf("received on %q", got.Topic)
			}
			a := await[event.Acked](t, s.ledger, before+1)[before]
			if a.Message != m.ID || !a.Replayed || a.Client != id || a.Topic.String() != "t/1" {
				t.Errorf("acked %+v, want message %s", a, m.ID)
			}
		}
		if n := len(all[event.Published](s.ledger)); n > 0 {
			t.Errorf("%d published events", n)
		}
		for _, e := range all[event.Connected](s.ledger) {
			if e.Client != id {
				t.Errorf("connected event of %s", e.Client)
			}
		}
		if s.counted(mqtt.CountReplay) != 2 || s.counted(mqtt.CountOwnEvent) == 0 {
			t.Errorf("counted %d replays", s.counted(mqtt.CountReplay))
		}
	})
}

func TestForgedReplayIsAnOrdinaryMessage(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	other, err := mqtt.NewSecret([]byte("some other key, also long"))
	if err != nil {
		t.Fatal(err)
	}
	m := stored(t, s, "t/1", "content", 1)
	honest := s.secret.Properties("dev", "t/1", m)
	forgeries := map[string]mqtttest.Message{
		"other key":     {Topic: "t/1", Payload: m.Payload, Properties: event.Properties{User: other.Properties("dev", "t/1", m)}},
		"other payload": {Topic: "t/1", Payload: []byte("other"), Properties: event.Properties{User: honest}},
		"other topic":   {Topic: "t/2", Payload: m.Payload, Properties: event.Properties{User: honest}},
		"no MAC":        {Topic: "t/1", Payload: m.Payload, Properties: event.Properties{User: honest[:1]}},
		"not first": {Topic: "t/1", Payload: m.Payload, Properties: event.Properties{
			User: append([]event.UserProperty{{Key: mqtt.PropMessageID, Value: s.minter.Mint().String()}}, honest...),
		}},
	}
	dev := s.dial(t, mqtttest.Options{ID: "dev", Version: mqtttest.V5})
	own := s.dial(t, mqtttest.Options{ID: "restante-replay-0-1", Version: mqtttest.V5})
	n := 0
	for name, f := range forgeries {
		f.QoS = 1
		if err := dev.Publish(s.ctx, f); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n++
		if got := len(await[event.Published](t, s.ledger, n)); got != n {
			t.Errorf("%s: %d published events, want %d", name, got, n)
		}
		if err := own.Publish(s.ctx, f); !errors.Is(err, mqtttest.ErrReason) {
			t.Errorf("%s by a client with our prefix: %v", name, err)
		}
	}
	if got := len(all[event.Published](s.ledger)); got != n {
		t.Errorf("%d published events, want %d", got, n)
	}
	if s.counted(mqtt.CountOwnRefused) != n || s.counted(mqtt.CountForged) == 0 {
		t.Errorf("counted refused %d, forged %d", s.counted(mqtt.CountOwnRefused), s.counted(mqtt.CountForged))
	}
}

func BenchmarkPublish(b *testing.B) {
	minter := &event.Minter{Node: 1, Now: time.Now}
	broker, err := embedded.Open(embedded.Config{Listen: "127.0.0.1:0", Source: "restante/bench", Minter: minter})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	l := &ledger{news: make(chan struct{})}
	go func() { ended <- broker.Run(ctx, l.accept) }()
	c, err := mqtttest.Dial(ctx, broker.Addr().String(), mqtttest.Options{ID: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 256)
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if err := c.Publish(ctx, mqtttest.Message{Topic: "t/1", QoS: 1, Payload: payload}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	c.Disconnect()
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}
