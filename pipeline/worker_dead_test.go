package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// unknownMajor is a record of a newer schema.
func unknownMajor(topic, key string) pipeline.Outgoing {
	return pipeline.Outgoing{Topic: topic, Wire: event.Wire{
		Key: []byte(key), Value: []byte{}, Headers: []event.Header{{Key: "ce_dataschema", Value: []byte("urn:restante:event:2")}}, Time: time.Now(),
	}}
}

func TestAnUnknownSchemaMajorStopsThePartition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		w := s.writer(testLimits, nil)
		time.Sleep(time.Second)
		s.publish("t/1", "a")
		s.cluster.Put(unknownMajor(topics.Messages, "t/1"))
		s.publish("t/1", "b")
		time.Sleep(time.Millisecond)
		stopped := s.metrics.Stopped.WithLabelValues(writerGroup, "schema_major")
		if s.writerAt(0) != 1 || len(s.store.payloads(t, "t/1")) != 1 {
			t.Errorf("committed %d, stored %v; want what lies before it, at once", s.writerAt(0), s.store.payloads(t, "t/1"))
		}
		time.Sleep(time.Hour)
		s.counter(testutil.ToFloat64(stopped), 1, "stopped")
		if s.writerAt(0) != 1 || len(s.dead()) > 0 {
			t.Errorf("committed %d, %d dead letters; want it to stand still", s.writerAt(0), len(s.dead()))
		}
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		s.counter(testutil.ToFloat64(stopped), 0, "stopped at the end")
	})
}

func TestAGapStopsThePartition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		for i := range 10 {
			s.publish("t/1", fmt.Sprint(i))
		}
		s.cluster.Reset(writerGroup, s.messages(0), 2)
		s.cluster.Retain(s.messages(0), 5)
		w := s.writer(testLimits, nil)
		time.Sleep(time.Hour)
		s.counter(testutil.ToFloat64(s.metrics.Stopped.WithLabelValues(writerGroup, "gap")), 1, "stopped")
		if s.writerAt(0) != 2 || len(s.store.asked()) > 0 {
			t.Errorf("committed %d, %d batches written", s.writerAt(0), len(s.store.asked()))
		}
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAMalformedRecordIsWholeInTheDeadLettersBeforeTheCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.writer(testLimits, nil)
		s.publish("t/1", "a")
		s.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{
			Key: []byte("k"), Value: []byte("v"), Headers: []event.Header{{Key: "x", Value: []byte("y")}}, Time: time.UnixMilli(1_234),
		}})
		s.publish("t/1", "b")
		time.Sleep(2 * time.Second)
		if s.writerAt(0) != 3 || len(s.dead()) != 1 {
			t.Fatalf("committed %d with %d dead letters, want 3 with 1", s.writerAt(0), len(s.dead()))
		}
		d := s.dead()[0]
		if string(d.Key) != "k" || string(d.Value) != "v" {
			t.Errorf("key %q, value %q", d.Key, d.Value)
		}
		if age := time.Since(d.Time); age < 0 || age > 2*time.Second {
			t.Errorf("the letter is stamped %v before now, want the time of its burial", age)
		}
		got := map[string]string{}
		for _, h := range d.Headers {
			got[h.Key] = string(h.Value)
		}
		want := map[string]string{
			"x": "y", pipeline.HeaderDeadReason: "malformed", pipeline.HeaderDeadTopic: topics.Messages, pipeline.HeaderDeadPartition: "0",
			pipeline.HeaderDeadOffset: "1", pipeline.HeaderDeadBy: writerGroup, pipeline.HeaderDeadTime: "1234",
			pipeline.HeaderDeadError: `malformed event: ce_specversion: "", want "1.0"`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		s.counter(testutil.ToFloat64(s.metrics.DeadLetters.WithLabelValues("writer", "malformed")), 1, "dead letters")
	})
}

func TestPoisonIsWholeInTheDeadLettersAndTheRestIsStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		s.store.set(func(_ context.Context, ops []sinks.Op, apply func() error) error {
			if holds(ops, "bad") {
				return fault.Poison(errors.New("too long"))
			}
			return apply()
		})
		s.writer(testLimits, nil)
		for _, p := range []string{"a", "bad", "b", "c"} {
			s.publish("t/1", p)
		}
		time.Sleep(2 * time.Second)
		if diff := cmp.Diff([]string{"a", "b", "c"}, s.store.payloads(t, "t/1")); diff != "" || s.writerAt(0) != 4 {
			t.Errorf("committed %d; stored:\n%s", s.writerAt(0), diff)
		}
		if d := s.dead(); len(d) != 1 || string(d[0].Value) != "bad" || header(d[0], pipeline.HeaderDeadReason) != "sink_rejected" {
			t.Errorf("dead letters: %v", d)
		}
	})
}

func TestAWorkerWaitsForTheDeadLetters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		began := time.Now()
		w := s.writer(testLimits, func(_ context.Context, c fakelog.Call) fakelog.Verdict {
			if c.Op == fakelog.OpAppend && time.Since(began) < 10*time.Minute {
				return fakelog.Verdict{Err: errDown}
			}
			return fakelog.Verdict{}
		})
		s.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{Key: []byte("k"), Value: []byte("v"), Time: time.Now()}})
		time.Sleep(9 * time.Minute)
		if s.writerAt(0) >= 0 {
			t.Fatal("committed without its dead letter")
		}
		time.Sleep(2 * time.Minute)
		if s.writerAt(0) != 1 || len(s.dead()) != 1 {
			t.Errorf("committed %d with %d dead letters", s.writerAt(0), len(s.dead()))
		}
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
}
