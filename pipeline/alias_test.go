package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
)

// renaming is a story whose broker tells of acks by ids of its own.
func renaming(t *testing.T, tell func(t *testing.T, s *stack, b *broker)) {
	t.Helper()
	story(t, nil, func(r *pipeline.Replayer) { r.Aliases = true }, func(t *testing.T, s *stack, b *broker) {
		b.renames = true
		tell(t, s, b)
	})
}

// ackedInLog are the messages whose acks writers and tail find in the log, sorted, with repeats.
func (s *stack) ackedInLog() (ids []event.ID) {
	for part := range s.parts {
		for _, r := range s.cluster.Records(s.messages(part)) {
			if e, err := event.Decode(event.Messages, r.Wire); err == nil {
				if a, ok := e.(event.Acked); ok {
					ids = append(ids, a.Message)
				}
			}
		}
	}
	slices.SortFunc(ids, event.ID.Compare)
	return ids
}

func TestAnAckByTheBrokersIDFindsItsMessage(t *testing.T) {
	t.Parallel()
	renaming(t, func(t *testing.T, s *stack, b *broker) {
		var want []event.ID
		for i := range 40 { // more than a window
			want = append(want, s.keep("t/1", fmt.Sprint(i)).ID)
		}
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff(numbers(40), b.payloads("c")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(want, s.ackedInLog(), sameID); diff != "" {
			t.Errorf("acks in the log (-want +got):\n%s", diff)
		}
		s.subscribe("c", "t/1")
		time.Sleep(5 * time.Second)
		if n := len(b.deliveries()); n != 40 {
			t.Errorf("%d deliveries, want no more than the 40 that were acknowledged", n)
		}
		if diff := cmp.Diff(map[string]int{"complete": 1, "empty": 1}, s.outcomes()); diff != "" {
			t.Error(diff)
		}
		s.settled(t)
	})
}

var sameID = cmp.Comparer(func(a, b event.ID) bool { return a == b })

// TestTheNextOwnerUnderstandsAcksByTheBrokersIDs: the alias stands before the commit or behind it.
func TestTheNextOwnerUnderstandsAcksByTheBrokersIDs(t *testing.T) {
	t.Parallel()
	for name, given := range map[string]time.Duration{"while the replay runs": 5 * time.Second, "after it was given up": 16 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			renaming(t, func(t *testing.T, s *stack, b *broker) {
				m := s.keep("t/1", "a")
				b.behave(never)
				s.subscribe("c", "t/1")
				time.Sleep(given)
				last := b.deliveries()[len(b.deliveries())-1]
				s.cluster.Rebalance(replayGroup)
				time.Sleep(10 * time.Second)
				b.ack(last)
				time.Sleep(10 * time.Second)
				if diff := cmp.Diff([]event.ID{m.ID}, s.ackedInLog(), sameID); diff != "" {
					t.Errorf("acks in the log (-want +got):\n%s", diff)
				}
				s.settled(t)
			})
		})
	}
}

func TestAnAckWithoutAnAliasRemovesNothing(t *testing.T) {
	t.Parallel()
	renaming(t, func(t *testing.T, s *stack, b *broker) {
		s.keep("t/1", "a")
		s.put(event.Acked{Head: s.head(), Topic: eventtest.Topic(t, "t/1"), Client: "c", BrokerID: s.head().ID, Replayed: true})
		time.Sleep(5 * time.Second)
		if got := s.ackedInLog(); len(got) > 0 {
			t.Errorf("acks in the log: %v", got)
		}
		s.counter(counterOf(t, s.metrics.Skipped.WithLabelValues("replayer", pipeline.SkipUnknownAlias)), 1, "skipped")
		s.settled(t)
	})
}

// TestAnAckIsFinishedWhenItIsInTheLog: while it cannot be sent on its record is not committed, and its replay goes on waiting.
func TestAnAckIsFinishedWhenItIsInTheLog(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	story(t, nil, func(r *pipeline.Replayer) {
		r.Aliases = true
		r.Producer = awayProducer{r.Producer, &away}
	}, func(t *testing.T, s *stack, b *broker) {
		b.renames = true
		m := s.keep("t/1", "a")
		away.Store(true)
		s.subscribe("c", "t/1")
		time.Sleep(20 * time.Second)
		if got := s.replayerAt(); got > 0 {
			t.Errorf("committed %d while an ack could not be sent on", got)
		}
		if len(s.outcomes()) > 0 {
			t.Errorf("the replay has ended: %v", s.outcomes())
		}
		away.Store(false)
		time.Sleep(20 * time.Second)
		if diff := cmp.Diff([]event.ID{m.ID}, s.ackedInLog(), sameID); diff != "" {
			t.Errorf("acks in the log (-want +got):\n%s", diff)
		}
		s.settled(t)
	})
}

// awayProducer takes nothing while away.
type awayProducer struct {
	pipeline.Producer
	away *atomic.Bool
}

func (p awayProducer) Append(ctx context.Context, r pipeline.Outgoing) (pipeline.Receipt, error) {
	if p.away.Load() {
		return nil, errors.New("away")
	}
	return p.Producer.Append(ctx, r)
}
