// Package cassandra keeps a store in Apache Cassandra 3.11 or later. mqtt_msg and acked are the tables of EMQX's "save offline
// messages to Cassandra", column for column; tables of our own beside them hold what those have no place for.
//
// Each row is written with a time that comes from its event, so writes commute: a duplicate, a late one, or one of a second
// owner changes nothing. Acks stand behind what they remove, even where somebody else wrote it by the wall clock.
package cassandra

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// Config says where the cluster is and how it is used. Hosts is required.
type Config struct {
	// Hosts are the servers to ask first, as host or host:port; the others are found through them.
	Hosts []string
	// Port is the port of servers that are named without one; 0 = that of the first host, else 9042.
	Port int
	// Keyspace holds the tables; "" = mqtt.
	Keyspace string
	// TablePrefix stands before the name of each table; "" = none, as in EMQX.
	TablePrefix string

	// User and Password log in; "" = no login.
	User, Password string
	// TLS speaks TLS with these settings; nil = plain. The name in a server's certificate is verified against ServerName, or
	// the server's address when that is empty, unless InsecureSkipVerify is set.
	TLS *tls.Config

	// LocalDC is the data center whose servers are used. All processes of one sink must name the same. "" = all servers.
	LocalDC string
	// Consistency is that of all reads and writes: ONE, LOCAL_ONE, TWO, THREE, QUORUM, LOCAL_QUORUM, EACH_QUORUM or ALL;
	// "" = LOCAL_QUORUM. ONE is for a keyspace with one replica.
	Consistency string
	// Replication is how [Migrate] makes a keyspace that is missing, as the map of CREATE KEYSPACE. nil = up to three replicas in
	// LocalDC, or where that is empty SimpleStrategy with one, as in EMQX's manual.
	Replication map[string]string

	// NumConns is the connections to each server; 0 = 2.
	NumConns int
	// ConnectTimeout bounds the making of a connection; 0 = 5 s.
	ConnectTimeout time.Duration
	// WriteTimeout and ReadTimeout bound one request; 0 = 3 s and 5 s. They should be longer than the server's own.
	WriteTimeout, ReadTimeout time.Duration
	// Compress sends and receives in snappy.
	Compress bool
	// InFlight is the most requests that wait for an answer at a time; 0 = 64.
	InFlight int
	// MaxRow is the most bytes that one message may take with all it carries; a larger one is refused as poison. It must stay
	// under the server's max_mutation_size (16 MiB by default); 0 = 8 MiB.
	MaxRow int
	// Foreign says that others insert messages that are over an hour old into mqtt_msg, so no topic may have a low mark: each
	// read begins at the oldest id. Rows that an EMQX writes as they come need no such care.
	Foreign bool
	// Look says that reads leave nothing behind for reads to come: no low marks, and no note of rows that others wrote.
	Look bool

	// Now is the wall clock that expiry and ages go by; nil = time.Now.
	Now func() time.Time
	// Log takes what is of use to an operator; nil = nothing.
	Log *slog.Logger
	// Metrics is told what the store does; nil = nobody.
	Metrics Metrics
}

const (
	defaultKeyspace = "mqtt"
	defaultPort     = 9042
	// batchRows and batchBytes bound a batch: beyond them latency grows and throughput does not.
	batchRows, batchBytes = 64, 64 << 10
	knownBytes            = 32 << 20
)

// names is what a keyspace, a prefix and what is made of them must look like to be written without quotes.
var names = regexp.MustCompile(`^[a-z][a-z0-9_]{0,47}$`)

// Store is a keyspace of a cluster. It connects at its first use and again when all connections are lost.
type Store struct {
	cfg   Config
	texts [manyQueries]string
	slots chan struct{}

	link    link
	covered covered
	plain   topicindex.Known // topics without a row in mqtt_msg_props
	tokens  tokens
	rowSize atomic.Int64 // bytes of a row, as of late
	odd     sync.Once
}

var _ sinks.Store = (*Store)(nil)

// Open checks the configuration. It does not wait for the cluster: calls return unmarked errors until that can be reached.
// An error is fatal and says what to do. ctx is not used beyond the call.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, slots: make(chan struct{}, cfg.InFlight),
		covered: covered{most: knownBytes}, plain: topicindex.Known{TTL: 4 * time.Hour, Bytes: knownBytes},
		tokens: tokens{writer: rand.Text()[:16]},
	}
	for q, text := range queryTexts {
		s.texts[q] = cfg.named(text)
	}
	s.rowSize.Store(firstRowSize)
	s.link.dial = func() (*session, error) { return dial(&s.cfg) }
	return s, nil
}

// fill puts the defaults in and refuses what cannot work.
func (c *Config) fill() error {
	refuse := func(format string, args ...any) error { return fault.Fatal(fmt.Errorf(format, args...)) }
	if len(c.Hosts) == 0 || slices.Contains(c.Hosts, "") {
		return refuse("the cassandra sink has no hosts: give one or more in the config")
	}
	c.Hosts = slices.Clone(c.Hosts)
	c.Keyspace = cmp.Or(c.Keyspace, defaultKeyspace)
	if !names.MatchString(c.Keyspace) || c.TablePrefix != "" && !names.MatchString(c.TablePrefix) {
		return refuse("keyspace %q or table prefix %q is no plain name: use lower-case letters, digits and _, a letter first, up to 48", c.Keyspace, c.TablePrefix)
	}
	c.Consistency = strings.ToUpper(cmp.Or(c.Consistency, "LOCAL_QUORUM"))
	if _, err := parseConsistency(c.Consistency); err != nil {
		return refuse("consistency %q is unknown: use LOCAL_QUORUM, or ONE for a single server", c.Consistency)
	}
	c.NumConns = cmp.Or(c.NumConns, 2)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 5*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 3*time.Second)
	c.ReadTimeout = cmp.Or(c.ReadTimeout, 5*time.Second)
	c.InFlight = cmp.Or(c.InFlight, 64)
	c.MaxRow = cmp.Or(c.MaxRow, 8<<20)
	if c.NumConns < 0 || c.ConnectTimeout < 0 || c.WriteTimeout < 0 || c.ReadTimeout < 0 || c.InFlight < 0 || c.MaxRow < 0 || c.Port < 0 || c.Port > 65535 {
		return refuse("a number of the cassandra sink is out of its range: leave it out to have its default")
	}
	if err := c.fillPort(); err != nil {
		return err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = nobody{}
	}
	return nil
}

// named puts the names of the keyspace and the tables into a text.
func (c *Config) named(text string) string {
	return strings.NewReplacer("{{keyspace}}", c.Keyspace, "{{prefix}}", c.TablePrefix).Replace(text)
}

// table is a table's full name.
func (c *Config) table(name string) string { return c.Keyspace + "." + c.TablePrefix + name }

// Check reaches the cluster, logs in, verifies the schema, and writes, reads and removes a row. Where no server can be used, the
// error says of each what is wrong with it and what to do.
func (s *Store) Check(ctx context.Context) error {
	l, err := s.link.get(ctx)
	if err != nil {
		if ctx.Err() == nil {
			err = s.cfg.blame(ctx, err)
		}
		return err
	}
	if err := s.cfg.verify(ctx, l); err != nil {
		return err
	}
	return s.probe(ctx)
}

// Close ends all connections.
func (s *Store) Close() error {
	s.link.close()
	return nil
}

var errClosed = errors.New("the store is closed")
