package dynamodb_test

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
)

// bill adds up what requests of a kind cost.
type bill struct {
	mu    sync.Mutex
	units float64
	n     int
	most  float64
}

func (b *bill) observe(operation, table string) func(dynamodb.Request) {
	return func(r dynamodb.Request) {
		if r.Operation != operation || r.Table != table {
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.units += r.Capacity
		b.n++
		b.most = max(b.most, r.Capacity)
	}
}

func ascending(n int, at time.Time, t event.Topic, each time.Duration) (ms []sinks.Message, ops []sinks.Op) {
	for i := range n {
		m := message(t, at.Add(time.Duration(i)*each), 0)
		ms, ops = append(ms, m), append(ops, sinks.PutMessage{Message: m})
	}
	return ms, ops
}

// TestFirstIDsStandInTheTopicsItemAndTheOthersInBuckets, listed there, and all are read, forwards and backwards.
func TestFirstIDsStandInTheTopicsItemAndTheOthersInBuckets(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	cfg.FirstIDs, cfg.BucketMinutes, cfg.BucketBytes = 5, 1, 600
	store := open(t, cfg)
	topic := eventtest.Topic(t, "t/\x1f/buckets")
	want, ops := ascending(300, time.Now().Add(-5*time.Minute), topic, time.Second)
	for part := range slices.Chunk(ops, 7) {
		apply(t, store, part...)
	}
	var first row
	cells := 0
	for _, r := range scan(t, cfg, "mqtt_topic_msg_map") {
		key := r["topic"]["S"].(string)
		if key == strings.ReplaceAll(topic.String(), "\x1f", "\x1f\x1f") {
			first = r
			continue
		}
		cells++
		if ids := r["MsgId"]["SS"].([]string); len(ids) > 16 {
			t.Errorf("cell %q holds %d ids", key, len(ids))
		}
	}
	if n := len(first["MsgId"]["SS"].([]string)); n != 5 {
		t.Errorf("the topic's item holds %d ids, want 5", n)
	}
	if n := len(first["buckets"]["SS"].([]string)); n < 5 || cells < 295/16 {
		t.Errorf("%d buckets are listed and %d cells are there", n, cells)
	}
	for _, limit := range []int{1, 7, 100, 300, 1000} {
		for _, newest := range []bool{false, true} {
			if d := cmp.Diff(idsOf(want), idsOf(read(t, store, topic, limit, newest))); d != "" {
				t.Fatalf("pages of %d, newest %v (-want +got):\n%s", limit, newest, d)
			}
		}
	}
	q := sinks.Query{Topic: topic, After: want[99].ID, Until: want[199].ID, Limit: 1000}
	got, err := store.Messages(t.Context(), q)
	if d := cmp.Diff(idsOf(want[100:200]), idsOf(got)); err != nil || d != "" {
		t.Errorf("a range in the middle: %v (-want +got):\n%s", err, d)
	}

	// Acks take the ids out of wherever they stand.
	var acks []sinks.Op
	for _, m := range want {
		acks = append(acks, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
	}
	apply(t, store, acks[:290]...)
	if d := cmp.Diff(idsOf(want[290:]), idsOf(read(t, store, topic, 100, false))); d != "" {
		t.Errorf("after the acks (-want +got):\n%s", d)
	}
	apply(t, store, acks[290:]...)
	for _, r := range scan(t, cfg, "mqtt_topic_msg_map") {
		if r["MsgId"] != nil {
			t.Errorf("after all acks %v still holds ids", r)
		}
	}
}

// TestTopicsWithTheSeparatorAreNotBucketsOfOthers though their names are made for it.
func TestTopicsWithTheSeparatorAreNotBucketsOfOthers(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	cfg.FirstIDs = 1
	store := open(t, cfg)
	at := time.Now().Add(-time.Minute)
	want := map[string][]sinks.Message{}
	topics := []string{"t"}
	store2 := func(name string) {
		ms, ops := ascending(4, at.Add(time.Duration(len(want))*time.Millisecond), eventtest.Topic(t, name), time.Second)
		apply(t, store, ops...)
		want[name] = ms
	}
	store2("t")
	for _, r := range scan(t, cfg, "mqtt_topic_msg_map") {
		if key := r["topic"]["S"].(string); key != "t" { // a cell of "t", as a topic
			topics = append(topics, key, strings.ReplaceAll(key, "\x1f", "\x1f\x1f"))
		}
	}
	if len(topics) < 3 {
		t.Fatalf("only %q stand in the map", topics)
	}
	for _, name := range topics[1:] {
		store2(name)
	}
	for name, ms := range want {
		if d := cmp.Diff(idsOf(ms), idsOf(read(t, store, eventtest.Topic(t, name), 10, false))); d != "" {
			t.Errorf("topic %q (-want +got):\n%s", name, d)
		}
	}
}

// TestAddsStayCheap: one id at a time, or many, and whatever waits already.
func TestAddsStayCheap(t *testing.T) {
	t.Parallel()
	for _, atOnce := range []int{1, 10, 100} {
		t.Run(fmt.Sprintf("%d at once", atOnce), func(t *testing.T) {
			t.Parallel()
			var b bill
			cfg := configOf(t)
			cfg.Observe = b.observe("UpdateItem", "mqtt_topic_msg_map")
			store := open(t, cfg)
			topic := eventtest.Topic(t, "t/cheap")
			const n = 1200
			want, ops := ascending(n, time.Now().Add(-time.Hour), topic, 100*time.Millisecond)
			for part := range slices.Chunk(ops, atOnce) {
				apply(t, store, part...)
			}
			per := b.units / n
			t.Logf("%d ids, %d at once: %.3f WCU an id, at most %.0f an update, %d updates", n, atOnce, per, b.most, b.n)
			if b.units == 0 || per >= 2 {
				t.Errorf("%.2f WCU an id, want less than 2", per)
			}
			if d := cmp.Diff(idsOf(want), idsOf(read(t, store, topic, 500, false))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestAMillionMessagesWaitOnOneTopic: adds stay cheap behind them, and a fetch pages through them in little memory.
func TestAMillionMessagesWaitOnOneTopic(t *testing.T) {
	t.Parallel()
	forSoak(t)
	const n, atOnce, page = 1_000_000, 500, 500
	var b bill
	cfg := configOf(t)
	cfg.PoolSize, cfg.Observe = 8, b.observe("UpdateItem", "mqtt_topic_msg_map")
	store := open(t, cfg)
	topic, at := eventtest.Topic(t, "t/million"), time.Now().Add(-3*time.Hour)
	const each = 10 * time.Millisecond // 100 a second
	began := time.Now()
	for i := 0; i < n; i += atOnce {
		ops := make([]sinks.Op, 0, atOnce)
		for j := i; j < i+atOnce; j++ {
			m := message(topic, at.Add(time.Duration(j)*each), 0)
			m.Payload = []byte("x")
			ops = append(ops, sinks.PutMessage{Message: m})
		}
		apply(t, store, ops...)
		if i%100_000 == 0 {
			t.Logf("%d stored after %s: %.3f WCU an id, at most %.0f an update", i+atOnce, time.Since(began).Round(time.Second), b.units/float64(i+atOnce), b.most)
		}
	}
	if per := b.units / n; per >= 2 {
		t.Errorf("%.2f WCU an id, want less than 2", per)
	}
	before := b.units
	const single = 200
	for i := range single {
		m := message(topic, at.Add(time.Duration(n+i)*each), 0)
		apply(t, store, sinks.PutMessage{Message: m})
	}
	t.Logf("one at a time behind them: %.3f WCU an id", (b.units-before)/single)
	if per := (b.units - before) / single; per >= 2 {
		t.Errorf("%.2f WCU an id where one is added at a time, want less than 2", per)
	}
	began = time.Now()
	var mem runtime.MemStats
	var most uint64
	found := 0
	for q := (sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now().Add(time.Hour)), Limit: page}); ; {
		ms, err := store.Messages(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms {
			if want := message(topic, at.Add(time.Duration(found)*each), 0).ID; m.ID != want {
				t.Fatalf("message %d is %s, want %s", found, m.ID, want)
			}
			found++
		}
		if len(ms) < page {
			break
		}
		q.After = ms[len(ms)-1].ID
		if found%100_000 == 0 {
			runtime.ReadMemStats(&mem)
			most = max(most, mem.HeapAlloc)
		}
	}
	t.Logf("%d read in pages of %d in %s; heap at most %d MB", found, page, time.Since(began).Round(time.Second), most>>20)
	if found != n+single || most > 300<<20 {
		t.Errorf("%d read, want %d; heap %d MB", found, n+single, most>>20)
	}
}

// TestBucketsAreRemovedOnlyWhenNoWriteCanCome: emptiness alone does not do it, nor does age.
func TestBucketsAreRemovedOnlyWhenNoWriteCanCome(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	begin := time.Now()
	cfg := configOf(t)
	cfg.FirstIDs, cfg.BucketMinutes = 1, 1
	cfg.Now = func() time.Time { return begin.Add(time.Duration(now.Load())) }
	s := open(t, cfg)
	topic := eventtest.Topic(t, "t/1")
	put := func(at time.Time, n int, life time.Duration) []sinks.Message {
		ms, ops := ascending(n, at, topic, time.Second)
		for i := range ms {
			if life > 0 {
				ms[i].Expires = ms[i].ID.Time().Add(life)
				ops[i] = sinks.PutMessage{Message: ms[i]}
			}
		}
		apply(t, s, ops...)
		return ms
	}
	listed := func() int {
		n := 0
		for _, r := range scan(t, cfg, "mqtt_topic_msg_map") {
			if r["topic"]["S"] == "t/1" && r["buckets"] != nil {
				n += len(r["buckets"]["SS"].([]string))
			}
		}
		return n
	}
	kept := put(begin.Add(-10*time.Minute), 3, 0) // for ever; one of them in the topic's item
	empty := put(begin.Add(-7*time.Minute), 3, 0)
	put(begin.Add(-4*time.Minute), 3, time.Hour) // expire
	for _, m := range empty {
		apply(t, s, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
	}
	before := listed()
	now.Store(int64(6 * 24 * time.Hour)) // empty, expired, but young
	var late []sinks.Message
	const looks = 10
	for i := range looks {
		late = append(late, put(cfg.Now().Add(time.Duration(3*i-60)*time.Minute), 2, 0)...)
	}
	if n := listed(); n < before+looks {
		t.Errorf("%d buckets are listed after 6 days, want the %d and %d new ones", n, before, looks)
	}
	now.Store(int64(10 * 24 * time.Hour))
	for i := range 4 { // each looks at an old one
		late = append(late, put(cfg.Now().Add(time.Duration(3*i-30)*time.Minute), 2, 0)...)
	}
	want := append(slices.Clone(kept), late...)
	if d := cmp.Diff(idsOf(want), idsOf(readUntil(t, s, topic, cfg.Now().Add(24*time.Hour)))); d != "" {
		t.Errorf("after 10 days (-want +got):\n%s", d)
	}
	for _, m := range kept {
		apply(t, s, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
	}
	old := func() (found []string) {
		for _, r := range scan(t, cfg, "mqtt_topic_msg_map") {
			if r["topic"]["S"] != "t/1" {
				continue
			}
			for _, b := range r["buckets"]["SS"].([]string) {
				start, err := strconv.ParseInt(b[:strings.Index(b, "-")], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				if cfg.Now().Sub(time.Unix(start, 0)) > 8*24*time.Hour {
					found = append(found, b)
				}
			}
		}
		return found
	}
	for i := 0; len(old()) > 0; i++ {
		if i == 100 {
			t.Fatalf("the buckets %q are listed still", old())
		}
		late = append(late, put(cfg.Now().Add(time.Duration(2*i-15)*time.Minute), 2, 0)...)
	}
	if d := cmp.Diff(idsOf(late), idsOf(readUntil(t, s, topic, cfg.Now().Add(24*time.Hour)))); d != "" {
		t.Errorf("at the end (-want +got):\n%s", d)
	}
}

func readUntil(tb testing.TB, s sinks.Store, t event.Topic, until time.Time) []sinks.Message {
	tb.Helper()
	ms, err := s.Messages(tb.Context(), sinks.Query{Topic: t, Until: event.LastIDAt(until), Limit: 1000})
	if err != nil {
		tb.Fatal(err)
	}
	return ms
}

// TestAFetchTakesDeadIDsOutOfTheMap: those whose messages have expired, for one.
func TestAFetchTakesDeadIDsOutOfTheMap(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	begin := time.Now()
	cfg := configOf(t)
	cfg.Now = func() time.Time { return begin.Add(time.Duration(now.Load())) }
	s := open(t, cfg)
	topic := eventtest.Topic(t, "t/1")
	ms, ops := ascending(100, begin.Add(-time.Minute), topic, time.Millisecond)
	for i, m := range ms[:90] {
		m.Expires = begin.Add(time.Hour)
		ops[i] = sinks.PutMessage{Message: m}
	}
	apply(t, s, ops...)
	now.Store(int64(2 * time.Hour))
	for range 2 {
		if d := cmp.Diff(idsOf(ms[90:]), idsOf(readUntil(t, s, topic, begin))); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		left := 0
		for _, r := range scan(t, cfg, "mqtt_topic_msg_map") {
			if r["MsgId"] != nil {
				left += len(r["MsgId"]["SS"].([]string))
			}
		}
		if left != 10 {
			t.Errorf("%d ids stand in the map, want 10", left)
		}
	}
}
