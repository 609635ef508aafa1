package stack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
)

// RequireEnv is the environment variable that, when it is not empty, turns the skip without Java into a failure.
const RequireEnv = "RESTANTE_REQUIRE_SERVERS"

// Tests runs the tests of a package, and after them ends the servers that they shared.
type Tests struct{ m *testing.M }

// Main wraps the tests of a package that uses [Shared]:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(stack.Main(m)) }
func Main(m *testing.M) Tests { return Tests{m: m} }

// Run is called by goleak, or by a TestMain that has more to do.
func (t Tests) Run() int {
	shared.open()
	code := t.m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// pool holds the servers that the tests of this process share, each started when first asked for.
type pool struct {
	mu      sync.Mutex
	entries map[Kind]*entry // nil: closed
}

type entry struct {
	once    sync.Once
	dir     string
	servers []*Server
	address string
	err     error
}

//nolint:gochecknoglobals // the tests of one process share it; only Main opens and closes it
var shared pool

func (p *pool) open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.entries = map[Kind]*entry{}
}

func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, e := range p.entries {
		for _, s := range e.servers {
			errs = append(errs, s.Close())
		}
		if e.dir != "" {
			errs = append(errs, os.RemoveAll(e.dir))
		}
	}
	p.entries = nil
	return errors.Join(errs...)
}

// address is that of the shared server of the kind.
func (p *pool) address(kind Kind) (string, error) {
	p.mu.Lock()
	if p.entries == nil {
		p.mu.Unlock()
		return "", errors.New(`share a server: TestMain must run the tests by stack.Main`)
	}
	e := p.entries[kind]
	if e == nil {
		e = &entry{}
		p.entries[kind] = e
	}
	p.mu.Unlock()
	// Not bound to the test that asks first: the others need the server too.
	e.once.Do(func() { e.err = e.start(context.Background(), kind) })
	return e.address, e.err
}

func (e *entry) start(ctx context.Context, kind Kind) (err error) {
	if given := os.Getenv(kind.Env()); given != "" {
		if err := Ping(ctx, kind, given); err != nil {
			return fmt.Errorf("reach the %s that %s names, %s: %w", kind, kind.Env(), given, err)
		}
		e.address = given
		return nil
	}
	if e.dir, err = os.MkdirTemp("", "restante-stack-"); err != nil {
		return err
	}
	if e.servers, err = Start(ctx, Config{Kind: kind, Dir: e.dir, Fast: true}); err != nil {
		return err
	}
	e.address = e.servers[0].Address()
	return nil
}

// Shared gives the address of a server of the kind that other tests use at the same time: host:port for Kafka (several, parted by commas,
// when the environment gives them) and Cassandra, the URL of the endpoint for DynamoDB. The test must not stop it, and must keep to
// keyspaces, tables, topics and groups of its own, named by [Unique]. It runs as [Config].Fast says.
//
// The test is skipped when there is neither an address in the environment nor Java, and fails then if RESTANTE_REQUIRE_SERVERS is set.
func Shared(tb testing.TB, kind Kind) string {
	tb.Helper()
	address, err := shared.address(kind)
	if err != nil {
		giveUp(tb, err)
	}
	return address
}

// Own starts a server of the kind for this test alone, which may stop, kill, pause and restart it; it ends with the test. What it
// acknowledged outlives Stop and Kill. The test fails when the server ends by itself, and shows the end of its log whenever it fails.
//
// Without Java it skips or fails as [Shared] does. What the environment names is not used.
func Own(tb testing.TB, kind Kind) *Server {
	tb.Helper()
	return own(tb, Config{Kind: kind})[0]
}

// OwnKafka starts a Kafka of so many nodes for this test alone, as [Own] does. With three, topics have three replicas, of which two must
// have a record before it is acknowledged.
func OwnKafka(tb testing.TB, nodes int) Cluster {
	tb.Helper()
	return own(tb, Config{Kind: Kafka, Nodes: nodes})
}

// OwnTLS is [Own] for a Kafka or a Cassandra with TLS.
func OwnTLS(tb testing.TB, kind Kind, t TLS) *Server {
	tb.Helper()
	return own(tb, Config{Kind: kind, TLS: &t, Fast: true})[0]
}

func own(tb testing.TB, c Config) []*Server {
	tb.Helper()
	c.Dir = tb.TempDir() // before Cleanup: what comes later is undone first
	servers, err := Start(tb.Context(), c)
	if err != nil {
		giveUp(tb, err)
	}
	tb.Cleanup(func() {
		for _, s := range servers {
			if err := s.Close(); err != nil {
				tb.Error(err)
			}
			if tb.Failed() {
				tb.Logf("%s on %s: %s", s.Kind(), s.Address(), tail(s.Log()))
			}
		}
	})
	return servers
}

func giveUp(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, ErrNoJava) && os.Getenv(RequireEnv) == "" {
		tb.Skip(err)
	}
	tb.Fatal(err)
}

// Cluster is the nodes of one Kafka.
type Cluster []*Server

// Addresses are those of all nodes, parted by commas.
func (c Cluster) Addresses() string {
	addresses := make([]string, len(c))
	for i, s := range c {
		addresses[i] = s.Address()
	}
	return strings.Join(addresses, ",")
}

// At is the node with the address, as metadata names it; nil when there is none.
func (c Cluster) At(address string) *Server {
	for _, s := range c {
		if s.Address() == address {
			return s
		}
	}
	return nil
}

// Unique gives a name that no other call gives, of the test's name and some random: at most 32 bytes of a-z, 0-9 and _, beginning with a
// letter. So it can be a keyspace, a topic, a group, or the prefix of tables.
func Unique(tb testing.TB) string {
	tb.Helper()
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		default:
			return -1
		}
	}, strings.TrimPrefix(tb.Name(), "Test"))
	return fmt.Sprintf("t%s_%012x", name[:min(len(name), 18)], rand.Uint64N(1<<48)) //nolint:gosec // nobody need be kept from guessing it
}
