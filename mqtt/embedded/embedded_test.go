package embedded_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receipt is a receipt that a test can hold back.
type receipt struct {
	done chan struct{}
	err  error
}

func (r *receipt) Done() <-chan struct{} { return r.done }
func (r *receipt) Err() error            { return r.err }

// ledger stands for the log: it takes events, at once or as a test wishes.
type ledger struct {
	mu     sync.Mutex
	events []event.Event
	news   chan struct{}
	// judge decides on an event: an error is not taken, a receipt is waited for, nil and nil is durable at once.
	judge func(event.Event) (*receipt, error)
}

func (l *ledger) accept(_ context.Context, e event.Event) (pipeline.Receipt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &receipt{done: make(chan struct{})}
	if l.judge != nil {
		held, err := l.judge(e)
		if err != nil {
			return nil, err
		}
		if held != nil {
			r = held
		} else {
			close(r.done)
		}
	} else {
		close(r.done)
	}
	l.events = append(l.events, e)
	close(l.news)
	l.news = make(chan struct{})
	return r, nil
}

func (l *ledger) set(judge func(event.Event) (*receipt, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judge = judge
}

// all returns the events of one type so far.
func all[T event.Event](l *ledger) []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []T
	for _, e := range l.events {
		if v, ok := e.(T); ok {
			out = append(out, v)
		}
	}
	return out
}

// await waits until there are n events of one type.
func await[T event.Event](t *testing.T, l *ledger, n int) []T {
	t.Helper()
	deadline := time.After(40 * time.Second)
	for {
		l.mu.Lock()
		news := l.news
		l.mu.Unlock()
		got := all[T](l)
		if len(got) >= n {
			return got
		}
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("%d events of type %T in time, want %d: %v", len(got), *new(T), n, got)
		}
	}
}

type stack struct {
	*embedded.Broker
	ledger *ledger
	addr   string
	ctx    context.Context //nolint:containedctx // of the test
	minter *event.Minter
	secret mqtt.Secret
	stop   func()

	mu     sync.Mutex
	counts map[mqtt.Counter]int
}

func (s *stack) counted(c mqtt.Counter) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[c]
}

func start(t *testing.T, change func(*embedded.Config)) *stack {
	t.Helper()
	secret, err := mqtt.NewSecret([]byte("a key of the test, long enough"))
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{
		ledger: &ledger{news: make(chan struct{})}, minter: &event.Minter{Node: 7, Now: time.Now}, secret: secret,
		counts: map[mqtt.Counter]int{},
	}
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelWarn
	}
	cfg := embedded.Config{
		Listen: "127.0.0.1:0", Source: "restante/test", Node: "n1", Minter: s.minter, Secret: secret, OwnPrefix: "restante-",
		Drain: 20 * time.Second,
		Count: func(c mqtt.Counter) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.counts[c]++
		},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	if change != nil {
		change(&cfg)
	}
	s.Broker, err = embedded.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = s.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, s.ledger.accept) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(40 * time.Second):
			t.Error("the broker did not stop")
		}
	})
	t.Cleanup(s.stop)
	var done context.CancelFunc
	s.ctx, done = context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(done)
	return s
}

func (s *stack) dial(t *testing.T, o mqtttest.Options) *mqtttest.Client {
	t.Helper()
	c, err := mqtttest.Dial(s.ctx, s.addr, o)
	if err != nil {
		t.Fatalf("dial %q: %v", o.ID, err)
	}
	t.Cleanup(c.Cut)
	return c
}

func (s *stack) subscribe(t *testing.T, c *mqtttest.Client, qos byte, filters ...string) {
	t.Helper()
	codes, err := c.Subscribe(s.ctx, qos, filters...)
	if err != nil {
		t.Fatalf("subscribe %q: %v", filters, err)
	}
	for i, code := range codes {
		if code > 2 {
			t.Fatalf("subscribe %q: code 0x%02x", filters[i], code)
		}
	}
}

func (s *stack) publish(t *testing.T, c *mqtttest.Client, qos event.QoS, topic, payload string) {
	t.Helper()
	if err := c.Publish(s.ctx, mqtttest.Message{Topic: topic, QoS: qos, Payload: []byte(payload)}); err != nil {
		t.Fatal(err)
	}
}

func (s *stack) receive(t *testing.T, c *mqtttest.Client) mqtttest.Message {
	t.Helper()
	m, err := c.Receive(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func payloads(ms []mqtttest.Message) string {
	var out []string
	for _, m := range ms {
		out = append(out, string(m.Payload))
	}
	return strings.Join(out, " ")
}

func versions(t *testing.T, f func(t *testing.T, version byte)) {
	t.Helper()
	for name, v := range map[string]byte{"3.1.1": mqtttest.V311, "5": mqtttest.V5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, v)
		})
	}
}

func TestPublisherGetsItsAnswerOnlyAfterTheEventIsDurable(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		for _, qos := range []event.QoS{1, 2} {
			s := start(t, nil)
			sub := s.dial(t, mqtttest.Options{ID: "sub"})
			s.subscribe(t, sub, 2, "t/#")
			pub := s.dial(t, mqtttest.Options{ID: "pub", Version: version})
			held := &receipt{done: make(chan struct{})}
			s.ledger.set(func(e event.Event) (*receipt, error) {
				if _, ok := e.(event.Published); ok {
					return held, nil
				}
				return nil, nil //nolint:nilnil // durable at once
			})
			answered := make(chan error, 1)
			go func() {
				answered <- pub.Publish(s.ctx, mqtttest.Message{
					Topic: "t/1", QoS: qos, Payload: []byte("x"), Retain: true,
					Properties: event.Properties{User: []event.UserProperty{{Key: "k", Value: "v"}}}, // not to be in the answer
				})
			}()
			await[event.Published](t, s.ledger, 1)
			select {
			case err := <-answered:
				t.Fatalf("answered before the event was durable: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			if got := sub.Quiet(10 * time.Millisecond); len(got) > 0 {
				t.Fatalf("routed before the event was durable: %v", got)
			}
			close(held.done)
			if err := <-answered; err != nil {
				t.Fatal(err)
			}
			if m := s.receive(t, sub); string(m.Payload) != "x" {
				t.Fatalf("received %+v", m)
			}
			e := all[event.Published](s.ledger)[0]
			if e.Topic.String() != "t/1" || e.Sender != "pub" || e.QoS != qos || !e.Retain || string(e.Payload) != "x" {
				t.Errorf("event %+v", e)
			}
		}
	})
}

func TestPublishThatIsNotTakenGetsNoAnswerAndIsNotRouted(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, nil)
		sub := s.dial(t, mqtttest.Options{ID: "sub"})
		s.subscribe(t, sub, 1, "t/#")
		s.ledger.set(func(e event.Event) (*receipt, error) {
			if _, ok := e.(event.Published); ok {
				return nil, errors.New("the log is closed")
			}
			return nil, nil //nolint:nilnil // durable at once
		})
		pub := s.dial(t, mqtttest.Options{ID: "pub", Version: version})
		if err := pub.Publish(s.ctx, mqtttest.Message{Topic: "t/1", QoS: 1, Retain: true, Payload: []byte("x")}); err == nil {
			t.Fatal("the publish was acknowledged")
		}
		<-pub.Done()
		if got := sub.Quiet(50 * time.Millisecond); len(got) > 0 {
			t.Errorf("routed: %v", got)
		}
		s.ledger.set(nil)
		late := s.dial(t, mqtttest.Options{ID: "late"})
		s.subscribe(t, late, 1, "t/#")
		if got := late.Quiet(50 * time.Millisecond); len(got) > 0 {
			t.Errorf("retained: %v", got)
		}
	})
}

func TestAckFindsTheMessageID(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		for _, qos := range []byte{1, 2} {
			s := start(t, nil)
			sub := s.dial(t, mqtttest.Options{ID: "sub", Version: version})
			s.subscribe(t, sub, qos, "t/#")
			pub := s.dial(t, mqtttest.Options{ID: "pub", Version: version})
			for range 3 {
				s.publish(t, pub, 2, "t/1", "x")
			}
			if _, err := sub.ReceiveN(s.ctx, 3); err != nil {
				t.Fatal(err)
			}
			acks := await[event.Acked](t, s.ledger, 3)
			pubs := all[event.Published](s.ledger)
			for i, a := range acks {
				if a.Message != pubs[i].ID || a.Client != "sub" || a.Topic.String() != "t/1" || a.Replayed || a.Watched {
					t.Errorf("ack %d: %+v, want message %s", i, a, pubs[i].ID)
				}
			}
			_ = sub.Ping(s.ctx)
			if n := len(all[event.Acked](s.ledger)); n != 3 {
				t.Errorf("%d ack events, want 3", n)
			}
		}
	})
}

func TestQueuedMessagesOfASessionComeInOrderAndTheirAcksAreFound(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version byte) {
		s := start(t, nil)
		o := mqtttest.Options{ID: "dev", Version: version, KeepSession: true, ReceiveMaximum: 5}
		if version == mqtttest.V5 {
			o.SessionExpiry = time.Hour
		}
		sub := s.dial(t, o)
		s.subscribe(t, sub, 1, "t/#")
		sub.Cut()
		await[event.Disconnected](t, s.ledger, 1)
		pub := s.dial(t, mqtttest.Options{ID: "pub"})
		var want []string
		for i := range 40 {
			text := string(rune('A' + i))
			want = append(want, text)
			s.publish(t, pub, 1, "t/1", text)
		}
		again := s.dial(t, o)
		if !again.SessionPresent {
			t.Fatal("the session is gone")
		}
		got, err := again.ReceiveN(s.ctx, 40)
		if err != nil {
			t.Fatalf("%v: %s; counted %v", err, payloads(got), s.counts)
		}
		if payloads(got) != strings.Join(want, " ") {
			t.Errorf("received %s, want %s", payloads(got), strings.Join(want, " "))
		}
		acks := await[event.Acked](t, s.ledger, 40)
		var ids []event.ID
		for _, p := range all[event.Published](s.ledger) {
			ids = append(ids, p.ID)
		}
		for _, a := range acks {
			if !slices.Contains(ids, a.Message) {
				t.Errorf("ack of unknown %s", a.Message)
			}
		}
		if c := all[event.Connected](s.ledger); c[len(c)-1].SessionPresent != event.Yes {
			t.Errorf("connected event %+v", c[len(c)-1])
		}
		if n := len(all[event.Subscribed](s.ledger)); n != 1 {
			t.Errorf("%d subscribed events, want one: a resume is none", n)
		}
	})
}
