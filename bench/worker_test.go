package bench

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

// workRecords is how many records wait for the workers.
const workRecords = 120_000

// BenchmarkWorker compares the way of records from Kafka through a consumer group and the workers into the plainest store with
// a bare loop that reads and decodes them. Kafka runs in this process and costs both the same.
func BenchmarkWorker(b *testing.B) {
	b.Run("publishes", func(b *testing.B) { benchWorker(b, false) })
	b.Run("publishes and acks", func(b *testing.B) { benchWorker(b, true) })
}

func benchWorker(b *testing.B, acks bool) {
	b.Helper()
	const topic = "mqtt.messages"
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic))
	if err != nil {
		b.Fatal(err)
	}
	defer cluster.Close()
	k := &backlog{client: openKafka(b, cluster.ListenAddrs(), topic), brokers: cluster.ListenAddrs(), topic: topic}
	defer k.client.Close()
	k.against(b, acks)
}

// BenchmarkElided is the same on a real Kafka, for publishes that a client acks while the writer holds them: nothing is
// written. What is compared is the time on the wall, and the processor time of this process.
func BenchmarkElided(b *testing.B) {
	brokers := brokersOf(b)
	topic := stack.Unique(b)
	k := &backlog{client: openKafka(b, brokers, topic), brokers: brokers, topic: topic}
	defer k.client.Close()
	makeTopic(b, k.client, topic)
	k.against(b, true)
}

// against fills the backlog and compares the workers with the bare loop.
func (k *backlog) against(b *testing.B, acks bool) {
	b.Helper()
	k.append(b, publishes(b, acks))
	want := map[bool]int{false: k.records, true: 0}[acks]
	p := pairs{n: k.records}
	ours := func() cost {
		store := &memory.Store{}
		c := k.work(b, store, pipeline.DefaultLimits)
		if got := stored(b, store); got != want {
			b.Fatalf("%d messages are stored, want %d", got, want)
		}
		return c
	}
	for b.Loop() {
		p.run(func() (func() cost, func() cost, func()) {
			return ours, func() cost { return k.bareLoop(b) }, func() {}
		})
	}
	p.report(b, "records", 0.6, 0)
}

// publishes are those that wait for the workers, each with the ack of a client behind it where acks is set.
func publishes(b *testing.B, acks bool) []event.Event {
	b.Helper()
	minter := event.Minter{Now: time.Now}
	events := make([]event.Event, 0, workRecords)
	for i := 0; len(events) < workRecords; i++ {
		now := time.Now().Truncate(time.Millisecond)
		e := publish(b, &minter, i, now)
		events = append(events, e)
		if acks {
			events = append(events, event.Acked{
				Head:  event.Head{ID: minter.Mint(), Source: e.Source, At: now},
				Topic: e.Topic, Client: "device-4712", Message: e.ID,
			})
		}
	}
	return events
}

// stored is how many messages a store has.
func stored(b *testing.B, store sinks.Reader) int {
	b.Helper()
	const most = 1 << 20
	topics, err := store.Topics(b.Context(), eventtest.Filter(b, "#"), event.Topic{}, most)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for _, topic := range topics {
		found, err := store.Messages(b.Context(), sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now()), Limit: most})
		if err != nil {
			b.Fatal(err)
		}
		n += len(found)
	}
	return n
}
