package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/restante/restante/sinks"
)

// Purged counts what a purge removed.
type Purged struct {
	// Messages are messages past their time that waited for clients; Expired are those with the retained ones and the history.
	Messages, Expired int64
	// Tombstones are removals that no late write can meet any more.
	Tombstones int64
	// Topics are rows of the topic index without a message below.
	Topics int64
}

// pageOfPurge is how many rows one step looks at; a step that finds nothing to remove does not stop the writers.
const pageOfPurge = 1000

// sweep is a walk over one table in the order of its key.
type sweep struct {
	table string
	key   []string // 2 or 3 text columns, or 1
	old   string   // what is to be removed, with one argument
}

// Purge removes what has expired, in small steps between which writers get their turn. Readers do not see what has expired
// anyway; the owner of the store calls Purge now and then to get the space back.
func (s *Store) Purge(ctx context.Context) (Purged, error) {
	var p Purged
	now := s.cfg.Now()
	forget := now.Add(-s.cfg.TombstoneTTL).UnixMilli()
	steps := []struct {
		sweep
		arg    int64
		remove func(ctx context.Context, t *tx, key []any) error
	}{
		{sweep{"mqtt_msg_props", []string{"topic", "msgid"}, "expires <= ?"}, now.UnixMicro(), func(ctx context.Context, t *tx, key []any) error {
			var history bool
			ok, err := t.row(ctx, expireProps, []any{key[0], key[1], now.UnixMicro()}, &history)
			if err != nil || !ok {
				return err
			}
			if p.Expired++; !history {
				p.Messages++
			}
			return t.exec(ctx, deleteMessage, key[0], key[1])
		}},
		{sweep{"mqtt_retain", []string{"topic"}, "expires <= ?"}, now.UnixMicro(), func(ctx context.Context, t *tx, key []any) error {
			return t.expireRetained(ctx, key[0], &p)
		}},
		{sweep{"mqtt_gone", []string{"tab", "part", "clust"}, "since < ?"}, forget, func(ctx context.Context, t *tx, key []any) error {
			n, err := t.count(ctx, forgetGone, append(key, forget)...)
			p.Tombstones += n
			return err
		}},
		{sweep{"mqtt_topic_node", []string{"parent", "level"}, "seen_at < ?"}, forget, func(ctx context.Context, t *tx, key []any) error {
			if err := t.exec(ctx, thinNode, key[0], key[1], forget); err != nil {
				return err
			}
			n, err := t.count(ctx, deleteNode, key[0], key[1])
			p.Topics += n
			return err
		}},
	}
	for _, st := range steps {
		if err := s.sweep(ctx, st.sweep, st.arg, st.remove); err != nil {
			return p, explain(s.cfg.Path, "purge "+st.table+" of", err)
		}
	}
	return p, nil
}

// expireRetained puts a tombstone in the place of a retained message that has expired: what it replaced must not come back.
func (t *tx) expireRetained(ctx context.Context, topic any, p *Purged) error {
	var r messageRow
	ok, err := t.row(ctx, selectRetained, []any{topic}, r.dest()...)
	if err != nil || !ok {
		return err
	}
	m, err := r.message()
	if err != nil || !expired(m, t.now) {
		return err
	}
	p.Expired++
	return t.changeRetained(ctx, m.Topic, sinks.DeleteRetained{Topic: m.Topic, Stamp: m.ID.Micros()})
}

// sweep calls remove for the key of each row that is old, a page of rows in one transaction.
func (s *Store) sweep(ctx context.Context, w sweep, arg int64, remove func(context.Context, *tx, []any) error) error {
	cols, marks := strings.Join(w.key, ", "), strings.TrimSuffix(strings.Repeat("?, ", len(w.key)), ", ")
	// The empty text sorts before every key.
	from := make([]any, len(w.key))
	for i := range from {
		from[i] = ""
	}
	for {
		q := fmt.Sprintf(`SELECT %[1]s FROM %[2]s WHERE (%[1]s) > (%[3]s) ORDER BY %[1]s LIMIT 1 OFFSET %[4]d`, cols, w.table, marks, pageOfPurge-1) //nolint:gosec // our own names
		to, last := make([]any, len(w.key)), false
		switch err := s.read.QueryRowContext(ctx, q, from...).Scan(texts(to)...); {
		case errors.Is(err, sql.ErrNoRows):
			last = true
		case err != nil:
			return err
		}
		q = fmt.Sprintf(`SELECT %[1]s FROM %[2]s WHERE (%[1]s) > (%[3]s) AND %[4]s`, cols, w.table, marks, w.old)
		args := append(append([]any{}, from...), arg)
		if !last {
			q += fmt.Sprintf(` AND (%s) <= (%s)`, cols, marks)
			args = append(args, values(to)...)
		}
		old, err := s.keys(ctx, len(w.key), q, args)
		if err != nil {
			return err
		}
		if len(old) > 0 {
			err := s.transact(ctx, func(ctx context.Context, t *tx) error {
				for _, key := range old {
					if err := remove(ctx, t, key); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if last {
			return nil
		}
		from = values(to)
	}
}

func (s *Store) keys(ctx context.Context, n int, q string, args []any) ([][]any, error) {
	rows, err := s.read.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var all [][]any
	for rows.Next() {
		key := make([]any, n)
		if err := rows.Scan(texts(key)...); err != nil {
			return nil, err
		}
		all = append(all, values(key))
	}
	return all, rows.Err()
}

// texts makes each element a place to scan a text into, values makes them the texts.
func texts(key []any) []any {
	for i := range key {
		key[i] = new(string)
	}
	return key
}

func values(key []any) []any {
	out := make([]any, len(key))
	for i, k := range key {
		out[i] = *k.(*string)
	}
	return out
}
