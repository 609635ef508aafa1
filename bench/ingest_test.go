package bench

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// BenchmarkIngest compares the way of events through ingest into a real Kafka, each with its receipt, with a bare loop that
// produces the same records, which it has encoded and parted already, in large batches for all partitions beside each other.
// Both wait for acks=all. RESTANTE_BENCH_EVENTS is how many events a round takes (100000).
func BenchmarkIngest(b *testing.B) {
	n := fromEnv(b, "RESTANTE_BENCH_EVENTS", 100_000)
	p := pairs{n: n}
	events := messagesFor(b, n)
	for b.Loop() {
		p.run(func() (ours, bare func() cost, done func()) {
			k := newBacklog(b, nil)
			twin := newBacklog(b, nil)
			batches := batchesFor(b, events)
			return func() cost { return k.ingest(b, events) }, func() cost { return twin.produce(b, batches) }, func() {
				for _, of := range []*backlog{k, twin} {
					if got := of.length(b); got != n {
						b.Fatalf("the topic has %d records, want %d", got, n)
					}
					of.client.Close()
				}
			}
		})
	}
	p.report(b, "events", 0.5, 0)
}

// ingest takes the events over several connections, and waits for the receipts beside.
func (k *backlog) ingest(b *testing.B, events []event.Event) cost {
	b.Helper()
	const connections, unacked = 4, 4096 // of a connection
	log := slog.New(slog.DiscardHandler)
	producer := k.client.Producer()
	i := pipeline.NewIngest(pipeline.Ingest{
		Producer: producer, Topics: pipeline.Topics{Messages: k.topic}, Rules: saveAll(b), Minter: &event.Minter{Now: time.Now}, MaxPayload: 1 << 20,
		Metrics: pipeline.NewMetrics(prometheus.NewRegistry(), nil, []string{sinkName}), Log: log, Now: time.Now,
	})
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	var running errgroup.Group
	running.Go(func() error { return i.Run(ctx, b.Context()) })
	c := measure(func() {
		var all errgroup.Group
		for part := range slices.Chunk(events, (len(events)+connections-1)/connections) {
			receipts := make(chan pipeline.Receipt, unacked)
			all.Go(func() error {
				defer close(receipts)
				for _, e := range part {
					r, err := i.Accept(b.Context(), e)
					if err != nil {
						return err
					}
					receipts <- r
				}
				return nil
			})
			all.Go(func() (err error) {
				for r := range receipts { // to the end, so that the other is never held up
					if e := pipeline.Wait(b.Context(), r); e != nil {
						err = e
					}
				}
				return err
			})
		}
		if err := all.Wait(); err != nil {
			b.Fatal(err)
		}
	})
	stop()
	if err := running.Wait(); err != nil {
		b.Fatal(err)
	}
	if err := producer.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	return c
}

// batchesFor are the records of the events, by partition.
func batchesFor(b *testing.B, events []event.Event) [partitions][][]kafka.Record {
	b.Helper()
	const records = 1000 // in a batch: most of the megabyte that it may have
	var all [partitions][][]kafka.Record
	var byPart [partitions][]kafka.Record
	numbers := make([]int, partitions)
	for i := range numbers {
		numbers[i] = i
	}
	for _, e := range events {
		now := time.Now().Truncate(time.Millisecond)
		w := event.Encode(e, e.Routes()[0], now)
		part := kafka.Murmur2Balancer{}.Balance(kafka.Message{Key: w.Key}, numbers...)
		byPart[part] = append(byPart[part], kafka.Record{
			Time: w.Time, Key: kafka.NewBytes(w.Key), Value: kafka.NewBytes(w.Value), Headers: headersOf(w, nil),
		})
	}
	for part, recs := range byPart {
		all[part] = slices.Collect(slices.Chunk(recs, records))
	}
	return all
}

// produce produces batches with kafka-go, one at a time for each partition.
func (k *backlog) produce(b *testing.B, batches [partitions][][]kafka.Record) cost {
	b.Helper()
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(k.brokers...), Transport: transport, Timeout: patience}
	return measure(func() {
		var all errgroup.Group
		for part, of := range batches {
			all.Go(func() error {
				for _, recs := range of {
					res, err := client.Produce(b.Context(), &kafka.ProduceRequest{
						Topic: k.topic, Partition: part, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(recs...),
					})
					if err == nil {
						err = res.Error
					}
					if err != nil {
						return fmt.Errorf("produce to partition %d: %w", part, err)
					}
				}
				return nil
			})
		}
		if err := all.Wait(); err != nil {
			b.Fatal(err)
		}
	})
}

// length is how many records the topic has.
func (k *backlog) length(b *testing.B) int {
	b.Helper()
	n := 0
	for part := range partitions {
		spans, err := k.client.Log("").Spans(b.Context(), k.topic, part)
		if err != nil {
			b.Fatal(err)
		}
		n += int(spans[part].End)
	}
	return n
}
