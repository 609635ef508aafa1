package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// counted counts the reads of messages.
type counted struct {
	sinks.Reader
	mu    sync.Mutex
	reads int
}

func (c *counted) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	c.mu.Lock()
	c.reads++
	c.mu.Unlock()
	return c.Reader.Messages(ctx, q)
}

// TestASliceGoesOnAtItsTopic, so that many topics are not read again for each slice: once for their messages, and once more to see
// that nothing is left. What came for the topics before is found as well.
func TestASliceGoesOnAtItsTopic(t *testing.T) {
	t.Parallel()
	const topicCount, late = 1000, 10
	var c *counted
	change := func(r *pipeline.Replayer) {
		r.Limits.Slice = 50
		sink := r.Sinks["s"]
		c = &counted{Reader: sink.Store}
		sink.Store = c
		r.Sinks["s"] = sink
	}
	story(t, nil, change, func(t *testing.T, s *stack, b *broker) {
		var want []string
		for i := range topicCount {
			s.keep(fmt.Sprintf("t/%03d", i), fmt.Sprint(i))
			want = append(want, fmt.Sprint(i))
		}
		var slow []event.Published // of before the subscribe, in the log behind it
		for i := range late {
			slow = append(slow, event.Published{
				Head: s.head(), Topic: eventtest.Topic(t, fmt.Sprintf("t/%03d", i)), Sender: "pub", QoS: 1, Payload: fmt.Append(nil, "late ", i),
			})
			want = append(want, fmt.Sprint("late ", i))
		}
		b.behave(func(d delivery) time.Duration {
			if d.Payload == fmt.Sprint(topicCount/2) { // the first topics are done
				for _, e := range slow {
					s.put(e)
				}
			}
			return 10 * time.Millisecond
		})
		s.subscribe("c", "t/+")
		time.Sleep(5 * time.Minute)
		got := b.payloads("c")
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if n := s.outcomes()["continued"]; n < topicCount/50-1 {
			t.Errorf("%d slices", n)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if most := 5 * topicCount; c.reads > most { // 64 topics are read ahead of each slice's end
			t.Errorf("%d reads of %d topics in slices of 50", c.reads, topicCount)
		}
		t.Logf("%d reads", c.reads)
		s.settled(t)
	})
}

// TestASliceThatFindsNothingLooksAtTheTopicsBeforeIt: what was left is gone meanwhile, and something else came for the first topic.
func TestASliceThatFindsNothingLooksAtTheTopicsBeforeIt(t *testing.T) {
	t.Parallel()
	const abreast = 64 // topics that are read at a time
	change := func(r *pipeline.Replayer) { r.Limits.Slice, r.Limits.Settle = abreast, 0 }
	story(t, nil, change, func(t *testing.T, s *stack, b *broker) {
		var last event.Published
		for i := range abreast + 1 {
			last = s.keep(fmt.Sprintf("t/%03d", i), fmt.Sprint(i))
		}
		late := event.Published{Head: s.head(), Topic: eventtest.Topic(t, "t/000"), Sender: "pub", QoS: 1, Payload: []byte("late")}
		b.behave(func(d delivery) time.Duration {
			if d.Payload == fmt.Sprint(abreast-1) { // the last of the slice
				s.ack("other", last)
				s.put(late)
			}
			return 10 * time.Millisecond
		})
		s.subscribe("c", "t/+")
		time.Sleep(time.Minute)
		if diff := cmp.Diff(append(numbers(abreast), "late"), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]int{"complete": 1, "continued": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		if n, sum := observed(t, s.metrics.ReplayBacklog); n != 1 || sum != abreast+1 {
			t.Errorf("%d replays had %v messages, want 1 with those of both slices", n, sum)
		}
		s.settled(t)
	})
}
