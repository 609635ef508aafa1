package cassandra

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// Server is what [Test] found out about one server of the config.
type Server struct {
	// Host is the server as the config names it.
	Host string
	// Release and DataCenter are what it says of itself; "" = it could not be asked.
	Release, DataCenter string
	// Err says what is wrong with it and what to do; nil = it can be used.
	Err error
}

// String is a line for people.
func (s Server) String() string {
	if s.Err != nil {
		return s.Host + ": " + s.Err.Error()
	}
	return fmt.Sprintf("%s: ok: Cassandra %s in data center %s", s.Host, s.Release, s.DataCenter)
}

// Report is the result of [Test].
type Report struct {
	// Servers are those of the config, in its order.
	Servers []Server
	// Err says what is wrong with the store as a whole and what to do; nil = it can be used, even where a server cannot.
	Err error
	// Warnings are what an operator should know though the store works.
	Warnings []string
}

// Test tests the connection: it reaches each server, logs in, verifies the schema, and writes, reads and removes a row.
// retention is how long the log keeps records, compared with the tables' gc_grace_seconds; 0 = that is not compared. The error is that
// of the configuration.
func Test(ctx context.Context, cfg Config, retention time.Duration) (Report, error) {
	s, err := Open(ctx, cfg)
	if err != nil {
		return Report{}, err
	}
	defer s.Close() //nolint:errcheck // it has none
	r := Report{Servers: s.cfg.ask(ctx)}
	l, err := s.link.get(ctx)
	if err == nil {
		if err = s.cfg.verify(ctx, l); err == nil {
			err = s.probe(ctx)
		}
	}
	if err == nil && retention > 0 {
		err = s.CheckRetention(ctx, retention)
	}
	if err == nil {
		r.Warnings, err = s.warnings(ctx, l)
	}
	r.Err = err
	return r, nil
}

// CheckRetention compares how long the log keeps records with how long the tables remember removals. What is shorter lets a record
// that is read again bring back what was removed. The error is fatal and names each table; others are unmarked.
func (s *Store) CheckRetention(ctx context.Context, retention time.Duration) error {
	l, err := s.link.get(ctx)
	if err != nil {
		return err
	}
	short, err := s.cfg.short(ctx, l, retention)
	if err != nil || len(short) == 0 {
		return err
	}
	return fault.Fatal(errors.New(strings.Join(short, "; ")))
}

// short names the tables that forget removals too early.
func (c *Config) short(ctx context.Context, l *session, retention time.Duration) ([]string, error) {
	ours := map[string]bool{}
	for _, t := range c.tables(l.release) {
		ours[t.name] = true
	}
	iter := l.Query(`SELECT table_name, gc_grace_seconds FROM system_schema.tables WHERE keyspace_name = ?`, c.Keyspace).
		WithContext(ctx).Idempotent(true).Iter()
	var found []string
	var name string
	var seconds int
	for iter.Scan(&name, &seconds) {
		grace := time.Duration(seconds) * time.Second
		if ours[name] && grace <= retention {
			found = append(found, fmt.Sprintf("table %s.%s has gc_grace_seconds = %d (%s), the log keeps records for %s: "+
				"make the first longer, or the log's retention shorter", c.Keyspace, name, seconds, grace, retention))
		}
	}
	slices.Sort(found)
	return found, explain("read the tables of keyspace "+c.Keyspace, iter.Close())
}

// sample is how many rows of mqtt_msg are looked at for what somebody else wrote.
const sample = 200

func (s *Store) warnings(ctx context.Context, l *session) ([]string, error) {
	var all []string
	if !l.overlap {
		all = append(all, fmt.Sprintf("consistency %s is less than a quorum of the keyspace's replicas: a read may miss what was just written", s.cfg.Consistency))
	}
	iter := l.Query(`SELECT topic, msgid, WRITETIME(payload) FROM ` + s.cfg.table("mqtt_msg") + ` LIMIT ` + strconv.Itoa(sample)).
		WithContext(ctx).Idempotent(true).Iter()
	var topic, msgid string
	var written int64
	odd, foreign := "", 0
	for iter.Scan(&topic, &msgid, &written) {
		id, err := event.ParseID(msgid)
		switch before := id.Micros() - written; {
		case err != nil || id.String() != msgid:
			odd = fmt.Sprintf("msgid %.40q of topic %.80q", msgid, topic)
		case before < plainAt || before > historyAt:
			foreign++
		}
	}
	if err := iter.Close(); err != nil {
		return nil, explain("read rows of "+s.cfg.table("mqtt_msg"), err)
	}
	if odd != "" {
		all = append(all, odd+" is not 32 upper-case hex digits: such messages are not replayed")
	}
	if foreign > 0 {
		all = append(all, fmt.Sprintf("%d of %d messages looked at were written by somebody else (an EMQX?): they are replayed until they are acknowledged, "+
			"by exact filters only", foreign, sample))
	}
	return all, nil
}

// probe writes, reads and removes a row of mqtt_msg.
func (s *Store) probe(ctx context.Context) error {
	topic, err := event.ParseTopic("$restante/check")
	if err != nil {
		return err
	}
	now := s.cfg.Now()
	id := event.IDOf(now.UnixMicro(), rand.Uint64(), 0) //nolint:gosec // only different from others
	m := sinks.Message{ID: id, Topic: topic, QoS: 1, Payload: []byte("check"), Arrived: now, Expires: now.Add(time.Minute)}
	l, err := s.link.get(ctx)
	if err != nil {
		return err
	}
	w := &work{store: s, session: l, now: now}
	u, err := w.putMessage(sinks.PutMessage{Message: m})
	if err != nil {
		return err
	}
	if err := s.exec(ctx, l, u.statements); err != nil {
		return fmt.Errorf("write a row: %w", err)
	}
	got, _, err := (&walk{store: s, q: sinks.Query{Topic: topic, Limit: 1}}).page(ctx, span{id.Before(), id})
	if err != nil {
		return fmt.Errorf("read a row: %w", err)
	}
	if len(got) != 1 || string(got[0].payload) != "check" {
		return fmt.Errorf("read a row just written: %d rows came back, want it alone: look at consistency and replication", len(got))
	}
	if err := s.exec(ctx, l, []statement{{deleteMessage, []any{id.Micros() + 1, topic.String(), id.String()}}}); err != nil {
		return fmt.Errorf("remove a row: %w", err)
	}
	return nil
}

// bare connects to hosts without a keyspace. The driver knows no ctx: when that ends first, the session is closed by whoever made it.
func (c *Config) bare(ctx context.Context, hosts []string) (*gocql.Session, error) {
	return c.bareAs(ctx, hosts, func(*gocql.ClusterConfig) {})
}

func (c *Config) bareAs(ctx context.Context, hosts []string, change func(*gocql.ClusterConfig)) (*gocql.Session, error) {
	of := *c
	of.Hosts = hosts
	seen := &lastError{}
	k := of.cluster(seen)
	change(k)
	type made struct {
		g   *gocql.Session
		err error
	}
	result, over := make(chan made), make(chan struct{})
	defer close(over)
	go func() { // ends with the driver's time-outs
		g, err := k.CreateSession()
		select {
		case result <- made{g, err}:
		case <-over:
			if err == nil {
				g.Close()
			}
		}
	}()
	select {
	case m := <-result:
		if m.err != nil {
			return nil, seen.or(m.err)
		}
		return m.g, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ask asks each server by itself.
func (c *Config) ask(ctx context.Context) []Server {
	all := make([]Server, len(c.Hosts))
	var wg sync.WaitGroup
	for i, host := range c.Hosts {
		wg.Go(func() { all[i] = c.askOne(ctx, host) })
	}
	wg.Wait()
	return all
}

func (c *Config) askOne(ctx context.Context, host string) Server {
	s := Server{Host: host}
	addr := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		addr = net.JoinHostPort(host, strconv.Itoa(c.Port))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*c.ConnectTimeout)
	defer cancel()
	conn, err := (&net.Dialer{Timeout: c.ConnectTimeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		s.Err = fmt.Errorf("reach the server: %w: start it, open the way to its port, or put hosts right in the config", err)
		return s
	}
	_ = conn.Close() // only to see that somebody listens
	g, err := c.bareAs(ctx, []string{addr}, func(k *gocql.ClusterConfig) {
		k.DisableInitialHostLookup, k.NumConns = true, 1
		k.PoolConfig.HostSelectionPolicy = gocql.RoundRobinHostPolicy()
	})
	if err != nil {
		s.Err = explain("log in as "+strconv.Quote(c.User), err)
		return s
	}
	defer g.Close()
	err = g.Query(`SELECT release_version, data_center FROM system.local`).Consistency(gocql.One).WithContext(ctx).Idempotent(true).Scan(&s.Release, &s.DataCenter)
	if err != nil {
		s.Err = explain("read system.local", err)
		return s
	}
	var name string
	err = g.Query(`SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?`, c.Keyspace).Consistency(gocql.One).WithContext(ctx).
		Idempotent(true).Scan(&name)
	switch {
	case errors.Is(err, gocql.ErrNotFound):
		s.Err = fault.Fatal(c.missingKeyspace())
	case err != nil:
		s.Err = explain("read the keyspaces", err)
	}
	return s
}

// blame adds to the error of a connection what is wrong with each server. Where one cannot be used for good, and none can be used,
// the whole is fatal.
func (c *Config) blame(ctx context.Context, err error) error {
	if fault.IsFatal(err) && strings.Contains(err.Error(), "local_dc") {
		return err
	}
	var lines []string
	unusable, someFatal := true, fault.IsFatal(err)
	for _, s := range c.ask(ctx) {
		lines = append(lines, s.String())
		unusable = unusable && s.Err != nil
		someFatal = someFatal || fault.IsFatal(s.Err)
	}
	told := fmt.Errorf("%w\n%s", err, strings.Join(lines, "\n"))
	if unusable && someFatal {
		return fault.Fatal(told)
	}
	return told
}
