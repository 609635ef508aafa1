package cassandra

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// Topics implements [sinks.Reader]. For an exact filter the messages themselves are asked, which knows those of others too.
func (s *Store) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if t, ok := f.Exact(); ok {
		if t.String() <= after.String() || limit < 1 {
			return nil, nil
		}
		ms, err := s.Messages(ctx, sinks.Query{Topic: t, Until: event.LastIDAt(time.UnixMicro(forever)), Limit: 1})
		if err != nil || len(ms) == 0 {
			return nil, err
		}
		return []event.Topic{t}, nil
	}
	return topicindex.Walk(ctx, nodes{s}, topicindex.Messages, f, after, limit)
}

// nodes reads mqtt_topic_node.
type nodes struct{ s *Store }

// Child implements [topicindex.Nodes].
func (n nodes) Child(ctx context.Context, parent, level string) (topicindex.Node, bool, error) {
	found, err := n.read(ctx, 1, statement{selectNode, []any{parent, level}})
	if err != nil || len(found) == 0 {
		return topicindex.Node{}, false, err
	}
	return found[0], true, nil
}

// Children implements [topicindex.Nodes].
func (n nodes) Children(ctx context.Context, parent, from string, limit int) ([]topicindex.Node, error) {
	return n.read(ctx, limit, statement{selectNodes, []any{parent, from, limit}})
}

func (n nodes) read(ctx context.Context, rows int, st statement) (found []topicindex.Node, err error) {
	_, err = n.s.read(ctx, reading{
		st: st, rows: rows,
		begin: func() { found = nil },
		scan: func(i *gocql.Iter) bool {
			var c topicindex.Node
			if !i.Scan(&c.Level, &c.Leaf, &c.Inner) {
				return false
			}
			found = append(found, c)
			return true
		},
	})
	return found, err
}

// Retained implements [sinks.Reader].
func (s *Store) Retained(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]sinks.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if t, ok := f.Exact(); ok {
		if t.String() <= after.String() || limit < 1 {
			return nil, nil
		}
		return s.retained(ctx, []event.Topic{t})
	}
	const page = 100
	var found []sinks.Message
	for len(found) < limit {
		topics, err := topicindex.Walk(ctx, nodes{s}, topicindex.Retained, f, after, page)
		if err != nil {
			return nil, err
		}
		kept, err := s.retained(ctx, topics)
		if err != nil {
			return nil, err
		}
		found = append(found, kept...)
		if len(topics) < page {
			break
		}
		after = topics[len(topics)-1]
	}
	return found[:min(limit, len(found))], nil
}

// retained reads the retained messages of the topics that have one.
func (s *Store) retained(ctx context.Context, topics []event.Topic) ([]sinks.Message, error) {
	all := make([]*sinks.Message, len(topics))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.InFlight)
	for i, t := range topics {
		g.Go(func() (err error) {
			all[i], err = s.retainedOf(ctx, t)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var found []sinks.Message
	for _, m := range all {
		if m != nil {
			found = append(found, *m)
		}
	}
	return found, nil
}

// retainedOf is nil when the topic has none.
func (s *Store) retainedOf(ctx context.Context, t event.Topic) (*sinks.Message, error) {
	var r *row
	var props string
	_, err := s.read(ctx, reading{
		st: statement{selectRetained, []any{t.String()}}, rows: 1,
		begin: func() { r, props = nil, "" },
		scan: func(i *gocql.Iter) bool {
			var have row
			if !i.Scan(append(have.dest(), &props)...) {
				return false
			}
			r = &have
			return true
		},
	})
	if err != nil || r == nil {
		return nil, err
	}
	id, err := event.ParseID(r.msgid)
	if err != nil {
		s.cfg.Metrics.Count(Unreadable, 1)
		return nil, nil //nolint:nilnil // nil is the answer: a row that is none of ours
	}
	m := r.message(t, id, s.cfg.Now())
	if m.Properties, err = sinks.ParseProperties(props); err != nil {
		s.cfg.Metrics.Count(Unreadable, 1)
	}
	return &m, nil
}

// Acked implements [sinks.Reader].
func (s *Store) Acked(ctx context.Context, client event.ClientID, topic string) (event.ID, bool, error) {
	if err := ctx.Err(); err != nil || client == "" {
		return event.ID{}, false, err
	}
	var text string
	_, err := s.read(ctx, reading{
		st: statement{selectAcked, []any{string(client), topic}}, rows: 1,
		begin: func() { text = "" },
		scan:  func(i *gocql.Iter) bool { return i.Scan(&text) },
	})
	if err != nil || text == "" {
		return event.ID{}, false, err
	}
	id, err := event.ParseID(text)
	if err != nil {
		s.cfg.Metrics.Count(Unreadable, 1) // somebody else's form of an id
		return event.ID{}, false, nil
	}
	return id, true, nil
}

// Positions implements [sinks.Reader].
func (s *Store) Positions(ctx context.Context, client event.ClientID) ([]sinks.PutAcked, error) {
	if err := ctx.Err(); err != nil || client == "" {
		return nil, err
	}
	var found []sinks.PutAcked
	_, err := s.read(ctx, reading{
		st:    statement{selectPositions, []any{string(client)}},
		begin: func() { found = nil },
		scan: func(i *gocql.Iter) bool {
			p := sinks.PutAcked{Client: client}
			var text string
			if !i.Scan(&p.Topic, &text, &p.Stamp) {
				return false
			}
			var err error
			if p.Message, err = event.ParseID(text); err != nil {
				s.cfg.Metrics.Count(Unreadable, 1) // somebody else's form of an id
				return true
			}
			found = append(found, p)
			return true
		},
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Client implements [sinks.Reader].
func (s *Store) Client(ctx context.Context, client event.ClientID) (sinks.Client, bool, error) {
	if err := ctx.Err(); err != nil || client == "" {
		return sinks.Client{}, false, err
	}
	c := sinks.Client{ID: client}
	var state, rows int
	var offline time.Time
	_, err := s.read(ctx, reading{
		st: statement{selectClient, []any{string(client)}}, rows: 1,
		begin: func() { c, state, rows, offline = sinks.Client{ID: client}, 0, 0, time.Time{} },
		scan: func(i *gocql.Iter) bool {
			ok := i.Scan(&state, &c.Node, &c.OnlineAt, &offline)
			rows += boolInt(ok)
			return ok
		},
	})
	if err != nil || rows == 0 {
		return sinks.Client{}, false, err
	}
	// Of a connect and a disconnect in one µs both leave a mark, and the disconnect counts.
	isOffline := !offline.IsZero() && !offline.Equal(notOffline)
	if c.Online = state == 1 && !isOffline; !c.Online && isOffline {
		c.OfflineAt = offline
	}
	return c, true, nil
}

// Subs implements [sinks.Reader].
func (s *Store) Subs(ctx context.Context, client event.ClientID) ([]sinks.Sub, error) {
	if err := ctx.Err(); err != nil || client == "" {
		return nil, err
	}
	var found []sinks.Sub
	_, err := s.read(ctx, reading{
		st:    statement{selectSubs, []any{string(client)}},
		begin: func() { found = nil },
		scan: func(i *gocql.Iter) bool {
			var text string
			var qos int
			if !i.Scan(&text, &qos) {
				return false
			}
			f, err := event.ParseFilter(text)
			if err != nil || qos < 0 || qos > 2 {
				s.cfg.Metrics.Count(Unreadable, 1)
				found = append(found, sinks.Sub{})
				return true
			}
			found = append(found, sinks.Sub{Filter: f, QoS: event.QoS(qos)})
			return true
		},
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b sinks.Sub) int { return strings.Compare(a.Filter.String(), b.Filter.String()) })
	return found, nil
}
