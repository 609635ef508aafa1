package sinktest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// state is what a reader can see of the topics and clients of a universe.
type state struct {
	Messages map[string][]message
	Retained []message
	Acked    map[string]string
	Clients  map[string]sinks.Client
	Subs     map[string][]string
}

// message is a sinks.Message in comparable words.
type message struct {
	ID, Topic, Sender string
	QoS               event.QoS
	Retain            bool
	Payload           string
	Arrived           time.Time
	Properties        event.Properties
	Expires           time.Time
}

func view(m sinks.Message) message {
	return message{
		ID: m.ID.String(), Topic: m.Topic.String(), Sender: string(m.Sender), QoS: m.QoS, Retain: m.Retain, Payload: string(m.Payload),
		Arrived: m.Arrived, Properties: m.Properties, Expires: m.Expires,
	}
}

func views(ms []sinks.Message) []message {
	var out []message
	for _, m := range ms {
		out = append(out, view(m))
	}
	return out
}

// same compares what was read with what was written, as exactly as the store promises.
func (e *env) same() gocmp.Options {
	precision := cmp.Or(e.cfg.TimePrecision, time.Millisecond)
	return gocmp.Options{
		cmpopts.EquateEmpty(),
		gocmp.FilterPath(func(p gocmp.Path) bool {
			return p.Last().String() == ".Expires"
		}, gocmp.Comparer(func(a, b time.Time) bool {
			return a.IsZero() == b.IsZero() && a.Sub(b).Abs() <= e.cfg.ExpiryPrecision
		})),
		gocmp.FilterPath(func(p gocmp.Path) bool {
			return p.Last().String() != ".Expires"
		}, gocmp.Comparer(func(a, b time.Time) bool {
			return a.IsZero() == b.IsZero() && a.Truncate(precision).Equal(b.Truncate(precision))
		})),
	}
}

// diff is empty when both are the same. It is cut where it grows long.
func (e *env) diff(want, got any) string {
	d := gocmp.Diff(want, got, e.same())
	const most = 4000
	if len(d) > most {
		return d[:most] + "\n…"
	}
	return d
}

// fold is the model: what a history comes to, whatever its order.
func fold(ops []sinks.Op) map[string]sinks.Op {
	rows := map[string]sinks.Op{}
	for _, o := range ops {
		if old, ok := rows[o.Row()]; ok {
			o = sinks.Merge(old, o)
		}
		rows[o.Row()] = o
	}
	return rows
}

// expect is what a reader should see of the rows at a time.
func expect(u *universe, rows map[string]sinks.Op, now time.Time) state {
	st := state{Messages: map[string][]message{}, Acked: map[string]string{}, Clients: map[string]sinks.Client{}, Subs: map[string][]string{}}
	live := func(m sinks.Message) bool { return m.Expires.IsZero() || m.Expires.After(now) }
	for _, o := range rows {
		switch o := o.(type) {
		case sinks.PutMessage:
			if live(o.Message) && !o.History {
				st.Messages[o.Topic.String()] = append(st.Messages[o.Topic.String()], view(o.Message))
			}
		case sinks.PutRetained:
			if live(o.Message) {
				st.Retained = append(st.Retained, view(o.Message))
			}
		case sinks.PutAcked:
			st.Acked[key(o.Client, o.Topic)] = o.Message.String()
		case sinks.PutClient:
			c := sinks.Client{ID: o.Client, Online: o.Up.Stamp > o.Down.Stamp, Node: o.Up.Node, OnlineAt: o.Up.OnlineAt}
			if !c.Online {
				c.OfflineAt = o.Down.OfflineAt
			}
			st.Clients[string(o.Client)] = c
		case sinks.PutSub:
			st.Subs[string(o.Client)] = append(st.Subs[string(o.Client)], subText(sinks.Sub{Filter: o.Filter, QoS: o.QoS}))
		case sinks.DeleteMessage, sinks.DeleteAcked, sinks.DeleteRetained, sinks.DeleteSub:
		}
	}
	for _, ms := range st.Messages {
		slices.SortFunc(ms, func(a, b message) int { return strings.Compare(a.ID, b.ID) })
	}
	slices.SortFunc(st.Retained, func(a, b message) int { return strings.Compare(a.Topic, b.Topic) })
	for _, subs := range st.Subs {
		slices.Sort(subs)
	}
	return st
}

func key(c event.ClientID, topic string) string { return string(c) + " ← " + topic }

func subText(s sinks.Sub) string { return fmt.Sprintf("%s at QoS %d", s.Filter, s.QoS) }

// observe reads the state of a universe.
func (e *env) observe(ctx context.Context, u *universe) (state, error) {
	st := state{Messages: map[string][]message{}, Acked: map[string]string{}, Clients: map[string]sinks.Client{}, Subs: map[string][]string{}}
	for _, t := range u.topics {
		ms, err := e.all(ctx, t)
		if err != nil {
			return state{}, err
		}
		if len(ms) > 0 {
			st.Messages[t.String()] = views(ms)
		}
	}
	for _, f := range u.everything {
		ms, err := e.allRetained(ctx, f)
		if err != nil {
			return state{}, err
		}
		st.Retained = append(st.Retained, views(ms)...)
	}
	slices.SortFunc(st.Retained, func(a, b message) int { return strings.Compare(a.Topic, b.Topic) })
	for _, c := range u.clients {
		for _, t := range u.positions {
			id, ok, err := e.store.Acked(ctx, c, t)
			if err != nil {
				return state{}, fmt.Errorf("acked: %w", err)
			}
			if ok {
				st.Acked[key(c, t)] = id.String()
			}
		}
		cl, ok, err := e.store.Client(ctx, c)
		if err != nil {
			return state{}, fmt.Errorf("client: %w", err)
		}
		if ok {
			st.Clients[string(c)] = cl
		}
		subs, err := e.store.Subs(ctx, c)
		if err != nil {
			return state{}, fmt.Errorf("subs: %w", err)
		}
		for _, s := range subs {
			st.Subs[string(c)] = append(st.Subs[string(c)], subText(s))
		}
		slices.Sort(st.Subs[string(c)])
	}
	return st, nil
}

// compare reads the universe and says how it differs from the model, and which topics the index hides.
func (e *env) compare(ctx context.Context, u *universe, rows map[string]sinks.Op) error {
	want := expect(u, rows, e.clock.now())
	got, err := e.observe(ctx, u)
	if err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	if d := e.diff(want, got); d != "" {
		return fmt.Errorf("the state is not what the history comes to (-want +got):\n%s", d)
	}
	listed := map[string]bool{}
	for _, f := range u.everything {
		topics, err := e.allTopics(ctx, f, 2)
		if err != nil {
			return err
		}
		for _, t := range topics {
			listed[t.String()] = true
		}
	}
	for t := range want.Messages {
		if !listed[t] {
			return fmt.Errorf("topic %q has messages, but no filter finds it", t)
		}
	}
	return nil
}

// lastID is greater than every id of a test.
func (e *env) lastID() event.ID { return event.LastIDAt(e.clock.now().Add(24 * time.Hour)) }

// all reads the messages of a topic page by page.
func (e *env) all(ctx context.Context, t event.Topic) ([]sinks.Message, error) {
	const limit = 3
	var found []sinks.Message
	for q := (sinks.Query{Topic: t, Until: e.lastID(), Limit: limit}); ; {
		ms, err := e.store.Messages(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("messages of %.80q: %w", t, err)
		}
		found = append(found, ms...)
		if len(ms) < limit {
			return found, nil
		}
		if next := ms[len(ms)-1].ID; next.Compare(q.After) <= 0 {
			return nil, fmt.Errorf("messages of %.80q after %s: the page ends with %s", t, q.After, next)
		}
		q.After = ms[len(ms)-1].ID
	}
}

// allTopics reads the topics of a filter page by page and makes sure that they are in order and match.
func (e *env) allTopics(ctx context.Context, f event.Filter, limit int) ([]event.Topic, error) {
	var found []event.Topic
	for after := (event.Topic{}); ; {
		ts, err := e.store.Topics(ctx, f, after, limit)
		if err != nil {
			return nil, fmt.Errorf("topics of %s: %w", f, err)
		}
		for _, t := range ts {
			if t.String() <= after.String() {
				return nil, fmt.Errorf("topics of %s: %.80q comes behind %.80q", f, t, after)
			}
			if !f.Match(t) {
				return nil, fmt.Errorf("topics of %s: %.80q does not match", f, t)
			}
			after = t
		}
		found = append(found, ts...)
		if len(ts) > limit {
			return nil, fmt.Errorf("topics of %s: %d in a page of %d", f, len(ts), limit)
		}
		if len(ts) < limit {
			return found, nil
		}
	}
}

// allRetained reads the retained messages of a filter page by page and makes sure that they are in order and match.
func (e *env) allRetained(ctx context.Context, f event.Filter) ([]sinks.Message, error) {
	const limit = 2
	var found []sinks.Message
	for after := (event.Topic{}); ; {
		ms, err := e.store.Retained(ctx, f, after, limit)
		if err != nil {
			return nil, fmt.Errorf("retained of %s: %w", f, err)
		}
		for _, m := range ms {
			if m.Topic.String() <= after.String() || !f.Match(m.Topic) {
				return nil, fmt.Errorf("retained of %s: %.80q comes behind %.80q, or does not match", f, m.Topic, after)
			}
			if m.Payload == nil {
				return nil, errors.New("retained: a payload is nil")
			}
			after = m.Topic
		}
		found = append(found, ms...)
		if len(ms) > limit {
			return nil, fmt.Errorf("retained of %s: %d in a page of %d", f, len(ms), limit)
		}
		if len(ms) < limit {
			return found, nil
		}
	}
}
