package cassandra

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/sinks"
)

// TestPoisonIsFoundInABatch: a row that the server refuses is found among 64 of one partition, and the 63 others are stored.
func TestPoisonIsFoundInABatch(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	cfg.Metrics = seen
	s := opened(t, cfg)
	for at, bad := range map[int]func(*sinks.PutMessage){
		17: func(o *sinks.PutMessage) { o.Sender = "no UTF-8: \xff" },
		63: func(o *sinks.PutMessage) { o.Properties.ContentType = "x"; o.Sender = "\xc3\x28" },
		0:  func(o *sinks.PutMessage) { o.Payload = bytes.Repeat([]byte("x"), cfg.MaxRow+9<<20) },
	} {
		topic := fresh(t, "poison")
		var ops []sinks.Op
		for i := range 64 {
			o := sinks.PutMessage{Message: message(topic, time.Now(), i)}
			if i == at {
				bad(&o)
			}
			ops = append(ops, o)
		}
		err := s.Apply(t.Context(), ops)
		var part *sinks.ApplyError
		if !errors.As(err, &part) || len(part.Failed) != 1 || !fault.IsPoison(part.Failed[at]) {
			t.Fatalf("op %d is poison, Apply gave %v", at, err)
		}
		t.Log(part.Failed[at])
		if n := len(pending(t, s, topic)); n != 63 {
			t.Errorf("%d of the other 63 are stored", n)
		}
	}
	if seen.of(Bisections) == 0 {
		t.Error("no batch was cut: the server did not refuse one")
	}
}

// TestTheServersOwnLimitIsPoison: a row over max_mutation_size, which the store's own limit lets through.
func TestTheServersOwnLimitIsPoison(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	cfg.MaxRow = 64 << 20
	s := opened(t, cfg)
	m := message(fresh(t, "large"), time.Now(), 1)
	m.Payload = bytes.Repeat([]byte("x"), 17<<20)
	if err := s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: m}}); !fault.IsPoison(err) {
		t.Fatalf("got %v, want poison", err)
	} else {
		t.Log(err)
	}
	small := message(m.Topic, time.Now(), 2)
	apply(t, s, sinks.PutMessage{Message: small})
}

func TestKeysThatCannotBeStoredArePoison(t *testing.T) {
	t.Parallel()
	s := opened(t, ready(t))
	long := strings.Repeat("k", maxKey+1)
	for name, o := range map[string]sinks.Op{
		"an empty client":  sinks.PutSub{Filter: eventtest.Filter(t, "a"), Stamp: 1},
		"a long client":    sinks.PutAcked{Client: event.ClientID(long), Topic: "t", Message: event.FirstIDAt(time.Now()), Stamp: 1},
		"a long position":  sinks.PutAcked{Client: "c", Topic: long, Message: event.FirstIDAt(time.Now()), Stamp: 1},
		"a topic to index": sinks.PutMessage{Message: message(eventtest.Topic(t, long[:maxKey]), time.Now(), 1)},
	} {
		if err := s.Apply(t.Context(), []sinks.Op{o}); !fault.IsPoison(err) {
			t.Errorf("%s: got %v, want poison", name, err)
		}
	}
	// The server itself would have said so: its words are known.
	l, err := s.link.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range []statement{{deleteAcked, []any{int64(1), "", "t"}}, {deleteAcked, []any{int64(1), long, "t"}}, {deleteAcked, []any{int64(1), "c", long}}} {
		if err := s.exec(t.Context(), l, []statement{st}); !fault.IsPoison(err) {
			t.Errorf("%.40v: got %v, want poison", st.args, err)
		}
	}
}

// TestOpenersAreToldWhatToDo: what only an operator can put right is fatal, names what is wrong, and says what to do.
func TestOpenersAreToldWhatToDo(t *testing.T) {
	t.Parallel()
	good := ready(t)
	g := plain(t, good)
	user, bare := stack.Unique(t), stack.Unique(t)
	do(t, g, `CREATE ROLE `+user+` WITH PASSWORD = 'secret' AND LOGIN = true`)
	do(t, g, `CREATE KEYSPACE `+bare+` WITH replication = {'class': 'SimpleStrategy', 'replication_factor': '1'}`)
	t.Cleanup(func() {
		for _, text := range []string{`DROP ROLE ` + user, `DROP KEYSPACE ` + bare} {
			if err := g.Query(text).Exec(); err != nil {
				t.Error(err)
			}
		}
	})
	for name, c := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"wrong password":   {func(c *Config) { c.Password = "wrong" }, []string{"password", "put user and password right"}},
		"no login":         {func(c *Config) { c.User = "" }, []string{"put user and password right"}},
		"missing keyspace": {func(c *Config) { c.Keyspace = "nowhere" }, []string{"keyspace nowhere", `run "restante migrate"`}},
		"missing tables":   {func(c *Config) { c.Keyspace = bare }, []string{"table " + bare + ".mqtt_msg is missing", bare + ".mqtt_topic_low is missing", `run "restante migrate"`}},
		"wrong local_dc":   {func(c *Config) { c.LocalDC = "fra1" }, []string{`local_dc "fra1"`, "datacenter1"}},
		"no permission":    {func(c *Config) { c.User, c.Password = user, "secret" }, []string{user, "MODIFY", "give the user the right"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			c.change(&cfg)
			s := opened(t, cfg)
			err := s.Check(t.Context())
			if !fault.IsFatal(err) {
				t.Fatalf("Check gave %v, want a fatal error", err)
			}
			t.Log(err)
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q", w)
				}
			}
			if err := s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: message(fresh(t, "x"), time.Now(), 1)}}); !fault.IsFatal(err) {
				t.Errorf("Apply gave %v, want a fatal error", err)
			}
		})
	}
}

// proxy stands between the store and the server, and can stop handing on what the server answers.
type proxy struct {
	net.Listener
	to      string
	swallow atomic.Bool
	wg      sync.WaitGroup
	mu      sync.Mutex
	conns   []net.Conn
}

func newProxy(tb testing.TB, to string) *proxy {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &proxy{Listener: l, to: to}
	p.wg.Go(p.serve)
	tb.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve() {
	for {
		c, err := p.Accept()
		if err != nil {
			return
		}
		s, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.to)
		if err != nil {
			_ = c.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, c, s)
		p.mu.Unlock()
		p.wg.Go(func() {
			_, _ = io.Copy(s, c)
			_ = s.Close()
		})
		p.wg.Go(func() {
			_, _ = io.Copy(sieve{c, p}, s)
			_ = c.Close()
		})
	}
}

// sieve loses what is written while the proxy swallows.
type sieve struct {
	io.Writer
	p *proxy
}

func (s sieve) Write(b []byte) (int, error) {
	if s.p.swallow.Load() {
		return len(b), nil
	}
	return s.Writer.Write(b)
}

// TestAWriteWithoutAnAnswerIsNotDone: the server has stored the row, but nobody was told. That counts as a failure, to be tried again.
func TestAWriteWithoutAnAnswerIsNotDone(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	direct := opened(t, cfg)
	p := newProxy(t, cfg.Hosts[0])
	cfg.Hosts, cfg.Metrics = []string{p.Addr().String()}, seen
	cfg.WriteTimeout, cfg.ReadTimeout = 2*time.Second, 2*time.Second
	s := opened(t, cfg)
	topic := fresh(t, "swallowed")
	first, second := message(topic, time.Now(), 1), message(topic, time.Now(), 2)
	for n := 0; ; n++ { // the statements are known to the server, and the topic to the index
		err := s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: first}})
		if err == nil {
			break
		}
		if fault.IsFatal(err) || n == 10 {
			t.Fatal(err)
		}
	}
	p.swallow.Store(true)
	ops := []sinks.Op{sinks.PutMessage{Message: second}}
	err := s.Apply(t.Context(), ops)
	p.swallow.Store(false)
	if err == nil || fault.IsPoison(err) || fault.IsFatal(err) {
		t.Fatalf("Apply gave %v, want an unmarked error", err)
	}
	t.Log(err)
	if n := len(pending(t, direct, topic)); n != 2 {
		t.Errorf("%d messages are stored, want both: the server was not asked", n)
	}
	if seen.of(Timeouts) < 2 || seen.of(Retries) < 1 {
		t.Errorf("counted %d time-outs and %d retries", seen.of(Timeouts), seen.of(Retries))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for s.Apply(ctx, ops) != nil {
		if ctx.Err() != nil {
			t.Fatal("it does not recover")
		}
	}
	if n := len(pending(t, direct, topic)); n != 2 {
		t.Errorf("%d messages after the repetition, want 2", n)
	}
}

// TestTheServerMayComeLater: Open does not need it, calls fail unmarked while it is away, at the start and later, and the store
// finds back by itself.
func TestTheServerMayComeLater(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it starts a server of its own")
	}
	server := stack.Own(t, stack.Cassandra)
	cfg := at(server.Address())
	if _, err := Migrate(t.Context(), cfg, false); err != nil {
		t.Fatal(err)
	}
	cfg.ConnectTimeout = 3 * time.Second
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := opened(t, cfg)
	topic := fresh(t, "late")
	away := func(n int) {
		t.Helper()
		err := errors.Join(s.Check(t.Context()))
		if err == nil || fault.IsFatal(err) || !strings.Contains(err.Error(), server.Address()+": reach the server") {
			t.Errorf("Check gave %v, want an unmarked error that says which server cannot be reached", err)
		}
		err = s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: message(topic, time.Now(), n)}})
		if err == nil || fault.IsFatal(err) || fault.IsPoison(err) {
			t.Errorf("Apply gave %v, want an unmarked error", err)
		}
	}
	back := func(n int) {
		t.Helper()
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for {
			err := s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: message(topic, time.Now(), n)}})
			if err == nil {
				break
			}
			if fault.IsFatal(err) || fault.IsPoison(err) || time.Since(begin) > 2*time.Minute {
				t.Fatalf("%s after its start: %v", time.Since(begin), err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("stored %s after the server was back", time.Since(begin).Round(time.Millisecond))
	}
	away(1)
	back(2)
	if err := server.Stop(t.Context()); err != nil { // a killed server alone would lose what it has not synced yet
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience + 5*time.Second)
	for n := 3; time.Now().Before(deadline); n++ { // long enough for the session to be given up
		err := s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: message(topic, time.Now(), n)}})
		if err == nil || fault.IsFatal(err) || fault.IsPoison(err) {
			t.Fatalf("Apply gave %v, want an unmarked error", err)
		}
		time.Sleep(500 * time.Millisecond)
	}
	back(1000)
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(pending(t, s, topic)); n != 2 {
		t.Errorf("%d messages, want the 2 that were taken", n)
	}
}

func TestErrorsHaveTheirClass(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want class
	}{
		"anything":  {errors.New("x"), transient},
		"wrapped":   {fmt.Errorf("x: %w", context.DeadlineExceeded), transient},
		"wrong key": {fmt.Errorf("x: %w", io.ErrUnexpectedEOF), transient},
	} {
		if got, _ := classify(c.err); got != c.want {
			t.Errorf("%s: class %d, want %d", name, got, c.want)
		}
	}
	for _, x := range texts {
		if x.re.MatchString("") {
			t.Errorf("%s matches everything", x.re)
		}
	}
}
