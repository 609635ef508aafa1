package cassandra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/restante/restante/fault"
)

// session is a connected cluster.
type session struct {
	*gocql.Session
	release string
	// overlap: what was written is seen by a read that begins later.
	overlap bool
}

// protocol is spoken by all servers from 3.11 to 5.0.
const protocol = 4

func parseConsistency(s string) (gocql.Consistency, error) { return gocql.ParseConsistencyWrapper(s) }

// fillPort takes the ports out of the hosts when they are all the same: servers that are found later are asked at that port.
func (c *Config) fillPort() error {
	for i, h := range c.Hosts {
		host, text, err := net.SplitHostPort(h)
		if err != nil {
			continue // without a port
		}
		port, err := strconv.Atoi(text)
		if err != nil || port < 1 || port > 65535 {
			return fault.Fatal(fmt.Errorf("host %q has no port between 1 and 65535: write host or host:port", h))
		}
		if i == 0 && c.Port == 0 {
			c.Port = port
		}
		c.Hosts[i] = net.JoinHostPort(host, text)
	}
	if c.Port == 0 {
		c.Port = defaultPort
	}
	return nil
}

// cluster is the driver's configuration. seen takes what goes wrong with the connections.
func (c *Config) cluster(seen gocql.ConnectObserver) *gocql.ClusterConfig {
	k := gocql.NewCluster(c.Hosts...)
	k.Port = c.Port
	k.ProtoVersion = protocol
	k.Consistency, _ = parseConsistency(c.Consistency) // was checked
	k.SerialConsistency = gocql.LocalSerial
	k.NumConns = c.NumConns
	k.ConnectTimeout = c.ConnectTimeout
	k.Timeout = max(c.ReadTimeout, c.WriteTimeout)
	k.WriteTimeout = c.WriteTimeout
	k.PageSize = frameRows
	k.MaxPreparedStmts = 1000
	k.DefaultTimestamp = false // it would be this clock's
	k.RetryPolicy = nil        // one retry, ours
	k.ReconnectInterval = time.Second
	k.ReconnectionPolicy = &gocql.ConstantReconnectionPolicy{MaxRetries: 1, Interval: 100 * time.Millisecond}
	k.Logger = driverLog{c.Log}
	k.ConnectObserver = seen
	if c.User != "" {
		k.Authenticator = gocql.PasswordAuthenticator{Username: c.User, Password: c.Password, AllowedAuthenticators: allowed}
	}
	if c.TLS != nil {
		k.SslOpts = &gocql.SslOptions{Config: c.TLS, EnableHostVerification: !c.TLS.InsecureSkipVerify}
	}
	if c.Compress {
		k.Compressor = gocql.SnappyCompressor{}
	}
	fallback := gocql.RoundRobinHostPolicy()
	if c.LocalDC != "" {
		fallback = gocql.DCAwareRoundRobinPolicy(c.LocalDC)
	}
	k.PoolConfig.HostSelectionPolicy = gocql.TokenAwareHostPolicy(fallback, gocql.ShuffleReplicas())
	return k
}

// allowed are the authenticators that take a name and a password.
var allowed = []string{
	"org.apache.cassandra.auth.PasswordAuthenticator",
	"org.apache.cassandra.auth.MutualTlsWithPasswordFallbackAuthenticator",
	"com.scylladb.auth.SaslauthdAuthenticator",
	"com.scylladb.auth.TransitionalAuthenticator",
	"com.instaclustr.cassandra.auth.SharedSecretAuthenticator",
	"com.datastax.bdp.cassandra.auth.DseAuthenticator",
	"com.amazon.helenus.auth.HelenusAuthenticator",
	"io.aiven.cassandra.auth.AivenAuthenticator",
	"com.ericsson.bss.cassandra.ecaudit.auth.AuditPasswordAuthenticator",
}

// driverLog hands what the driver says to the log, where only those see it who look for it.
type driverLog struct{ log *slog.Logger }

func (d driverLog) Print(v ...any)                 { d.say(fmt.Sprint(v...)) }
func (d driverLog) Printf(format string, v ...any) { d.say(fmt.Sprintf(format, v...)) }
func (d driverLog) Println(v ...any)               { d.say(fmt.Sprintln(v...)) }

func (d driverLog) say(text string) {
	d.log.Debug("the cassandra driver says", "text", strings.TrimSpace(text))
}

// lastError keeps the last reason why a connection was not made: the driver's own error has only its text.
type lastError struct {
	mu  sync.Mutex
	err error
}

// ObserveConnect implements [gocql.ConnectObserver].
func (l *lastError) ObserveConnect(c gocql.ObservedConnect) {
	if c.Err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = c.Err
}

func (l *lastError) or(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	return err
}

// dial connects, and makes sure that the keyspace and the data center are there.
func dial(c *Config) (*session, error) {
	seen := &lastError{}
	k := c.cluster(seen)
	k.Keyspace = c.Keyspace
	g, err := k.CreateSession()
	if err != nil {
		err = seen.or(err)
		if errors.Is(err, gocql.ErrNoConnectionsStarted) && !c.hasKeyspace() {
			return nil, fault.Fatal(c.missingKeyspace())
		}
		return nil, explain("connect to "+c.where(), err)
	}
	s := &session{Session: g}
	if err := s.look(c); err != nil {
		g.Close()
		return nil, err
	}
	return s, nil
}

// hasKeyspace is false when the keyspace is known to be missing, which the driver does not say.
func (c *Config) hasKeyspace() bool {
	g, err := c.cluster(&lastError{}).CreateSession()
	if err != nil {
		return true
	}
	defer g.Close()
	var name string
	err = g.Query(`SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?`, c.Keyspace).Idempotent(true).Scan(&name)
	return !errors.Is(err, gocql.ErrNotFound)
}

func (c *Config) missingKeyspace() error {
	return fmt.Errorf("keyspace %s is missing: %s, or put keyspace right in the config", c.Keyspace, migrateAdvice)
}

// where names the cluster in an error.
func (c *Config) where() string {
	if len(c.Hosts) == 1 {
		return "cassandra at " + c.Hosts[0]
	}
	return fmt.Sprintf("cassandra at %s and %d more", c.Hosts[0], len(c.Hosts)-1)
}

// look reads what does not change: the release, the data centers and the replication.
func (s *session) look(c *Config) error {
	var dc string
	if err := s.Query(`SELECT release_version, data_center FROM system.local`).Idempotent(true).Scan(&s.release, &dc); err != nil {
		return explain("read system.local of "+c.where(), err)
	}
	if c.LocalDC != "" {
		all := []string{dc}
		found := dc == c.LocalDC
		iter := s.Query(`SELECT data_center FROM system.peers`).Idempotent(true).Iter()
		for iter.Scan(&dc) {
			all, found = append(all, dc), found || dc == c.LocalDC
		}
		if err := iter.Close(); err != nil {
			return explain("read system.peers of "+c.where(), err)
		}
		if !found {
			return wrongDC(c.LocalDC, all)
		}
	}
	replication := map[string]string{}
	err := s.Query(`SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?`, c.Keyspace).Idempotent(true).Scan(&replication)
	if err != nil {
		return explain("read the replication of keyspace "+c.Keyspace, err)
	}
	s.overlap = overlaps(c.Consistency, replication)
	if !s.overlap {
		c.Log.Warn("reads may miss what was just written: the consistency is less than a quorum of the keyspace's replicas",
			"consistency", c.Consistency, "keyspace", c.Keyspace, "replication", replication)
	}
	return nil
}

// overlaps reports whether a read at the consistency meets a replica of every write at it.
func overlaps(consistency string, replication map[string]string) bool {
	switch consistency {
	case "QUORUM", "LOCAL_QUORUM", "EACH_QUORUM", "ALL":
		return true
	}
	need := map[string]int{"ONE": 1, "LOCAL_ONE": 1, "TWO": 2, "THREE": 3}[consistency]
	total := 0
	for key, text := range replication {
		if n, err := strconv.Atoi(text); key != "class" && err == nil {
			total += n
		}
	}
	return total > 0 && 2*need > total
}

// link is the session that all calls share. It is made at the first use, by one caller at a time, and made again when it has
// had no connection for a while: the servers may have other addresses then.
type link struct {
	dial func() (*session, error)

	mu      sync.Mutex
	s       *session
	pending *attempt
	lost    time.Time // since when there is no connection; zero = there is one
	closed  bool
	dials   sync.WaitGroup
}

// attempt is a dial under way. done is closed at its end.
type attempt struct {
	done chan struct{}
	err  error
}

// patience is how long a session without any connection may try to get one itself.
const patience = 15 * time.Second

// get returns the session, connecting when there is none.
func (l *link) get(ctx context.Context) (*session, error) {
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil, errClosed
		}
		if s := l.s; s != nil {
			l.mu.Unlock()
			return s, nil
		}
		a := l.pending
		if a == nil {
			a = &attempt{done: make(chan struct{})}
			l.pending = a
			l.dials.Go(func() { l.try(a) }) // the driver's time-outs end it; close waits for it
		}
		l.mu.Unlock()
		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to cassandra: %w", ctx.Err())
		}
	}
}

func (l *link) try(a *attempt) {
	s, err := l.dial()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending, a.err = nil, err
	switch {
	case err != nil:
	case l.closed:
		s.Close()
		a.err = errClosed
	default:
		l.s, l.lost = s, time.Time{}
	}
	close(a.done)
}

// report is told how a request of the session ended. It drops a session that has had no connection for a while, and says so.
func (l *link) report(s *session, err error) (dropped bool) {
	none := errors.Is(err, gocql.ErrNoConnections) || errors.Is(err, gocql.ErrSessionClosed)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s != s {
		return false
	}
	switch {
	case !none:
		l.lost = time.Time{}
	case l.lost.IsZero():
		l.lost = time.Now()
	case time.Since(l.lost) > patience:
		l.s = nil
		l.dials.Go(s.Close) // it waits for its connections
		return true
	}
	return false
}

func (l *link) close() {
	l.mu.Lock()
	s := l.s
	l.s, l.closed = nil, true
	l.mu.Unlock()
	l.dials.Wait()
	if s != nil {
		s.Close()
	}
}
