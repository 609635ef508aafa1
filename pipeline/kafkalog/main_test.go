package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(stack.Main(m)) }

const topic = "mqtt.messages"

// wire is the cluster's side of all connections, which a test can cut.
type wire struct {
	mu      sync.Mutex
	conns   map[net.Conn]bool
	refuses bool
}

func (w *wire) listen(network, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), network, address)
	return &cuttable{l, w}, err
}

func (w *wire) cut(refuse bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuses = refuse
	for c := range w.conns {
		_ = c.Close()
		delete(w.conns, c)
	}
}

type cuttable struct {
	net.Listener
	wire *wire
}

func (c *cuttable) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c.wire.mu.Lock()
		refuse := c.wire.refuses
		if !refuse {
			c.wire.conns[conn] = true
		}
		c.wire.mu.Unlock()
		if !refuse {
			return conn, nil
		}
		_ = conn.Close()
	}
}

type cluster struct {
	*kfake.Cluster
	wire *wire
}

func newCluster(tb testing.TB, opts ...kfake.Opt) *cluster {
	tb.Helper()
	w := &wire{conns: map[net.Conn]bool{}}
	base := []kfake.Opt{
		kfake.NumBrokers(1), kfake.SeedTopics(3, topic), kfake.ListenFn(w.listen),
		kfake.GroupMinSessionTimeout(100 * time.Millisecond),
	}
	c, err := kfake.NewCluster(append(base, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return &cluster{c, w}
}

// open is a client with changes to the configuration.
func (c *cluster) open(tb testing.TB, change ...func(*Config)) *Client {
	tb.Helper()
	cfg := Config{
		Brokers: c.ListenAddrs(), ClientID: "test", Partitions: map[string]int{topic: 3},
		SessionTimeout: 15 * time.Second, RebalanceTimeout: 6 * time.Second, HeartbeatInterval: 50 * time.Millisecond,
		JoinGroupBackoff: 50 * time.Millisecond,
		Log:              slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}
	for _, f := range change {
		f(&cfg)
	}
	client, err := Open(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return client
}

// within is a ctx for what should take no time.
func within(tb testing.TB, d time.Duration) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), d)
	tb.Cleanup(cancel)
	return ctx
}

func soon(tb testing.TB) context.Context { tb.Helper(); return within(tb, time.Minute) }

func out(key, value string) pipeline.Outgoing {
	return pipeline.Outgoing{Topic: topic, Wire: event.Wire{
		Key: []byte(key), Value: []byte(value), Time: time.UnixMilli(1_700_000_000_000),
		Headers: []event.Header{{Key: "ce_id", Value: []byte(value[:min(8, len(value))])}},
	}}
}

// keyFor is a key of the partition, of three.
func keyFor(part int) string {
	for i := 0; ; i++ {
		if k := fmt.Sprintf("k%d", i); partition([]byte(k), 3) == part {
			return k
		}
	}
}

// put appends values to partition part and waits for all.
func put(tb testing.TB, c *Client, part int, values ...string) {
	tb.Helper()
	p := c.Producer()
	for _, v := range values {
		if _, err := p.Append(soon(tb), out(keyFor(part), v)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := p.Close(soon(tb)); err != nil {
		tb.Fatal(err)
	}
}

// readAll reads a partition from an offset to its end.
func readAll(tb testing.TB, c *Client, part int, from int64) []pipeline.Record {
	tb.Helper()
	ctx := soon(tb)
	l := c.Log("test")
	spans, err := l.Spans(ctx, topic, part)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := l.Open(ctx, pipeline.TP{Topic: topic, Part: part}, max(from, spans[part].First))
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var all []pipeline.Record
	for next := max(from, spans[part].First); next < spans[part].End; {
		rs, err := s.Fetch(ctx, 1000, time.Second)
		if err != nil {
			tb.Fatal(err)
		}
		for _, r := range rs {
			all, next = append(all, r), r.Offset+1
		}
	}
	return all
}

func values(rs []pipeline.Record) []string {
	vs := make([]string, len(rs))
	for i, r := range rs {
		vs[i] = string(r.Value)
	}
	return vs
}

func ended(r pipeline.Receipt) bool {
	select {
	case <-r.Done():
		return true
	default:
		return false
	}
}

func isDeadline(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
