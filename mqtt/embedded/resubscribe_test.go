package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

func subs(t *testing.T, qos event.QoS, filters ...string) []sinks.Sub {
	t.Helper()
	var out []sinks.Sub
	for _, f := range filters {
		out = append(out, sinks.Sub{Filter: eventtest.Filter(t, f), QoS: qos})
	}
	return out
}

func (s *stack) resubscribe(t *testing.T, client event.ClientID, list []sinks.Sub) pipeline.Resubscribed {
	t.Helper()
	res, err := s.Resubscribe(s.ctx, client, list)
	if err != nil {
		t.Fatalf("resubscribe %q: %v", client, err)
	}
	return res
}

func TestAResubscribedSessionIsAsIfTheClientHadSubscribed(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, nil)
		pub := s.dial(t, mqtttest.Options{ID: "pub"})
		o := mqtttest.Options{ID: "dev", Version: version, KeepSession: true}
		if version == mqtttest.V5 {
			o.SessionExpiry = time.Hour
		}
		dev := s.dial(t, o)
		if res := s.resubscribe(t, "dev", subs(t, 2, "t/+", "$share/g/u")); res != (pipeline.Resubscribed{}) {
			t.Errorf("%+v", res)
		}
		told := await[event.Subscribed](t, s.ledger, 2)
		for i, f := range []string{"t/+", "$share/g/u"} {
			e := told[i]
			if e.Client != "dev" || e.Filter.String() != f || e.QoS != 2 || e.New != event.Yes || e.ID.IsZero() || e.At.Before(e.ID.Time()) {
				t.Errorf("told of %+v, want a new subscription to %s", e, f)
			}
			if (e.Options != nil) != (version == mqtttest.V5) {
				t.Errorf("options %+v with version %d", e.Options, version)
			}
		}
		s.publish(t, pub, 2, "t/1", "a")
		if m := s.receive(t, dev); string(m.Payload) != "a" || m.QoS != 2 {
			t.Errorf("received %+v", m)
		}
		s.publish(t, pub, 1, "u", "b")
		if m := s.receive(t, dev); string(m.Payload) != "b" {
			t.Errorf("received %+v", m)
		}
		dev.Cut()
		await[event.Disconnected](t, s.ledger, 1)
		s.publish(t, pub, 1, "t/2", "meanwhile")
		dev = s.dial(t, o)
		if m := s.receive(t, dev); string(m.Payload) != "meanwhile" {
			t.Errorf("received %+v, want what came while the session had no connection", m)
		}
		if _, err := dev.Unsubscribe(s.ctx, "t/+"); err != nil {
			t.Fatal(err)
		}
		s.publish(t, pub, 1, "t/1", "c")
		if got := dev.Quiet(30 * time.Millisecond); len(got) > 0 {
			t.Errorf("received %v after the unsubscribe", got)
		}
	})
}

func TestNobodyIsResubscribedWhoIsNotThere(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	dev := s.dial(t, mqtttest.Options{ID: "dev", KeepSession: true})
	dev.Cut()
	await[event.Disconnected](t, s.ledger, 1)
	for _, id := range []event.ClientID{"unknown", "dev"} {
		if res := s.resubscribe(t, id, subs(t, 1, "t/1")); !res.Gone {
			t.Errorf("%s: %+v, want it gone", id, res)
		}
	}
	s.dial(t, mqtttest.Options{ID: "restante-x"})
	if res := s.resubscribe(t, "restante-x", subs(t, 1, "t/1")); res.Refused != 1 {
		t.Errorf("our own client: %+v, want it refused", res)
	}
	if told := all[event.Subscribed](s.ledger); len(told) > 0 {
		t.Errorf("told of %v", told)
	}
}

func TestASubscriptionOfTheClientItselfStays(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	dev := s.dial(t, mqtttest.Options{ID: "dev"})
	s.subscribe(t, dev, 2, "t/1")
	s.resubscribe(t, "dev", subs(t, 0, "t/1"))
	if e := await[event.Subscribed](t, s.ledger, 2)[1]; e.QoS != 2 || e.New != event.No {
		t.Errorf("told of %+v, want the subscription that there is", e)
	}
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	s.publish(t, pub, 2, "t/1", "a")
	if m := s.receive(t, dev); m.QoS != 2 {
		t.Errorf("received %+v, want QoS 2", m)
	}
}

// TestResubscribeReturnsWhenItIsDurable: what could not be told of is told of when it is asked for again.
func TestResubscribeReturnsWhenItIsDurable(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.dial(t, mqtttest.Options{ID: "dev"})
	held := &receipt{done: make(chan struct{})}
	refused := errors.New("refused")
	var answer func() (*receipt, error)
	s.ledger.set(func(e event.Event) (*receipt, error) {
		if _, ok := e.(event.Subscribed); ok {
			return answer()
		}
		return nil, nil //nolint:nilnil // durable at once
	})
	answer = func() (*receipt, error) { return held, nil }
	ctx, cancel := context.WithTimeout(s.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.Resubscribe(ctx, "dev", subs(t, 1, "t/1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before it was durable: %v", err)
	}
	s.ledger.set(func(event.Event) (*receipt, error) { return nil, refused })
	if _, err := s.Resubscribe(s.ctx, "dev", subs(t, 1, "t/1")); !errors.Is(err, refused) {
		t.Errorf("not taken: %v", err)
	}
	s.ledger.set(nil)
	s.resubscribe(t, "dev", subs(t, 1, "t/1"))
	if told := all[event.Subscribed](s.ledger); len(told) != 2 {
		t.Errorf("told of %v, want it told of again", told)
	}
}

// TestTheLogHasTheLastWord: while a client subscribes and unsubscribes itself, the last event of each filter says what is.
func TestTheLogHasTheLastWord(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	dev := s.dial(t, mqtttest.Options{ID: "dev"})
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	const filters, rounds = 5, 60
	var wg sync.WaitGroup
	wg.Go(func() {
		for range rounds {
			f := fmt.Sprintf("t/%d", rand.IntN(filters))
			if _, err := s.Resubscribe(s.ctx, "dev", subs(t, 1, f)); err != nil {
				t.Error(err)
			}
		}
	})
	for range rounds {
		f := fmt.Sprintf("t/%d", rand.IntN(filters))
		if rand.IntN(2) == 0 {
			s.subscribe(t, dev, 1, f)
		} else if _, err := dev.Unsubscribe(s.ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	last := map[string]bool{}
	s.ledger.mu.Lock()
	for _, e := range s.ledger.events {
		if e, ok := e.(event.Subscribed); ok {
			last[e.Filter.String()] = true
		}
		if e, ok := e.(event.Unsubscribed); ok {
			last[e.Filter.String()] = false
		}
	}
	s.ledger.mu.Unlock()
	for f := range filters {
		s.publish(t, pub, 1, fmt.Sprintf("t/%d", f), fmt.Sprintf("t/%d", f))
	}
	got := map[string]bool{}
	for _, m := range dev.Quiet(100 * time.Millisecond) {
		got[string(m.Payload)] = true
	}
	for f := range filters {
		if f := fmt.Sprintf("t/%d", f); last[f] != got[f] {
			t.Errorf("%s: the last event says subscribed %t, and delivered is %t", f, last[f], got[f])
		}
	}
}

// TestAResubscribeLeavesNothingBehind: one that comes while its connection ends or is taken over is in no later session.
func TestAResubscribeLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	pub := s.dial(t, mqtttest.Options{ID: "pub"})
	var filters []string
	for i := range 500 { // so that it takes a while
		filters = append(filters, fmt.Sprint("t/", i))
	}
	list := subs(t, 1, filters...)
	for i := range 30 {
		id := fmt.Sprint("dev", i%3)
		dev := s.dial(t, mqtttest.Options{ID: id})
		var wg sync.WaitGroup
		began := make(chan struct{})
		wg.Go(func() {
			close(began)
			if _, err := s.Resubscribe(s.ctx, event.ClientID(id), list); err != nil {
				t.Error(err)
			}
		})
		<-began
		time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
		if i%2 == 0 {
			dev.Cut()
		}
		next := s.dial(t, mqtttest.Options{ID: id})
		wg.Wait()
		if i%2 == 1 {
			next.Cut()
			next = s.dial(t, mqtttest.Options{ID: id}) // after the call: whatever session it was for is over
		} else {
			next.Disconnect()
			next = s.dial(t, mqtttest.Options{ID: id})
		}
		time.Sleep(50 * time.Millisecond) // mochi clears the session of a connection that has ended beside the next one
		for _, f := range []string{"t/1", "t/250", "t/499"} {
			s.publish(t, pub, 1, f, "x")
		}
		if got := next.Quiet(10 * time.Millisecond); len(got) > 0 {
			t.Fatalf("round %d: a clean session received %v", i, got)
		}
	}
}
