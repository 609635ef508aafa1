package topicindex_test

import (
	"context"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks/topicindex"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// table is the plainest index: a map of rows. It counts what is read.
type table struct {
	rows  map[string]map[string]topicindex.Node
	reads int
}

func (tb *table) add(root topicindex.Root, topics ...event.Topic) {
	if tb.rows == nil {
		tb.rows = map[string]map[string]topicindex.Node{}
	}
	for _, t := range topics {
		for _, r := range topicindex.Rows(root, t) {
			if tb.rows[r.Parent] == nil {
				tb.rows[r.Parent] = map[string]topicindex.Node{}
			}
			n := tb.rows[r.Parent][r.Level]
			n.Level, n.Leaf, n.Inner = r.Level, n.Leaf || r.Leaf, n.Inner || r.Inner
			tb.rows[r.Parent][r.Level] = n
		}
	}
}

func (tb *table) Child(_ context.Context, parent, level string) (topicindex.Node, bool, error) {
	tb.reads++
	n, ok := tb.rows[parent][level]
	return n, ok, nil
}

func (tb *table) Children(_ context.Context, parent, from string, limit int) ([]topicindex.Node, error) {
	tb.reads++
	var out []topicindex.Node
	for _, n := range tb.rows[parent] {
		if n.Level >= from {
			out = append(out, n)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Level < out[j].Level })
	return out[:min(limit, len(out))], nil
}

func topics(t *testing.T, texts ...string) []event.Topic {
	t.Helper()
	var out []event.Topic
	for _, s := range texts {
		p, err := event.ParseTopic(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func filter(t *testing.T, s string) event.Filter {
	t.Helper()
	f, err := event.ParseFilter(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestWalkFindsWhatMatches compares the walk with a scan of all topics, for random topics, filters and pages.
func TestWalkFindsWhatMatches(t *testing.T) {
	t.Parallel()
	level := rapid.SampledFrom([]string{"", "a", "a!", "a!b", "a-b", "a-", "b", "a.", "$s", "$", "ä", "0", " ", "-"})
	deep := strings.Repeat("a/", 40)
	rapid.Check(t, func(rt *rapid.T) {
		texts := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) string {
			s := strings.Join(rapid.SliceOfN(level, 1, 4).Draw(rt, "levels"), "/")
			if rapid.IntRange(0, 9).Draw(rt, "deep") == 0 {
				s = deep + s
			}
			return s
		}), 0, 40).Draw(rt, "topics")
		var all []event.Topic
		for _, s := range texts {
			if p, err := event.ParseTopic(s); err == nil {
				all = append(all, p)
			}
		}
		f := rapid.Custom(func(rt *rapid.T) event.Filter {
			any := rapid.OneOf(level, rapid.Just("+"), rapid.Just("+"))
			ls := rapid.SliceOfN(any, 0, 4).Draw(rt, "filter")
			if rapid.IntRange(0, 4).Draw(rt, "deep") == 0 {
				ls = append(strings.Split(strings.TrimSuffix(deep, "/"), "/"), ls...)
				ls[rapid.IntRange(0, 39).Draw(rt, "plus")] = "+"
			}
			if len(ls) == 0 || rapid.Bool().Draw(rt, "hash") {
				ls = append(ls, "#")
			}
			f, _ := event.ParseFilter(strings.Join(ls, "/"))
			return f
		}).Filter(func(f event.Filter) bool { return !f.IsZero() }).Draw(rt, "f")
		limit := rapid.IntRange(1, 7).Draw(rt, "limit")

		var tb table
		tb.add(topicindex.Messages, all...)
		tb.add(topicindex.Retained, topics(t, "another/tree")...)
		var want, got []string
		for _, p := range all {
			if f.Match(p) {
				want = append(want, p.String())
			}
		}
		slices.Sort(want)
		want = slices.Compact(want)
		for after := (event.Topic{}); ; {
			pageOf, err := topicindex.Walk(context.Background(), &tb, topicindex.Messages, f, after, limit)
			if err != nil {
				rt.Fatal(err)
			}
			for _, p := range pageOf {
				got = append(got, p.String())
			}
			if len(pageOf) < limit {
				break
			}
			after = pageOf[len(pageOf)-1]
		}
		if d := cmp.Diff(want, got); d != "" {
			rt.Fatalf("filter %s, pages of %d (-want +got):\n%s", f, limit, d)
		}
	})
}

// TestWalkReadsLittle: a literal beginning costs one read, and leaves cost none of their own.
func TestWalkReadsLittle(t *testing.T) {
	t.Parallel()
	var tb table
	for _, d := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		tb.add(topicindex.Messages, topics(t, "a/b/c/d/"+d)...)
	}
	if _, err := topicindex.Walk(t.Context(), &tb, topicindex.Messages, filter(t, "a/b/c/d/#"), event.Topic{}, 100); err != nil {
		t.Fatal(err)
	}
	if tb.reads != 2 {
		t.Errorf("a/b/c/d/# took %d reads, want 2: the node d and its children", tb.reads)
	}
}

// TestRowsAreBounded: the worst topic that MQTT allows costs a bounded number of rows.
func TestRowsAreBounded(t *testing.T) {
	t.Parallel()
	worst := topics(t, strings.Repeat("/", 65535))[0]
	rows, size := topicindex.Rows(topicindex.Messages, worst), 0
	for _, r := range rows {
		size += len(r.Parent) + len(r.Level)
	}
	if len(rows) > 32 || size > 1<<20 {
		t.Errorf("%d rows, %d bytes", len(rows), size)
	}
	if last := rows[len(rows)-1]; last.TopicOf() != worst.String() || !last.Leaf {
		t.Error("the last row does not give the topic back")
	}
	plain := topicindex.Rows(topicindex.Messages, topics(t, "t/1/x")[0])
	want := []topicindex.Row{
		{Parent: "#", Node: topicindex.Node{Level: "t", Inner: true}},
		{Parent: "#t/", Node: topicindex.Node{Level: "1", Inner: true}},
		{Parent: "#t/1/", Node: topicindex.Node{Level: "x", Leaf: true}},
	}
	if d := cmp.Diff(want, plain); d != "" {
		t.Error(d)
	}
}

// TestKnownForgetsInTime: a topic is written again after a quarter of the life of its rows, and memory is bounded.
func TestKnownForgetsInTime(t *testing.T) {
	t.Parallel()
	start := time.Unix(1e9, 0)
	k := topicindex.Known{TTL: 4 * time.Hour, Bytes: 4096}
	a := topics(t, "a")[0]
	if k.Fresh(a, start) {
		t.Error("fresh before it was noted")
	}
	k.Note(start, a)
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {59 * time.Minute, true}, {time.Hour, false}, {-time.Second, false}} {
		if got := k.Fresh(a, start.Add(c.after)); got != c.want {
			t.Errorf("fresh after %v: %v", c.after, got)
		}
	}
	for i := range 200 {
		k.Note(start, topics(t, strings.Repeat("x", i+1))...)
	}
	if k.Fresh(a, start) {
		t.Error("memory is not bounded: the first of 200 topics is still known")
	}
	if !k.Fresh(topics(t, strings.Repeat("x", 200))[0], start) {
		t.Error("the last topic is not known")
	}
}
