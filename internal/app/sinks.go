package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/cassandra"
	"github.com/restante/restante/sinks/dynamodb"
	"github.com/restante/restante/sinks/memory"
	"github.com/restante/restante/sinks/sqlite"
)

// SinkParts is what a sink is opened with beside its own settings.
type SinkParts struct {
	// ReadOnly: nothing will be written, but for what makes later reads cheaper.
	ReadOnly bool
	// Look: not that either.
	Look bool
	// Log takes hints; nil = nothing.
	Log *slog.Logger
	// Metrics is told what the store does; nil = nobody.
	Metrics *SinkMetrics
}

// OpenSink opens the sink of that name. A server that cannot be reached is no error yet.
func (c Config) OpenSink(ctx context.Context, name string, parts SinkParts) (sinks.Store, error) {
	switch s := c.Sinks[name]; {
	case s.Cassandra != nil:
		cfg, err := s.Cassandra.config(name, parts)
		if err != nil {
			return nil, err
		}
		return cassandra.Open(ctx, cfg)
	case s.DynamoDB != nil:
		return dynamodb.Open(ctx, s.DynamoDB.config(c, name, parts))
	case s.SQLite != nil:
		return sqlite.Open(ctx, sqlite.Config{Path: s.SQLite.Path, TombstoneTTL: s.SQLite.TombstoneTTL, ReadOnly: parts.ReadOnly || parts.Look})
	case s.Memory != nil:
		return &memory.Store{}, nil
	default:
		return nil, fault.Fatal(fmt.Errorf("type %q cannot be opened", s.Type))
	}
}

// MigrateSink makes what is missing of a sink and says what it did, or on a dry run would do.
func (c Config) MigrateSink(ctx context.Context, name string, dry bool) ([]string, error) {
	switch s := c.Sinks[name]; {
	case s.Cassandra != nil:
		cfg, err := s.Cassandra.config(name, SinkParts{})
		if err != nil {
			return nil, err
		}
		return cassandra.Migrate(ctx, cfg, dry)
	case s.DynamoDB != nil:
		return dynamodb.Migrate(ctx, s.DynamoDB.config(c, name, SinkParts{}), dry)
	case s.SQLite != nil:
		return sqlite.Migrate(ctx, s.SQLite.Path, dry)
	}
	return nil, nil
}

// Tested is what the test of a sink found of one server, or of the store as a whole.
type Tested struct {
	Server string // "" = the whole
	Err    error
	Notes  []string
}

// TestSink reaches a sink, logs in, verifies its schema, and writes, reads and removes a row.
func (c Config) TestSink(ctx context.Context, name string) []Tested {
	s := c.Sinks[name]
	switch {
	case s.Cassandra != nil:
		return c.testCassandra(ctx, name)
	case s.SQLite != nil: // opening it would make what is missing, and a test changes nothing
		missing, err := sqlite.Migrate(ctx, s.SQLite.Path, true)
		if err == nil && len(missing) > 0 {
			err = fmt.Errorf("%s is missing or lacks tables: run \"restante migrate\"", s.SQLite.Path)
		}
		if err != nil {
			return []Tested{{Err: err}}
		}
	}
	store, err := c.OpenSink(ctx, name, SinkParts{})
	if err != nil {
		return []Tested{{Err: err}}
	}
	return []Tested{{Err: errors.Join(store.Check(ctx), store.Close())}}
}

func (c Config) testCassandra(ctx context.Context, name string) []Tested {
	cfg, err := c.Sinks[name].Cassandra.config(name, SinkParts{})
	if err != nil {
		return []Tested{{Err: err}}
	}
	r, err := cassandra.Test(ctx, cfg, c.Kafka.Messages.Retention)
	if err != nil {
		return []Tested{{Err: err}}
	}
	var all []Tested
	for _, s := range r.Servers {
		t := Tested{Server: s.Host, Err: s.Err}
		if s.Err == nil {
			t.Notes = []string{"Cassandra " + s.Release + " in data center " + s.DataCenter}
		}
		all = append(all, t)
	}
	whole := Tested{Err: r.Err}
	for _, w := range r.Warnings {
		whole.Notes = append(whole.Notes, "warning: "+w)
	}
	return append(all, whole)
}

func (s *CassandraSink) config(name string, parts SinkParts) (cassandra.Config, error) {
	tls, err := s.TLS.Config(false)
	if err != nil {
		return cassandra.Config{}, fault.Fatal(fmt.Errorf("tls: %w", err))
	}
	cfg := cassandra.Config{
		Hosts: s.Hosts, Keyspace: s.Keyspace, TablePrefix: s.TablePrefix, User: s.User, Password: s.Password.Reveal(), TLS: tls,
		LocalDC: s.LocalDC, Consistency: s.Consistency, NumConns: s.Connections, ConnectTimeout: s.ConnectTimeout,
		WriteTimeout: s.WriteTimeout, ReadTimeout: s.ReadTimeout, Compress: s.Compress, InFlight: s.InFlight, MaxRow: int(s.MaxRow),
		Foreign: s.Foreign, Look: parts.Look, Now: time.Now, Log: parts.Log,
	}
	if n := s.ReplicationFactor; n > 0 {
		cfg.Replication = map[string]string{"class": "SimpleStrategy", "replication_factor": strconv.Itoa(n)}
		if s.LocalDC != "" {
			cfg.Replication = map[string]string{"class": "NetworkTopologyStrategy", s.LocalDC: strconv.Itoa(n)}
		}
	}
	if parts.Metrics != nil {
		cfg.Metrics = cassandraMetrics{parts.Metrics, name}
	}
	return cfg, nil
}

func (s *DynamoDBSink) config(c Config, name string, parts SinkParts) dynamodb.Config {
	cfg := dynamodb.Config{
		Region: s.Region, Endpoint: s.Endpoint, AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey.Reveal(),
		SessionToken: s.SessionToken.Reveal(), Profile: s.Profile, TablePrefix: s.TablePrefix, PoolSize: s.PoolSize,
		RequestTimeout: s.RequestTimeout, Strict: s.Strict, ReadOnly: parts.ReadOnly || parts.Look, Look: parts.Look, ByClient: c.keepsPositions(name), FirstIDs: s.FirstIDs,
		Retention: c.Kafka.Messages.Retention, TimeUnit: time.Second, IDFormat: dynamodb.IDFormat(cmp.Or(s.MsgIDFormat, "hex")),
		OnDemand: s.Billing == "on_demand", ReadCapacity: int64(s.ReadCapacity), WriteCapacity: int64(s.WriteCapacity),
		Log: parts.Log, Now: time.Now,
	}
	if s.TimeUnit == "ms" {
		cfg.TimeUnit = time.Millisecond
	}
	if parts.Metrics != nil {
		cfg.Observe = func(r dynamodb.Request) { parts.Metrics.dynamodb(name, r) }
		cfg.InFlight = func(change int) { parts.Metrics.inFlight.WithLabelValues(name).Add(float64(change)) }
	}
	return cfg
}

// keepsPositions reports whether rules of the sink have the replayer keep clients' positions in it.
func (c Config) keepsPositions(sink string) bool {
	for _, r := range c.PipelineRules() {
		switch r.Action { //nolint:exhaustive // those that have positions
		case pipeline.OnMessageFetchForPubsub, pipeline.OnMessageAckedForPubsub, pipeline.OnAckedDelete:
			if r.Sink == sink {
				return true
			}
		}
	}
	return false
}

// checkRetention refuses a log that keeps records for longer than a store remembers removals.
func checkRetention(ctx context.Context, s sinks.Store, retention time.Duration) error {
	if c, ok := s.(*cassandra.Store); ok {
		return c.CheckRetention(ctx, retention)
	}
	return nil
}
