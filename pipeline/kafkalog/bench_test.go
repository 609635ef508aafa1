package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

func quiet(cfg *Config) { cfg.Log = slog.New(slog.DiscardHandler) }

func benchRecord(i int) pipeline.Outgoing {
	w := event.Wire{Key: []byte(fmt.Sprint("t/", i%100)), Value: make([]byte, 256), Time: time.Now()}
	for _, h := range []string{"ce_specversion", "ce_type", "ce_id", "ce_source", "ce_qos", "ce_sender"} {
		w.Headers = append(w.Headers, event.Header{Key: h, Value: []byte("a value")})
	}
	return pipeline.Outgoing{Topic: topic, Wire: w}
}

// BenchmarkProduce reports records per second and their ratio to kafka-go's own Writer with acks=all.
func BenchmarkProduce(b *testing.B) {
	const n = 20_000
	client := newCluster(b).open(b, quiet)
	out := make([]pipeline.Outgoing, n)
	msgs := make([]kafka.Message, n)
	for i := range out {
		out[i] = benchRecord(i)
		msgs[i] = kafka.Message{Key: out[i].Key, Value: out[i].Value}
		for _, h := range out[i].Headers {
			msgs[i].Headers = append(msgs[i].Headers, kafka.Header{Key: h.Key, Value: h.Value})
		}
	}
	var ours, bare time.Duration
	b.ReportAllocs()
	for b.Loop() {
		begin := time.Now()
		p := client.Producer()
		for _, o := range out {
			if _, err := p.Append(b.Context(), o); err != nil {
				b.Fatal(err)
			}
		}
		if err := p.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(begin)
		b.StopTimer()
		begin = time.Now()
		w := &kafka.Writer{
			Addr: client.asking.Addr, Topic: topic, Balancer: kafka.Murmur2Balancer{}, RequiredAcks: kafka.RequireAll,
			BatchSize: 1000, BatchBytes: 1_000_000, BatchTimeout: 5 * time.Millisecond, Transport: client.transport,
		}
		for chunk := range slices.Chunk(msgs, 3000) {
			if err := w.WriteMessages(b.Context(), chunk...); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(begin)
		b.StartTimer()
	}
	b.ReportMetric(float64(n)*float64(b.N)/ours.Seconds(), "records/s")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "of-writer")
}

// BenchmarkConsume reports records per second and their ratio to a loop over kafka-go's ReadBatch.
func BenchmarkConsume(b *testing.B) {
	const n = 50_000
	c := newCluster(b, kfake.SeedTopics(1, topic))
	client := c.open(b, quiet, func(cfg *Config) { cfg.Partitions = map[string]int{topic: 1} })
	p := client.Producer()
	for i := range n {
		if _, err := p.Append(b.Context(), benchRecord(i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	var ours, bare time.Duration
	b.ReportAllocs()
	for b.Loop() {
		begin := time.Now()
		s, err := client.Log("bench").Open(b.Context(), tp0, 0)
		if err != nil {
			b.Fatal(err)
		}
		for got := 0; got < n; {
			rs, err := s.Fetch(b.Context(), 1000, time.Second)
			if err != nil {
				b.Fatal(err)
			}
			got += len(rs)
		}
		_ = s.Close()
		ours += time.Since(begin)
		b.StopTimer()
		begin = time.Now()
		bareRead(b, c.ListenAddrs()[0], n)
		bare += time.Since(begin)
		b.StartTimer()
	}
	b.ReportMetric(float64(n)*float64(b.N)/ours.Seconds(), "records/s")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "of-ReadBatch")
}

func bareRead(b *testing.B, addr string, n int) {
	b.Helper()
	conn, err := kafka.DialLeader(b.Context(), "tcp", addr, topic, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for got := 0; got < n; {
		batch := conn.ReadBatchWith(kafka.ReadBatchConfig{MinBytes: 1, MaxBytes: 1 << 20, MaxWait: time.Second})
		for {
			if _, err := batch.ReadMessage(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				b.Fatal(err)
			}
			got++
		}
		if err := batch.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLatency is what a replay round and a publish wait for.
func BenchmarkLatency(b *testing.B) {
	client := newCluster(b, kfake.SeedTopics(12, topic)).open(b, quiet, func(cfg *Config) { cfg.Partitions[topic] = 12 })
	p := client.Producer()
	defer func() { _ = p.Close(context.WithoutCancel(b.Context())) }()
	for i := range 1000 {
		r, err := p.Append(b.Context(), benchRecord(i))
		if err == nil && i > 900 {
			err = pipeline.Wait(b.Context(), r)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	l := client.Log("bench")
	spans := func(parts ...int) func() error {
		return func() error { _, err := l.Spans(b.Context(), topic, parts...); return err }
	}
	twelve := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	end, err := l.Spans(b.Context(), topic, twelve...)
	if err != nil {
		b.Fatal(err)
	}
	tail := func() error {
		part := partition([]byte("t/1"), 12)
		s, err := l.Open(b.Context(), pipeline.TP{Topic: topic, Part: part}, max(end[part].End-20, 0))
		if err == nil {
			_, err = s.Fetch(b.Context(), 100, time.Second)
		}
		return errors.Join(err, s.Close())
	}
	committed := func() error { _, err := l.Committed(b.Context(), "g", topic, 0); return err }
	for _, bench := range []struct {
		name string
		call func() error
	}{
		{"Spans/1", spans(0)},
		{"Spans/12", spans(twelve...)},
		{"Committed", committed},
		{"Fetch", tail},
		{"Round", func() error { return errors.Join(spans(0)(), committed(), tail()) }},
		{"Append", func() error {
			r, err := p.Append(b.Context(), benchRecord(1))
			if err != nil {
				return err
			}
			return pipeline.Wait(b.Context(), r)
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var all []time.Duration
			for b.Loop() {
				begin := time.Now()
				if err := bench.call(); err != nil {
					b.Fatal(err)
				}
				all = append(all, time.Since(begin))
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
		})
	}
}
