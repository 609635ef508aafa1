package cassandra

import (
	"context"
	goflag "flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gocql/gocql"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/sinks"
)

// TestMain bounds the random histories outside a soak: each step is a request to a real server.
func TestMain(m *testing.M) {
	if !soak() {
		if err := goflag.Set("rapid.checks", "20"); err != nil {
			panic(err) // rapid has no such flag any more
		}
	}
	goleak.VerifyTestMain(stack.Main(m))
}

// keyspace is that of this process: a CREATE TABLE takes a second, so all tests share it and work in topics of their own.
var keyspace = "test_" + strconv.FormatInt(time.Now().UnixNano(), 36)

// config reaches the server of the tests as the superuser of EMQX's manual.
func config(tb testing.TB) Config {
	tb.Helper()
	return at(stack.Shared(tb, stack.Cassandra))
}

func at(address string) Config {
	return Config{
		Hosts: []string{address}, Keyspace: keyspace, User: "root", Password: "public", Consistency: "ONE",
		// The servers of tests stand on small machines.
		ConnectTimeout: 20 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second,
	}
}

var migrated struct {
	once sync.Once
	err  error
}

// ready is config, with its tables made.
func ready(tb testing.TB) Config {
	tb.Helper()
	cfg := config(tb)
	migrated.once.Do(func() { _, migrated.err = Migrate(context.Background(), cfg, false) })
	if migrated.err != nil {
		tb.Fatal(migrated.err)
	}
	return cfg
}

func opened(tb testing.TB, cfg Config) *Store {
	tb.Helper()
	s, err := Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// plain is a session that has nothing of ours, as an operator's or EMQX's.
func plain(tb testing.TB, cfg Config) *gocql.Session {
	tb.Helper()
	k := gocql.NewCluster(cfg.Hosts...)
	host, port, err := net.SplitHostPort(cfg.Hosts[0])
	if err != nil {
		tb.Fatal(err)
	}
	k.Hosts = []string{host}
	if k.Port, err = strconv.Atoi(port); err != nil {
		tb.Fatal(err)
	}
	k.Timeout, k.ConnectTimeout, k.ProtoVersion = time.Minute, 20*time.Second, 4
	k.Consistency = gocql.One
	k.Authenticator = gocql.PasswordAuthenticator{Username: cfg.User, Password: cfg.Password}
	g, err := k.CreateSession()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.Close)
	return g
}

func do(tb testing.TB, g *gocql.Session, text string, args ...any) {
	tb.Helper()
	if err := g.Query(text, args...).WithContext(tb.Context()).Exec(); err != nil {
		tb.Fatalf("%s: %v", text, err)
	}
}

// count is the answer to a SELECT count(*).
func count(tb testing.TB, g *gocql.Session, text string, args ...any) int {
	tb.Helper()
	n := 0
	if err := g.Query(text, args...).WithContext(tb.Context()).Scan(&n); err != nil {
		tb.Fatalf("%s: %v", text, err)
	}
	return n
}

// fresh is a topic that no other test has.
func fresh(tb testing.TB, name string) event.Topic {
	tb.Helper()
	return eventtest.Topic(tb, fmt.Sprintf("own/%d/%s", time.Now().UnixNano(), name))
}

// message is the nth of a µs each.
func message(topic event.Topic, at time.Time, n int) sinks.Message {
	id := event.IDOf(at.UnixMicro()+int64(n), 0xF44200000901, 1)
	return sinks.Message{
		ID: id, Topic: topic, Sender: "mqttjs_1", QoS: 1, Payload: fmt.Appendf(nil, "message %d", n), Arrived: id.Time().Truncate(time.Millisecond).UTC(),
	}
}

func apply(tb testing.TB, s *Store, ops ...sinks.Op) {
	tb.Helper()
	if err := s.Apply(tb.Context(), ops); err != nil {
		tb.Fatal(err)
	}
}

// pending are the ids of the topic's messages, page by page.
func pending(tb testing.TB, s *Store, t event.Topic) (ids []event.ID) {
	tb.Helper()
	q := sinks.Query{Topic: t, Until: event.LastIDAt(time.Now().Add(time.Hour)), Limit: pageRows}
	for {
		ms, err := s.Messages(tb.Context(), q)
		if err != nil {
			tb.Fatal(err)
		}
		for _, m := range ms {
			ids = append(ids, m.ID)
		}
		if len(ms) < q.Limit {
			return ids
		}
		q.After = ms[len(ms)-1].ID
	}
}

// counts is a Metrics that adds up.
type counts struct {
	mu      sync.Mutex
	n       map[Counter]int
	servers map[Request]string // that were asked last

	inFlight, most int
}

func (c *counts) Count(k Counter, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[Counter]int{}
	}
	c.n[k] += n
}

func (c *counts) Observe(r Request, _ int, _ time.Duration, _ bool, server string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.servers == nil {
		c.servers = map[Request]string{}
	}
	c.servers[r] = server
}

func (c *counts) InFlight(change int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight += change
	c.most = max(c.most, c.inFlight)
}

func (c *counts) of(k Counter) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[k]
}

// soak says whether the long figures are wanted.
func soak() bool { return os.Getenv("RESTANTE_SOAK") != "" }
