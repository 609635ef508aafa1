package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// query names a statement of the readers.
type query int

const (
	oldestMessages query = iota
	newestMessages
	oneMessage
	oneNode
	nodesFrom
	retainedTopics
	oneRetained
	oneAcked
	ackedOf
	oneClient
	subsOf
	selectCheck
)

const (
	messageColumns = `m.msgid, m.topic, m.arrived, m.payload, m.qos, m.retain, m.sender, p.expires, p.props, coalesce(p.history, 0)`
	messageRange   = ` FROM mqtt_msg m LEFT JOIN mqtt_msg_props p ON p.topic = m.topic AND p.msgid = m.msgid
		WHERE m.topic = ?1 AND m.msgid > ?2 AND m.msgid <= ?3 AND (p.expires IS NULL OR p.expires > ?4) AND coalesce(p.history, 0) = 0
		ORDER BY m.msgid `
)

var queryTexts = [...]string{
	oldestMessages: `SELECT ` + messageColumns + messageRange + `ASC LIMIT ?5`,
	newestMessages: `SELECT ` + messageColumns + messageRange + `DESC LIMIT ?5`,
	oneMessage:     `SELECT 1 FROM mqtt_msg WHERE topic = ? LIMIT 1`,
	oneNode:        `SELECT level, leaf, inner FROM mqtt_topic_node WHERE parent = ? AND level = ?`,
	nodesFrom:      `SELECT level, leaf, inner FROM mqtt_topic_node WHERE parent = ? AND level >= ? ORDER BY level LIMIT ?`,
	retainedTopics: `SELECT topic FROM mqtt_retain WHERE topic > ? AND topic >= ? AND topic < ? ORDER BY topic LIMIT ?`,
	oneRetained: `SELECT msgid, topic, arrived, payload, qos, retain, sender, expires, props, 0 FROM mqtt_retain
		WHERE topic = ? AND (expires IS NULL OR expires > ?)`,
	oneAcked: `SELECT msgid FROM acked WHERE clientid = ? AND topic = ?`,
	ackedOf: `SELECT a.topic, a.msgid, s.stamp FROM acked a LEFT JOIN mqtt_acked_stamp s ON s.clientid = a.clientid AND s.topic = a.topic
		WHERE a.clientid = ? ORDER BY a.topic`,
	oneClient:   `SELECT state, node, online_at, offline_at FROM mqtt_client WHERE clientid = ?`,
	subsOf:      `SELECT topic, qos FROM mqtt_sub WHERE clientid = ? ORDER BY topic`,
	selectCheck: `SELECT at FROM mqtt_check WHERE id = 1`,
}

// each runs a query and calls fn for each row.
func (s *Store) each(ctx context.Context, q query, args []any, fn func(*sql.Rows) error) error {
	rows, err := s.queries[q].QueryContext(ctx, args...)
	if err != nil {
		return explain(s.cfg.Path, "read", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		if err := fn(rows); err != nil {
			return explain(s.cfg.Path, "read", err)
		}
	}
	return explain(s.cfg.Path, "read", rows.Err())
}

// Messages implements [sinks.Reader].
func (s *Store) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	which := oldestMessages
	if q.Newest {
		which = newestMessages
	}
	var found []sinks.Message
	args := []any{q.Topic.String(), q.After.String(), q.Until.String(), s.cfg.Now().UnixMicro(), q.Limit}
	err := s.each(ctx, which, args, func(rows *sql.Rows) error {
		m, err := scanMessage(rows)
		found = append(found, m)
		return err
	})
	if err != nil {
		return nil, err
	}
	if q.Newest {
		slices.Reverse(found)
	}
	return found, nil
}

func scanMessage(rows *sql.Rows) (sinks.Message, error) {
	var r messageRow
	if err := rows.Scan(r.dest()...); err != nil {
		return sinks.Message{}, err
	}
	return r.message()
}

// Topics implements [sinks.Reader].
func (s *Store) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	if t, ok := f.Exact(); ok {
		if t.String() <= after.String() || limit < 1 {
			return nil, nil
		}
		var found []event.Topic
		err := s.each(ctx, oneMessage, []any{t.String()}, func(*sql.Rows) error {
			found = append(found, t)
			return nil
		})
		return found, err
	}
	return topicindex.Walk(ctx, nodes{s}, topicindex.Messages, f, after, limit)
}

// nodes reads mqtt_topic_node.
type nodes struct{ s *Store }

// Child implements [topicindex.Nodes].
func (n nodes) Child(ctx context.Context, parent, level string) (c topicindex.Node, found bool, err error) {
	err = n.s.each(ctx, oneNode, []any{parent, level}, func(rows *sql.Rows) error {
		found = true
		return rows.Scan(&c.Level, &c.Leaf, &c.Inner)
	})
	return c, found, err
}

// Children implements [topicindex.Nodes].
func (n nodes) Children(ctx context.Context, parent, from string, limit int) ([]topicindex.Node, error) {
	var found []topicindex.Node
	err := n.s.each(ctx, nodesFrom, []any{parent, from, limit}, func(rows *sql.Rows) error {
		var c topicindex.Node
		err := rows.Scan(&c.Level, &c.Leaf, &c.Inner)
		found = append(found, c)
		return err
	})
	return found, err
}

// Retained implements [sinks.Reader]. The table is in the order of topics, so a filter is a range of it: all that begins with
// the filter's literal levels.
func (s *Store) Retained(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]sinks.Message, error) {
	from, to := span(f)
	const page = 500
	var found []sinks.Message
	for at := after.String(); ; {
		var topics []string
		err := s.each(ctx, retainedTopics, []any{at, from, to, page}, func(rows *sql.Rows) error {
			var t string
			err := rows.Scan(&t)
			topics = append(topics, t)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, text := range topics {
			t, err := event.ParseTopic(text)
			if err != nil || !f.Match(t) {
				continue
			}
			err = s.each(ctx, oneRetained, []any{text, s.cfg.Now().UnixMicro()}, func(rows *sql.Rows) error {
				m, err := scanMessage(rows)
				found = append(found, m)
				return err
			})
			if err != nil {
				return nil, err
			}
			if len(found) == limit {
				return found, nil
			}
		}
		if len(topics) < page {
			return found, nil
		}
		at = topics[len(topics)-1]
	}
}

// span bounds the topics that can match a filter: from ≤ topic < to.
func span(f event.Filter) (from, to string) {
	levels := f.Levels()
	n := slices.IndexFunc(levels, func(l string) bool { return l == "+" || l == "#" })
	switch {
	case n < 0:
		t := strings.Join(levels, "/")
		return t, t + "\x00"
	case n == 0:
		return "", "\xff" // no UTF-8 begins with it
	}
	literal := strings.Join(levels[:n], "/")
	return literal, literal + "0" // '0' follows '/'; "a/#" matches "a" too
}

// Acked implements [sinks.Reader].
func (s *Store) Acked(ctx context.Context, client event.ClientID, topic string) (event.ID, bool, error) {
	var text string
	ok, err := s.one(ctx, oneAcked, []any{string(client), topic}, &text)
	if err != nil || !ok {
		return event.ID{}, false, err
	}
	id, err := event.ParseID(text)
	return id, err == nil, explain(s.cfg.Path, "read acked of", err)
}

// Positions implements [sinks.Reader].
func (s *Store) Positions(ctx context.Context, client event.ClientID) ([]sinks.PutAcked, error) {
	var found []sinks.PutAcked
	err := s.each(ctx, ackedOf, []any{string(client)}, func(rows *sql.Rows) error {
		p := sinks.PutAcked{Client: client}
		var text string
		var stamp sql.NullInt64
		if err := rows.Scan(&p.Topic, &text, &stamp); err != nil {
			return err
		}
		var bad error
		if p.Message, bad = event.ParseID(text); bad != nil {
			return nil //nolint:nilerr // a row that is none of ours
		}
		if p.Stamp = p.Message.Micros(); stamp.Valid {
			p.Stamp = stamp.Int64
		}
		found = append(found, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Client implements [sinks.Reader].
func (s *Store) Client(ctx context.Context, client event.ClientID) (sinks.Client, bool, error) {
	c := sinks.Client{ID: client}
	var online, offline string
	ok, err := s.one(ctx, oneClient, []any{string(client)}, &c.Online, &c.Node, &online, &offline)
	if err != nil || !ok {
		return sinks.Client{}, false, err
	}
	if c.OnlineAt, err = parseTime(online); err == nil {
		c.OfflineAt, err = parseTime(offline)
	}
	if err != nil {
		return sinks.Client{}, false, explain(s.cfg.Path, "read mqtt_client of", err)
	}
	return c, true, nil
}

// Subs implements [sinks.Reader].
func (s *Store) Subs(ctx context.Context, client event.ClientID) ([]sinks.Sub, error) {
	var found []sinks.Sub
	err := s.each(ctx, subsOf, []any{string(client)}, func(rows *sql.Rows) error {
		var text string
		var sub sinks.Sub
		err := rows.Scan(&text, &sub.QoS)
		if err != nil {
			return err
		}
		var bad error
		if sub.Filter, bad = event.ParseFilter(text); bad != nil {
			sub = sinks.Sub{}
		}
		found = append(found, sub)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (s *Store) one(ctx context.Context, q query, args []any, dest ...any) (bool, error) {
	err := s.queries[q].QueryRowContext(ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, explain(s.cfg.Path, "read", err)
}
