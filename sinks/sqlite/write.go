package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// stmt names a statement of the writer.
type stmt int

const (
	begin stmt = iota
	commit
	rollback
	insertMessage
	replaceMessage
	deleteMessage
	selectMessage
	putProps
	deleteProps
	expireProps
	putGone
	deleteGone
	selectGone
	selectAcked
	putAcked
	deleteAcked
	putAckedStamp
	deleteAckedStamp
	selectRetained
	putRetained
	deleteRetained
	selectClient
	putClient
	selectSub
	putSub
	deleteSub
	putNode
	thinNode
	deleteNode
	forgetGone
	putCheck
)

var writerTexts = [...]string{
	begin:    `BEGIN IMMEDIATE`,
	commit:   `COMMIT`,
	rollback: `ROLLBACK`,

	// The message is inserted unless it is there or was removed at its own stamp or later.
	insertMessage: `INSERT INTO mqtt_msg (topic, msgid, arrived, payload, qos, retain, sender) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
		WHERE NOT EXISTS (SELECT 1 FROM mqtt_gone WHERE tab = 'mqtt_msg' AND part = ?1 AND clust = ?2 AND stamp >= ?8) ON CONFLICT DO NOTHING`,
	replaceMessage: `UPDATE mqtt_msg SET arrived = ?3, payload = ?4, qos = ?5, retain = ?6, sender = ?7 WHERE topic = ?1 AND msgid = ?2`,
	deleteMessage:  `DELETE FROM mqtt_msg WHERE topic = ? AND msgid = ?`,
	selectMessage: `SELECT m.msgid, m.topic, m.arrived, m.payload, m.qos, m.retain, m.sender, p.expires, p.props, coalesce(p.history, 0)
		FROM mqtt_msg m LEFT JOIN mqtt_msg_props p ON p.topic = m.topic AND p.msgid = m.msgid WHERE m.topic = ? AND m.msgid = ?`,
	putProps: `INSERT INTO mqtt_msg_props (topic, msgid, expires, history, props) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET expires = excluded.expires, history = excluded.history, props = excluded.props`,
	deleteProps: `DELETE FROM mqtt_msg_props WHERE topic = ? AND msgid = ?`,
	expireProps: `DELETE FROM mqtt_msg_props WHERE topic = ? AND msgid = ? AND expires <= ? RETURNING history`,

	putGone: `INSERT INTO mqtt_gone (tab, part, clust, stamp, since) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET stamp = max(stamp, excluded.stamp), since = max(since, excluded.since)`,
	deleteGone: `DELETE FROM mqtt_gone WHERE tab = ? AND part = ? AND clust = ?`,
	selectGone: `SELECT stamp FROM mqtt_gone WHERE tab = ? AND part = ? AND clust = ?`,
	forgetGone: `DELETE FROM mqtt_gone WHERE tab = ? AND part = ? AND clust = ? AND since < ?`,

	selectAcked: `SELECT a.msgid, s.stamp FROM acked a LEFT JOIN mqtt_acked_stamp s ON s.clientid = a.clientid AND s.topic = a.topic
		WHERE a.clientid = ? AND a.topic = ?`,
	putAcked: `INSERT INTO acked (clientid, topic, msgid) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET msgid = excluded.msgid`,
	putAckedStamp: `INSERT INTO mqtt_acked_stamp (clientid, topic, stamp) VALUES (?, ?, ?)
		ON CONFLICT DO UPDATE SET stamp = excluded.stamp`,
	deleteAcked:      `DELETE FROM acked WHERE clientid = ? AND topic = ?`,
	deleteAckedStamp: `DELETE FROM mqtt_acked_stamp WHERE clientid = ? AND topic = ?`,

	selectRetained: `SELECT msgid, topic, arrived, payload, qos, retain, sender, expires, props, 0 FROM mqtt_retain WHERE topic = ?`,
	putRetained: `INSERT INTO mqtt_retain (topic, msgid, arrived, payload, qos, retain, sender, expires, props) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET msgid = excluded.msgid, arrived = excluded.arrived, payload = excluded.payload, qos = excluded.qos,
		retain = excluded.retain, sender = excluded.sender, expires = excluded.expires, props = excluded.props`,
	deleteRetained: `DELETE FROM mqtt_retain WHERE topic = ?`,

	selectClient: `SELECT node, online_at, up_stamp, down_at, down_stamp FROM mqtt_client WHERE clientid = ?`,
	putClient: `INSERT INTO mqtt_client (clientid, state, node, online_at, offline_at, up_stamp, down_stamp, down_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET state = excluded.state, node = excluded.node, online_at = excluded.online_at, offline_at = excluded.offline_at,
		up_stamp = excluded.up_stamp, down_stamp = excluded.down_stamp, down_at = excluded.down_at`,

	selectSub: `SELECT qos, stamp FROM mqtt_sub WHERE clientid = ? AND topic = ?`,
	putSub: `INSERT INTO mqtt_sub (clientid, topic, qos, stamp) VALUES (?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET qos = excluded.qos, stamp = excluded.stamp`,
	deleteSub: `DELETE FROM mqtt_sub WHERE clientid = ? AND topic = ?`,

	// A node that was seen a moment ago is not written again for each topic below it.
	putNode: `INSERT INTO mqtt_topic_node (parent, level, leaf, inner, seen_at) VALUES (?1, ?2, ?3, ?4, ?5)
		ON CONFLICT DO UPDATE SET leaf = max(leaf, excluded.leaf), inner = max(inner, excluded.inner), seen_at = max(seen_at, excluded.seen_at)
		WHERE leaf < excluded.leaf OR inner < excluded.inner OR seen_at < excluded.seen_at - ?6`,
	thinNode: `UPDATE mqtt_topic_node SET
		leaf  = leaf AND EXISTS (SELECT 1 FROM mqtt_msg WHERE topic = substr(?1, 2) || ?2),
		inner = inner AND EXISTS (SELECT 1 FROM mqtt_topic_node WHERE parent = ?1 || ?2 || '/')
		WHERE parent = ?1 AND level = ?2 AND seen_at < ?3`,
	deleteNode: `DELETE FROM mqtt_topic_node WHERE parent = ? AND level = ? AND leaf = 0 AND inner = 0`,

	putCheck: `INSERT INTO mqtt_check (id, at) VALUES (1, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)`,
}

// writer is the one connection that writes, with its statements.
type writer struct {
	conn  *sql.Conn
	stmts [len(writerTexts)]*sql.Stmt
}

func (s *Store) openWriter(ctx context.Context) (_ *writer, err error) {
	w := &writer{}
	if w.conn, err = s.write.Conn(ctx); err != nil {
		return nil, explain(s.cfg.Path, "open", err)
	}
	if _, err = migrate(ctx, w.conn, s.cfg.Path); err != nil {
		return nil, errors.Join(err, w.close())
	}
	for i, text := range writerTexts {
		if w.stmts[i], err = w.conn.PrepareContext(ctx, text); err != nil {
			return nil, errors.Join(explain(s.cfg.Path, "prepare to write", err), w.close())
		}
	}
	return w, nil
}

func (w *writer) close() error {
	var errs []error
	for _, st := range w.stmts {
		if st != nil {
			errs = append(errs, st.Close())
		}
	}
	return errors.Join(append(errs, w.conn.Close())...)
}

// tx is one write transaction.
type tx struct {
	s   *Store
	now time.Time
	// noted are the topics whose index rows this transaction wrote.
	noted map[event.Topic]struct{}
}

// exec runs a statement. Inside a transaction the context has no end: a statement that can be cancelled costs a goroutine each.
// Who loops over many asks the caller's context between them.
func (t *tx) exec(ctx context.Context, st stmt, args ...any) error {
	_, err := t.s.w.stmts[st].ExecContext(ctx, args...)
	return err
}

// count is exec, and says how many rows changed.
func (t *tx) count(ctx context.Context, st stmt, args ...any) (int64, error) {
	r, err := t.s.w.stmts[st].ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// row reads one row; false = there is none.
func (t *tx) row(ctx context.Context, st stmt, args []any, dest ...any) (bool, error) {
	err := t.s.w.stmts[st].QueryRowContext(ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// transact runs fn in a write transaction; nil = what it wrote is synced to the disk.
func (s *Store) transact(ctx context.Context, fn func(context.Context, *tx) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.w == nil {
		var err error
		if s.w, err = s.openWriter(ctx); err != nil {
			return err
		}
	}
	_, err := s.w.stmts[begin].ExecContext(ctx)
	ctx = context.WithoutCancel(ctx)
	if err != nil { // it may have begun all the same
		return errors.Join(err, s.undo(ctx))
	}
	t := &tx{s: s, now: s.cfg.Now(), noted: map[event.Topic]struct{}{}}
	if err := fn(ctx, t); err != nil {
		return errors.Join(err, s.undo(ctx))
	}
	if err := t.exec(ctx, commit); err != nil {
		return errors.Join(err, s.undo(ctx))
	}
	for topic := range t.noted {
		s.known.Note(t.now, topic)
	}
	return nil
}

// undo ends a transaction that failed, unless SQLite has ended it itself. Where nobody knows, the connection is given up; the
// next transaction opens another.
func (s *Store) undo(ctx context.Context) error {
	_, err := s.w.stmts[rollback].ExecContext(ctx)
	var e *sqlite.Error
	if err == nil || errors.As(err, &e) && e.Code() == codes.SQLITE_ERROR { // no transaction is active
		return nil
	}
	err = s.w.close()
	s.w = nil
	return err
}

// Apply writes the ops in one transaction. An op that can never be stored is named in the error, all others are durable.
func (s *Store) Apply(ctx context.Context, ops []sinks.Op) error {
	if s.cfg.ReadOnly {
		return fault.Fatal(fmt.Errorf("write into %s: it is open for reading: give the sink's own path in the config", s.cfg.Path))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	failed := map[int]error{}
	for i, o := range ops {
		if err := storable(o); err != nil {
			failed[i] = fault.Poison(err)
		}
	}
	for left := len(ops) - len(failed); left > 0; {
		var at int
		err := s.transact(ctx, func(work context.Context, t *tx) (err error) {
			at, err = t.applyAll(ctx, work, ops, failed)
			return err
		})
		if err == nil {
			break
		}
		if c, _ := classify(err); c != poison || at < 0 {
			return explain(s.cfg.Path, "write into", err)
		}
		// SQLite itself refused one op: leave it out and begin again.
		failed[at] = explain(s.cfg.Path, "write into", err)
		left--
	}
	if len(failed) > 0 {
		return &sinks.ApplyError{Failed: failed}
	}
	return nil
}

// applyAll returns the index of the op that failed, -1 = none of them did. It works in work, until ctx ends.
func (t *tx) applyAll(ctx, work context.Context, ops []sinks.Op, without map[int]error) (int, error) {
	for i, o := range ops {
		const often = 64
		if i%often == 0 {
			if err := ctx.Err(); err != nil {
				return -1, err
			}
		}
		if without[i] != nil {
			continue
		}
		if err := t.apply(work, o); err != nil {
			return i, err
		}
	}
	return -1, nil
}

func (t *tx) apply(ctx context.Context, o sinks.Op) error {
	switch o := o.(type) {
	case sinks.PutMessage:
		o.Message = asStored(o.Message)
		return t.putMessage(ctx, o)
	case sinks.DeleteMessage:
		return t.deleteMessage(ctx, o)
	case sinks.PutAcked:
		return t.changeAcked(ctx, o.Client, o.Topic, o)
	case sinks.DeleteAcked:
		return t.changeAcked(ctx, o.Client, o.Topic, o)
	case sinks.PutRetained:
		o.Message = asStored(o.Message)
		if expired(o.Message, t.now) { // it is not written, but what it replaced must not come back
			return t.changeRetained(ctx, o.Topic, sinks.DeleteRetained{Topic: o.Topic, Stamp: sinks.Stamp(o)})
		}
		return t.changeRetained(ctx, o.Topic, o)
	case sinks.DeleteRetained:
		return t.changeRetained(ctx, o.Topic, o)
	case sinks.PutClient:
		return t.changeClient(ctx, o)
	case sinks.PutSub:
		return t.changeSub(ctx, o.Client, o.Filter, o)
	case sinks.DeleteSub:
		return t.changeSub(ctx, o.Client, o.Filter, o)
	}
	panic(fmt.Sprintf("sqlite: unknown op %T", o)) // unreachable: Op is sealed
}

func expired(m sinks.Message, now time.Time) bool {
	return !m.Expires.IsZero() && !now.Before(m.Expires)
}

// index writes the rows of the topic index, unless they were written a while ago.
func (t *tx) index(ctx context.Context, topic event.Topic) error {
	if _, ok := t.noted[topic]; ok || t.s.known.Fresh(topic, t.now) {
		return nil
	}
	again := t.s.cfg.TombstoneTTL.Milliseconds() / 8
	for _, r := range topicindex.Rows(topicindex.Messages, topic) {
		if err := t.exec(ctx, putNode, r.Parent, r.Level, flag(r.Leaf), flag(r.Inner), t.now.UnixMilli(), again); err != nil {
			return err
		}
	}
	t.noted[topic] = struct{}{}
	return nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
