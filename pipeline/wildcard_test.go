package pipeline_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
	"github.com/restante/restante/sinks/sqlite"
)

// counting counts what is read of a store.
type counting struct {
	sinks.Reader

	mu    sync.Mutex
	reads map[string]int // of messages, by topic
	lists int            // pages of topics
}

func (c *counting) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	c.mu.Lock()
	c.reads[q.Topic.String()]++
	c.mu.Unlock()
	return c.Reader.Messages(ctx, q)
}

func (c *counting) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	c.mu.Lock()
	c.lists++
	c.mu.Unlock()
	return c.Reader.Topics(ctx, f, after, limit)
}

// forest are 10,000 topics, some of which each of the filters below selects; a fifth of them for the race detector, which is slow.
func forest() []string {
	var out []string
	part := 1
	if raced {
		part = 5
	}
	for i := range 40 / part {
		for j := range 100 {
			out = append(out, fmt.Sprintf("t/%d/y/%d", i, j), fmt.Sprintf("t/%d/z/%d", i, j))
		}
		out = append(out, fmt.Sprintf("t/%d/y", i), fmt.Sprintf("t/%d/y/1/2", i), fmt.Sprintf("$own/%d", i), "$own-x")
	}
	for i := range 625 / part {
		out = append(out, fmt.Sprintf("s%d/x", i), fmt.Sprintf("s%d/x/1", i), fmt.Sprintf("s%d", i))
	}
	out = append(out, "/x", "x", "t", "t/", "t//y")
	slices.Sort(out)
	return slices.Compact(out)
}

// TestAWildcardReadsWhatItMatchesOnly: of 10,000 topics exactly the stored messages of those that match come, in order of each topic,
// and no other topic is read.
func TestAWildcardReadsWhatItMatchesOnly(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) sinks.Store{
		"memory": func(*testing.T) sinks.Store { return &memory.Store{} },
		"sqlite": func(t *testing.T) sinks.Store {
			t.Helper()
			s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "messages.db")})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := open(t)
				fresh := grow(t, store)
				time.Sleep(time.Second) // each id took a µs
				for _, filter := range []string{"#", "+/x", "t/+/y/#", "t/7/#", "+/+", "$own/#", "$share/g/t/#"} {
					readWildcard(t, store, fresh, filter)
				}
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// grow stores two messages of each topic of the forest, and returns some that are in the log only.
func grow(t *testing.T, store sinks.Store) (fresh []event.Published) {
	t.Helper()
	minter := &event.Minter{Node: 1, Now: time.Now}
	var ops []sinks.Op
	for i := range 2 {
		for n, topic := range forest() {
			id := minter.Mint()
			e := event.Published{
				Head: event.Head{ID: id, Source: "restante/test", At: id.Time()}, Topic: eventtest.Topic(t, topic), QoS: 1, Payload: fmt.Append(nil, i),
			}
			if i == 1 && n%50 == 0 {
				fresh = append(fresh, e)
				continue
			}
			ops = append(ops, sinks.PutMessage{Message: sinks.Message{ID: e.ID, Topic: e.Topic, QoS: 1, Payload: e.Payload, Arrived: e.At}})
		}
	}
	for batch := range slices.Chunk(ops, 1000) {
		if err := store.Apply(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	return fresh
}

func readWildcard(t *testing.T, store sinks.Store, fresh []event.Published, filter string) {
	t.Helper()
	const page = 500
	all := func(r *pipeline.Rule) { r.Wildcards = new(true) }
	s := newStack(t, 1, append(queueRules(t, "#", all), queueRules(t, "$own/#", all)...)...)
	for _, e := range fresh {
		s.put(e)
	}
	read := &counting{Reader: store, reads: map[string]int{}}
	b := newBroker(s)
	p := s.replayer(b, nil, func(r *pipeline.Replayer) {
		r.Limits.Page, r.Limits.Slice = page, 0
		tail := r.Sinks["s"].Tail
		tail.Budget = 64 << 20
		r.Sinks["s"] = pipeline.ReplaySink{Store: read, Tail: tail}
	})
	s.subscribe("c", filter)
	time.Sleep(time.Minute)
	s.settled(t)
	if err := p.stop(); err != nil {
		t.Error(err)
	}

	f := eventtest.Filter(t, filter)
	matches := func(topic string) bool {
		return f.Group() == "" && f.Match(eventtest.Topic(t, topic)) && (!strings.HasPrefix(topic, "$") || strings.HasPrefix(topic, "$own/"))
	}
	want, got := map[string]string{}, map[string]string{}
	for _, topic := range forest() {
		if matches(topic) {
			want[topic] = "01"
		}
	}
	for _, d := range b.deliveries() {
		got[d.Topic] += d.Payload
	}
	same(t, want, got)
	for topic, n := range read.reads {
		if !matches(topic) || n > 2 { // a second look follows the first
			t.Errorf("%s: %s was read %d times", filter, topic, n)
		}
	}
	if most := 2 * (len(want)/page + 1); read.lists > most {
		t.Errorf("%s: %d pages of topics were read, want %d at most for %d topics", filter, read.lists, most, len(want))
	}
	if shared := counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", "shared")); (shared == 1) != (f.Group() != "") {
		t.Errorf("%s: %v subscribes counted as shared", filter, shared)
	}
}
