package bench

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks/cassandra"
)

const (
	bareRows    = 50 // in a batch
	cqlInFlight = 64 // requests, on both sides
	cqlConns    = 2
	cqlTimeout  = 30 * time.Second // as long as a busy machine may need
	barePrefix  = "bare_"
)

// BenchmarkCassandra compares the way of messages from Kafka into Cassandra with a bare loop of the driver that writes the same
// rows, which it has in memory, in unlogged batches of one partition, with as many requests in flight, as many connections and
// the consistency of ours. Each writes into tables of its own. RESTANTE_BENCH_ROWS is how many rows a round writes (60000).
func BenchmarkCassandra(b *testing.B) {
	n := fromEnv(b, "RESTANTE_BENCH_ROWS", 60_000)
	counts := &cqlCounts{}
	cfg := cassandra.Config{
		Hosts: []string{stack.Shared(b, stack.Cassandra)}, Keyspace: stack.Unique(b), User: stack.User, Password: stack.Password,
		NumConns: cqlConns, InFlight: cqlInFlight, ConnectTimeout: cqlTimeout, ReadTimeout: cqlTimeout, WriteTimeout: cqlTimeout, Metrics: counts,
	}
	bare := openBare(b, cfg)
	defer bare.Close()
	store, err := cassandra.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	}()
	total := 0
	prepare := func(n int) (ours, theirs func() cost, done func()) {
		events := messagesFor(b, n)
		k, batches := newBacklog(b, events), batchesOf(events)
		total += n
		return func() cost { return k.work(b, store, pipeline.DefaultLimits) },
			func() cost { return bare.write(b, batches) },
			k.client.Close
	}
	ours, theirs, done := prepare(max(n/4, 1)) // gets the server warm
	theirs()
	ours()
	done()
	p := pairs{n: n}
	before, measured := counts.writes.Load(), 0
	for b.Loop() {
		p.run(func() (func() cost, func() cost, func()) {
			measured++
			return prepare(n)
		})
	}
	for _, prefix := range []string{"", barePrefix} {
		if got := bare.count(b, prefix); got != total {
			b.Fatalf("%smqtt_msg has %d rows, want %d", prefix, got, total)
		}
	}
	p.report(b, "rows", 0.8, 2)
	report(b, "ours", float64(counts.writes.Load()-before)/float64(measured), "requests a round")
	report(b, "ceiling", float64(batchCount(n)), "requests a round")
}

// cqlCounts counts what the store writes.
type cqlCounts struct{ writes atomic.Int64 }

// Count implements [cassandra.Metrics].
func (c *cqlCounts) Count(cassandra.Counter, int) {}

// InFlight implements [cassandra.Metrics].
func (c *cqlCounts) InFlight(int) {}

// Observe implements [cassandra.Metrics].
func (c *cqlCounts) Observe(r cassandra.Request, _ int, _ time.Duration, _ bool, _ string) {
	if r != cassandra.Read {
		c.writes.Add(1)
	}
}

// bareCQL is the driver without anything of ours.
type bareCQL struct {
	*gocql.Session
	keyspace string
}

// openBare makes the keyspace, with tables for both, and connects. The caller closes the session.
func openBare(b *testing.B, cfg cassandra.Config) bareCQL {
	b.Helper()
	for _, prefix := range []string{"", barePrefix} {
		tables := cfg
		tables.TablePrefix = prefix
		if _, err := cassandra.Migrate(b.Context(), tables, false); err != nil {
			b.Fatal(err)
		}
	}
	host, text, err := net.SplitHostPort(cfg.Hosts[0])
	if err != nil {
		b.Fatal(err)
	}
	k := gocql.NewCluster(host)
	if k.Port, err = strconv.Atoi(text); err != nil {
		b.Fatal(err)
	}
	k.ProtoVersion, k.NumConns, k.Consistency, k.DefaultTimestamp = 4, cqlConns, gocql.LocalQuorum, false
	k.Timeout, k.WriteTimeout, k.ConnectTimeout = cqlTimeout, cqlTimeout, cqlTimeout
	k.Authenticator = gocql.PasswordAuthenticator{Username: cfg.User, Password: cfg.Password}
	k.PoolConfig.HostSelectionPolicy = gocql.TokenAwareHostPolicy(gocql.RoundRobinHostPolicy())
	g, err := k.CreateSession()
	if err != nil {
		b.Fatal(err)
	}
	return bareCQL{g, cfg.Keyspace}
}

// bareRow is a row of mqtt_msg, its columns as the driver takes them.
type bareRow struct {
	topic, id string
	arrived   time.Time
	payload   []byte
	sender    string
	at        int64
	ttl       int
}

// batchesOf are the rows of the events: as many of a topic in a batch as may be, the topics in turn.
func batchesOf(events []event.Event) [][]bareRow {
	var all [][]bareRow
	open := map[event.Topic][]bareRow{}
	for _, e := range events {
		m := e.(event.Published)
		rows := append(open[m.Topic], bareRow{
			topic: m.Topic.String(), id: m.ID.String(), arrived: m.At, payload: m.Payload, sender: string(m.Sender),
			at: m.ID.Micros(), ttl: int(timeToLive / time.Second),
		})
		if len(rows) == bareRows {
			all, rows = append(all, rows), nil
		}
		open[m.Topic] = rows
	}
	for _, rows := range open {
		if len(rows) > 0 {
			all = append(all, rows)
		}
	}
	return all
}

// batchCount is how many batches n messages make.
func batchCount(n int) int {
	total := 0
	for i := range sinkTopics {
		of := (n - i + sinkTopics - 1) / sinkTopics
		total += (of + bareRows - 1) / bareRows
	}
	return total
}

// write writes the batches, each when a place is free.
func (c bareCQL) write(b *testing.B, batches [][]bareRow) cost {
	b.Helper()
	insert := `INSERT INTO ` + c.keyspace + `.` + barePrefix + `mqtt_msg (topic, msgid, arrived, payload, qos, retain, sender)
		VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?`
	return measure(func() {
		next := make(chan []bareRow)
		all, ctx := errgroup.WithContext(b.Context())
		for range cqlInFlight {
			all.Go(func() error {
				for rows := range next {
					if err := c.batch(ctx, insert, rows); err != nil {
						return err
					}
				}
				return nil
			})
		}
		all.Go(func() error {
			defer close(next)
			for _, rows := range batches {
				select {
				case next <- rows:
				case <-ctx.Done():
					return nil
				}
			}
			return nil
		})
		if err := all.Wait(); err != nil {
			b.Fatal(err)
		}
	})
}

// batch writes a batch, again where the server of a busy machine gave up.
func (c bareCQL) batch(ctx context.Context, insert string, rows []bareRow) (err error) {
	const tries = 5
	for range tries {
		batch := c.NewBatch(gocql.UnloggedBatch).WithContext(ctx)
		for i := range rows {
			r := &rows[i]
			batch.Query(insert, r.topic, r.id, r.arrived, r.payload, 1, 0, r.sender, r.at, r.ttl)
		}
		if err = c.ExecuteBatch(batch); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// count is how many messages a table has.
func (c bareCQL) count(b *testing.B, prefix string) int {
	b.Helper()
	total := 0
	for _, topic := range sinkTopicNames() {
		n := 0
		query := `SELECT count(*) FROM ` + c.keyspace + `.` + prefix + `mqtt_msg WHERE topic = ?`
		if err := c.Query(query, topic).WithContext(b.Context()).Scan(&n); err != nil {
			b.Fatal(err)
		}
		total += n
	}
	return total
}
