package cassandra

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gocql/gocql"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

const (
	// pageRows is the most rows of one read; it ends early when they have pageBytes.
	pageRows  = 2000
	pageBytes = 4 << 20
	// frameRows is the most rows of one answer to a read. It should have no more than pageBytes, going by the rows of late.
	frameRows    = 500
	firstRowSize = 16 << 10
	leastRows    = 10
	// mostOdd is how many rows without an id of ours in a row are read over.
	mostOdd = 10_000
)

// row is a row of mqtt_msg as it is read; what somebody else wrote may have nulls.
type row struct {
	msgid, sender string
	arrived       time.Time
	payload       []byte
	qos, retain   int
	left          *int
	written       *int64
}

func (r *row) dest() []any {
	return []any{&r.msgid, &r.arrived, &r.payload, &r.qos, &r.retain, &r.sender, &r.left, &r.written}
}

// message is the row's, but for its properties.
func (r *row) message(t event.Topic, id event.ID, now time.Time) sinks.Message {
	m := sinks.Message{
		ID: id, Topic: t, Sender: event.ClientID(r.sender), Retain: r.retain != 0, Payload: payloadOf(r.payload), Arrived: r.arrived,
		Expires: expires(r.left, now),
	}
	if r.qos >= 0 && r.qos <= 2 {
		m.QoS = event.QoS(r.qos)
	}
	return m
}

// found is a message with the place that its row was written at: plainAt and so on, or -1 when it is not ours.
type found struct {
	sinks.Message
	place int64
}

// Messages implements [sinks.Reader]. A range that holds more tombstones than the servers let a read meet is cut in two, again and
// again. A read that began at the topic's low mark, and was slow, moves it.
func (s *Store) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w, err := s.walk(ctx, q)
	if err != nil {
		return nil, err
	}
	if err := w.run(ctx); err != nil {
		return nil, err
	}
	if err := w.learn(ctx); err != nil {
		return nil, err
	}
	return w.out(), nil
}

// walk reads the ranges of a query.
type walk struct {
	store *Store
	q     sinks.Query
	begun time.Time
	row   lowRow // as it was before the messages were read
	todo  []span // the last one is next

	got    []sinks.Message // in reading order
	extra  int             // rows to read beside, because of odd ones
	dear   bool            // it met so much that a mark would help
	others bool            // rows that are not ours
}

// walk finds out which ranges a query has to read.
func (s *Store) walk(ctx context.Context, q sinks.Query) (*walk, error) {
	w := &walk{store: s, q: q, begun: time.Now()}
	var err error
	if w.row, err = s.lowOf(ctx, q.Topic); err != nil {
		return nil, err
	}
	from := w.row
	if !s.trusted(from) {
		from.low = event.ID{}
	}
	w.todo = from.spans(q.After, q.Until)
	if !q.Newest {
		slices.Reverse(w.todo) // the last is taken first
	}
	return w, nil
}

func (w *walk) run(ctx context.Context) error {
	for len(w.todo) > 0 && len(w.got) < w.q.Limit {
		last := len(w.todo) - 1
		p := w.todo[last]
		w.todo = w.todo[:last]
		rows, full, err := w.page(ctx, p)
		if err != nil {
			if c, _ := classify(err); c != buried {
				return err
			}
			if err := w.halve(p, err); err != nil {
				return err
			}
			continue
		}
		if err := w.take(ctx, rows, p, full); err != nil {
			return err
		}
	}
	return nil
}

// halve puts the two halves of a range back, to be read one after the other.
func (w *walk) halve(p span, err error) error {
	w.dear = true
	w.store.cfg.Metrics.Count(Tombstones, 1)
	a, b := p.after.Micros(), p.until.Micros()
	// Tombstones stand where messages were of late: the ends are cut off first.
	now := w.store.cfg.Now()
	mid := a + (b-a)/2
	for _, edge := range []time.Duration{10 * time.Minute, -markBehind, -24 * time.Hour, -30 * 24 * time.Hour} {
		if at := now.Add(edge).UnixMicro(); at-a > time.Hour.Microseconds() && b-at > time.Minute.Microseconds() {
			mid = at
			break
		}
	}
	cut := event.FirstIDAt(time.UnixMicro(mid)).Before()
	if cut.Compare(p.after) <= 0 {
		cut = event.FirstIDAt(time.UnixMicro(mid + 1)).Before()
	}
	if cut.Compare(p.until) >= 0 {
		return fmt.Errorf("read messages of %.80q: one µs holds too many tombstones: raise tombstone_failure_threshold: %w", w.q.Topic, err)
	}
	older, newer := span{p.after, cut}, span{cut, p.until}
	if w.q.Newest {
		w.todo = append(w.todo, older, newer)
	} else {
		w.todo = append(w.todo, newer, older)
	}
	return nil
}

// page reads one page of a range; full = there may be more.
func (w *walk) page(ctx context.Context, p span) (rows []row, full bool, err error) {
	s, size := w.store, 0
	limit := min(pageRows, max(w.q.Limit-len(w.got), 1)) + w.extra
	q := selectMessages
	if w.q.Newest {
		q = selectNewest
	}
	begin := time.Now()
	warnings, err := s.read(ctx, reading{
		st: statement{q, []any{w.q.Topic.String(), p.after.String(), p.until.String(), limit}}, rows: limit,
		frame: int(min(max(pageBytes/s.rowSize.Load(), leastRows), frameRows)),
		begin: func() { rows, size = nil, 0 },
		scan: func(i *gocql.Iter) bool {
			var r row
			if size >= pageBytes || !i.Scan(r.dest()...) {
				return false
			}
			rows, size = append(rows, r), size+len(r.payload)+rowOverhead
			return true
		},
	})
	full = len(rows) == limit || size >= pageBytes
	if err != nil {
		if c, _ := classify(err); c != buried || len(rows) == 0 {
			return nil, false, err
		}
		full, w.dear = true, true // what came before the tombstones is kept
	}
	w.dear = w.dear || warnings > 0 || time.Since(begin) > slowRead+time.Duration(len(rows))*slowRow
	if len(rows) > 0 {
		s.rowSize.Store(max(int64(size/len(rows)), s.rowSize.Load()*7/8, rowOverhead))
	}
	return rows, full, nil
}

// take keeps what is pending of a page, and puts the rest of its range back.
func (w *walk) take(ctx context.Context, rows []row, p span, full bool) error {
	now := w.store.cfg.Now()
	var page []found
	for i := range rows {
		if f, ok := w.store.found(ctx, w.q.Topic, &rows[i], now); ok {
			w.others = w.others || f.place < 0
			page = append(page, f)
		}
	}
	if err := w.store.complete(ctx, w.q.Topic, &page); err != nil {
		return err
	}
	for _, f := range page {
		w.got = append(w.got, f.Message)
	}
	if !full {
		return nil
	}
	last, ok := reached(rows)
	if !ok { // nothing was kept of the page: a larger one shows what stands behind the odd rows
		if w.extra = 4 * max(w.extra, leastRows); w.extra > mostOdd {
			return fmt.Errorf("read messages of %.80q: nothing but rows such as %.40q, whose msgid is none: remove them", w.q.Topic, rows[0].msgid)
		}
		w.todo = append(w.todo, p)
		return nil
	}
	w.extra = 0
	rest := span{last, p.until}
	if w.q.Newest {
		rest = span{p.after, last.Before()}
	}
	if !rest.empty() {
		w.todo = append(w.todo, rest)
	}
	return nil
}

// reached is the last id of a page; false when all its rows are odd ones.
func reached(rows []row) (event.ID, bool) {
	for _, r := range slices.Backward(rows) {
		if id, err := event.ParseID(r.msgid); err == nil && id.String() == r.msgid {
			return id, true
		}
	}
	return event.ID{}, false
}

// found is the message of a row; false when its key is none that an ack could remove.
func (s *Store) found(ctx context.Context, t event.Topic, r *row, now time.Time) (found, bool) {
	id, err := event.ParseID(r.msgid)
	if err != nil || id.String() != r.msgid {
		s.cfg.Metrics.Count(Unreadable, 1)
		s.odd.Do(func() {
			s.cfg.Log.WarnContext(ctx, "rows of mqtt_msg are left out: their msgid is not 32 upper-case hex digits", "topic", t.String(), "msgid", r.msgid)
		})
		return found{}, false
	}
	f := found{r.message(t, id, now), -1}
	if r.written != nil {
		if before := id.Micros() - *r.written; before >= plainAt && before <= historyAt {
			f.place = before
		}
	}
	if f.place < 0 {
		s.cfg.Metrics.Count(Foreign, 1)
	}
	return f, true
}

// complete gives messages their properties, and takes those out that are there for the record only.
func (s *Store) complete(ctx context.Context, t event.Topic, page *[]found) error {
	var ids []string
	for _, f := range *page {
		if f.place > plainAt {
			ids = append(ids, f.ID.String())
		}
	}
	if len(ids) == 0 {
		return nil
	}
	type more struct {
		props   string
		history bool
	}
	var all map[string]more
	_, err := s.read(ctx, reading{
		st: statement{selectProps, []any{t.String(), ids}}, rows: len(ids),
		begin: func() { all = map[string]more{} },
		scan: func(i *gocql.Iter) bool {
			var id string
			var m more
			ok := i.Scan(&id, &m.props, &m.history)
			all[id] = m
			return ok
		},
	})
	if err != nil {
		return err
	}
	for i := range *page {
		f := &(*page)[i]
		if f.place <= plainAt {
			continue
		}
		m, ok := all[f.ID.String()]
		if !ok && f.place == propsAt {
			s.cfg.Metrics.Count(PropsMissing, 1)
		}
		if f.Properties, err = sinks.ParseProperties(m.props); err != nil {
			s.cfg.Metrics.Count(Unreadable, 1)
		}
		if f.place != historyAt || !m.history {
			f.place = plainAt // pending
		}
	}
	*page = slices.DeleteFunc(*page, func(f found) bool { return f.place == historyAt })
	return nil
}

// least is the least id at or above from that was found, or what lies above all that was read; false when the read cannot tell. Any
// range that was left out must hold nothing from there on.
func (w *walk) least(from event.ID) (event.ID, bool) {
	if w.q.Newest || !w.q.After.IsZero() && w.q.After.Compare(from) >= 0 {
		return event.ID{}, false
	}
	for _, m := range w.got {
		if m.ID.Compare(from) >= 0 {
			return m.ID, true
		}
	}
	if len(w.todo) > 0 {
		return event.ID{}, false
	}
	return w.q.Until, true
}

func (w *walk) out() []sinks.Message {
	got := w.got[:min(len(w.got), w.q.Limit)]
	if w.q.Newest {
		slices.Reverse(got)
	}
	return got
}
