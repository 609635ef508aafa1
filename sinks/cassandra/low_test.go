package cassandra

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// TestReadsTakeTheMarkAndTheLateHours: which ranges are read.
func TestReadsTakeTheMarkAndTheLateHours(t *testing.T) {
	t.Parallel()
	day := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	at := func(hour float64) event.ID {
		return event.FirstIDAt(day.Add(time.Duration(hour * float64(time.Hour))))
	}
	end, hour := event.LastIDAt(day.Add(24*time.Hour)), day.Unix()/3600
	for name, c := range map[string]struct {
		row   lowRow
		after event.ID
		want  []span
	}{
		"no mark":                      {lowRow{}, event.ID{}, []span{{event.ID{}, end}}},
		"no mark, a position":          {lowRow{late: []int64{hour}}, at(5), []span{{at(5), end}}},
		"a mark":                       {lowRow{low: at(9.5)}, event.ID{}, []span{{at(9.5).Before(), end}}},
		"a mark behind the position":   {lowRow{low: at(3)}, at(5), []span{{at(5), end}}},
		"late hours":                   {lowRow{low: at(9.5), late: []int64{hour + 2, hour + 4}}, event.ID{}, []span{{at(2).Before(), at(3).Before()}, {at(4).Before(), at(5).Before()}, {at(9.5).Before(), end}}},
		"hours beside each other":      {lowRow{low: at(9.5), late: []int64{hour + 2, hour + 3}}, event.ID{}, []span{{at(2).Before(), at(4).Before()}, {at(9.5).Before(), end}}},
		"the hour of the mark":         {lowRow{low: at(9.5), late: []int64{hour + 9}}, event.ID{}, []span{{at(9).Before(), end}}},
		"an hour above the mark":       {lowRow{low: at(9.5), late: []int64{hour + 11}}, event.ID{}, []span{{at(9.5).Before(), end}}},
		"a position in a late hour":    {lowRow{low: at(9.5), late: []int64{hour + 2}}, at(2.5), []span{{at(2.5), at(3).Before()}, {at(9.5).Before(), end}}},
		"an hour's own mark":           {lowRow{low: at(9.5), late: []int64{hour + 2}, from: map[int64]event.ID{hour + 2: at(2.5)}}, event.ID{}, []span{{at(2.5).Before(), at(3).Before()}, {at(9.5).Before(), end}}},
		"an hour that is empty":        {lowRow{low: at(9.5), late: []int64{hour + 2}, from: map[int64]event.ID{hour + 2: at(3)}}, event.ID{}, []span{{at(9.5).Before(), end}}},
		"one above the topic's":        {lowRow{low: at(9.5), late: []int64{hour + 9}, from: map[int64]event.ID{hour + 9: at(9.7)}}, event.ID{}, []span{{at(9.7).Before(), end}}},
		"empty from the topic's on":    {lowRow{low: at(9.5), late: []int64{hour + 9, hour + 10}, from: map[int64]event.ID{hour + 9: at(10), hour + 10: at(10.2)}}, event.ID{}, []span{{at(10.2).Before(), end}}},
		"one beyond a gap":             {lowRow{low: at(9.5), late: []int64{hour + 10}, from: map[int64]event.ID{hour + 10: at(10.2)}}, event.ID{}, []span{{at(9.5).Before(), end}}},
		"a mark of its own, no mark":   {lowRow{late: []int64{hour + 2}, from: map[int64]event.ID{hour + 2: at(2.5)}}, event.ID{}, []span{{event.ID{}, end}}},
		"a position behind everything": {lowRow{low: at(9.5), late: []int64{hour + 2}}, end, nil},
	} {
		got := c.row.spans(c.after, end)
		if d := cmp.Diff(c.want, got, cmp.Comparer(func(a, b event.ID) bool { return a == b }), cmp.AllowUnexported(span{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// mark is the topic's low mark, zero = none.
func mark(tb testing.TB, s *Store, t event.Topic) lowRow {
	tb.Helper()
	row, err := s.lowOf(tb.Context(), t)
	if err != nil {
		tb.Fatal(err)
	}
	return row
}

// bury writes messages and removes all but the last keep.
func bury(tb testing.TB, s *Store, topic event.Topic, at time.Time, n, keep int) (left []event.ID) {
	tb.Helper()
	const batch = 5000
	for from := 0; from < n; from += batch {
		var ops []sinks.Op
		for i := from; i < min(from+batch, n); i++ {
			m := message(topic, at, i)
			if i < n-keep {
				ops = append(ops, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
				continue
			}
			left = append(left, m.ID)
			ops = append(ops, sinks.PutMessage{Message: m})
		}
		apply(tb, s, ops...)
	}
	return left
}

// TestMarksHideNothing goes through the reasons in low.go.
func TestMarksHideNothing(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	cfg.Metrics = seen
	s := opened(t, cfg)
	topic, now := fresh(t, "mark"), time.Now()
	old := now.Add(-3 * time.Hour)
	left := bury(t, s, topic, old, 3000, 3)
	expect := func(when string, want []event.ID) {
		t.Helper()
		if d := cmp.Diff(idTexts(want), idTexts(pending(t, s, topic))); d != "" {
			t.Fatalf("%s (-want +got):\n%s", when, d)
		}
	}
	expect("at first", left)
	if got := mark(t, s, topic).low; got != left[0] {
		t.Fatalf("after a read that met many tombstones the mark is %s, want the first that is there, %s", got, left[0])
	}
	// A message that comes late is below the mark, and found by its hour; so is one whose hour another store listed.
	late := message(topic, now.Add(-26*time.Hour), 1)
	other := opened(t, ready(t))
	apply(t, other, sinks.PutMessage{Message: late})
	expect("with a late one", append([]event.ID{late.ID}, left...))
	if n := len(mark(t, s, topic).late); n == 0 {
		t.Error("no hour is listed")
	}
	// The mark follows what is removed, never into the last hour.
	var ops []sinks.Op
	for _, id := range left {
		ops = append(ops, sinks.DeleteMessage{Topic: topic, ID: id, Stamp: now.UnixMicro()})
	}
	young := message(topic, now.Add(-time.Minute), 1)
	apply(t, s, append(ops, sinks.PutMessage{Message: young})...)
	bury(t, s, topic, now.Add(-2*time.Hour), 3000, 0)
	expect("after the acks", []event.ID{late.ID, young.ID})
	if got := mark(t, s, topic).low; got.Micros() > time.Now().Add(-markBehind).UnixMicro() || got.Compare(left[2]) <= 0 {
		t.Errorf("the mark is at %s, want above the last that was removed and an hour ago at most", got.Time())
	}
	// A younger message than lateAge needs no hour: it is above any mark.
	fits := message(topic, now.Add(-lateAge+time.Minute), 1)
	apply(t, s, sinks.PutMessage{Message: fits})
	expect("with one of 29 minutes", []event.ID{late.ID, fits.ID, young.ID})
	// A mark that comes late moves nothing back.
	high := mark(t, s, topic).low
	l, err := s.link.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.exec(t.Context(), l, []statement{setMark(topic, left[0])}); err != nil {
		t.Fatal(err)
	}
	if got := mark(t, s, topic).low; got != high {
		t.Errorf("an older mark moved it from %s to %s", high, got)
	}
	if seen.of(Late) != 1 || seen.of(Marks) == 0 {
		t.Errorf("counted %d late hours and %d marks", seen.of(Late), seen.of(Marks))
	}
}

func idTexts(ids []event.ID) (out []string) {
	for _, id := range ids {
		out = append(out, id.String())
	}
	return out
}

// TestMarksNeedAQuorum: at a consistency at which a read may miss a write, it proves nothing.
func TestMarksNeedAQuorum(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		consistency string
		replication map[string]string
		want        bool
	}{
		"one of one":            {"ONE", map[string]string{"class": "SimpleStrategy", "replication_factor": "1"}, true},
		"one of three":          {"ONE", map[string]string{"class": "SimpleStrategy", "replication_factor": "3"}, false},
		"two of three":          {"TWO", map[string]string{"class": "SimpleStrategy", "replication_factor": "3"}, true},
		"one in each of two":    {"LOCAL_ONE", map[string]string{"class": "NetworkTopologyStrategy", "a": "1", "b": "1"}, false},
		"a quorum of any":       {"LOCAL_QUORUM", map[string]string{"class": "NetworkTopologyStrategy", "a": "3", "b": "3"}, true},
		"one of what is hidden": {"ONE", map[string]string{"class": "EverywhereStrategy"}, false},
	} {
		if got := overlaps(c.consistency, c.replication); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// emqx inserts a row as EMQX does: without a timestamp, so at the wall clock, some ms after the time of its id.
func emqx(tb testing.TB, cfg Config, insert func(text string, args ...any), m sinks.Message) {
	tb.Helper()
	insert(`INSERT INTO `+cfg.Keyspace+`.mqtt_msg (topic, msgid, arrived, payload, qos, retain, sender) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		m.Topic.String(), m.ID.String(), m.Arrived, string(m.Payload), int(m.QoS), 0, string(m.Sender))
}

// TestRowsOfEMQXAreReplayedUntilTheirAck: those that were there before, old ones too, and those that it inserts beside us.
func TestRowsOfEMQXAreReplayedUntilTheirAck(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	cfg.Metrics = seen
	s, g := opened(t, cfg), plain(t, cfg)
	insert := func(text string, args ...any) { do(t, g, text, args...) }
	topic, now := fresh(t, "emqx"), time.Now()
	before := []sinks.Message{message(topic, now.Add(-30*24*time.Hour), 1), message(topic, now.Add(-5*time.Millisecond), 1)}
	for _, m := range before {
		emqx(t, cfg, insert, m)
	}
	bury(t, s, topic, now.Add(-4*time.Hour), 3000, 0)
	ours := message(topic, now, 2)
	apply(t, s, sinks.PutMessage{Message: ours})
	want := []event.ID{before[0].ID, before[1].ID, ours.ID}
	look := cfg
	look.Look = true
	if d := cmp.Diff(idTexts(want), idTexts(pending(t, opened(t, look), topic))); d != "" {
		t.Fatalf("a look (-want +got):\n%s", d)
	}
	if low := mark(t, s, topic); !low.low.IsZero() || !low.others.IsZero() {
		t.Errorf("a look left the mark %s, others seen %s", low.low, low.others)
	}
	if d := cmp.Diff(idTexts(want), idTexts(pending(t, s, topic))); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	if low := mark(t, s, topic); !low.low.IsZero() || low.others.IsZero() {
		t.Errorf("a topic with rows of others has the mark %s, others seen %s", low.low, low.others)
	}
	// EMQX goes on, and is late.
	beside := message(topic, now.Add(-2*time.Hour), 3)
	emqx(t, cfg, insert, beside)
	want = slices.Insert(want, 1, beside.ID)
	got := pending(t, s, topic)
	if d := cmp.Diff(idTexts(want), idTexts(got)); d != "" {
		t.Fatalf("beside us (-want +got):\n%s", d)
	}
	// A removal at T+1 would leave them there.
	apply(t, s, sinks.DeleteMessage{Topic: topic, ID: beside.ID, Stamp: beside.ID.Micros() + 1})
	if n := len(pending(t, s, topic)); n != 4 {
		t.Fatalf("%d messages: the rows are not written by the wall clock", n)
	}
	ack := time.Now().Add(time.Millisecond).UnixMicro()
	for _, id := range got {
		apply(t, s, sinks.DeleteMessage{Topic: topic, ID: id, Stamp: max(id.Micros()+1, ack)})
	}
	if left := pending(t, s, topic); len(left) > 0 {
		t.Errorf("%v came back after their acks", left)
	}
	apply(t, s, sinks.PutMessage{Message: beside})
	if left := pending(t, s, topic); len(left) > 0 {
		t.Errorf("a late insert at T came back: %v", left)
	}
	if seen.of(Foreign) == 0 {
		t.Error("nothing was counted")
	}
}

// TestRowsThatNoAckCouldRemoveAreLeftOut: ids in the form of old EMQXs.
func TestRowsThatNoAckCouldRemoveAreLeftOut(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	cfg.Metrics = seen
	s, g := opened(t, cfg), plain(t, cfg)
	topic := fresh(t, "odd")
	m := message(topic, time.Now(), 1)
	for _, msgid := range []string{strings.ToLower(m.ID.String()), m.ID.String(), m.ID.String() + "X"} {
		do(t, g, `INSERT INTO `+cfg.Keyspace+`.mqtt_msg (topic, msgid, payload) VALUES (?, ?, ?)`, topic.String(), msgid, msgid)
	}
	ms, err := s.Messages(t.Context(), sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now()), Limit: 2})
	if err != nil || len(ms) != 1 || string(ms[0].Payload) != m.ID.String() {
		t.Fatalf("%d messages (%v), want the one whose id is in our form", len(ms), err)
	}
	if seen.of(Unreadable) == 0 {
		t.Error("nothing was counted")
	}
	q := sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now()), Limit: 2, Newest: true}
	if ms, err = s.Messages(t.Context(), q); err != nil || len(ms) != 1 {
		t.Errorf("newest first: %d messages (%v), want 1", len(ms), err)
	}
}

// TestFetchOfWhatIsLeftOf100000: messages that are written when their ids are over two hours old, and fetched right after the acks:
// the marks make it quick. With fresh ones, where no mark can be, it still completes, by halving.
func TestFetchOfWhatIsLeftOf100000(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	t.Run("late", func(t *testing.T) {
		cfg, seen := cfg, &counts{}
		cfg.Metrics = seen
		s := opened(t, cfg)
		n, keep := 10_000, 100
		if soak() {
			n, keep = 100_000, 1000
		}
		topic, begin, at := fresh(t, "many"), time.Now(), time.Now().Add(-150*time.Minute)
		const flush = 1000
		for from := 0; from < n; from += flush {
			var ops []sinks.Op
			for i := from; i < from+flush; i++ {
				ops = append(ops, sinks.PutMessage{Message: message(topic, at, i)})
			}
			apply(t, s, ops...)
		}
		t.Logf("%d messages written in %s", n, time.Since(begin).Round(time.Millisecond))
		left := bury(t, s, topic, at, n, keep)
		fetch20(t, s, topic, left, seen)
		if seen.of(Late) == 0 || len(mark(t, s, topic).from) == 0 {
			t.Error("no hour is listed, or it has no mark: the messages were not late")
		}
	})
	t.Run("fresh", func(t *testing.T) {
		cfg, seen := cfg, &counts{}
		cfg.Metrics = seen
		s := opened(t, cfg)
		topic := fresh(t, "many")
		left := bury(t, s, topic, time.Now().Add(-time.Minute), 101_000, 500)
		begin := time.Now()
		if got := pending(t, s, topic); !slices.Equal(got, left) {
			t.Fatalf("%d messages, want the %d that are left", len(got), len(left))
		}
		t.Logf("fetch %s; %d ranges halved", time.Since(begin).Round(time.Millisecond), seen.of(Tombstones))
		if seen.of(Tombstones) == 0 {
			t.Error("no range was halved: the server reads more tombstones than it should")
		}
	})
}

// fetch20 wants the median of 20 fetches to be under 50 ms.
func fetch20(t *testing.T, s *Store, topic event.Topic, left []event.ID, seen *counts) {
	t.Helper()
	var took []time.Duration
	for range 20 {
		begin := time.Now()
		got := pending(t, s, topic)
		took = append(took, time.Since(begin))
		if !slices.Equal(got, left) {
			t.Fatalf("%d messages, want the %d that are left", len(got), len(left))
		}
	}
	first := took[0]
	slices.Sort(took)
	median := took[len(took)/2]
	t.Logf("first fetch %s, best %s, median %s, worst %s; %d ranges halved, marks moved %d times",
		first, took[0], median, took[len(took)-1], seen.of(Tombstones), seen.of(Marks))
	if seen.of(Marks) == 0 {
		t.Error("no mark was set")
	}
	if soak() && median >= 50*time.Millisecond {
		t.Errorf("the median is %s, want less than 50 ms", median)
	}
}
