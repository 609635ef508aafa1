package trace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
	"github.com/restante/restante/sinks"
)

// Client traces a client: what it published, acknowledged, subscribed to, and what became of its connections. cut says that older lines
// were left out.
func (t *Tracer) Client(ctx context.Context, id event.ClientID) (lines []Line, cut bool, err error) {
	who := []byte(id)
	err = t.everywhere(ctx, t.Topics.Messages, t.Parts,
		func(r pipeline.Record) bool { return has(r, "ce_sender", who) || has(r, "ce_clientid", who) },
		func(r pipeline.Record) {
			if e, err := event.Decode(event.Messages, r.Wire); err == nil {
				t.add(line(r, e))
			}
		})
	if err != nil {
		return nil, false, fmt.Errorf("read %s: %w", t.Topics.Messages, err)
	}
	names := make(map[event.ID]event.ID) // of replays, by the broker's
	err = t.sessions(ctx, id, func(r pipeline.Record, e event.Event) {
		l := line(r, e)
		switch e := e.(type) {
		case event.Replayed:
			names[e.BrokerID] = e.Message
		case event.Acked:
			if !e.Message.IsZero() {
				return // it stands in messages too
			}
			l.Message = names[e.BrokerID]
		case event.Published, event.Dropped, event.Subscribed, event.Unsubscribed, event.Connected, event.Disconnected, event.ReplayContinued:
		}
		t.add(l)
	})
	if err != nil {
		return nil, false, err
	}
	if _, err := t.letters(ctx, dead.Filter{Client: id, Since: t.Since}, func(*dead.Letter) bool { return true }); err != nil {
		return nil, false, err
	}
	for _, s := range t.Sinks {
		var c sinks.Client
		var known bool
		err := t.again(ctx, func() (err error) {
			c, known, err = s.Store.Client(ctx, id)
			return err
		})
		if err != nil {
			return nil, false, fmt.Errorf("sink %s: read the client: %w", s.Name, err)
		}
		if known {
			t.add(Line{What: State, Sink: s.Name, Client: id, Says: StateOf(c)})
		}
	}
	lines, cut = t.done()
	return lines, cut, nil
}

// StateOf is a client's state in words.
func StateOf(c sinks.Client) string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "a time that is not known"
		}
		return t.UTC().Format(time.RFC3339)
	}
	if c.Online {
		text := "online since " + at(c.OnlineAt)
		if c.Node != "" {
			text += " on " + c.Node
		}
		return text
	}
	return "offline since " + at(c.OfflineAt)
}

// sessions calls each for what a client's partition of the sessions topic says of it.
func (t *Tracer) sessions(ctx context.Context, id event.ClientID, each func(pipeline.Record, event.Event)) error {
	tp := pipeline.TP{Topic: t.Topics.Sessions, Part: t.Partition(string(id), t.SessionParts)}
	err := t.read(ctx, tp, func(r pipeline.Record) bool { return string(r.Key) == string(id) }, func(r pipeline.Record) {
		if e, err := event.Decode(event.Sessions, r.Wire); err == nil {
			each(r, e)
		}
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", t.Topics.Sessions, err)
	}
	return nil
}

// Subscription is a subscription of a client.
type Subscription struct {
	Client event.ClientID
	Filter event.Filter
	QoS    event.QoS
	At     time.Time // when it was told, by the log; zero where only a store knows it
	Sink   string    // the store that knows it, where the log does not
}

// Subscriptions are those that a client has, as far as the log tells since the beginning of the trace; what the stores know beside that
// is added. They come in the order of their filters.
func (t *Tracer) Subscriptions(ctx context.Context, id event.ClientID) ([]Subscription, error) {
	said := make(map[event.Filter]*Subscription) // nil = unsubscribed
	err := t.sessions(ctx, id, func(r pipeline.Record, e event.Event) { note(said, r, e) })
	if err != nil {
		return nil, err
	}
	for _, s := range t.Sinks {
		var stored []sinks.Sub
		err := t.again(ctx, func() (err error) {
			stored, err = s.Store.Subs(ctx, id)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("sink %s: read the client's subscriptions: %w", s.Name, err)
		}
		for _, sub := range stored {
			if _, known := said[sub.Filter]; !known && !sub.Filter.IsZero() && sub.QoS <= 2 {
				said[sub.Filter] = &Subscription{Client: id, Filter: sub.Filter, QoS: sub.QoS, Sink: s.Name}
			}
		}
	}
	return sorted(said), nil
}

// note takes over what an event says of subscriptions. A new session begins without any.
func note(said map[event.Filter]*Subscription, r pipeline.Record, e event.Event) {
	switch e := e.(type) {
	case event.Subscribed:
		said[e.Filter] = &Subscription{Client: e.Client, Filter: e.Filter, QoS: e.QoS, At: r.Time.UTC()}
	case event.Unsubscribed:
		said[e.Filter] = nil
	case event.Connected:
		if fresh(e) {
			clear(said)
		}
	case event.Published, event.Acked, event.Replayed, event.Dropped, event.Disconnected, event.ReplayContinued:
	}
}

// fresh reports whether a connect began a new session.
func fresh(e event.Connected) bool { return e.SessionPresent == event.No || e.CleanStart == event.Yes }

func sorted[K comparable](said map[K]*Subscription) []Subscription {
	var out []Subscription
	for _, s := range said {
		if s != nil {
			out = append(out, *s)
		}
	}
	slices.SortFunc(out, func(a, b Subscription) int {
		return strings.Compare(a.Filter.String()+"\x00"+string(a.Client), b.Filter.String()+"\x00"+string(b.Client))
	})
	return out
}

var connectedType = []byte(event.TypeOf(event.Connected{}))

// Subscribers are the clients that have subscribed to a filter since the beginning of the trace, and neither unsubscribed nor begun a new session, in
// order.
func (t *Tracer) Subscribers(ctx context.Context, f event.Filter) ([]Subscription, error) {
	said := make(map[event.ClientID]*Subscription)
	text := []byte(f.String())
	marked := func(r pipeline.Record) bool {
		return has(r, "ce_filter", text) || said[event.ClientID(r.Key)] != nil && has(r, "ce_type", connectedType)
	}
	err := t.everywhere(ctx, t.Topics.Sessions, t.SessionParts, marked, func(r pipeline.Record) {
		e, err := event.Decode(event.Sessions, r.Wire)
		if err != nil {
			return
		}
		who := event.ClientID(r.Key)
		one := map[event.Filter]*Subscription{f: said[who]}
		note(one, r, e)
		said[who] = one[f]
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Topics.Sessions, err)
	}
	return sorted(said), nil
}
