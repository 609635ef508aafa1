package spool

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
)

// benchKafka is a client of an embedded Kafka that has our topics.
func benchKafka(b *testing.B) *kafkalog.Client {
	b.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ListenFn(func(network, _ string) (net.Listener, error) {
		return (&net.ListenConfig{}).Listen(context.Background(), network, "127.0.0.1:0")
	}))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	cfg := kafkalog.Config{
		Brokers: c.ListenAddrs(), ClientID: "bench", Log: slog.New(slog.DiscardHandler),
		Partitions: map[string]int{topics.Messages: 12, topics.Sessions: 4, topics.Dead: 1},
	}
	client, err := kafkalog.Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.Close)
	var specs []kafkalog.TopicSpec
	for name, n := range cfg.Partitions {
		specs = append(specs, kafkalog.TopicSpec{Name: name, Partitions: n, Replication: 1, Config: map[string]string{}})
	}
	if _, err := client.Migrate(b.Context(), specs, false); err != nil {
		b.Fatal(err)
	}
	return client
}

// benchIngest takes n publishes, of which so many may be on their way, and returns how long that takes.
func benchIngest(b *testing.B, p pipeline.Producer, n, window int) time.Duration {
	b.Helper()
	filter := eventtest.Filter(b, "#")
	rules, err := pipeline.Compile([]pipeline.Rule{{Hook: pipeline.MessagePublish, Topic: filter, Action: pipeline.OnMessagePublish, Sink: "s"}}, "")
	if err != nil {
		b.Fatal(err)
	}
	i := pipeline.NewIngest(pipeline.Ingest{
		Producer: p, Topics: topics, Rules: rules, Minter: &event.Minter{Now: time.Now}, MaxPayload: 1 << 20, Log: slog.New(slog.DiscardHandler),
		Metrics: pipeline.NewMetrics(prometheus.NewRegistry(), nil, nil), Now: time.Now,
	})
	var names []event.Topic
	for k := range 100 {
		names = append(names, eventtest.Topic(b, fmt.Sprint("t/", k)))
	}
	payload := make([]byte, 256)
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- i.Run(ctx, b.Context()) }()
	begin := time.Now()
	receipts := make(chan pipeline.Receipt, window)
	go func() {
		defer close(receipts)
		for k := range n {
			r, err := i.Accept(b.Context(), event.Published{Topic: names[k%len(names)], QoS: 1, Sender: "pub", Payload: payload})
			if err != nil {
				b.Error(err)
				return
			}
			receipts <- r
		}
	}()
	for r := range receipts {
		if err := pipeline.Wait(b.Context(), r); err != nil {
			b.Error(err)
		}
	}
	took := time.Since(begin)
	stop()
	if err := <-ended; err != nil {
		b.Error(err)
	}
	return took
}

// BenchmarkIdleSpool reports events per second through ingest with a spool that has nothing to do, and their ratio to those without
// one; the same for events of which only one is on its way.
func BenchmarkIdleSpool(b *testing.B) {
	client := benchKafka(b)
	for name, c := range map[string]struct{ n, window int }{"full": {40_000, 4096}, "one by one": {2_000, 0}} {
		b.Run(name, func(b *testing.B) {
			run := func(spooled bool) time.Duration {
				inner := client.Producer()
				if !spooled {
					d := benchIngest(b, inner, c.n, c.window)
					if err := inner.Close(b.Context()); err != nil {
						b.Error(err)
					}
					return d
				}
				p, err := Open(Config{
					Dir: b.TempDir(), Size: 1 << 30, After: after, Inner: inner, Topics: topics, Now: time.Now, Metrics: NewMetrics(nil),
					Log: slog.New(slog.DiscardHandler),
				})
				if err != nil {
					b.Fatal(err)
				}
				d := benchIngest(b, p, c.n, c.window)
				if !p.passes() {
					b.Error("the spool was not idle")
				}
				if err := p.Close(b.Context()); err != nil {
					b.Error(err)
				}
				return d
			}
			run(false)
			var with, without time.Duration
			for b.Loop() {
				with += run(true)
				without += run(false)
				without += run(false)
				with += run(true)
			}
			b.ReportMetric(float64(2*c.n*b.N)/with.Seconds(), "events/s")
			b.ReportMetric(without.Seconds()/with.Seconds(), "of-without")
		})
	}
}

// BenchmarkSpooling reports how many records per second go to a real disk, each acknowledged after its sync.
func BenchmarkSpooling(b *testing.B) {
	const n = 50_000
	var took time.Duration
	for b.Loop() {
		k := newKafka(0)
		k.set(true)
		p, err := Open(Config{
			Dir: b.TempDir(), Size: 1 << 30, After: after, Inner: k, Topics: topics, Ready: make(chan struct{}), Now: time.Now,
			Metrics: NewMetrics(nil), Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			b.Fatal(err)
		}
		o := message("t/1", string(make([]byte, 256)))
		begin := time.Now()
		var last pipeline.Receipt
		for range n {
			if last, err = p.Append(b.Context(), o); err != nil {
				b.Fatal(err)
			}
		}
		if err := pipeline.Wait(b.Context(), last); err != nil {
			b.Fatal(err)
		}
		took += time.Since(begin)
		if err := p.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n*b.N)/took.Seconds(), "records/s")
}
