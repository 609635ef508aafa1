package cassandra

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// stages takes writes and reads of one topic apart, so that tests can put something between their steps.
type stages struct {
	tb    rapid.TB
	ctx   context.Context
	topic event.Topic
	base  time.Time // of the ids, in the middle of an hour
}

// staged is a topic whose mark stands above all of its late hours.
func staged(tb testing.TB, s *Store) stages {
	tb.Helper()
	g := stages{tb, tb.Context(), fresh(tb, "late"), time.Now().Truncate(time.Hour).Add(-150 * time.Minute)}
	g.pass(s)
	if mark(tb, s, g.topic).low.Compare(g.message(9).ID) <= 0 {
		tb.Fatal("the topic's mark is not above the late hours")
	}
	return g
}

// message is the nth: a minute each, 30 of them in the hour.
func (g stages) message(n int) sinks.Message {
	return message(g.topic, g.base.Add(time.Duration(n)*time.Minute), 0)
}

// begin makes all known that a reader needs to find the messages.
func (g stages) begin(s *Store, ns ...int) *work {
	var ops []sinks.Op
	for _, n := range ns {
		ops = append(ops, sinks.PutMessage{Message: g.message(n)})
	}
	w, err := s.work(g.ctx, ops)
	if err != nil {
		g.tb.Fatal(err)
	}
	w.announce(g.ctx)
	w.plan(g.ctx)
	return w
}

func (g stages) write(w *work) {
	w.write(g.ctx)
	g.ok(w.err())
}

// sign ends an Apply that succeeds.
func (g stages) sign(w *work) {
	w.sign(g.ctx)
	g.ok(w.err())
}

func (g stages) ok(err error) {
	if err != nil {
		g.tb.Fatal(err)
	}
}

func (g stages) put(s *Store, ns ...int) {
	w := g.begin(s, ns...)
	g.write(w)
	g.sign(w)
}

func (g stages) ack(s *Store, ns ...int) {
	var ops []sinks.Op
	for _, n := range ns {
		id := g.message(n).ID
		ops = append(ops, sinks.DeleteMessage{Topic: g.topic, ID: id, Stamp: id.Micros() + 1})
	}
	g.ok(s.Apply(g.ctx, ops))
}

// walk has read the marks and the tokens, and no message yet. It will think that marks pay.
func (g stages) walk(s *Store, after event.ID, limit int) *walk {
	w, err := s.walk(g.ctx, sinks.Query{Topic: g.topic, After: after, Until: event.LastIDAt(time.Now()), Limit: limit})
	if err != nil {
		g.tb.Fatal(err)
	}
	w.dear = true
	return w
}

func (g stages) run(w *walk)   { g.ok(w.run(g.ctx)) }
func (g stages) learn(w *walk) { g.ok(w.learn(g.ctx)) }

// pass reads all, and moves the marks as far as may be.
func (g stages) pass(s *Store) {
	w := g.walk(s, event.ID{}, pageRows)
	g.run(w)
	g.learn(w)
}

// got are the numbers of the messages that a read gives which begins now.
func (g stages) got(s *Store) (ns []int) {
	ms, err := s.Messages(g.ctx, sinks.Query{Topic: g.topic, Until: event.LastIDAt(time.Now()), Limit: pageRows})
	if err != nil {
		g.tb.Fatal(err)
	}
	for _, m := range ms {
		ns = append(ns, int(m.ID.Time().Sub(g.base)/time.Minute))
	}
	return ns
}

func (g stages) want(when string, s *Store, ns ...int) {
	g.tb.Helper()
	if d := cmp.Diff(ns, g.got(s)); d != "" {
		g.tb.Fatalf("%s (-want +got):\n%s", when, d)
	}
}

// TestARowThatAPassMissedIsFound: it lands after the pass has read, and its token before the pass writes the mark, or behind it.
func TestARowThatAPassMissedIsFound(t *testing.T) {
	t.Parallel()
	s, other := opened(t, ready(t)), opened(t, ready(t))
	for _, signedFirst := range []bool{true, false} {
		g := staged(t, s)
		g.put(s, 5)
		w := g.begin(s, 1)
		missed := g.walk(other, event.ID{}, pageRows)
		g.run(missed)
		g.write(w)
		if signedFirst {
			g.sign(w)
			g.learn(missed)
		} else {
			g.learn(missed)
			g.want("a mark is used, or nothing here shows anything: before its Apply returns, the row", other, 5)
			g.sign(w)
		}
		g.want("after its Apply the row", other, 1, 5)
		g.want("and for its writer", s, 1, 5)
		// The marks go on from there.
		g.pass(other)
		g.ack(other, 1)
		g.pass(s)
		if from := mark(t, s, g.topic).begin(g.message(0).ID.Micros() / time.Hour.Microseconds()); from != g.message(5).ID {
			t.Errorf("acks took the hour's mark away, or it did not move: it begins at %s", from.Time())
		}
		g.want("behind the mark", other, 5)
	}
}

// TestARowBetweenTokensAndMessagesOfAPassIsFound: the pass may have seen it or not, its tokens are old.
func TestARowBetweenTokensAndMessagesOfAPassIsFound(t *testing.T) {
	t.Parallel()
	s, other := opened(t, ready(t)), opened(t, ready(t))
	g := staged(t, s)
	g.put(s, 5)
	pass := g.walk(other, event.ID{}, pageRows)
	g.put(s, 1)
	g.run(pass)
	g.put(s, 0)
	g.learn(pass)
	g.want("between and behind", other, 0, 1, 5)
}

// TestAMarkIsIgnoredAfterALateWrite: of any store, also one that has never written there.
func TestAMarkIsIgnoredAfterALateWrite(t *testing.T) {
	t.Parallel()
	s, other := opened(t, ready(t)), opened(t, ready(t))
	g := staged(t, s)
	g.put(s, 5, 6)
	g.ack(s, 5)
	g.pass(s)
	if len(mark(t, s, g.topic).from) != 1 {
		t.Fatal("the hour has no mark")
	}
	g.put(s, 3)
	g.want("of the same store", other, 3, 6)
	g.pass(s)
	g.put(other, 2)
	g.want("of another", s, 2, 3, 6)
	g.ack(s, 2, 3, 6)
	g.pass(s)
	row := mark(t, s, g.topic)
	if spans := row.spans(event.ID{}, event.LastIDAt(time.Now())); len(spans) != 1 {
		t.Errorf("%d ranges are read, want one: the hour is empty", len(spans))
	}
	g.put(other, 4)
	g.want("into an hour that is known to be empty", s, 4)
}

// TestAZombiesTokenHidesNothing: the owner before goes on with what it had begun, in between or long after.
func TestAZombiesTokenHidesNothing(t *testing.T) {
	t.Parallel()
	zombie, owner := opened(t, ready(t)), opened(t, ready(t))
	g := staged(t, owner)
	late := g.begin(zombie, 1, 4)
	g.put(owner, 4, 7)
	g.pass(owner)
	g.write(late)
	g.put(owner, 1)
	g.want("the owner's rows", owner, 1, 4, 7)
	g.pass(owner)
	g.ack(owner, 1)
	g.pass(owner)
	g.sign(late)
	g.want("after the zombie's token", owner, 4, 7)
	g.pass(owner)
	g.put(owner, 2)
	g.want("after the next write", zombie, 2, 4, 7)
}

// TestACrashBeforeTheTokenIsMended: who takes over writes the row again, with a token.
func TestACrashBeforeTheTokenIsMended(t *testing.T) {
	t.Parallel()
	s, heir := opened(t, ready(t)), opened(t, ready(t))
	g := staged(t, s)
	g.put(heir, 5)
	w := g.begin(s, 1)
	pass := g.walk(heir, event.ID{}, pageRows)
	g.run(pass)
	g.write(w)
	g.learn(pass)
	g.want("the row is hidden, or nothing here shows anything", heir, 5)
	g.put(heir, 1)
	g.want("written again", heir, 1, 5)

	// A token that cannot be written is a failure of the rows of its topic.
	w = g.begin(s, 2)
	g.write(w)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.sign(ctx)
	if err := w.err(); err == nil {
		t.Error("a row without its token is called done")
	}
}

// TestYoungRowsAreAboveTheMarks: a row that is not late makes no token, though its hour may be listed.
func TestYoungRowsAreAboveTheMarks(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	now := time.Now().Truncate(time.Hour).Add(-48*time.Hour + 20*time.Minute)
	cfg.Now = func() time.Time { return now }
	s := opened(t, cfg)
	topic := fresh(t, "young")
	late, young := message(topic, now.Add(-35*time.Minute), 1), message(topic, now.Add(-25*time.Minute), 1)
	apply(t, s, sinks.PutMessage{Message: late})
	apply(t, s, sinks.DeleteMessage{Topic: topic, ID: late.ID, Stamp: late.ID.Micros() + 1})
	g := stages{tb: t, ctx: t.Context(), topic: topic}
	g.pass(s)
	row := mark(t, s, topic)
	if len(row.late) != 1 || beginOf(row.late[0]).Compare(young.ID) > 0 || endOf(row.late[0]).Compare(young.ID) < 0 || len(row.from) != 1 {
		t.Fatalf("hours %v are listed, %d of them with a mark; want the one that is of both messages, with a mark", row.late, len(row.from))
	}
	apply(t, s, sinks.PutMessage{Message: young})
	if d := cmp.Diff(idTexts([]event.ID{young.ID}), idTexts(pending(t, s, topic))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestLaterPagesMoveNoMarkOverTheFirst: neither the topic's nor the hour's.
func TestLaterPagesMoveNoMarkOverTheFirst(t *testing.T) {
	t.Parallel()
	s := opened(t, ready(t))
	g := staged(t, s)
	g.put(s, 0, 20, 29)
	for _, after := range []int{0, 20} {
		g.pass(s)
		w := g.walk(s, g.message(after).ID, 1)
		g.run(w)
		g.learn(w)
		g.want(fmt.Sprintf("after a page behind %d", after), s, 0, 20, 29)
	}
	// The same of messages that came in time: all hours are above the mark.
	topic := fresh(t, "pages")
	then := ready(t)
	at := time.Now().Add(-5 * time.Hour)
	then.Now = func() time.Time { return at }
	var ops []sinks.Op
	var ids []event.ID
	for n := range 3 {
		m := message(topic, at.Add(time.Duration(n)*time.Hour), 0)
		ops, ids = append(ops, sinks.PutMessage{Message: m}), append(ids, m.ID)
	}
	apply(t, opened(t, then), ops...)
	g = stages{tb: t, ctx: t.Context(), topic: topic}
	g.pass(s)
	if low := mark(t, s, topic).low; low != ids[0] {
		t.Fatalf("the mark is %s, want the first id", low)
	}
	w := g.walk(s, ids[0], 1)
	g.run(w)
	g.learn(w)
	if d := cmp.Diff(idTexts(ids), idTexts(pending(t, s, topic))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestTokensNeverComeAgain: nor does a mark outlive one.
func TestTokensNeverComeAgain(t *testing.T) {
	t.Parallel()
	if seenLife+passTime >= tokenLife {
		t.Error("a mark may outlive a token that is missing in it")
	}
	k := tokens{writer: "a"}
	now := time.Now()
	last := k.next(now)
	for _, at := range []time.Time{now, now.Add(-time.Hour), now.Add(time.Second), now} {
		next := k.next(at)
		if next <= last {
			t.Fatalf("token %d behind %d", next, last)
		}
		last = next
	}
	s := opened(t, ready(t))
	g := staged(t, s)
	g.put(s, 1)
	before := mark(t, s, g.topic).sums
	l, err := s.link.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hour := g.message(1).ID.Micros() / time.Hour.Microseconds()
	token := func(at int64) {
		t.Helper()
		g.ok(s.exec(t.Context(), l, []statement{{addTokens, []any{at, 1000, map[string]int64{s.tokens.key(hour): at}, g.topic.String()}}}))
	}
	token(now.UnixMicro() - 1)
	if d := cmp.Diff(before, mark(t, s, g.topic).sums); d != "" {
		t.Errorf("a token that comes late changed the hour's:\n%s", d)
	}
	token(s.tokens.next(now))
	if cmp.Equal(before, mark(t, s, g.topic).sums) {
		t.Error("a new one did not")
	}
	slow := g.walk(s, event.ID{}, pageRows)
	slow.begun = slow.begun.Add(-passTime - time.Second)
	g.run(slow)
	g.learn(slow)
	if len(mark(t, s, g.topic).from) > 0 {
		t.Error("a pass that took so long that tokens may have expired left a mark")
	}
}

// TestWhatCannotBeReadIsNotTrusted: a cell or a mark that is none of ours.
func TestWhatCannotBeReadIsNotTrusted(t *testing.T) {
	t.Parallel()
	row := lowRow{late: []int64{5, 6}}
	id := beginOf(5).WithTime(beginOf(5).Time().Add(time.Minute))
	seen := map[int64]string{5: sumOf([]string{"5/a=1", "5/b=2"}) + ":" + id.String(), 6: sumOf(nil) + ":" + id.String()}
	if !row.judge(map[string]int64{"5/b": 2, "5/a": 1, "6/a": 1}, seen) || len(row.from) != 1 || row.begin(5) != id || row.begin(6) != beginOf(6) {
		t.Errorf("trusted: %v, want hour 5 alone", row.from)
	}
	for name, bad := range map[string]func() (map[string]int64, map[int64]string){
		"a key":  func() (map[string]int64, map[int64]string) { return map[string]int64{"x/a": 1}, seen },
		"a mark": func() (map[string]int64, map[int64]string) { return nil, map[int64]string{6: sumOf(nil) + ":x"} },
	} {
		row := lowRow{late: []int64{5, 6}}
		if row.judge(bad()) || len(row.from) > 0 {
			t.Errorf("%s: trusted %v", name, row.from)
		}
	}
}

// TestNoHistoryOfLateWritesHidesAMessage: two stores write, fail, take over, acknowledge and read in steps that come in any order;
// every message whose Apply has returned is found until its ack, and no other after it.
func TestNoHistoryOfLateWritesHidesAMessage(t *testing.T) {
	t.Parallel()
	stores := []*Store{opened(t, ready(t)), opened(t, ready(t))}
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{stages: staged(t, stores[0]), done: map[int]bool{}, begun: map[int]bool{}, gone: map[int]bool{}}
		h.tb = rt
		for range rapid.IntRange(5, 40).Draw(rt, "steps") {
			h.step(rt, stores[rapid.IntRange(0, 1).Draw(rt, "store")])
		}
		for _, s := range stores {
			h.check(s)
		}
	})
}

// history is what has happened to a topic.
type history struct {
	stages
	done, begun, gone map[int]bool // Apply returned; written, or about to be; acknowledged
	written, planned  []*work
	read, walks       []*walk
}

// take removes one.
func take[T any](rt *rapid.T, from *[]T) T {
	i := rapid.IntRange(0, len(*from)-1).Draw(rt, "which")
	one := (*from)[i]
	*from = slices.Delete(*from, i, i+1)
	return one
}

func (h *history) step(rt *rapid.T, s *Store) {
	number := rapid.SampledFrom([]int{0, 3, 7, 12, 29, 31, 40}) // of two hours
	switch rapid.IntRange(0, 9).Draw(rt, "do") {
	case 0, 1:
		ns := rapid.SliceOfNDistinct(number, 1, 2, rapid.ID[int]).Draw(rt, "messages")
		for _, n := range ns {
			h.begun[n] = true
		}
		h.planned = append(h.planned, h.begin(s, ns...))
	case 2:
		if len(h.planned) > 0 {
			w := take(rt, &h.planned)
			h.write(w)
			h.written = append(h.written, w)
		}
	case 3:
		if len(h.written) > 0 {
			w := take(rt, &h.written)
			h.sign(w)
			for _, o := range w.ops {
				h.done[int(o.(sinks.PutMessage).ID.Time().Sub(h.base)/time.Minute)] = true
			}
		}
	case 4:
		if len(h.written) > 0 { // a crash: another owner comes, with cells of its own
			take(rt, &h.written)
		}
	case 5:
		n := number.Draw(rt, "message")
		h.begun[n], h.gone[n] = true, true
		h.ack(s, n)
	case 6:
		after := event.ID{}
		if rapid.IntRange(0, 3).Draw(rt, "page") == 0 {
			after = h.message(number.Draw(rt, "after")).ID
		}
		h.walks = append(h.walks, h.walk(s, after, rapid.SampledFrom([]int{1, 2, pageRows}).Draw(rt, "limit")))
	case 7:
		if len(h.walks) > 0 {
			w := take(rt, &h.walks)
			h.run(w)
			h.read = append(h.read, w)
		}
	case 8:
		if len(h.read) > 0 {
			h.learn(take(rt, &h.read))
		}
	case 9:
		h.check(s)
	}
}

func (h *history) check(s *Store) {
	got := h.got(s)
	for n := range h.done {
		if !h.gone[n] && !slices.Contains(got, n) {
			h.tb.Fatalf("message %d is hidden: got %v", n, got)
		}
	}
	for _, n := range got {
		if h.gone[n] || !h.begun[n] {
			h.tb.Fatalf("message %d is there: got %v", n, got)
		}
	}
}
