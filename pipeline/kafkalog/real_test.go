package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/pipeline"
)

// real is a topic of three partitions on a real Kafka, and a group.
type real struct {
	addr, topic, group string
}

func onRealKafka(t *testing.T) real {
	t.Helper()
	name := stack.Unique(t)
	r := real{addr: stack.Shared(t, stack.Kafka), topic: name + ".messages", group: name + ".g"}
	spec := TopicSpec{Name: r.topic, Partitions: 3, Replication: 1, Config: map[string]string{"retention.ms": "259200000"}}
	c := r.open(t)
	if made, err := c.Migrate(within(t, time.Minute), []TopicSpec{spec}, false); err != nil || len(made) != 1 {
		t.Fatalf("made %v: %v", made, err)
	}
	if again, err := c.Migrate(within(t, time.Minute), []TopicSpec{spec}, false); err != nil || len(again) != 0 {
		t.Errorf("made again %v: %v", again, err)
	}
	for { // the metadata may lag behind the creation
		err := c.Verify(within(t, time.Minute), []TopicSpec{spec})
		if err == nil {
			return r
		}
		if time.Sleep(100 * time.Millisecond); t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

func (r real) open(t *testing.T) *Client {
	t.Helper()
	client, err := Open(Config{
		Brokers: []string{r.addr}, ClientID: "test", Partitions: map[string]int{r.topic: 3},
		SessionTimeout: 6 * time.Second, RebalanceTimeout: 6 * time.Second,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// feed appends records of keys that spread, and waits for all.
func (r real) feed(t *testing.T, c *Client, n int) {
	t.Helper()
	p := c.Producer()
	for i := range n {
		o := out(fmt.Sprint("k", i%30), fmt.Sprint("value ", i))
		o.Topic = r.topic
		if _, err := p.Append(within(t, time.Minute), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func TestRealKafkaGivesBackWhatItTookInOrder(t *testing.T) {
	t.Parallel()
	r := onRealKafka(t)
	c := r.open(t)
	r.feed(t, c, 3000)
	l := c.Log(r.group)
	spans, err := l.Spans(soon(t), r.topic, 0, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	last, total := map[string]int{}, 0
	for p := range 3 {
		s, err := l.Open(soon(t), pipeline.TP{Topic: r.topic, Part: p}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for s.Position() < spans[p].End {
			recs, err := s.Fetch(within(t, time.Minute), 500, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for _, rec := range recs {
				var n int
				if _, err := fmt.Sscanf(string(rec.Value), "value %d", &n); err != nil || string(rec.Key) != fmt.Sprint("k", n%30) {
					t.Fatalf("offset %d: key %q, value %q", rec.Offset, rec.Key, rec.Value)
				}
				if before, ok := last[string(rec.Key)]; ok && n <= before {
					t.Errorf("%d of key %s after %d", n, rec.Key, before)
				}
				last[string(rec.Key)] = n
				total++
			}
		}
		_ = s.Close()
	}
	if total != 3000 {
		t.Errorf("%d records, want 3000", total)
	}
	at, err := l.OffsetAt(soon(t), pipeline.TP{Topic: r.topic, Part: 0}, time.Now())
	if err != nil || at != spans[0].End {
		t.Errorf("offset at now is %d: %v; want the end, %d", at, err, spans[0].End)
	}
}

// A generation that has ended may still commit what it had in hand while its members are known; one that was replaced may not.
func TestRealKafkaHandsOverWithNothingLost(t *testing.T) {
	t.Parallel()
	r := onRealKafka(t)
	feeder := r.open(t)
	b := &book{read: map[pipeline.TP]map[int64]int{}, commit: map[pipeline.TP]int64{}}
	for p := range 3 {
		b.read[pipeline.TP{Topic: r.topic, Part: p}] = map[int64]int{}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	join := func() context.CancelFunc {
		m := &member{t: t, client: r.open(t), group: r.group, topic: r.topic, book: b, slow: 50 * time.Millisecond}
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { m.run(ctx) })
		return cancel
	}
	l := feeder.Log(r.group)
	await := func() {
		t.Helper()
		for ctx := within(t, time.Minute); ; time.Sleep(20 * time.Millisecond) {
			spans, err := l.Spans(ctx, r.topic, 0, 1, 2)
			if err != nil {
				t.Fatal(err)
			}
			at, err := l.Committed(ctx, r.group, r.topic, 0, 1, 2)
			if err != nil {
				t.Fatal(err)
			}
			behind := 0
			for p := range 3 {
				if at[p] != spans[p].End {
					behind++
				}
			}
			if behind == 0 {
				return
			}
		}
	}
	first := join()
	r.feed(t, feeder, 300)
	await()
	second := join()
	defer second()
	r.feed(t, feeder, 600)
	await()
	first()
	r.feed(t, feeder, 300)
	await()
	b.mu.Lock()
	defer b.mu.Unlock()
	for tp, offsets := range b.read {
		for o := range b.commit[tp] {
			if offsets[o] == 0 {
				t.Errorf("%v: offset %d was committed and never read", tp, o)
			}
		}
	}
}

func TestRealKafkaRefusesAGenerationThatWasReplaced(t *testing.T) {
	t.Parallel()
	r := onRealKafka(t)
	client := r.open(t)
	r.feed(t, client, 30)
	group := func(c *Client) pipeline.Group {
		g, err := c.Group(r.group, r.topic)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Close() })
		return g
	}
	old, err := group(client).Next(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	tp := pipeline.TP{Topic: r.topic, Part: 0}
	if diff := cmp.Diff(int64(-1), old.Assigned()[tp]); diff != "" || len(old.Assigned()) != 3 {
		t.Errorf("assigned %v, want three partitions without a commit", old.Assigned())
	}
	if err := old.Commit(soon(t), before(tp, 1)); err != nil {
		t.Fatal(err)
	}
	if n, err := client.EvictMembers(within(t, time.Minute), r.group); err != nil || n != 1 {
		t.Fatalf("evicted %d members: %v", n, err)
	}
	if err := old.Commit(soon(t), before(tp, 2)); !errors.Is(err, pipeline.ErrFenced) {
		t.Errorf("the evicted member's commit: %v, want %v", err, pipeline.ErrFenced)
	}
	fresh, err := group(r.open(t)).Next(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := fresh.Assigned()[tp]; ok && got != 1 {
		t.Errorf("the next owner begins at %d, want 1", got)
	}
}
