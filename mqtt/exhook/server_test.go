package exhook_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/pipeline"
)

const someID = "000660E2BFC3B3B2F49E000001AD0001" // of someMS

const someMS = uint64(1795376856413)

func publish(t testing.TB, from, topic string) []byte {
	t.Helper()
	return encode(t, "OnMessagePublish", obj{"message": obj{
		"id": someID, "qos": uint64(1), "from": from, "topic": topic, "payload": "x", "timestamp": someMS, "node": "n1",
	}})
}

func who(id string) obj {
	return obj{"clientid": id, "node": "n1", "username": "u", "password": "open sesame"}
}

// all are a request for each hook that tells of an event.
func all(t testing.TB) map[string][]byte {
	t.Helper()
	m := obj{"id": someID, "qos": uint64(1), "from": "pub", "topic": "t/1", "timestamp": someMS, "node": "n1"}
	return map[string][]byte{
		"OnClientConnected":     encode(t, "OnClientConnected", obj{"clientinfo": who("c")}),
		"OnClientDisconnected":  encode(t, "OnClientDisconnected", obj{"clientinfo": who("c"), "reason": "normal"}),
		"OnSessionSubscribed":   encode(t, "OnSessionSubscribed", obj{"clientinfo": who("c"), "topic": "t/#", "subopts": obj{"qos": uint64(1)}}),
		"OnSessionUnsubscribed": encode(t, "OnSessionUnsubscribed", obj{"clientinfo": who("c"), "topic": "t/#"}),
		"OnMessagePublish":      publish(t, "pub", "t/1"),
		"OnMessageAcked":        encode(t, "OnMessageAcked", obj{"clientinfo": who("c"), "message": m}),
		"OnMessageDropped":      encode(t, "OnMessageDropped", obj{"message": m, "reason": "no_subscribers"}),
	}
}

func TestNoCallIsAnsweredBeforeItsEventIsDurable(t *testing.T) {
	t.Parallel()
	for hook, request := range all(t) {
		t.Run(hook, func(t *testing.T) {
			t.Parallel()
			r := sourcetest.Held()
			j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return r, nil }}
			h := serve(t, exhook.Config{Budget: patience}, j)
			b := dial(t, h, nil)
			answered := make(chan error, 1)
			go func() {
				_, err := b.call(exhook.Services[0], hook, request)
				answered <- err
			}()
			sourcetest.Eventually(t, "the event is taken", func() bool { return len(j.Events()) == 1 })
			select {
			case err := <-answered:
				t.Fatalf("answered (%v) while the event was not durable", err)
			case <-time.After(50 * time.Millisecond):
			}
			r.Complete()
			if err := <-answered; err != nil {
				t.Errorf("not answered: %v", err)
			}
			if n := h.tally.Counts(); len(n) > 0 {
				t.Errorf("counted %v", n)
			}
		})
	}
}

func TestEventThatIsNotDurableInTimeIsAGap(t *testing.T) {
	t.Parallel()
	const budget = 30 * time.Millisecond
	stuck := func(context.Context, int, event.Event) (pipeline.Receipt, error) { return sourcetest.Held(), nil }
	full := func(ctx context.Context, _ int, _ event.Event) (pipeline.Receipt, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	lost := func(context.Context, int, event.Event) (pipeline.Receipt, error) {
		return sourcetest.Durable(errors.New("the log is gone")), nil
	}
	over := func(context.Context, int, event.Event) (pipeline.Receipt, error) {
		return nil, errors.New("ingest has ended")
	}
	for name, judge := range map[string]func(context.Context, int, event.Event) (pipeline.Receipt, error){
		"the log is slow": stuck, "too much is on its way": full, "the log failed": lost, "ingest has ended": over,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := serve(t, exhook.Config{Budget: budget}, &sourcetest.Journal{Judge: judge})
			b := dial(t, h, nil)
			const calls = 3
			for range calls {
				before := time.Now()
				_, err := b.call(exhook.Services[1], "OnMessagePublish", publish(t, "pub", "t/1"))
				if status.Code(err) != codes.Unavailable {
					t.Errorf("got %v, want Unavailable", err)
				}
				if took := time.Since(before); took > patience/2 {
					t.Errorf("answered after %v, the budget is %v", took, budget)
				}
			}
			if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountGap: calls}, h.tally.Counts()); diff != "" {
				t.Errorf("counts differ (-want +got):\n%s", diff)
			}
			if n := strings.Count(h.tally.Log(), "not durable in time"); n != 1 {
				t.Errorf("%d lines for %d gaps, want 1 a minute:\n%s", n, calls, h.tally.Log())
			}
		})
	}
}

// A broker that hangs up does not repeat its call: the event would be gone.
func TestEventOfABrokerThatHangsUpIsTaken(t *testing.T) {
	t.Parallel()
	entered, hungUp, kept := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	j := &sourcetest.Journal{Judge: func(ctx context.Context, _ int, _ event.Event) (pipeline.Receipt, error) {
		close(entered)
		<-hungUp
		select {
		case <-ctx.Done():
			kept <- context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
			kept <- nil
		}
		return sourcetest.Durable(nil), nil
	}}
	b := dial(t, serve(t, exhook.Config{Budget: patience}, j), nil)
	ctx, hangUp := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := b.callIn(ctx, exhook.Services[0], "OnMessagePublish", publish(t, "pub", "t/1")); err == nil {
			t.Error("the call was answered before it was given up")
		}
	})
	<-entered
	hangUp()
	wg.Wait()
	close(hungUp)
	if err := <-kept; err != nil {
		t.Errorf("the event ends with its call: %v", err)
	}
}

func TestEventsOfAClientKeepTheirOrder(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{}
	b := dial(t, serve(t, exhook.Config{}, j), nil)
	const clients, each = 8, 40
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for n := range each {
				if _, err := b.call(exhook.Services[c%3], "OnMessagePublish", publish(t, fmt.Sprint("c", c), fmt.Sprint("t/", n))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	next := map[event.ClientID]int{}
	for _, e := range j.Events() {
		p, ok := e.(event.Published)
		if !ok {
			t.Fatalf("took %T", e)
		}
		if want := fmt.Sprint("t/", next[p.Sender]); p.Topic.String() != want {
			t.Fatalf("%s: took %s, want %s", p.Sender, p.Topic, want)
		}
		next[p.Sender]++
	}
	for c := range clients {
		if got := next[event.ClientID(fmt.Sprint("c", c))]; got != each {
			t.Errorf("client %d: took %d, want %d", c, got, each)
		}
	}
}

func TestCallsOverTheLimitWait(t *testing.T) {
	t.Parallel()
	r := sourcetest.Held()
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return r, nil }}
	h := serve(t, exhook.Config{MaxCalls: 2, Budget: patience}, j)
	b := dial(t, h, nil)
	const calls = 5
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			if _, err := b.call(exhook.Services[2], "OnMessagePublish", publish(t, "pub", "t/1")); err != nil {
				t.Error(err)
			}
		})
	}
	sourcetest.Eventually(t, "two are taken", func() bool { return len(j.Events()) == 2 })
	time.Sleep(30 * time.Millisecond)
	if n := len(j.Events()); n != 2 {
		t.Errorf("%d are under way, want 2", n)
	}
	r.Complete()
	wg.Wait()
	if n := len(j.Events()); n != calls {
		t.Errorf("took %d, want %d", n, calls)
	}
}

func TestStopAnswersWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	r := sourcetest.Held()
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return r, nil }}
	h := serve(t, exhook.Config{Budget: patience}, j)
	b := dial(t, h, nil)
	answered := make(chan error, 1)
	go func() {
		_, err := b.call(exhook.Services[0], "OnMessagePublish", publish(t, "pub", "t/1"))
		answered <- err
	}()
	sourcetest.Eventually(t, "the event is taken", func() bool { return len(j.Events()) == 1 })
	h.stop()
	sourcetest.Eventually(t, "nobody listens any more", func() bool {
		c, err := net.Dial("tcp", h.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	r.Complete()
	if err := <-answered; err != nil {
		t.Errorf("the call under way was not answered: %v", err)
	}
}

func TestStopEndsAfterItsDrain(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return sourcetest.Held(), nil }}
	h := serve(t, exhook.Config{Budget: 2 * patience, Drain: 20 * time.Millisecond}, j)
	b := dial(t, h, nil)
	answered := make(chan error, 1)
	go func() {
		_, err := b.call(exhook.Services[0], "OnMessagePublish", publish(t, "pub", "t/1"))
		answered <- err
	}()
	sourcetest.Eventually(t, "the event is taken", func() bool { return len(j.Events()) == 1 })
	h.stop()
	before := time.Now()
	if err := <-answered; err == nil {
		t.Error("a call was answered whose event is not durable")
	}
	if took := time.Since(before); took > patience/2 {
		t.Errorf("the call was held for %v after the drain", took)
	}
}

func TestPoisonIsCountedAndAnswered(t *testing.T) {
	t.Parallel()
	poison := fault.Poison(errors.New("a record of 2000000 bytes is over the limit"))
	for name, judge := range map[string]func(context.Context, int, event.Event) (pipeline.Receipt, error){
		"seen at once": func(context.Context, int, event.Event) (pipeline.Receipt, error) { return nil, poison },
		"seen later": func(context.Context, int, event.Event) (pipeline.Receipt, error) {
			return sourcetest.Durable(poison), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := serve(t, exhook.Config{}, &sourcetest.Journal{Judge: judge})
			dial(t, h, nil).mustCall("OnMessagePublish", publish(t, "pub", "t/1"))
			if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountRefusedPoison: 1}, h.tally.Counts()); diff != "" {
				t.Errorf("counts differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnwantedEventsAreAnswered(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return nil, nil }} //nolint:nilnil // Accept's contract
	h := serve(t, exhook.Config{}, j)
	dial(t, h, nil).mustCall("OnMessagePublish", publish(t, "pub", "t/1"))
	if n := h.tally.Counts(); len(n) > 0 {
		t.Errorf("counted %v", n)
	}
}

func TestNoPasswordIsKeptOrLogged(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{}
	h := serve(t, exhook.Config{}, j)
	b := dial(t, h, nil)
	for hook, request := range all(t) {
		b.mustCall(hook, request)
	}
	bad := encode(t, "OnClientConnected", obj{"clientinfo": who("")}) // refused, and logged
	b.mustCall("OnClientConnected", bad)
	if _, err := b.call(exhook.Services[0], "OnClientConnected", bad[:len(bad)-3]); err == nil {
		t.Error("half a request was answered")
	}
	kept := h.tally.Log()
	for _, e := range j.Events() {
		kept += fmt.Sprintf("%#v", e)
	}
	if !strings.Contains(kept, "event refused") {
		t.Errorf("nothing was logged: %s", kept)
	}
	if strings.Contains(kept, "sesame") {
		t.Errorf("the password was kept: %s", kept)
	}
}
