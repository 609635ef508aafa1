package bench

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/sinks"
)

const (
	sinkName   = "bench"
	partitions = 6
	fetchBytes = 1 << 20
	timeToLive = 7 * 24 * time.Hour
)

// backlog is a topic of Kafka with records that wait for a writer.
type backlog struct {
	client  *kafkalog.Client
	brokers []string
	topic   string
	group   string // of the writer, where it has one already
	records int
}

// openKafka makes a client for topics of so many partitions; the caller closes it.
func openKafka(b *testing.B, brokers []string, topics ...string) *kafkalog.Client {
	b.Helper()
	cfg := kafkalog.Config{
		Brokers: brokers, ClientID: "bench", Partitions: map[string]int{}, FetchBytes: fetchBytes, Log: slog.New(slog.DiscardHandler),
	}
	for _, t := range topics {
		cfg.Partitions[t] = partitions
	}
	client, err := kafkalog.Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	return client
}

// makeTopic makes the topic on a real Kafka, with one copy.
func makeTopic(b *testing.B, client *kafkalog.Client, name string) {
	b.Helper()
	spec := kafkalog.TopicSpec{Name: name, Partitions: partitions, Replication: 1}
	if _, err := client.Migrate(b.Context(), []kafkalog.TopicSpec{spec}, false); err != nil {
		b.Fatal(err)
	}
}

// append appends events and returns when all are durable.
func (k *backlog) append(b *testing.B, events []event.Event) {
	b.Helper()
	p := k.client.Producer()
	for _, e := range events {
		now := time.Now().Truncate(time.Millisecond)
		if _, err := p.Append(b.Context(), pipeline.Outgoing{Topic: k.topic, Wire: event.Encode(e, e.Routes()[0], now)}); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	k.records += len(events)
}

// bareLoop reads and decodes all partitions beside each other, and keeps nothing.
func (k *backlog) bareLoop(b *testing.B) cost {
	b.Helper()
	counts := make([]int, partitions)
	c := measure(func() {
		var all errgroup.Group
		for part := range partitions {
			all.Go(func() (err error) {
				counts[part], err = k.bareRead(b.Context(), part)
				return err
			})
		}
		if err := all.Wait(); err != nil {
			b.Fatal(err)
		}
	})
	read := 0
	for _, n := range counts {
		read += n
	}
	if read != k.records {
		b.Fatalf("read %d records of %d", read, k.records)
	}
	return c
}

func (k *backlog) bareRead(ctx context.Context, part int) (read int, err error) {
	conn, err := kafka.DialLeader(ctx, "tcp", k.brokers[0], k.topic, part)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }() // nothing was written
	_, end, err := conn.ReadOffsets()
	if err != nil {
		return 0, err
	}
	for int64(read) < end {
		batch := conn.ReadBatchWith(kafka.ReadBatchConfig{MinBytes: 1, MaxBytes: fetchBytes, MaxWait: time.Second})
		for {
			m, err := batch.ReadMessage()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return read, err
			}
			w := event.Wire{Key: m.Key, Value: m.Value, Time: m.Time, Headers: make([]event.Header, len(m.Headers))}
			for i, h := range m.Headers {
				w.Headers[i] = event.Header{Key: h.Key, Value: h.Value}
			}
			if _, err := event.Decode(event.Messages, w); err != nil {
				return read, err
			}
			read++
		}
		if err := batch.Close(); err != nil {
			return read, err
		}
	}
	return read, nil
}

// saveAll is the rules that keep all messages of QoS 1 and 2.
func saveAll(b *testing.B) *pipeline.Rules {
	b.Helper()
	save := pipeline.Rule{Topic: eventtest.Filter(b, "#"), Action: pipeline.SaveOfflineMessages, Sink: sinkName, TTL: timeToLive}
	rules, err := pipeline.Compile(save.Expand())
	if err != nil {
		b.Fatal(err)
	}
	return rules
}

// work lets one member of a new group work the backlog off into the store, and returns the cost from its assignment to the
// commit of the last record. When all is taken the member is stopped: what is held is then written without waiting for the
// end of the hold.
func (k *backlog) work(b *testing.B, store sinks.Writer, limits pipeline.Limits) cost {
	b.Helper()
	runtime.GC()
	group := "bench." + time.Now().Format("150405.000000000")
	metrics := pipeline.NewMetrics(prometheus.NewRegistry(), []string{group}, []string{sinkName})
	member, err := k.client.Group(group, k.topic)
	if err != nil {
		b.Fatal(err)
	}
	storing := &pipeline.Storing{
		Sink: sinkName, Store: store, Backoff: pipeline.DefaultBackoff, Metrics: metrics, Log: slog.New(slog.DiscardHandler),
	}
	dead := &pipeline.DeadLetters{Topic: "mqtt.dead", Group: group, Component: "writer", Metrics: metrics, Log: storing.Log}
	plan := saveAll(b).ForSink(sinkName)

	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	t := &tally{stop: stop, all: k.records, fetched: map[pipeline.TP]int64{}, committed: map[pipeline.TP]int64{}}
	limits.MarkAfter, limits.Drain = 0, patience
	err = pipeline.Consume(ctx, b.Context(), member, storing.Log, func(ctx, work context.Context, g pipeline.Generation, tp pipeline.TP, from int64) error {
		t.begin()
		w := &pipeline.Worker{
			TP: tp, Kind: event.Messages, From: from, Group: group, Generation: counted{g, t}, Reader: counting{k.client.Log(group), t},
			Plan: plan, Storing: storing, Dead: dead, Limits: limits, Metrics: metrics, Log: storing.Log, Now: time.Now,
		}
		return w.Run(ctx, work)
	})
	if err != nil {
		b.Fatal(err)
	}
	return t.took(b)
}
