package cassandra

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// statement is a query with its arguments.
type statement struct {
	q    query
	args []any
}

// unit is what one op changes: rows of one partition key, written in one piece.
type unit struct {
	op         int // its index in the batch
	key        string
	statements []statement
	size       int // bytes, roughly
}

// applyTime bounds one Apply. What it judged at its begin (whether a message comes late) must still hold at its end.
const applyTime = 5 * time.Minute

// Apply implements [sinks.Writer]. What a reader needs to find a message is written first, then the rest in batches of one
// partition; last, that late hours hold something new. Each request is sent at most twice.
func (s *Store) Apply(ctx context.Context, ops []sinks.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(ops) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, applyTime)
	defer cancel()
	w, err := s.work(ctx, ops)
	if err != nil {
		return err
	}
	w.announce(ctx)
	w.plan(ctx)
	w.write(ctx)
	w.sign(ctx)
	return w.err()
}

// work is one Apply.
type work struct {
	store   *Store
	session *session
	now     time.Time
	ops     []sinks.Op
	units   []unit

	mu     sync.Mutex
	failed map[int]error
}

func (s *Store) work(ctx context.Context, ops []sinks.Op) (*work, error) {
	l, err := s.link.get(ctx)
	if err != nil {
		return nil, err
	}
	return &work{store: s, session: l, now: s.cfg.Now(), ops: ops, failed: map[int]error{}}, nil
}

// err is what Apply returns.
func (w *work) err() error {
	if len(w.failed) > 0 {
		return &sinks.ApplyError{Failed: w.failed}
	}
	return nil
}

func (w *work) fail(op int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed[op] = err
}

// plan turns the ops that have not failed into units.
func (w *work) plan(ctx context.Context) {
	withProps := w.topicsWithProps(ctx)
	w.units = make([]unit, 0, len(w.ops))
	for i, o := range w.ops {
		if w.failed[i] != nil {
			continue
		}
		u, err := w.unit(o, withProps)
		if err == nil {
			err = w.store.storable(o, u)
		}
		switch {
		case err != nil:
			w.failed[i] = fault.Poison(err)
		case len(u.statements) > 0:
			u.op = i
			w.units = append(w.units, u)
		}
	}
}

// unit is what an op changes; without statements it changes nothing.
func (w *work) unit(o sinks.Op, withProps map[event.Topic]bool) (unit, error) {
	switch o := o.(type) {
	case sinks.PutMessage:
		return w.putMessage(o)
	case sinks.DeleteMessage:
		topic, id := o.Topic.String(), o.ID.String()
		u := unit{key: topic, statements: []statement{{deleteMessage, []any{o.Stamp, topic, id}}}}
		if withProps[o.Topic] {
			u.statements = append(u.statements, statement{deleteProps, []any{o.Stamp, topic, id}})
		}
		return u, nil
	case sinks.PutAcked:
		return one(string(o.Client), insertAcked, string(o.Client), o.Topic, o.Message.String(), o.Stamp), nil
	case sinks.DeleteAcked:
		return one(string(o.Client), deleteAcked, o.Stamp, string(o.Client), o.Topic), nil
	case sinks.PutRetained:
		return w.putRetained(o)
	case sinks.DeleteRetained:
		return one(o.Topic.String(), deleteRetained, o.Stamp, o.Topic.String()), nil
	case sinks.PutClient:
		u := unit{key: string(o.Client)}
		if o.Up.Stamp > 0 {
			u.statements = append(u.statements, statement{connectClient, []any{u.key, o.Up.Node, o.Up.OnlineAt, notOffline, o.Up.Stamp}})
		}
		if o.Down.Stamp > 0 {
			u.statements = append(u.statements, statement{disconnectClient, []any{u.key, o.Down.OfflineAt, o.Down.Stamp}})
		}
		return u, nil
	case sinks.PutSub:
		return one(string(o.Client), insertSub, string(o.Client), o.Filter.String(), int(o.QoS), o.Stamp), nil
	case sinks.DeleteSub:
		return one(string(o.Client), deleteSub, o.Stamp, string(o.Client), o.Filter.String()), nil
	}
	panic(fmt.Sprintf("cassandra: unknown op %T", o)) // unreachable: Op is sealed
}

// notOffline stands in offline_at while a client is online.
var notOffline = time.UnixMilli(0).UTC()

func one(key string, q query, args ...any) unit {
	return unit{key: key, statements: []statement{{q, args}}}
}

func (w *work) putMessage(o sinks.PutMessage) (unit, error) {
	m := o.Message
	left, lives := ttl(m.Expires, w.now)
	if !lives {
		w.store.cfg.Metrics.Count(Expired, 1)
		return unit{}, nil
	}
	props, err := sinks.PropertiesText(m.Properties)
	if err != nil {
		return unit{}, fmt.Errorf("store message %s: write its properties: %w", m.ID, err)
	}
	before := int64(plainAt)
	switch {
	case o.History:
		before = historyAt
	case props != "":
		before = propsAt
	}
	topic, id, at, payload := m.Topic.String(), m.ID.String(), m.ID.Micros()-before, payloadText(m.Payload)
	u := unit{key: topic, size: len(payload) + len(props) + len(m.Sender), statements: []statement{
		{insertMessage, []any{topic, id, m.Arrived, payload, int(m.QoS), boolInt(m.Retain), string(m.Sender), at, left}},
	}}
	if before != plainAt {
		history := any(gocql.UnsetValue)
		if o.History {
			history = true
		}
		u.statements = append(u.statements, statement{insertProps, []any{topic, id, props, history, at, left}})
	}
	return u, nil
}

// putRetained removes what is older with the same batch. Of two in one µs both stay, and readers take the greater id.
func (w *work) putRetained(o sinks.PutRetained) (unit, error) {
	m, at := o.Message, o.ID.Micros()
	left, lives := ttl(m.Expires, w.now)
	if !lives { // nothing to show, but it has replaced what was there
		w.store.cfg.Metrics.Count(Expired, 1)
		return one(m.Topic.String(), deleteRetained, at, m.Topic.String()), nil
	}
	props, err := sinks.PropertiesText(m.Properties)
	if err != nil {
		return unit{}, fmt.Errorf("store retained message %s: write its properties: %w", m.ID, err)
	}
	topic, payload := m.Topic.String(), payloadText(m.Payload)
	return unit{key: topic, size: len(payload) + len(props) + len(m.Sender), statements: []statement{
		{deleteRetained, []any{at - 1, topic}},
		{insertRetained, []any{topic, m.ID.String(), m.Arrived, payload, int(m.QoS), boolInt(m.Retain), string(m.Sender), props, at, left}},
	}}, nil
}

// maxKey is the most bytes of a key's column.
const maxKey = 65535

// storable refuses by the documented limits what the servers would refuse, or take and not give back.
func (s *Store) storable(o sinks.Op, u unit) error {
	switch {
	case u.size > s.cfg.MaxRow:
		return fmt.Errorf("store %.80q: %d bytes are over the limit of %d for one row", u.key, u.size, s.cfg.MaxRow)
	case u.key == "" && len(u.statements) > 0:
		return errors.New("store a client's row: the client id is empty")
	case len(u.key) > maxKey:
		return fmt.Errorf("store %.80q: a key of %d bytes is over the %d that Cassandra can hold", u.key, len(u.key), maxKey)
	}
	switch o := o.(type) {
	case sinks.PutAcked:
		return storableKey(u.key, o.Topic)
	case sinks.PutSub:
		return storableKey(u.key, o.Filter.String())
	case sinks.PutMessage:
		return storableTopic(o.Topic)
	case sinks.PutRetained:
		return storableTopic(o.Topic)
	case sinks.DeleteMessage, sinks.DeleteAcked, sinks.DeleteRetained, sinks.PutClient, sinks.DeleteSub:
	}
	return nil
}

func storableKey(key, second string) error {
	if len(second) > maxKey {
		return fmt.Errorf("store %.80q: a key of %d bytes is over the %d that Cassandra can hold", key, len(second), maxKey)
	}
	return nil
}

// storableTopic leaves a byte for what the topic index puts before it.
func storableTopic(t event.Topic) error {
	if n := len(t.String()); n >= maxKey {
		return fmt.Errorf("store a message of %.80q: a topic of %d bytes is over the %d that can be indexed", t, n, maxKey-1)
	}
	return nil
}

// write sends the units, as many of a partition in a batch as fit.
func (w *work) write(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(w.store.cfg.InFlight)
	for _, batch := range batches(w.units) {
		g.Go(func() error {
			w.send(ctx, batch)
			return nil
		})
	}
	_ = g.Wait() // each op's error is in failed
}

// batches groups units by partition, in the order of the ops, up to the limits of a batch.
func batches(units []unit) [][]unit {
	type open struct{ at, rows, size int }
	var all [][]unit
	last := make(map[string]open, len(units))
	for _, u := range units {
		size := u.size + len(u.statements)*(len(u.key)+rowOverhead)
		b, ok := last[u.key]
		if !ok || b.rows+len(u.statements) > batchRows || b.size+size > batchBytes {
			b = open{at: len(all)}
			all = append(all, nil)
		}
		all[b.at] = append(all[b.at], u)
		b.rows, b.size = b.rows+len(u.statements), b.size+size
		last[u.key] = b
	}
	return all
}

// rowOverhead is what a row takes beside its texts, roughly.
const rowOverhead = 80

// send sends a batch. One that cannot be stored is cut in two until the rows that are to blame stand alone.
func (w *work) send(ctx context.Context, batch []unit) {
	var statements []statement
	for _, u := range batch {
		statements = append(statements, u.statements...)
	}
	err := w.store.exec(ctx, w.session, statements)
	if err == nil {
		return
	}
	if fault.IsPoison(err) && len(batch) > 1 {
		w.store.cfg.Metrics.Count(Bisections, 1)
		half := len(batch) / 2
		w.send(ctx, batch[:half])
		w.send(ctx, batch[half:])
		return
	}
	for _, u := range batch {
		w.fail(u.op, err)
	}
}

// topicsWithProps says of which topics that lose a message some may have a row in mqtt_msg_props. Where that cannot be found out,
// it says yes: a removal too many harms nothing. A row that is overlooked is never read again and goes with its time to live.
func (w *work) topicsWithProps(ctx context.Context) map[event.Topic]bool {
	s, now := w.store, w.now.UnixMicro()
	found := map[event.Topic]bool{}
	var ask []event.Topic
	for i, o := range w.ops {
		d, ok := o.(sinks.DeleteMessage)
		if !ok || w.failed[i] != nil {
			continue
		}
		if _, ok := found[d.Topic]; ok {
			continue
		}
		found[d.Topic] = s.covered.until(propsKey(d.Topic.String()), now)
		if !found[d.Topic] && !s.plain.Fresh(d.Topic, w.now) {
			found[d.Topic] = true
			ask = append(ask, d.Topic)
		}
	}
	answers := make([]bool, len(ask))
	var g errgroup.Group
	g.SetLimit(s.cfg.InFlight)
	for i, t := range ask {
		g.Go(func() error {
			row, err := s.lowOf(ctx, t)
			answers[i] = err != nil || row.props
			if !answers[i] {
				s.plain.Note(w.now, t)
			}
			return nil
		})
	}
	_ = g.Wait() // an error is an answer
	for i, t := range ask {
		found[t] = answers[i]
	}
	return found
}

func unique(all []string) []string { return slices.Compact(slices.Sorted(slices.Values(all))) }
