package mqtt_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/mqtt/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = sourcetest.Patience

func contextOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

func all[T event.Event](j *sourcetest.Journal) []T {
	var out []T
	for _, e := range j.Events() {
		if v, ok := e.(T); ok {
			out = append(out, v)
		}
	}
	return out
}

func await[T event.Event](t *testing.T, j *sourcetest.Journal, n int) []T {
	t.Helper()
	sourcetest.Eventually(t, "the events that were expected", func() bool { return len(all[T](j)) >= n })
	return all[T](j)
}

func payloads(j *sourcetest.Journal) []string {
	var out []string
	for _, e := range all[event.Published](j) {
		out = append(out, string(e.Payload))
	}
	return out
}

func secretOf(t testing.TB, keys ...string) mqtt.Secret {
	t.Helper()
	var b [][]byte
	for _, k := range keys {
		b = append(b, []byte(k))
	}
	s, err := mqtt.NewSecret(b...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	keyA = "the first key of the tests"
	keyB = "the second key of the tests"
)

// broker is the embedded one, as a broker like any other.
type broker struct {
	addr string
	log  *sourcetest.Journal // what the broker itself saw
	stop func()
}

func (b *broker) server() mqtt.Server { return mqtt.Server{URLs: []string{"mqtt://" + b.addr}} }

func startBroker(t *testing.T, listen string) *broker {
	t.Helper()
	b := &broker{log: &sourcetest.Journal{}}
	e, err := embedded.Open(embedded.Config{
		Listen: listen, Source: "restante/broker", Node: "n1", Minter: &event.Minter{Node: 1, Now: time.Now},
		Secret: secretOf(t, keyA), OwnPrefix: "own-replay-", Drain: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.addr = e.Addr().String()
	b.stop = background(t, "the broker", func(ctx context.Context) error { return e.Run(ctx, b.log.Accept) })
	return b
}

// background runs fn until the test, or the function that is returned, ends it.
func background(t *testing.T, what string, fn func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- fn(ctx) }() // stop waits for it
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(patience):
			t.Errorf("%s did not stop", what)
		}
	})
	t.Cleanup(stop)
	return stop
}

func (b *broker) dial(t *testing.T, id string, change ...func(*mqtttest.Options)) *mqtttest.Client {
	t.Helper()
	return dial(t, b.addr, id, change...)
}

func dial(t *testing.T, addr, id string, change ...func(*mqtttest.Options)) *mqtttest.Client {
	t.Helper()
	o := mqtttest.Options{ID: id, Version: mqtttest.V5}
	for _, f := range change {
		f(&o)
	}
	c, err := mqtttest.Dial(contextOf(t), addr, o)
	if err != nil {
		t.Fatalf("dial as %q: %v", id, err)
	}
	t.Cleanup(c.Cut)
	return c
}

func publish(t *testing.T, c *mqtttest.Client, m mqtttest.Message) {
	t.Helper()
	if err := c.Publish(contextOf(t), m); err != nil {
		t.Fatal(err)
	}
}

func subscribe(t *testing.T, c *mqtttest.Client, qos byte, filter string) {
	t.Helper()
	codes, err := c.Subscribe(contextOf(t), qos, filter)
	if err != nil || len(codes) != 1 || codes[0] > 2 {
		t.Fatalf("subscribe %q: %x, %v", filter, codes, err)
	}
}

func receive(t *testing.T, c *mqtttest.Client) mqtttest.Message {
	t.Helper()
	m, err := c.Receive(contextOf(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// proxy is a wire that a test can cut.
type proxy struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l := listen(t)
	p := &proxy{l: l, to: to}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, in, out)
		p.mu.Unlock()
		for _, w := range [][2]net.Conn{{in, out}, {out, in}} {
			p.wg.Go(func() {
				_, _ = io.Copy(w[0], w[1])
				_ = w[0].Close()
			})
		}
	}
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}
