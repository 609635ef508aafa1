package e2e

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/internal/stack/proxy"
)

// advertised is a listener that gives another address for its own: that of the proxy before it.
type advertised struct {
	net.Listener
	addr net.Addr
}

func (l advertised) Addr() net.Addr { return l.addr }

// kafkaBehindProxy starts a Kafka that nobody reaches but through the proxy.
func kafkaBehindProxy(t *testing.T) *proxy.TCP {
	t.Helper()
	addr := ports.Addr(t)
	p, err := proxy.ListenTCP(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	through, err := net.ResolveTCPAddr("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ListenFn(func(network, _ string) (net.Listener, error) {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), network, addr)
		return advertised{l, through}, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return p
}

// TestNothingIsLostWhileKafkaHangs: connections stand and open as ever, and no answer comes. The calls are answered all the same, and
// all of it is in Kafka afterwards, in order.
func TestNothingIsLostWhileKafkaHangs(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) (addr string, hang, goOn func()){
		"nothing gets through": func(t *testing.T) (string, func(), func()) {
			t.Helper()
			p := kafkaBehindProxy(t)
			return p.Address(), func() { p.Set(proxy.Hold) }, func() { p.Set(proxy.Pass) }
		},
		"its answers are lost": func(t *testing.T) (string, func(), func()) {
			t.Helper()
			p := kafkaBehindProxy(t)
			return p.Address(), func() { p.Set(proxy.Swallow) }, func() { p.Set(proxy.Pass) }
		},
		"its process stands still": func(t *testing.T) (string, func(), func()) {
			t.Helper()
			outage(t)
			server := stack.Own(t, stack.Kafka)
			try := func(do func() error) func() {
				return func() {
					if err := do(); err != nil {
						t.Error(err)
					}
				}
			}
			return server.Address(), try(server.Pause), try(server.Resume)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, hang, goOn := start(t)
			s := newSpoolSetup(t, generous)
			s.kafka = addr
			if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
				t.Fatal(err)
			}
			ingest := s.start("ingest")
			load := hookLoad{timeout: 2 * generous}
			load.start(t, s.broker)
			answered := func(more int) {
				t.Helper()
				before := load.count()
				e2etest.Await(t, "calls are answered", func() bool { return load.count() >= before+more })
			}
			answered(200)
			for range 2 {
				hang()
				e2etest.Await(t, "it spools", func() bool { return e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spooling") == 1 })
				answered(400)
				time.Sleep(long(12*time.Second, time.Minute)) // longer than a request to Kafka may take
				answered(400)
				if n := e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spool_records"); n < 800 {
					t.Errorf("%v records are in the spool, want all that were answered since it began", n)
				}
				if status, body := e2etest.Get(t, s.admin["ingest"], "/readyz"); status != 200 {
					t.Errorf("it is not ready while it spools:\n%s", body)
				}
				goOn()
				s.drained() // in spite of the load
				answered(100)
			}
			load.stop()
			ingest.Stop()
			if load.failed > 0 {
				t.Errorf("%d calls failed", load.failed)
			}
			load.check(t, s)
		})
	}
}
