package sinktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// put is a plain message of a topic, n ms after the time.
func put(t event.Topic, at time.Time, n int) sinks.Message {
	id := event.IDOf(at.Add(time.Duration(n)*time.Millisecond).UnixMicro(), 0xF44200000002, uint16(n)) //nolint:gosec // small
	return sinks.Message{
		ID: id, Topic: t, Sender: "sender", QoS: 1, Payload: fmt.Appendf(nil, "%d", n), Arrived: id.Time().Truncate(time.Millisecond),
	}
}

// begin is when the messages of a test were published.
func (e *env) begin() time.Time { return e.clock.now().Add(-time.Minute).Truncate(time.Second) }

// pages asks for every range, limit and direction of six messages, with neighbours that must not show.
func pages(ctx context.Context, e *env) error {
	at := e.begin()
	topic := mustTopic(e.ns + "/t")
	var ops []sinks.Op
	var want []sinks.Message
	for n := 1; n <= 6; n++ {
		m := put(topic, at, n)
		if n == 1 {
			m = put(topic, at.Add(-40*24*time.Hour), n)
		}
		want = append(want, m)
		ops = append(ops, sinks.PutMessage{Message: m})
	}
	for i, s := range []string{"/", "/t/", "/t/1", "/tt", "/s", ""} {
		if e.cfg.OneTopicAnID {
			i += 10
		}
		ops = append(ops, sinks.PutMessage{Message: put(mustTopic(e.ns+s), at, i)})
	}
	slices.Reverse(ops)
	if err := e.apply(ctx, ops...); err != nil {
		return err
	}
	bounds := []event.ID{{}}
	for _, m := range want {
		bounds = append(bounds, m.ID)
	}
	bounds = append(bounds, event.LastIDAt(want[2].ID.Time()), e.lastID())
	for _, after := range bounds {
		for _, until := range bounds[1:] {
			var inside []sinks.Message
			for _, m := range want {
				if m.ID.Compare(after) > 0 && m.ID.Compare(until) <= 0 {
					inside = append(inside, m)
				}
			}
			for _, limit := range []int{1, 2, 5, 6, 500} {
				for _, newest := range []bool{false, true} {
					page := inside[:min(limit, len(inside))]
					if newest {
						page = inside[len(inside)-min(limit, len(inside)):]
					}
					q := sinks.Query{Topic: topic, After: after, Until: until, Limit: limit, Newest: newest}
					got, err := e.store.Messages(ctx, q)
					if err != nil {
						return fmt.Errorf("%+v: %w", q, err)
					}
					if d := e.diff(views(page), views(got)); d != "" {
						return fmt.Errorf("%+v (-want +got):\n%s", q, d)
					}
				}
			}
		}
	}
	got, err := e.store.Messages(ctx, sinks.Query{Topic: mustTopic(e.ns + "/none"), Until: e.lastID(), Limit: 1})
	if err != nil || len(got) > 0 {
		return wrong(err, "a topic without messages has %d", len(got))
	}
	return nil
}

// tree is a set of topics that is hard to keep in order: levels that begin with each other, empty ones, and such with '$'.
func (e *env) tree() []event.Topic {
	var out []event.Topic
	for _, s := range []string{
		"a", "a/b", "a/b/c", "a/b-c", "a-b/c", "a-b", "a!/x", "a/", "a//", "/", "", "b/c", "b/b", "$x/y", "é/😀", "a/b c/d",
	} {
		out = append(out, mustTopic(e.ns+"/"+s))
	}
	return append(out, mustTopic("first/"+e.ns+"/x"), mustTopic("/"+e.ns+"/x"), mustTopic("$first/"+e.ns+"/x"), mustTopic("$first/"+e.ns))
}

// forest is what the tree is searched with; each filter finds topics of this name space only.
func (e *env) forest() []event.Filter {
	var out []event.Filter
	for _, s := range []string{
		"NS/#", "NS/a/#", "NS/a", "NS/a/b/#", "NS/+", "NS/+/+", "NS/+/b", "NS/a/+", "NS/a/+/#", "NS/+/#", "NS/+/b/#", "NS//", "NS/+/", "NS//#",
		"NS/none/#", "NS/none", "NS/+/none/+", "NS/$x/#", "NS/+/+/c", "$share/group/NS/a/#", "+/NS/#", "+/NS/x", "first/NS/#", "$first/NS/#",
		"$first/+/x", "/NS/+", "NS/a!/+", "NS/a/b c/d",
	} {
		out = append(out, mustFilter(strings.ReplaceAll(s, "NS", e.ns)))
	}
	return out
}

func topicsByFilter(ctx context.Context, e *env) error {
	at := e.begin()
	topics := e.tree()
	for i, t := range topics {
		if err := e.apply(ctx, sinks.PutMessage{Message: put(t, at, i)}); err != nil {
			return err
		}
	}
	texts := func(ts []event.Topic) (out []string) {
		for _, t := range ts {
			if strings.Contains(t.String(), e.ns) {
				out = append(out, t.String())
			}
		}
		return out
	}
	for _, f := range append(e.forest(), mustFilter("#"), mustFilter("+/+/x")) {
		var want []string
		for _, t := range topics {
			if f.Match(t) {
				want = append(want, t.String())
			}
		}
		slices.Sort(want)
		limits := []int{1, 2, 3, 1000}
		if w := f.Levels()[0]; w == "#" || w == "+" {
			limits = []int{1000} // other tests' topics come with it
		}
		for _, limit := range limits {
			got, err := e.allTopics(ctx, f, limit)
			if err != nil {
				return err
			}
			if d := e.diff(want, texts(got)); d != "" {
				return fmt.Errorf("topics of %s, %d a page (-want +got):\n%s", f, limit, d)
			}
		}
	}
	return nil
}

func retainedByFilter(ctx context.Context, e *env) error {
	at := e.begin()
	var ops []sinks.Op
	var all []sinks.Message
	for i, t := range e.tree() {
		m := put(t, at, i)
		m.Retain = true
		all = append(all, m)
		ops = append(ops, sinks.PutRetained{Message: m})
	}
	slices.SortFunc(all, func(a, b sinks.Message) int { return strings.Compare(a.Topic.String(), b.Topic.String()) })
	if err := e.apply(ctx, ops...); err != nil {
		return err
	}
	for _, f := range e.forest() {
		var want []sinks.Message
		for _, m := range all {
			if f.Match(m.Topic) {
				want = append(want, m)
			}
		}
		got, err := e.allRetained(ctx, f)
		if err != nil {
			return err
		}
		if d := e.diff(views(want), views(got)); d != "" {
			return fmt.Errorf("retained of %s (-want +got):\n%s", f, d)
		}
	}
	return nil
}

// retainedByID goes through the life of one retained message. A store that does not commute sees it in order.
func retainedByID(ctx context.Context, e *env) error {
	at, topic := e.begin(), mustTopic(e.ns+"/r")
	f := mustFilter(e.ns + "/#")
	soon := put(topic, at, 6)
	soon.Expires = e.clock.now().Add(-time.Second)
	type stage struct {
		what string
		op   sinks.Op
		want string // the payload, "" = none
	}
	stages := []stage{
		{"the first", sinks.PutRetained{Message: put(topic, at, 2)}, "2"},
		{"a newer one", sinks.PutRetained{Message: put(topic, at, 4)}, "4"},
		{"an older one", sinks.PutRetained{Message: put(topic, at, 3)}, "4"},
		{"an older removal", sinks.DeleteRetained{Topic: topic, Stamp: put(topic, at, 3).ID.Micros()}, "4"},
		{"a removal", sinks.DeleteRetained{Topic: topic, Stamp: put(topic, at, 5).ID.Micros()}, ""},
		{"one older than the removal", sinks.PutRetained{Message: put(topic, at, 4)}, ""},
		{"one that has expired", sinks.PutRetained{Message: soon}, ""},
		{"the one after that", sinks.PutRetained{Message: put(topic, at, 7)}, "7"},
		{"an expired one replaces too", sinks.PutRetained{Message: func() sinks.Message { m := put(topic, at, 8); m.Expires = soon.Expires; return m }()}, ""},
	}
	for _, st := range stages {
		if e.cfg.Law == Replay && st.what == "one older than the removal" {
			continue // a store without tombstones cannot know
		}
		if err := e.apply(ctx, st.op); err != nil {
			return err
		}
		got, err := e.allRetained(ctx, f)
		if err != nil {
			return err
		}
		var have string
		if len(got) > 0 {
			have = string(got[0].Payload)
		}
		if have != st.want {
			return fmt.Errorf("after %s the retained message is %q, want %q", st.what, have, st.want)
		}
	}
	return nil
}

func positions(ctx context.Context, e *env) error {
	at := e.begin()
	a, b := event.ClientID(e.ns+"a"), event.ClientID(e.ns+"b")
	id := func(n int) event.ID { return put(mustTopic("t"), at, n).ID }
	topic, filter := e.ns+"/t", e.ns+"/+/#"
	at5, at9 := id(5).Micros(), id(9).Micros()
	stages := []struct {
		op    sinks.Op
		where string
		want  event.ID
		stamp int64 // of the row that is there
	}{
		{sinks.PutAcked{Client: a, Topic: topic, Message: id(5), Stamp: at5}, topic, id(5), at5},
		{sinks.PutAcked{Client: a, Topic: topic, Message: id(3), Stamp: id(3).Micros()}, topic, id(5), at5},
		{sinks.PutAcked{Client: a, Topic: topic, Message: id(6), Stamp: id(6).Micros()}, topic, id(6), id(6).Micros()},
		{sinks.PutAcked{Client: b, Topic: topic, Message: id(1), Stamp: id(1).Micros()}, topic, id(6), id(6).Micros()},
		// In pub/sub the event counts, not the id.
		{sinks.PutAcked{Client: a, Topic: filter, Message: id(9), Stamp: at9 + 10}, filter, id(9), at9 + 10},
		{sinks.PutAcked{Client: a, Topic: filter, Message: id(2), Stamp: at9 + 20}, filter, id(2), at9 + 20},
		{sinks.PutAcked{Client: a, Topic: filter, Message: id(8), Stamp: at9 + 15}, filter, id(2), at9 + 20},
		{sinks.DeleteAcked{Client: a, Topic: filter, Stamp: at9 + 16}, filter, id(2), at9 + 20},
		{sinks.DeleteAcked{Client: a, Topic: filter, Stamp: at9 + 30}, filter, event.ID{}, 0},
		{sinks.PutAcked{Client: a, Topic: filter, Message: id(4), Stamp: at9 + 40}, filter, id(4), at9 + 40},
		{sinks.DeleteAcked{Client: b, Topic: filter, Stamp: at9 + 50}, filter, id(4), at9 + 40},
	}
	for n, st := range stages {
		if err := e.apply(ctx, st.op); err != nil {
			return err
		}
		all, err := e.store.Positions(ctx, a)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(p sinks.PutAcked) bool { return p.Topic == st.where })
		switch {
		case i < 0 != st.want.IsZero():
			return fmt.Errorf("stage %d: the client's positions are %v", n, all)
		case i >= 0 && (all[i].Message != st.want || all[i].Client != a):
			return fmt.Errorf("stage %d: among the client's positions is %+v, want %s", n, all[i], st.want)
		case i >= 0 && all[i].Stamp != st.stamp:
			return fmt.Errorf("stage %d: the position's stamp is %d, want %d", n, all[i].Stamp, st.stamp)
		case !slices.IsSortedFunc(all, func(p, q sinks.PutAcked) int { return strings.Compare(p.Topic, q.Topic) }):
			return fmt.Errorf("stage %d: positions out of order: %v", n, all)
		}
		got, ok, err := e.store.Acked(ctx, a, st.where)
		if err != nil {
			return err
		}
		if got != st.want || ok == st.want.IsZero() {
			return fmt.Errorf("stage %d: the position is %s (%v), want %s", n, got, ok, st.want)
		}
	}
	return nil
}

func clients(ctx context.Context, e *env) error {
	at := e.begin()
	c := event.ClientID(e.ns)
	sec := func(n int) time.Time { return at.Add(time.Duration(n) * time.Second) }
	up := func(n int, node string) sinks.Op {
		return sinks.PutClient{Client: c, Up: sinks.ClientUp{Node: node, OnlineAt: sec(n), Stamp: sec(n).UnixMicro()}}
	}
	down := func(of, n int) sinks.Op {
		return sinks.PutClient{Client: c, Down: sinks.ClientDown{OfflineAt: sec(n), Stamp: sec(of).UnixMicro() + 1}}
	}
	if _, ok, err := e.store.Client(ctx, c); ok || err != nil {
		return wrong(err, "a client that nobody met is known")
	}
	stages := []struct {
		what string
		op   sinks.Op
		want sinks.Client
	}{
		{"a connect", up(1, "n1"), sinks.Client{ID: c, Online: true, Node: "n1", OnlineAt: sec(1)}},
		{"its disconnect", down(1, 5), sinks.Client{ID: c, Node: "n1", OnlineAt: sec(1), OfflineAt: sec(5)}},
		{"the next connect", up(10, "n2"), sinks.Client{ID: c, Online: true, Node: "n2", OnlineAt: sec(10)}},
		{"the first connect again", up(1, "n1"), sinks.Client{ID: c, Online: true, Node: "n2", OnlineAt: sec(10)}},
		{"a late disconnect of the first", down(1, 12), sinks.Client{ID: c, Online: true, Node: "n2", OnlineAt: sec(10)}},
		{"the disconnect", down(10, 20), sinks.Client{ID: c, Node: "n2", OnlineAt: sec(10), OfflineAt: sec(20)}},
	}
	for _, st := range stages {
		if err := e.apply(ctx, st.op); err != nil {
			return err
		}
		got, ok, err := e.store.Client(ctx, c)
		if err != nil || !ok {
			return wrong(err, "after %s: the client is unknown", st.what)
		}
		if d := e.diff(st.want, got); d != "" {
			return fmt.Errorf("after %s (-want +got):\n%s", st.what, d)
		}
	}
	return nil
}

func subscriptions(ctx context.Context, e *env) error {
	c, at := event.ClientID(e.ns), e.begin().UnixMicro()
	f := func(s string) event.Filter { return mustFilter(s) }
	err := e.apply(
		ctx,
		sinks.PutSub{Client: c, Filter: f("t/#"), QoS: 1, Stamp: at},
		sinks.PutSub{Client: c, Filter: f("$share/g/t/+"), QoS: 2, Stamp: at + 1},
		sinks.PutSub{Client: c, Filter: f("a b/ü"), QoS: 0, Stamp: at + 2},
		sinks.PutSub{Client: c + "2", Filter: f("other"), QoS: 1, Stamp: at + 3},
	)
	if err != nil {
		return err
	}
	err = e.apply(ctx, sinks.PutSub{Client: c, Filter: f("t/#"), QoS: 2, Stamp: at + 4}, sinks.DeleteSub{Client: c, Filter: f("a b/ü"), Stamp: at + 5})
	if err != nil {
		return err
	}
	got, err := e.store.Subs(ctx, c)
	if err != nil {
		return err
	}
	var texts []string
	for _, s := range got {
		texts = append(texts, subText(s))
	}
	if d := e.diff([]string{"$share/g/t/+ at QoS 2", "t/# at QoS 2"}, texts); d != "" {
		return errors.New("(-want +got):\n" + d)
	}
	return nil
}

func history(ctx context.Context, e *env) error {
	topic, at := mustTopic(e.ns+"/h"), e.begin()
	err := e.apply(
		ctx,
		sinks.PutMessage{Message: put(topic, at, 1), History: true},
		sinks.PutMessage{Message: put(topic, at, 2)},
		sinks.PutMessage{Message: put(topic, at, 3), History: true},
	)
	if err != nil {
		return err
	}
	err = e.apply(ctx, sinks.PutMessage{Message: put(topic, at, 3)}, sinks.PutMessage{Message: put(topic, at, 2), History: true})
	if err != nil {
		return err
	}
	got, err := e.all(ctx, topic)
	if err != nil {
		return err
	}
	if d := e.diff(views([]sinks.Message{put(topic, at, 2), put(topic, at, 3)}), views(got)); d != "" {
		return fmt.Errorf("pending (-want +got):\n%s", d)
	}
	return nil
}
