package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/restante/restante/pipeline"
)

var tp0 = pipeline.TP{Topic: topic, Part: 0}

func openStream(tb testing.TB, c *Client, from int64) pipeline.Stream {
	tb.Helper()
	s, err := c.Log("test").Open(soon(tb), tp0, from)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func fetch(tb testing.TB, s pipeline.Stream, limit int, wait time.Duration) []pipeline.Record {
	tb.Helper()
	rs, err := s.Fetch(soon(tb), limit, wait)
	if err != nil {
		tb.Fatal(err)
	}
	return rs
}

func TestFetchReturnsWhatIsThereAndKeepsTheRest(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a", "b", "c", "d", "e")
	s := openStream(t, client, 1)
	begin := time.Now()
	var got []string
	fetches := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Observe: true, Count: -1})
	for _, limit := range []int{2, 1, 100} {
		rs := fetch(t, s, limit, time.Minute)
		if len(rs) > limit || len(rs) == 0 {
			t.Errorf("limit %d: %d records", limit, len(rs))
		}
		for _, r := range rs {
			got = append(got, fmt.Sprint(string(r.Value), r.Offset, r.TP))
		}
	}
	if d := time.Since(begin); d > 50*time.Second {
		t.Errorf("fetching waited %v for more", d)
	}
	want := []string{"b1 mqtt.messages/0", "c2 mqtt.messages/0", "d3 mqtt.messages/0", "e4 mqtt.messages/0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := fetches.Hits(); n != 1 {
		t.Errorf("%d round trips", n)
	}
}

func TestIdleFetchEndsAfterItsWait(t *testing.T) {
	t.Parallel()
	client := newCluster(t).open(t)
	s := openStream(t, client, 0)
	for _, wait := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond} {
		begin := time.Now()
		if rs := fetch(t, s, 10, wait); rs != nil {
			t.Errorf("got %v", rs)
		}
		if d := time.Since(begin); d < wait || d > wait+15*time.Second {
			t.Errorf("waited %v, not %v", d, wait)
		}
	}
	put(t, client, 0, "a")
	if got := fetch(t, s, 10, 10*time.Second); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestFetchEndsAtOnceWithItsContext(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	s := openStream(t, client, 0)
	begin := time.Now()
	if _, err := s.Fetch(within(t, 50*time.Millisecond), 10, time.Minute); !isDeadline(err) {
		t.Errorf("got %v", err)
	}
	put(t, client, 0, "a")
	if got := fetch(t, s, 10, 10*time.Second); len(got) != 1 { // the stream lives on
		t.Errorf("got %v", got)
	}
	c.wire.cut(true)
	if _, err := s.Fetch(within(t, 50*time.Millisecond), 10, time.Minute); !isDeadline(err) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begin); d > 50*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestStreamGoesOnWhereItWasCut(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kfake.NumBrokers(3))
	client := c.open(t)
	s := openStream(t, client, 0)
	var want, got []string
	for i := range 60 {
		v := fmt.Sprint(i)
		want = append(want, v)
		put(t, client, 0, v)
		switch i % 12 {
		case 3:
			c.wire.cut(false)
		case 7:
			if err := c.MoveTopicPartition(topic, 0, int32(i%3)); err != nil {
				t.Fatal(err)
			}
		case 9:
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.NotLeaderForPartition, Count: 2})
		case 11:
			c.wire.cut(true)
			if rs := fetch(t, s, 100, 100*time.Millisecond); len(rs) > 0 { // waited out, no error
				t.Fatal("records came over a wire that is cut")
			}
			c.wire.cut(false)
		}
		for len(got) < len(want) {
			got = append(got, values(fetch(t, s, 3, 5*time.Second))...)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOffsetThatIsNotThereIsAGap(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a", "b", "c")
	if err := c.DeleteRecords(topic, 0, 2); err != nil {
		t.Fatal(err)
	}
	for _, from := range []int64{0, 1, 4, 1000} {
		s := openStream(t, client, from)
		if rs, err := s.Fetch(soon(t), 10, time.Minute); !errors.Is(err, pipeline.ErrGap) {
			t.Errorf("from %d: %v, %v", from, rs, err)
		}
	}
	if got := values(fetch(t, openStream(t, client, 2), 10, time.Minute)); !cmp.Equal(got, []string{"c"}) {
		t.Errorf("from the first: %v", got)
	}
}

func TestStreamHoldsABoundedFetch(t *testing.T) {
	t.Parallel()
	client := newCluster(t).open(t, func(cfg *Config) { cfg.FetchBytes, cfg.MaxBatchBytes = 20_000, 10_000 })
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprint(i, strings.Repeat("x", 3000)))
	}
	put(t, client, 0, want...)
	s := openStream(t, client, 0)
	var got []string
	for len(got) < len(want) {
		rs := fetch(t, s, 1000, time.Second)
		if len(rs) > 10 {
			t.Errorf("%d records of 3 kB at once", len(rs))
		}
		got = append(got, values(rs)...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := testutil.ToFloat64(client.metrics.consumedRecords.WithLabelValues("test", topic)); n != 100 {
		t.Errorf("counted %v records", n)
	}
}

func TestSpansAndTimes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kfake.NumBrokers(3))
	client := c.open(t)
	l := client.Log("test")
	p := client.Producer()
	begin := time.UnixMilli(1_700_000_000_000)
	for i := range 5 {
		o := out(keyFor(0), "v")
		o.Time = begin.Add(time.Duration(i) * time.Second)
		if _, err := p.Append(soon(t), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(soon(t)); err != nil {
		t.Fatal(err)
	}
	put(t, client, 1, "a")
	if err := c.DeleteRecords(topic, 0, 1); err != nil {
		t.Fatal(err)
	}
	want := map[int]pipeline.Span{0: {First: 1, End: 5}, 1: {End: 1}, 2: {}}
	got, err := l.Spans(soon(t), topic, 0, 1, 2)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for at, want := range map[time.Duration]int64{
		-time.Hour: 1, time.Second: 1, 1500 * time.Millisecond: 2, 4 * time.Second: 4, 4001 * time.Millisecond: 5, time.Hour: 5,
	} {
		if got, err := l.OffsetAt(soon(t), tp0, begin.Add(at)); err != nil || got != want {
			t.Errorf("at %v: %d, %v; want %d", at, got, err, want)
		}
	}
	if got, err := l.OffsetAt(soon(t), pipeline.TP{Topic: topic, Part: 2}, begin); err != nil || got != 0 {
		t.Errorf("of an empty partition: %d, %v", got, err)
	}
	for range 3 { // a broker that was restarted, a leader that moved
		c.wire.cut(false)
		c.ShufflePartitionLeaders()
		if got, err := l.Spans(soon(t), topic, 0, 1, 2); err != nil || !cmp.Equal(want, got) {
			t.Errorf("%v, %v", got, err)
		}
	}
	if _, err := l.Spans(within(t, 300*time.Millisecond), topic, 9); err == nil {
		t.Error("a partition that is not there has a span")
	}
}

func TestAnErrorIsNeverNoneCommitted(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	l := client.Log("test")
	none := map[int]int64{0: -1, 2: -1}
	if got, err := l.Committed(soon(t), "g", topic, 0, 2); err != nil || !cmp.Equal(got, none) {
		t.Errorf("of a group that was never used: %v, %v", got, err)
	}
	put(t, client, 0, "a", "b")
	commitAt(t, client, 1)
	want := map[int]int64{0: 1, 2: -1}
	if got, err := l.Committed(soon(t), "g", topic, 0, 2); err != nil || !cmp.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, e := range []*kerr.Error{
		kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.GroupAuthorizationFailed,
		kerr.UnstableOffsetCommit, kerr.UnknownServerError, kerr.UnknownTopicOrPartition,
	} {
		for _, top := range []bool{true, false} {
			f := kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: e, Count: -1, TopLevel: top}
			if !top {
				f.Topic = topic
			}
			h := c.Fault(f)
			for limit := soon(t); h.Hits() == 0; { // a busy machine may not come so far at once
				if got, err := l.Committed(within(t, 300*time.Millisecond), "g", topic, 0, 2); err == nil {
					t.Errorf("%v (top %v): %v", e, top, got)
				}
				if limit.Err() != nil {
					t.Fatalf("%v (top %v) was not met", e, top)
				}
			}
			h.Remove()
		}
	}
	c.RehashCoordinators()
	c.wire.cut(false)
	if got, err := l.Committed(soon(t), "g", topic, 0, 2); err != nil || !cmp.Equal(got, want) {
		t.Errorf("afterwards: %v, %v", got, err)
	}
}

// commitAt commits an offset of partition 0 for group g.
func commitAt(tb testing.TB, client *Client, offset int64) {
	tb.Helper()
	g, err := client.Group("g", topic)
	if err != nil {
		tb.Fatal(err)
	}
	gen, err := g.Next(soon(tb))
	if err != nil {
		tb.Fatal(err)
	}
	at := map[pipeline.TP]pipeline.Next{tp0: pipeline.Before(pipeline.Record{TP: tp0, Offset: offset})}
	if err := gen.Commit(soon(tb), at); err != nil {
		tb.Fatal(err)
	}
	if err := g.Close(); err != nil {
		tb.Fatal(err)
	}
}

func TestOpenRefusesNonsense(t *testing.T) {
	t.Parallel()
	l := newCluster(t).open(t).Log("test")
	for _, tp := range []pipeline.TP{{Topic: "other"}, {Topic: topic, Part: -1}} {
		if _, err := l.Open(soon(t), tp, 0); err == nil {
			t.Errorf("%v opens", tp)
		}
	}
	if _, err := l.Open(soon(t), tp0, -2); err == nil {
		t.Error("offset -2 opens")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Open(gone, tp0, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
