package sinktest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// expiry writes messages that have expired and others that expire while they are stored.
func expiry(ctx context.Context, e *env) error {
	const life = 12 * time.Second // longer than a machine stands still between a write and the read after it
	at, now := e.begin(), e.clock.now()
	topic, other := mustTopic(e.ns+"/e"), mustTopic(e.ns+"/f")
	with := func(t event.Topic, n int, expires time.Time) sinks.Message {
		m := put(t, at, n)
		m.Expires = expires.Truncate(time.Microsecond)
		return m
	}
	forever, long, short, gone := put(topic, at, 1), with(topic, 2, now.Add(time.Hour)), with(topic, 3, now.Add(life)), with(topic, 4, now.Add(-time.Second))
	retained := with(other, 5, now.Add(life))
	err := e.apply(
		ctx,
		sinks.PutMessage{Message: forever}, sinks.PutMessage{Message: long}, sinks.PutMessage{Message: short}, sinks.PutMessage{Message: gone},
		sinks.PutRetained{Message: retained}, sinks.PutRetained{Message: with(topic, 6, now.Add(-time.Second))},
	)
	if err != nil {
		return err
	}
	expect := func(when string, messages, kept []sinks.Message) error {
		got, err := e.all(ctx, topic)
		if err != nil {
			return err
		}
		if d := e.diff(views(messages), views(got)); d != "" {
			return fmt.Errorf("messages %s (-want +got):\n%s", when, d)
		}
		if got, err = e.allRetained(ctx, mustFilter(e.ns+"/#")); err != nil {
			return err
		}
		if d := e.diff(views(kept), views(got)); d != "" {
			return fmt.Errorf("retained %s (-want +got):\n%s", when, d)
		}
		return nil
	}
	if err := expect("at first", []sinks.Message{forever, long, short}, []sinks.Message{retained}); err != nil {
		return err
	}
	newest, err := e.store.Messages(ctx, sinks.Query{Topic: topic, Until: e.lastID(), Limit: 1, Newest: true})
	if err != nil || len(newest) != 1 || newest[0].ID != short.ID {
		return wrong(err, "the newest is not the newest that lives: %d messages", len(newest))
	}
	if err := e.pass(ctx, life+2*time.Second); err != nil {
		return err
	}
	if err := expect("after the short one's life", []sinks.Message{forever, long}, nil); err != nil {
		return err
	}
	// Again, late: an outage must not prolong a life.
	if err := e.apply(ctx, sinks.PutMessage{Message: short}, sinks.PutRetained{Message: retained}); err != nil {
		return err
	}
	return expect("after the short one came again", []sinks.Message{forever, long}, nil)
}

func payloads(ctx context.Context, e *env) error {
	at, topic := e.begin(), mustTopic(e.ns+"/p")
	most := cmp.Or(e.cfg.MaxPayload, 256<<10)
	random := make([]byte, most)
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // bytes of a test
	for i := range random {
		random[i] = byte(rng.IntN(256)) //nolint:gosec // 0 to 255
	}
	all := [][]byte{
		{},
		[]byte("22.5"),
		{0},
		{0xff},
		[]byte("text\x00with\x00NUL"),
		[]byte("ends with NUL\x00"),
		[]byte("not UTF-8: \xc3\x28"),
		[]byte("ünïcode 😀 \u0001 \r\n\t"),
		[]byte("\ufeffbyte order mark"),
		[]byte("\u0001b64:"),
		[]byte("\u0001b64:AAEC"),
		[]byte("\u0001\u0001b64:AAEC"),
		[]byte("b64:AAEC"),
		[]byte("\xff\u0001b64:AAEC"),
		[]byte("base64:AAEC"),
		[]byte("0x00"), []byte("null"), []byte("NULL"), []byte("1e3"), []byte("007"), []byte(" 1 "), []byte("X'00'"), []byte("''"),
		[]byte("\xed\xa0\x80 a surrogate"),
		bytes.Repeat([]byte("a"), most),
		bytes.Repeat([]byte("é"), most/2),
		random,
	}
	for b := range 256 {
		all = append(all, []byte{byte(b)})
	}
	var want []sinks.Message
	for i, p := range all {
		m := put(topic, at, i)
		m.Payload = p
		want = append(want, m)
		if err := e.apply(ctx, sinks.PutMessage{Message: m}); err != nil {
			return fmt.Errorf("payload %.40q of %d bytes: %w", p, len(p), err)
		}
	}
	got, err := e.all(ctx, topic)
	if err != nil {
		return err
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d messages, want %d", len(got), len(want))
	}
	for i, m := range got {
		if m.Payload == nil || !bytes.Equal(m.Payload, want[i].Payload) {
			return fmt.Errorf("payload %.40q of %d bytes came back as %.40q of %d bytes", want[i].Payload, len(want[i].Payload), m.Payload, len(m.Payload))
		}
	}
	for _, i := range []int{0, 3, 9, len(all) - 257} {
		if err := e.apply(ctx, sinks.PutRetained{Message: want[i]}); err != nil {
			return err
		}
		kept, err := e.allRetained(ctx, mustFilter(topic.String()))
		if err != nil || len(kept) != 1 || !bytes.Equal(kept[0].Payload, all[i]) {
			return wrong(err, "retained payload %.40q of %d bytes did not come back", all[i], len(all[i]))
		}
	}
	return nil
}

func properties(ctx context.Context, e *env) error {
	at, topic := e.begin(), mustTopic(e.ns+"/p")
	all := []event.Properties{
		{},
		{ContentType: "text/plain; charset=utf-8"},
		{ResponseTopic: "an/swer", CorrelationData: []byte{0, 1, 0xff}},
		{PayloadFormat: 1},
		{User: []event.UserProperty{{Key: "b", Value: "2"}, {Key: "a", Value: "1"}, {Key: "b", Value: ""}, {Key: "", Value: "ü\"<>&\\"}}},
		{
			User: []event.UserProperty{{Key: strings.Repeat("k", 500), Value: strings.Repeat("v", 5000)}}, ContentType: "x", ResponseTopic: "r",
			CorrelationData: bytes.Repeat([]byte{7}, 300), PayloadFormat: 1,
		},
	}
	var want []sinks.Message
	for i, p := range all {
		m := put(topic, at, i)
		m.Properties = p
		m.QoS, m.Retain, m.Sender = event.QoS(i%3), i%2 == 0, event.ClientID(strings.Repeat("s", i))
		want = append(want, m)
		if err := e.apply(ctx, sinks.PutMessage{Message: m}, sinks.PutRetained{Message: m}); err != nil {
			return err
		}
		kept, err := e.allRetained(ctx, mustFilter(topic.String()))
		if err != nil {
			return err
		}
		if d := e.diff(views([]sinks.Message{m}), views(kept)); d != "" {
			return fmt.Errorf("retained (-want +got):\n%s", d)
		}
	}
	got, err := e.all(ctx, topic)
	if err != nil {
		return err
	}
	if d := e.diff(views(want), views(got)); d != "" {
		return fmt.Errorf("messages (-want +got):\n%s", d)
	}
	return nil
}

func oddTopics(ctx context.Context, e *env) error {
	at := e.begin()
	most := cmp.Or(e.cfg.MaxTopic, 65535)
	fill := func(unit string) string {
		room := most - len(e.ns) - 1
		return strings.Repeat(unit, min(60_000, room)/len(unit))
	}
	var want []sinks.Message
	for i, s := range []string{
		" ", "with space", "/lead", "trail/", "//", "///x", "%", "%2F", "%s%d", "'", "''", `"`, "`", `\`, "a'b\"c", ";--", "😀", "é", "e\u0301",
		"\u0001", "\u001f7", "\t\n", "\ufeff", "$", "$SYS", "*", "?", "[", "a\u2028b", "A", "a", fill("x"), fill("é"), fill("l/"), fill("-"),
	} {
		want = append(want, put(mustTopic(e.ns+"/"+s), at, i))
	}
	for _, m := range want {
		if err := e.apply(ctx, sinks.PutMessage{Message: m}, sinks.PutRetained{Message: m}); err != nil {
			return fmt.Errorf("topic %.40q of %d bytes: %w", m.Topic, len(m.Topic.String()), err)
		}
	}
	listed := map[event.Topic]bool{}
	topics, err := e.allTopics(ctx, mustFilter(e.ns+"/#"), 5)
	if err != nil {
		return err
	}
	for _, t := range topics {
		listed[t] = true
	}
	for _, m := range want {
		got, err := e.all(ctx, m.Topic)
		if err != nil {
			return err
		}
		if d := e.diff(views([]sinks.Message{m}), views(got)); d != "" {
			return fmt.Errorf("topic %.40q (-want +got):\n%s", m.Topic, d)
		}
		if !listed[m.Topic] {
			return fmt.Errorf("topic %.40q of %d bytes is not found by %s/#", m.Topic, len(m.Topic.String()), e.ns)
		}
		f := mustFilter(m.Topic.String())
		if got, err = e.allRetained(ctx, f); err != nil || len(got) != 1 || got[0].ID != m.ID {
			return wrong(err, "topic %.40q: %d retained messages, want its own", m.Topic, len(got))
		}
		err = e.apply(ctx, sinks.DeleteMessage{Topic: m.Topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
		if err != nil {
			return err
		}
		if got, err = e.all(ctx, m.Topic); err != nil || len(got) > 0 {
			return wrong(err, "topic %.40q: %d messages after the removal", m.Topic, len(got))
		}
	}
	return nil
}

func oddClients(ctx context.Context, e *env) error {
	at := e.begin()
	most := cmp.Or(e.cfg.MaxTopic, 65535)
	type pair struct {
		client event.ClientID
		topic  string
	}
	want := map[pair]event.ID{}
	n := 0
	for _, s := range []string{
		" ", "a b", "/", "a/b", "+", "#", "a+b#", "😀", "%", "%2B", "'", `"`, `\`, "$", "\u001f", "\t", "A", "a", ":", "a:b",
		strings.Repeat("c", min(2000, most-len(e.ns))),
	} {
		c := event.ClientID(e.ns + s)
		for _, t := range []string{"t", "t/#", "+/ü", s} {
			n++
			id := put(mustTopic("t"), at, n).ID
			want[pair{c, t}] = id
			f, err := event.ParseFilter(t)
			if err != nil {
				f = mustFilter("t")
			}
			err = e.apply(
				ctx,
				sinks.PutAcked{Client: c, Topic: t, Message: id, Stamp: id.Micros()},
				sinks.PutSub{Client: c, Filter: f, QoS: 1, Stamp: id.Micros()},
				sinks.PutClient{Client: c, Up: sinks.ClientUp{Node: s, OnlineAt: at, Stamp: at.UnixMicro()}},
			)
			if err != nil {
				return fmt.Errorf("client %.40q: %w", c, err)
			}
		}
	}
	for p, id := range want {
		got, ok, err := e.store.Acked(ctx, p.client, p.topic)
		if err != nil || !ok || got != id {
			return wrong(err, "client %.40q, topic %.40q: position %s (%v), want %s", p.client, p.topic, got, ok, id)
		}
		c, ok, err := e.store.Client(ctx, p.client)
		if err != nil || !ok || !c.Online || string(p.client) != e.ns+c.Node {
			return wrong(err, "client %.40q: state %+v (%v)", p.client, c, ok)
		}
		subs, err := e.store.Subs(ctx, p.client)
		if err != nil || len(subs) < 3 {
			return wrong(err, "client %.40q: %d subscriptions, want 3 or 4", p.client, len(subs))
		}
	}
	return nil
}

func largeBatch(ctx context.Context, e *env) error {
	u := newUniverse(e.ns, e.clock.now(), e.cfg.OneTopicAnID)
	at := e.begin()
	var ops []sinks.Op
	want := map[event.Topic]int{}
	for i := range 1500 {
		t := u.topics[i%len(u.topics)]
		want[t]++
		m := put(t, at, i)
		ops = append(ops, sinks.PutMessage{Message: m})
		if i%3 == 0 {
			ops = append(ops, sinks.PutAcked{Client: event.ClientID(fmt.Sprint(e.ns, i)), Topic: t.String(), Message: m.ID, Stamp: m.ID.Micros()})
		}
	}
	if err := e.apply(ctx, ops...); err != nil {
		return err
	}
	for t, n := range want {
		got, err := e.store.Messages(ctx, sinks.Query{Topic: t, Until: e.lastID(), Limit: 1500})
		if err != nil || len(got) != n {
			return wrong(err, "topic %s: %d messages, want %d", t, len(got), n)
		}
	}
	return nil
}

func poisoned(ctx context.Context, e *env) error {
	if e.cfg.Poison == nil {
		return nil
	}
	at, topic := e.begin(), mustTopic(e.ns+"/p")
	bad := e.cfg.Poison(topic)
	good := []sinks.Message{put(topic, at, 1), put(topic, at, 2), put(topic, at, 3)}
	batch := []sinks.Op{
		sinks.PutMessage{Message: good[0]}, sinks.PutMessage{Message: good[1]}, bad, sinks.PutMessage{Message: good[2]},
	}
	err := e.store.Apply(ctx, batch)
	var part *sinks.ApplyError
	switch {
	case !errors.As(err, &part):
		return fmt.Errorf("a batch with poison gave %v, want an ApplyError", err) //nolint:errorlint // may be nil
	case len(part.Failed) != 1 || part.Failed[2] == nil:
		return fmt.Errorf("the ApplyError names %v, want op 2 alone", part.Failed)
	case !fault.IsPoison(part.Failed[2]):
		return fmt.Errorf("op 2 is not marked as poison: %w", part.Failed[2])
	}
	got, err := e.all(ctx, topic)
	if err != nil {
		return err
	}
	if d := e.diff(views(good), views(got)); d != "" {
		return fmt.Errorf("the others of the batch (-want +got):\n%s", d)
	}
	if err := e.store.Apply(ctx, []sinks.Op{bad}); !fault.IsPoison(err) {
		return fmt.Errorf("poison alone gave %v, want poison", err) //nolint:errorlint // may be nil
	}
	return nil
}

func empty(ctx context.Context, e *env) error {
	return errors.Join(e.store.Apply(ctx, nil), e.store.Apply(ctx, []sinks.Op{}))
}

func cancelled(ctx context.Context, e *env) error {
	topic := mustTopic(e.ns + "/c")
	over, cancel := context.WithCancel(ctx)
	cancel()
	m := put(topic, e.begin(), 1)
	err := e.store.Apply(over, []sinks.Op{sinks.PutMessage{Message: m}})
	if !errors.Is(err, context.Canceled) || fault.IsPoison(err) || fault.IsFatal(err) {
		return fmt.Errorf("Apply gave %v, want the end of its context, unmarked", err) //nolint:errorlint // may be nil
	}
	if _, err := e.store.Messages(over, sinks.Query{Topic: topic, Until: e.lastID(), Limit: 1}); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("Messages gave %v, want the end of its context", err) //nolint:errorlint // may be nil
	}
	got, err := e.all(ctx, topic)
	if err != nil || len(got) > 0 {
		return wrong(err, "a cancelled call stored %d messages", len(got))
	}
	return e.apply(ctx, sinks.PutMessage{Message: m})
}
