package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/pipeline"
)

// fake is a server that answers as a test wishes.
type fake struct {
	connect func(*packets.Connect)
	connack func(*packets.Connack)
	// publish is called for each PUBLISH, on the goroutine of its connection.
	publish func(net.Conn, *packets.Publish)

	wg sync.WaitGroup
}

func (f *fake) start(t *testing.T) mqtt.Server {
	t.Helper()
	l := listen(t)
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.wg.Wait() // the clients have gone before
	})
	return mqtt.Server{URLs: []string{"mqtt://" + l.Addr().String()}}
}

func (f *fake) serve(c net.Conn) {
	defer c.Close() //nolint:errcheck // a test's
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return
		}
		switch v := p.Content.(type) {
		case *packets.Connect:
			if f.connect != nil {
				f.connect(v)
			}
			a := packets.NewControlPacket(packets.CONNACK)
			if f.connack != nil {
				f.connack(a.Content.(*packets.Connack))
			}
			_, _ = a.WriteTo(c)
		case *packets.Pingreq:
			_, _ = packets.NewControlPacket(packets.PINGRESP).WriteTo(c)
		case *packets.Publish:
			f.publish(c, v)
		case *packets.Disconnect:
			return
		}
	}
}

func puback(c net.Conn, p *packets.Publish, code byte) {
	a := packets.NewControlPacket(packets.PUBACK)
	v := a.Content.(*packets.Puback)
	v.PacketID, v.ReasonCode = p.PacketID, code
	_, _ = a.WriteTo(c)
}

// startPublisher runs a publisher whose prefix the tests' broker knows.
func startPublisher(t *testing.T, s mqtt.Server, change ...func(*mqtt.PublisherConfig)) (p *mqtt.Publisher, stop func()) {
	t.Helper()
	cfg := mqtt.PublisherConfig{Server: s, Prefix: "own-", Instance: "i", Connections: 2, Secret: secretOf(t, keyA)}
	for _, f := range change {
		f(&cfg)
	}
	p, err := mqtt.NewPublisher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p, background(t, "the publisher", p.Run)
}

func TestPublishReturnsOnlyAfterThePuback(t *testing.T) {
	t.Parallel()
	got, answer := make(chan struct{}), make(chan struct{})
	f := &fake{publish: func(c net.Conn, p *packets.Publish) {
		close(got)
		<-answer
		puback(c, p, 0)
	}}
	p, _ := startPublisher(t, f.start(t))
	done, m := make(chan error, 1), outgo(t, "a", "x")
	go func() { // ends with the answer
		_, err := p.Publish(context.Background(), "c", m)
		done <- err
	}()
	<-got
	select {
	case err := <-done:
		t.Fatalf("returned before the answer: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(answer)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPublishTellsWhatTheBrokerSaid(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var code byte
	f := &fake{publish: func(c net.Conn, p *packets.Publish) {
		mu.Lock()
		defer mu.Unlock()
		puback(c, p, code)
	}}
	p, _ := startPublisher(t, f.start(t))
	for _, c := range []struct {
		code                 byte
		nobody, fail, poison bool
	}{
		{code: 0x00},
		{code: 0x10, nobody: true},
		{code: 0x80, fail: true},
		{code: 0x87, fail: true},
		{code: 0x97, fail: true},
		{code: 0x90, fail: true, poison: true},
		{code: 0x95, fail: true, poison: true},
		{code: 0x99, fail: true, poison: true},
	} {
		mu.Lock()
		code = c.code
		mu.Unlock()
		out, err := p.Publish(contextOf(t), "c", outgo(t, "a", "x"))
		if out.NoSubscriber != c.nobody || (err != nil) != c.fail || fault.IsPoison(err) != c.poison {
			t.Errorf("reason 0x%02x: got %+v, %v", c.code, out, err)
		}
	}
}

// TestAnEnvelopeGoesToATopicThatOnlyOurServerOpens: with the properties of the topic that it is delivered on. That nobody is there
// may be our server holding it back, so the replay must wait for its ack.
func TestAnEnvelopeGoesToATopicThatOnlyOurServerOpens(t *testing.T) {
	t.Parallel()
	got := make(chan *packets.Publish, 1)
	f := &fake{publish: func(c net.Conn, p *packets.Publish) {
		got <- p
		puback(c, p, 0x10)
	}}
	secret := secretOf(t, keyA)
	p, _ := startPublisher(t, f.start(t), func(c *mqtt.PublisherConfig) { c.Envelope = true })
	m := outgo(t, "a/b", "x")
	out, err := p.Publish(contextOf(t), "c/1", m)
	if err != nil || out.NoSubscriber {
		t.Errorf("got %+v, %v", out, err)
	}
	sent := <-got
	want := mqtt.Envelope{Message: m.ID, Client: "c/1", Topic: m.Topic}
	if e, err := secret.Open(sent.Topic, sent.Payload); err != nil || e != want {
		t.Errorf("published to %s: %+v, %v", sent.Topic, e, err)
	}
	var user []event.UserProperty
	for _, u := range sent.Properties.User {
		user = append(user, event.UserProperty{Key: u.Key, Value: u.Value})
	}
	if id, client, ok := secret.Verify("a/b", sent.Payload, user); !ok || id != m.ID || client != "c/1" {
		t.Errorf("the properties are not those of a replay to a/b: %v", user)
	}
}

func TestPublishOverTheBrokersSizeIsPoison(t *testing.T) {
	t.Parallel()
	most := uint32(400)
	f := &fake{
		connack: func(a *packets.Connack) { a.Properties.MaximumPacketSize = &most },
		publish: func(c net.Conn, p *packets.Publish) { puback(c, p, 0) },
	}
	p, _ := startPublisher(t, f.start(t))
	if _, err := p.Publish(contextOf(t), "c", outgo(t, "a", strings.Repeat("x", 400))); !fault.IsPoison(err) {
		t.Errorf("too large: got %v, want poison", err)
	}
	if _, err := p.Publish(contextOf(t), "c", outgo(t, "a", "x")); err != nil {
		t.Errorf("small: %v", err)
	}
}

func TestPublishKeepsToTheBrokersQoS(t *testing.T) {
	t.Parallel()
	for most, fails := range map[byte]bool{1: false, 0: true} {
		f := &fake{
			connack: func(a *packets.Connack) { a.Properties.MaximumQOS = &most },
			publish: func(c net.Conn, p *packets.Publish) { puback(c, p, 0) },
		}
		p, _ := startPublisher(t, f.start(t))
		m := outgo(t, "a", "x")
		m.QoS = 2
		if _, err := p.Publish(contextOf(t), "c", m); (err != nil) != fails {
			t.Errorf("maximum QoS %d: got %v", most, err)
		}
	}
}

// TestAMessageAtQoS0IsPublishedAsFarAsItMustBeKnown: at QoS 0, but for one whose acceptance counts; a retained one in no envelope, and
// without the flag, which would set it for everybody.
func TestAMessageAtQoS0IsPublishedAsFarAsItMustBeKnown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change   func(*pipeline.Outgo)
		envelope bool
		qos      byte
		sealed   bool
	}{
		"a repeat":                {func(*pipeline.Outgo) {}, false, 0, false},
		"its acceptance counts":   {func(m *pipeline.Outgo) { m.Confirm = true }, false, 1, false},
		"retained":                {func(m *pipeline.Outgo) { m.Retained, m.Retain = true, true }, false, 0, false},
		"retained with envelopes": {func(m *pipeline.Outgo) { m.Retained = true }, true, 0, false},
		"a repeat with envelopes": {func(*pipeline.Outgo) {}, true, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(chan packets.Publish, 1)
			f := &fake{publish: func(conn net.Conn, p *packets.Publish) {
				got <- *p
				if p.QoS > 0 {
					puback(conn, p, 0x10)
				}
			}}
			p, _ := startPublisher(t, f.start(t), func(cfg *mqtt.PublisherConfig) { cfg.Envelope = c.envelope })
			m := outgo(t, "a/b", "x")
			m.QoS = 0
			c.change(&m)
			out, err := p.Publish(contextOf(t), "c", m)
			if err != nil || out.NoSubscriber != (c.qos > 0) {
				t.Errorf("%+v, %v", out, err)
			}
			sent := <-got
			if sealed := sent.Topic != "a/b"; sent.QoS != c.qos || sent.Retain || sealed != c.sealed {
				t.Errorf("published to %q at QoS %d, retain %t", sent.Topic, sent.QoS, sent.Retain)
			}
		})
	}
}

func TestPublishFailsAtOnceWhenItsConnectionIsCut(t *testing.T) {
	t.Parallel()
	f := &fake{publish: func(c net.Conn, _ *packets.Publish) { _ = c.Close() }}
	p, _ := startPublisher(t, f.start(t))
	begun := time.Now()
	if _, err := p.Publish(contextOf(t), "c", outgo(t, "a", "x")); err == nil || fault.IsPoison(err) {
		t.Errorf("got %v, want a transient error", err)
	}
	if d := time.Since(begun); d > patience {
		t.Errorf("took %v", d)
	}
}

func TestPublishFailsAtOnceWhenThePublisherStops(t *testing.T) {
	t.Parallel()
	got := make(chan struct{})
	f := &fake{publish: func(net.Conn, *packets.Publish) { close(got) }}
	p, stop := startPublisher(t, f.start(t))
	done, m := make(chan error, 1), outgo(t, "a", "x")
	go func() { // ends with the publisher
		_, err := p.Publish(context.Background(), "c", m)
		done <- err
	}()
	<-got
	stop()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(patience):
		t.Fatal("still waits for an answer that cannot come")
	}
}

func TestPublishOfAnExpiredMessageIsNotSent(t *testing.T) {
	t.Parallel()
	f := &fake{publish: func(c net.Conn, p *packets.Publish) { puback(c, p, 0) }}
	p, _ := startPublisher(t, f.start(t))
	m := outgo(t, "a", "x")
	m.Expires = time.Now().Add(-time.Millisecond)
	if _, err := p.Publish(contextOf(t), "c", m); !errors.Is(err, pipeline.ErrExpired) || !errors.Is(err, mqtt.ErrExpired) {
		t.Errorf("got %v", err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestPublishWaitsForTheBrokerAndGoesOn(t *testing.T) {
	t.Parallel()
	addr := ports.Addr(t)
	up := make(chan bool, 100)
	p, _ := startPublisher(t, mqtt.Server{URLs: []string{"mqtt://" + addr}}, func(c *mqtt.PublisherConfig) { c.Up = func(b bool) { up <- b } })
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Publish(short, "c", outgo(t, "a", "x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody listens: got %v, want the end of the context", err)
	}
	m, late := outgo(t, "a", "x"), outgo(t, "a", "late")
	late.Expires = time.Now().Add(150 * time.Millisecond)
	done, expired := make(chan error, 1), make(chan error, 1)
	go func() { // ends with the message
		_, err := p.Publish(contextOf(t), "c", m)
		done <- err
	}()
	go func() { // ends with the message
		_, err := p.Publish(contextOf(t), "c", late)
		expired <- err
	}()
	time.Sleep(200 * time.Millisecond)
	b := startBroker(t, addr)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := <-expired; !errors.Is(err, pipeline.ErrExpired) {
		t.Errorf("expired while it waited: got %v", err)
	}
	for v := range up {
		if v {
			break
		}
	}
	b.stop()
	for v := range up {
		if !v {
			break
		}
	}
	startBroker(t, addr)
	sourcetest.Eventually(t, "a publish after the restart", func() bool { // an attempt may meet a connection that is just going
		_, err := p.Publish(contextOf(t), "c", m)
		return err == nil
	})
}

func TestReplaysReachTheClientInOrderAndAsTheyWere(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	dev := b.dial(t, "dev")
	subscribe(t, dev, 1, "#")
	p, _ := startPublisher(t, b.server())
	const n = 50
	for i := range n {
		for _, topic := range []string{"a", "b/c"} {
			if _, err := p.Publish(contextOf(t), "dev", outgo(t, topic, fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := map[string]int{}
	for range 2 * n {
		m := receive(t, dev)
		if want := fmt.Sprint(next[m.Topic]); string(m.Payload) != want {
			t.Fatalf("%s: got %q, want %q", m.Topic, m.Payload, want)
		}
		next[m.Topic]++
	}
	m := outgo(t, "a", "with all")
	m.Expires = time.Now().Add(time.Minute)
	m.Properties = event.Properties{
		ContentType: "text/plain", ResponseTopic: "r/s", CorrelationData: []byte{0, 1}, PayloadFormat: 1,
		User: []event.UserProperty{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}, {Key: mqtt.PropMessageID, Value: "mine"}},
	}
	if _, err := p.Publish(contextOf(t), "dev", m); err != nil {
		t.Fatal(err)
	}
	got := receive(t, dev)
	want := m.Properties
	want.User = secretOf(t, keyA).Properties("dev", "a", m)
	if diff := cmp.Diff(want, got.Properties); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	if got.Expiry < 50*time.Second || got.Expiry > time.Minute {
		t.Errorf("expiry %v, want what is left of a minute", got.Expiry)
	}
	if got.User(mqtt.PropMessageID) != m.ID.String() || got.User(mqtt.PropRemaining) != "4" || got.Retain {
		t.Errorf("got %+v", got)
	}
	if got := all[event.Published](b.log); len(got) != 0 {
		t.Errorf("the broker took replays for publishes: %v", got)
	}
}

func TestReplaysByPrefixGoToATopicOfTheClient(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	dev := b.dial(t, "dev")
	subscribe(t, dev, 1, "offline/a%2Fb/#")
	p, _ := startPublisher(t, b.server(), func(c *mqtt.PublisherConfig) { c.Template = template(t, mqtt.DefaultTemplate) })
	m := outgo(t, "s/t", "x")
	if _, err := p.Publish(contextOf(t), "a/b", m); err != nil {
		t.Fatal(err)
	}
	got := receive(t, dev)
	if got.Topic != "offline/a%2Fb/s/t" {
		t.Errorf("topic %q", got.Topic)
	}
	id, client, ok := secretOf(t, keyA).Verify(got.Topic, got.Payload, got.Properties.User)
	if !ok || id != m.ID || client != "a/b" {
		t.Errorf("verified as %v, %q, %v", id, client, ok)
	}
	if _, err := p.Publish(contextOf(t), "c", outgo(t, strings.Repeat("x", 65535), "x")); !fault.IsPoison(err) {
		t.Errorf("a topic that gets too long: got %v, want poison", err)
	}
}

func TestBrokerURLsThatCannotBeAreRefusedWithoutTheirPassword(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "localhost:1883", "http://h", "mqtt://", "mqtt://:1883", "mqtt://u:geheim@h", "mqtt://geheim\x00", "://geheim"} {
		s := mqtt.Server{URLs: []string{u}}
		_, err := mqtt.NewPublisher(mqtt.PublisherConfig{Server: s, Prefix: "p-"})
		if err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("publisher, %q: got %v", u, err)
		}
		if err := mqtt.Probe(contextOf(t), s, "c"); err == nil {
			t.Errorf("probe, %q: no error", u)
		}
	}
	for sentence, c := range map[string]mqtt.PublisherConfig{
		"no url":               {Prefix: "p-"},
		"no prefix":            {Server: mqtt.Server{URLs: []string{"mqtt://h"}}},
		"keepalive too long":   {Server: mqtt.Server{URLs: []string{"mqtt://h"}, Keepalive: 20 * time.Hour}, Prefix: "p-"},
		"one bad url of two":   {Server: mqtt.Server{URLs: []string{"mqtts://h", "x://h"}}, Prefix: "p-"},
		"a negative keepalive": {Server: mqtt.Server{URLs: []string{"mqtt://h"}, Keepalive: -1}, Prefix: "p-"},
	} {
		if _, err := mqtt.NewPublisher(c); err == nil {
			t.Errorf("%s: no error", sentence)
		}
	}
}
