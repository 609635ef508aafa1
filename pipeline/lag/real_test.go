package lag_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/pipeline/lag"
)

// TestLagOnARealKafka: a group that never was is behind by everything; one that has committed by the rest, also when all its members
// have gone; what was added to a topic by somebody else is seen.
func TestLagOnARealKafka(t *testing.T) {
	t.Parallel()
	const total, stays = 600, 100
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	name := stack.Unique(t)
	topic, dead := name+".messages", name+".dead"
	partitions := map[string]int{topic: 3, dead: 1}
	client, err := kafkalog.Open(kafkalog.Config{
		Brokers: []string{stack.Shared(t, stack.Kafka)}, ClientID: "test", Partitions: partitions,
		SessionTimeout: 6 * time.Second, RebalanceTimeout: 6 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	specs := []kafkalog.TopicSpec{{Name: topic, Partitions: 5, Replication: 1}, {Name: dead, Partitions: 1, Replication: 1}}
	if _, err := client.Migrate(ctx, specs, false); err != nil {
		t.Fatal(err)
	}

	groups := []lag.Group{{Name: name + ".g", Topics: []string{topic}}}
	w := world{T: t, reg: prometheus.NewRegistry()}
	now := time.Now().Truncate(time.Second) // the log keeps milliseconds
	w.o = lag.New(&lag.Observer{
		Reader: client.Peek("test.lag"), Topics: client, Groups: groups, Partitions: partitions, Dead: dead, Every: time.Second,
		Metrics: lag.NewMetrics(w.reg, groups, partitions, nil), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: func() time.Time { return now },
	})
	awaited := func(what string, holds func() bool) {
		t.Helper()
		for !holds() {
			if ctx.Err() != nil {
				t.Fatalf("%s: it does not come; records %v, seconds %v", what, w.shows("restante_kafka_consumer_lag_records", "partition"),
					w.shows("restante_kafka_consumer_lag_seconds", "partition"))
			}
			w.o.Look(ctx)
			time.Sleep(50 * time.Millisecond)
		}
	}
	awaited("the topics", func() bool { return w.shows("restante_kafka_topic_partitions", "topic")[topic] == 5 })

	// The records of each partition are a second apart, the last an hour old.
	producer := client.Producer()
	ends := map[string]float64{}
	for i := range total {
		key := fmt.Sprint("k", i%30)
		part := fmt.Sprint(kafkalog.Partition(key, 3))
		ends[part]++
		at := now.Add(-2 * time.Hour).Add(time.Duration(ends[part]) * time.Second)
		o := pipeline.Outgoing{Topic: topic, Wire: event.Wire{Key: []byte(key), Value: []byte("v"), Time: at}}
		if _, err := producer.Append(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := producer.Close(ctx); err != nil {
		t.Fatal(err)
	}
	w.o.Look(ctx)
	first := (2*time.Hour - time.Second).Seconds()
	w.lags(ends, map[string]float64{"0": first, "1": first, "2": first})

	commitAllBut(ctx, t, client, groups[0], stays)
	rest, seconds := maps.Clone(ends), map[string]float64{}
	for part, n := range ends {
		rest[part] = stays
		seconds[part] = (2*time.Hour - time.Duration(n-stays+1)*time.Second).Seconds()
	}
	w.o.Look(ctx)
	w.lags(rest, seconds)
}

// commitAllBut is a member that commits all but the last n records of each partition, and leaves.
func commitAllBut(ctx context.Context, t *testing.T, client *kafkalog.Client, g lag.Group, n int) {
	t.Helper()
	group, err := client.Group(g.Name, g.Topics...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	}()
	gen, err := group.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	reader := client.Log(g.Name)
	for tp := range gen.Assigned() {
		spans, err := reader.Spans(ctx, tp.Topic, tp.Part)
		if err != nil {
			t.Fatal(err)
		}
		last := pipeline.Record{TP: tp, Offset: spans[tp.Part].End - int64(n)}
		if err := gen.Commit(ctx, map[pipeline.TP]pipeline.Next{tp: pipeline.Before(last)}); err != nil {
			t.Fatal(err)
		}
	}
}
