package embedded_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestSessionEventsTellWhatHappened(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, func(c *embedded.Config) { c.Users = map[string]string{"ann": "secret word"} })
		before := time.Now()
		o := mqtttest.Options{ID: "dev", Version: version, Username: "ann", Password: "secret word", ReceiveMaximum: 9}
		c := s.dial(t, o)
		options := map[byte]byte{mqtttest.V311: 0, mqtttest.V5: 4 | 8 | 2<<4}[version]
		s.subscribe(t, c, 1|options, "a/+")
		s.subscribe(t, c, 1|options&^4, "$share/g/b/#")
		s.subscribe(t, c, 0, "a/+")
		if _, err := c.Unsubscribe(s.ctx, "a/+", "never/had"); err != nil {
			t.Fatal(err)
		}
		c.Disconnect()
		down := await[event.Disconnected](t, s.ledger, 1)[0]

		up := all[event.Connected](s.ledger)[0]
		if up.Client != "dev" || up.Username != "ann" || up.Node != "n1" || up.CleanStart != event.Yes || up.SessionPresent != event.No ||
			up.ExpiryInterval != 0 || up.ConnectedAt.Before(before.Truncate(time.Millisecond)) {
			t.Errorf("connected %+v", up)
		}
		if want := map[byte]uint16{mqtttest.V311: 0, mqtttest.V5: 9}[version]; up.ReceiveMaximum != want {
			t.Errorf("receive maximum %d, want %d", up.ReceiveMaximum, want)
		}
		if down.Reason != "normal" || !down.ConnectedAt.Equal(up.ConnectedAt) || down.Client != "dev" {
			t.Errorf("disconnected %+v", down)
		}
		subs := all[event.Subscribed](s.ledger)
		var got []string
		for _, e := range subs {
			got = append(got, e.Filter.String())
			if e.At.Before(e.ID.Time()) {
				t.Errorf("time %v is before that of the id, %v", e.At, e.ID.Time())
			}
		}
		if diff := cmp.Diff([]string{"a/+", "$share/g/b/#", "a/+"}, got); diff != "" {
			t.Error(diff)
		}
		var opts *event.SubOptions
		if version == mqtttest.V5 {
			opts = &event.SubOptions{RetainHandling: 2, RetainAsPublished: true, NoLocal: true}
		}
		if diff := cmp.Diff(opts, subs[0].Options); diff != "" {
			t.Error(diff)
		}
		if subs[0].QoS != 1 || subs[0].New != event.Yes || subs[2].New != event.No || subs[2].QoS != 0 {
			t.Errorf("subscribed %+v", subs)
		}
		var gone []string
		for _, e := range all[event.Unsubscribed](s.ledger) {
			gone = append(gone, e.Filter.String())
		}
		if diff := cmp.Diff([]string{"a/+", "never/had"}, gone); diff != "" {
			t.Errorf("unsubscribed: %s", diff)
		}
		if up.ID.Compare(subs[0].ID) >= 0 || subs[2].ID.Compare(down.ID) >= 0 {
			t.Error("ids are not in order")
		}
	})
}

func TestSubackComesAfterTheEventIsDurable(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	c := s.dial(t, mqtttest.Options{ID: "dev"})
	held := &receipt{done: make(chan struct{})}
	s.ledger.set(func(e event.Event) (*receipt, error) {
		if _, ok := e.(event.Subscribed); ok {
			return held, nil
		}
		return nil, nil //nolint:nilnil // durable at once
	})
	answered := make(chan error, 1)
	go func() {
		_, err := c.Subscribe(s.ctx, 1, "t/1")
		answered <- err
	}()
	await[event.Subscribed](t, s.ledger, 1)
	select {
	case err := <-answered:
		t.Fatalf("SUBACK before the event was durable: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(held.done)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	s.ledger.set(func(e event.Event) (*receipt, error) {
		if _, ok := e.(event.Subscribed); ok {
			return nil, errors.New("the log is closed")
		}
		return nil, nil //nolint:nilnil // durable at once
	})
	if _, err := c.Subscribe(s.ctx, 1, "t/2"); err == nil {
		t.Error("SUBACK for an event that was not taken")
	}
}

func TestTakeOverEndsTheOldConnectionOnly(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, nil)
		o := mqtttest.Options{ID: "dev", Version: version, KeepSession: true}
		if version == mqtttest.V5 {
			o.SessionExpiry = time.Hour
		}
		first := s.dial(t, o)
		s.subscribe(t, first, 1, "t/#")
		second := s.dial(t, o)
		<-first.Done()
		down := await[event.Disconnected](t, s.ledger, 1)[0]
		ups := await[event.Connected](t, s.ledger, 2)
		if down.Reason != "takenover" || !down.ConnectedAt.Equal(ups[0].ConnectedAt) || !ups[1].ConnectedAt.After(ups[0].ConnectedAt) {
			t.Errorf("disconnected %+v, connected %+v", down, ups)
		}
		if n := len(all[event.Unsubscribed](s.ledger)); n > 0 {
			t.Errorf("%d unsubscribed events", n)
		}
		pub := s.dial(t, mqtttest.Options{ID: "pub"})
		s.publish(t, pub, 1, "t/1", "x")
		if m := s.receive(t, second); string(m.Payload) != "x" {
			t.Errorf("received %+v", m)
		}
		await[event.Acked](t, s.ledger, 1)
		// A clean start takes over as well, and nobody unsubscribed.
		s.dial(t, mqtttest.Options{ID: "dev", Version: version})
		await[event.Disconnected](t, s.ledger, 2)
		await[event.Connected](t, s.ledger, 4)
		if n := len(all[event.Unsubscribed](s.ledger)); n > 0 {
			t.Errorf("%d unsubscribed events", n)
		}
	})
}

func TestQuickReconnectsHaveRisingTimes(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for range 20 {
		s.dial(t, mqtttest.Options{ID: "dev"}).Disconnect()
	}
	var last time.Time
	for _, e := range await[event.Connected](t, s.ledger, 20) {
		if !e.ConnectedAt.After(last) {
			t.Fatalf("%v does not follow %v", e.ConnectedAt, last)
		}
		last = e.ConnectedAt
	}
}

func TestOddNamesAndPayloadsPass(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, nil)
		topics := []string{"/", "//a//", "a b/ü/\U0001F4EE", strings.Repeat("x/", 200) + "y", "t/%2F", "$odd/topic"}
		for _, id := range []string{"a client with spaces", "/a/+/#", "\U0001F4EE", "inline"} {
			c := s.dial(t, mqtttest.Options{ID: id, Version: version})
			for _, topic := range topics {
				s.subscribe(t, c, 1, topic)
			}
			for _, topic := range topics {
				for _, payload := range []string{"", "\xff\x00\xfe", strings.Repeat("z", 256<<10)} {
					s.publish(t, c, 1, topic, payload)
					m := s.receive(t, c)
					if m.Topic != topic || string(m.Payload) != payload {
						t.Fatalf("received %q with %d bytes, want %q with %d", m.Topic, len(m.Payload), topic, len(payload))
					}
				}
			}
			acks := await[event.Acked](t, s.ledger, 1)
			for _, a := range acks {
				if a.Client == "" || a.Topic.IsZero() {
					t.Errorf("ack %+v", a)
				}
			}
		}
		for _, e := range all[event.Published](s.ledger) {
			if e.Payload == nil {
				t.Fatal("a payload is nil")
			}
		}
	})
}

func TestWhatCannotBeIsRefusedAndCounted(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, func(c *embedded.Config) { c.MaxPacket = 64 << 10 })
		dial := func() *mqtttest.Client { return s.dial(t, mqtttest.Options{ID: "dev", Version: version}) }
		c := dial()
		codes, err := c.Subscribe(s.ctx, 1, "a#", "a/b+/c", "$share/g", "ok/+")
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []bool{false, false, false, true} {
			if (codes[i] < 3) != want {
				t.Errorf("filter %d: code 0x%02x", i, codes[i])
			}
		}
		if n := len(all[event.Subscribed](s.ledger)); n != 1 || s.counted(mqtt.CountRefusedFilter) != 3 {
			t.Errorf("%d subscribed events, %d refused", n, s.counted(mqtt.CountRefusedFilter))
		}
		for name, m := range map[string]mqtttest.Message{
			"$SYS": {Topic: "$SYS/x", QoS: 1}, "wildcard": {Topic: "a/+", QoS: 1}, "not UTF-8": {Topic: "a/\xff", QoS: 1},
			"NUL": {Topic: "a\x00b", QoS: 1}, "too large": {Topic: "a", QoS: 1, Payload: make([]byte, 65<<10)},
		} {
			c := dial()
			if err := c.Publish(s.ctx, m); err == nil {
				t.Errorf("%s: acknowledged", name)
			}
			<-c.Done()
		}
		if n := len(all[event.Published](s.ledger)); n > 0 {
			t.Errorf("%d published events", n)
		}
		for range 100 { // counted after the connection is closed
			if s.counted(mqtt.CountRefusedSize) == 1 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if s.counted(mqtt.CountRefusedSize) != 1 || s.counted(mqtt.CountRefusedTopic) != 2 {
			t.Errorf("counted size %d, topic %d", s.counted(mqtt.CountRefusedSize), s.counted(mqtt.CountRefusedTopic))
		}
	})
}

func TestPoisonIsRefusedByReasonCode(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.ledger.set(func(e event.Event) (*receipt, error) {
		if _, ok := e.(event.Published); ok {
			return nil, fault.Poison(errors.New("too large for the log"))
		}
		return nil, nil //nolint:nilnil // durable at once
	})
	c := s.dial(t, mqtttest.Options{ID: "five", Version: mqtttest.V5})
	for _, qos := range []event.QoS{1, 2} {
		if err := c.Publish(s.ctx, mqtttest.Message{Topic: "t", QoS: qos}); !errors.Is(err, mqtttest.ErrReason) {
			t.Errorf("qos %d: %v", qos, err)
		}
	}
	old := s.dial(t, mqtttest.Options{ID: "three"})
	if err := old.Publish(s.ctx, mqtttest.Message{Topic: "t", QoS: 1}); err == nil {
		t.Error("acknowledged")
	}
	if n := s.counted(mqtt.CountRefusedPoison); n != 3 {
		t.Errorf("counted %d", n)
	}
}

func TestPasswordsAreAsked(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *embedded.Config) { c.Users = map[string]string{"ann": "right"} })
	for _, o := range []mqtttest.Options{
		{ID: "a"},
		{ID: "b", Username: "ann", Password: "wrong"},
		{ID: "c", Username: "bob", Password: "right"},
		{ID: "d", Username: "bob", Version: mqtttest.V5},
	} {
		if c, err := mqtttest.Dial(s.ctx, s.addr, o); !errors.Is(err, mqtttest.ErrRefused) {
			t.Errorf("%+v: %v, %v", o, c, err)
		}
	}
	s.dial(t, mqtttest.Options{ID: "e", Username: "ann", Password: "right"})
}

func TestWillIsAPublishLikeAnyOther(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, nil)
		sub := s.dial(t, mqtttest.Options{ID: "sub"})
		s.subscribe(t, sub, 1, "will/#")
		o := mqtttest.Options{ID: "dev", Version: version, Will: &mqtttest.Message{Topic: "will/dev", Payload: []byte("gone"), QoS: 1, Retain: true}}
		s.dial(t, o).Disconnect() // takes its will along
		await[event.Disconnected](t, s.ledger, 1)
		s.dial(t, o).Cut()
		if m := s.receive(t, sub); string(m.Payload) != "gone" {
			t.Fatalf("received %+v", m)
		}
		ack := await[event.Acked](t, s.ledger, 1)[0]
		e := all[event.Published](s.ledger)
		if len(e) != 1 || e[0].Sender != "dev" || e[0].QoS != 1 || !e[0].Retain || e[0].ID != ack.Message {
			t.Errorf("published %+v, acked %+v", e, ack)
		}
		late := s.dial(t, mqtttest.Options{ID: "late"})
		s.subscribe(t, late, 1, "will/#")
		if m := s.receive(t, late); !m.Retain || string(m.Payload) != "gone" {
			t.Errorf("retained %+v", m)
		}
		if acks := await[event.Acked](t, s.ledger, 2); acks[1].Message != e[0].ID || acks[1].Client != "late" {
			t.Errorf("ack of the retained copy: %+v", acks[1])
		}
	})
}

func TestDelayedWillIsCancelledByAReturn(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	o := mqtttest.Options{
		ID: "dev", Version: mqtttest.V5, SessionExpiry: time.Hour, WillDelay: time.Second,
		Will: &mqtttest.Message{Topic: "will/dev", Payload: []byte("gone"), QoS: 1},
	}
	s.dial(t, o).Cut()
	await[event.Disconnected](t, s.ledger, 1)
	s.dial(t, o).Cut() // back in time; this one stays away
	time.Sleep(500 * time.Millisecond)
	if n := len(all[event.Published](s.ledger)); n > 0 {
		t.Fatalf("%d wills before their delay", n)
	}
	await[event.Published](t, s.ledger, 1)
	s.dial(t, o).Cut()
	await[event.Disconnected](t, s.ledger, 3)
	s.stop() // ends the sessions
	if n := len(all[event.Published](s.ledger)); n != 2 {
		t.Errorf("%d wills, want 2", n)
	}
}
