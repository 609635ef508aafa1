package bench

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

const (
	messages   = "mqtt.messages"
	sinkName   = "memory"
	partitions = 6
	backlog    = 120_000 // records
	fetchBytes = 1 << 20
)

// BenchmarkWorker compares the way of records from Kafka through a consumer group and the workers into the plainest store with
// a bare loop that reads and decodes them. Kafka runs in this process and costs both the same.
func BenchmarkWorker(b *testing.B) {
	b.Run("publishes", func(b *testing.B) { benchWorker(b, false) })
	b.Run("publishes and acks", func(b *testing.B) { benchWorker(b, true) })
}

func benchWorker(b *testing.B, acks bool) {
	b.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, messages))
	if err != nil {
		b.Fatal(err)
	}
	defer cluster.Close()
	client, err := kafkalog.Open(kafkalog.Config{
		Brokers: cluster.ListenAddrs(), ClientID: "bench", Partitions: map[string]int{messages: partitions}, FetchBytes: fetchBytes,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	fill(b, client, acks)

	const rounds = 5
	var mine, theirs, mineCPU, theirsCPU []float64
	for b.Loop() {
		for range rounds {
			took, used := bareLoop(b, cluster.ListenAddrs()[0])
			theirs, theirsCPU = append(theirs, backlog/took.Seconds()), append(theirsCPU, backlog/used.Seconds())
			took, used = work(b, client, acks)
			mine, mineCPU = append(mine, backlog/took.Seconds()), append(mineCPU, backlog/used.Seconds())
		}
	}
	atLeast(b, "of bare loops", median(ratios(mine, theirs)), "×", 0.6)
	report(b, "of bare loops by processor time", median(ratios(mineCPU, theirsCPU)), "×")
	report(b, "ours", median(mine)/1000, "k records/s")
	report(b, "bare", median(theirs)/1000, "k records/s")
}

// fill appends the backlog: publishes of 256 bytes, each with the ack of a client behind it where acks is set.
func fill(b *testing.B, client *kafkalog.Client, acks bool) {
	b.Helper()
	p := client.Producer()
	minter := event.Minter{Now: time.Now}
	put := func(e event.Event) {
		now := time.Now().Truncate(time.Millisecond)
		if _, err := p.Append(b.Context(), pipeline.Outgoing{Topic: messages, Wire: event.Encode(e, e.Routes()[0], now)}); err != nil {
			b.Fatal(err)
		}
	}
	for i := 0; i < backlog; i++ {
		now := time.Now().Truncate(time.Millisecond)
		e := publish(b, &minter, i, now)
		put(e)
		if acks {
			i++
			put(event.Acked{
				Head:  event.Head{ID: minter.Mint(), Source: e.Source, At: now},
				Topic: e.Topic, Client: "device-4712", Message: e.ID,
			})
		}
	}
	if err := p.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// bareLoop reads and decodes all partitions beside each other, and keeps nothing. It returns the time on the wall and that of
// the processor, Kafka's in this process included.
func bareLoop(b *testing.B, addr string) (took, used time.Duration) {
	b.Helper()
	runtime.GC()
	began, before := time.Now(), cpu()
	var all errgroup.Group
	counts := make([]int, partitions)
	for part := range partitions {
		all.Go(func() (err error) {
			counts[part], err = bareRead(b.Context(), addr, part)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
	took, used = time.Since(began), cpu()-before
	read := 0
	for _, n := range counts {
		read += n
	}
	if read != backlog {
		b.Fatalf("read %d records of %d", read, backlog)
	}
	return took, used
}

func bareRead(ctx context.Context, addr string, part int) (read int, err error) {
	conn, err := kafka.DialLeader(ctx, "tcp", addr, messages, part)
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

// work lets one member of a new group work the backlog off with the default limits, and returns the times from its assignment
// to the commit of the last record. When all is fetched the member is stopped: what is held is then written without waiting
// for the end of the hold.
func work(b *testing.B, client *kafkalog.Client, acks bool) (took, used time.Duration) {
	b.Helper()
	runtime.GC()
	all, err := event.ParseFilter("#")
	if err != nil {
		b.Fatal(err)
	}
	save := pipeline.Rule{Topic: all, Action: pipeline.SaveOfflineMessages, Sink: sinkName, TTL: 7 * 24 * time.Hour}
	rules, err := pipeline.Compile(save.Expand())
	if err != nil {
		b.Fatal(err)
	}
	group := "bench." + time.Now().Format(time.RFC3339Nano)
	metrics := pipeline.NewMetrics(prometheus.NewRegistry(), []string{group}, []string{sinkName})
	member, err := client.Group(group, messages)
	if err != nil {
		b.Fatal(err)
	}
	store := &memory.Store{}
	storing := &pipeline.Storing{
		Sink: sinkName, Store: store, Backoff: pipeline.DefaultBackoff, Metrics: metrics, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	dead := &pipeline.DeadLetters{Topic: "mqtt.dead", Group: group, Component: "writer", Metrics: metrics, Log: storing.Log}
	plan := rules.ForSink(sinkName)

	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	t := &tally{stop: stop, committed: map[pipeline.TP]int64{}}
	limits := pipeline.DefaultLimits
	limits.MarkAfter = 0
	err = pipeline.Consume(ctx, b.Context(), member, storing.Log, func(ctx, work context.Context, g pipeline.Generation, tp pipeline.TP, from int64) error {
		t.begin()
		w := &pipeline.Worker{
			TP: tp, Kind: event.Messages, From: from, Group: group, Generation: counted{g, t}, Reader: counting{client.Log(group), t},
			Plan: plan, Storing: storing, Dead: dead, Limits: limits, Metrics: metrics, Log: storing.Log, Now: time.Now,
		}
		return w.Run(ctx, work)
	})
	if err != nil {
		b.Fatal(err)
	}
	took, used = t.took(b)
	stored := 0
	topics, err := store.Topics(b.Context(), all, event.Topic{}, backlog)
	if err != nil {
		b.Fatal(err)
	}
	for _, topic := range topics {
		found, err := store.Messages(b.Context(), everything(topic))
		if err != nil {
			b.Fatal(err)
		}
		stored += len(found)
	}
	if want := map[bool]int{false: backlog, true: 0}[acks]; stored != want {
		b.Fatalf("%d messages are stored, want %d", stored, want)
	}
	return took, used
}

// tally follows the work from outside, by what the worker asks of the log.
type tally struct {
	stop context.CancelFunc

	mu            sync.Mutex
	began, end    time.Time
	before, after time.Duration // processor time
	fetched       int
	committed     map[pipeline.TP]int64
}

func (t *tally) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.began.IsZero() {
		t.began, t.before = time.Now(), cpu()
	}
}

func (t *tally) fetch(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fetched += n; t.fetched == backlog {
		t.stop()
	}
}

func (t *tally) commit(at map[pipeline.TP]pipeline.Next) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for tp, next := range at {
		t.committed[tp] = next.Offset()
	}
	t.end, t.after = time.Now(), cpu()
}

func (t *tally) took(b *testing.B) (wall, processor time.Duration) {
	b.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := int64(0)
	for _, n := range t.committed {
		sum += n
	}
	if sum != backlog {
		b.Fatalf("%d records are committed of %d", sum, backlog)
	}
	return t.end.Sub(t.began), t.after - t.before
}

// counted tells the tally of commits.
type counted struct {
	pipeline.Generation
	tally *tally
}

func (c counted) Commit(ctx context.Context, at map[pipeline.TP]pipeline.Next) error {
	err := c.Generation.Commit(ctx, at)
	if err == nil {
		c.tally.commit(at)
	}
	return err
}

// counting tells the tally of fetches.
type counting struct {
	pipeline.Log
	tally *tally
}

func (c counting) Open(ctx context.Context, tp pipeline.TP, from int64) (pipeline.Stream, error) {
	s, err := c.Log.Open(ctx, tp, from)
	return countingStream{s, c.tally}, err
}

type countingStream struct {
	pipeline.Stream
	tally *tally
}

func (c countingStream) Fetch(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	recs, err := c.Stream.Fetch(ctx, limit, wait)
	c.tally.fetch(len(recs))
	return recs, err
}

func everything(topic event.Topic) sinks.Query {
	return sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now()), Limit: backlog}
}
