package dynamodb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// cell is one item of the map that a fetch may have to read.
type cell struct {
	bucket bucket
	index  int64
	// from and to bound the times of its ids, µs: from ≤ id < to.
	from, to int64
}

// listing is one id and the items of the map that it stands in.
type listing struct {
	id   event.ID
	text string
	in   []string
}

// fetch reads the ids of a topic in order, forwards or backwards, no more items of the map at once than it has to.
type fetch struct {
	s      *Store
	q      sinks.Query
	key    string
	spans  []bucket // not opened yet, in order
	cells  []cell   // of the spans that are open, not read yet, in order
	atOnce int
	ids    map[event.ID]*listing // read, not handed out yet
}

// begin reads the topic's item.
func (s *Store) begin(ctx context.Context, q sinks.Query) (*fetch, error) {
	f := &fetch{s: s, q: q, key: topicKey(q.Topic), atOnce: 4, ids: make(map[event.ID]*listing)}
	it, err := s.get(ctx, tMap, item{aTopic: str(f.key)})
	if err != nil {
		return nil, err
	}
	f.take(f.key, it)
	for _, text := range texts(it, aBuckets) {
		b, ok := parseBucket(text)
		if ok && b.start*1e6 <= q.Until.Micros() && b.end().UnixMicro() > q.After.Micros() {
			f.spans = append(f.spans, b)
		}
	}
	slices.SortFunc(f.spans, func(a, b bucket) int {
		if q.Newest {
			return b.end().Compare(a.end())
		}
		return int(a.start - b.start)
	})
	return f, nil
}

// take adds the ids of an item that are in the range.
func (f *fetch) take(key string, it item) {
	for _, text := range texts(it, aMsgIDs) {
		id, err := f.s.parseID(text)
		if err != nil || id.Compare(f.q.After) <= 0 || id.Compare(f.q.Until) > 0 {
			continue
		}
		l := f.ids[id]
		if l == nil {
			l = &listing{id: id, text: text}
			f.ids[id] = l
		}
		l.in = append(l.in, key)
	}
}

// edge is the least (backwards: the greatest) time that an id can have which has not been read, µs; false = all are read.
func (f *fetch) edge() (int64, bool) {
	var at []int64
	if f.q.Newest {
		if len(f.cells) > 0 {
			at = append(at, f.cells[0].to-1)
		}
		if len(f.spans) > 0 {
			at = append(at, f.spans[0].end().UnixMicro()-1)
		}
		if len(at) == 0 {
			return 0, false
		}
		return slices.Max(at), true
	}
	if len(f.cells) > 0 {
		at = append(at, f.cells[0].from)
	}
	if len(f.spans) > 0 {
		at = append(at, f.spans[0].start*1e6)
	}
	if len(at) == 0 {
		return 0, false
	}
	return slices.Min(at), true
}

// more reads the next cells.
func (f *fetch) more(ctx context.Context) error {
	for len(f.spans) > 0 {
		b := f.spans[0]
		if len(f.cells) >= f.atOnce {
			if c := f.cells[f.atOnce-1]; !f.q.Newest && c.from < b.start*1e6 || f.q.Newest && c.to > b.end().UnixMicro() {
				break
			}
		}
		f.spans = f.spans[1:]
		f.open(b)
	}
	n := min(f.atOnce, len(f.cells))
	keys := make([]item, n)
	for i, c := range f.cells[:n] {
		keys[i] = item{aTopic: str(cellKey(f.key, c.bucket, c.index))}
	}
	items, err := f.s.getAll(ctx, tMap, keys)
	if err != nil {
		return err
	}
	for _, it := range items {
		f.take(text(it, aTopic), it)
	}
	f.cells = f.cells[n:]
	f.atOnce = min(2*f.atOnce, manyKeys)
	return nil
}

// open puts the cells of a bucket that the range touches among those to be read.
func (f *fetch) open(b bucket) {
	first, last := int64(0), b.cells()-1
	if us := f.q.After.Micros(); b.holds(us) {
		first = b.cell(us)
	}
	if us := f.q.Until.Micros(); b.holds(us) {
		last = b.cell(us)
	}
	for i := first; i <= last; i++ {
		f.cells = append(f.cells, cell{bucket: b, index: i, from: b.begins(i), to: b.begins(i + 1)})
	}
	slices.SortFunc(f.cells, func(x, y cell) int {
		if f.q.Newest {
			return int(y.to - x.to)
		}
		return int(x.from - y.from)
	})
}

// next hands out up to n ids, in order; fewer = these are the last.
func (f *fetch) next(ctx context.Context, n int) ([]*listing, error) {
	for {
		edge, open := f.edge()
		var ready []*listing
		for id, l := range f.ids {
			us := id.Micros()
			if !open || !f.q.Newest && us < edge || f.q.Newest && us > edge {
				ready = append(ready, l)
			}
		}
		if open && len(ready) < n {
			if err := f.more(ctx); err != nil {
				return nil, err
			}
			continue
		}
		slices.SortFunc(ready, func(a, b *listing) int {
			if f.q.Newest {
				return b.id.Compare(a.id)
			}
			return a.id.Compare(b.id)
		})
		ready = ready[:min(n, len(ready))]
		for _, l := range ready {
			delete(f.ids, l.id)
		}
		return ready, nil
	}
}

// Messages implements [sinks.Reader]. Ids that are met without a message that is alive are taken out of the map: the message is
// always there before its id, so it has been removed or has expired.
func (s *Store) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(topicKey(q.Topic))+maxCellName > maxHash {
		return nil, nil
	}
	f, err := s.begin(ctx, q)
	if err != nil {
		return nil, err
	}
	const ahead = 4 * manyKeys
	var found []sinks.Message
	dead := make(map[string][]entry)
	deadIDs := 0
	for len(found) < q.Limit {
		want := min(q.Limit-len(found), ahead)
		ids, err := f.next(ctx, want)
		if err != nil {
			return nil, err
		}
		alive, gone, err := s.look(ctx, q.Topic, ids)
		if err != nil {
			return nil, err
		}
		found = append(found, alive...)
		for _, l := range gone {
			deadIDs++
			for _, key := range l.in {
				dead[key] = append(dead[key], entry{id: l.id, text: l.text})
			}
		}
		if len(ids) < want {
			break
		}
	}
	if q.Newest {
		slices.Reverse(found)
	}
	if deadIDs >= manyDead && !s.cfg.Look {
		s.bury(ctx, q.Topic, dead)
	}
	return found, nil
}

// manyDead is how many ids without a message make their removal worth the requests.
const manyDead = 8

// bury takes dead ids out of the map. It is a help to the next fetch; what fails is left to that.
func (s *Store) bury(ctx context.Context, t event.Topic, dead map[string][]entry) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	release, err := s.turns.take(ctx, turnOf(t))
	if err == nil {
		defer release()
		err = s.drop(ctx, dead)
	}
	if err != nil {
		s.hint(ctx, t, err)
	}
}

// look reads the messages of ids and keeps their order; gone are those without one that is alive.
func (s *Store) look(ctx context.Context, t event.Topic, ids []*listing) (alive []sinks.Message, gone []*listing, err error) {
	now := s.cfg.Now()
	found := make([]map[string]item, (len(ids)+manyKeys-1)/manyKeys)
	g, ctx := errgroup.WithContext(ctx)
	for i := range found {
		g.Go(func() error {
			part := ids[i*manyKeys : min((i+1)*manyKeys, len(ids))]
			keys := make([]item, len(part))
			for j, l := range part {
				keys[j] = item{aMsgID: str(l.text)}
			}
			items, err := s.getAll(ctx, tMsg, keys)
			if err != nil {
				return err
			}
			found[i] = make(map[string]item, len(items))
			for _, it := range items {
				found[i][text(it, aMsgID)] = it
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	all := make(map[string]item, len(ids))
	for _, part := range found {
		maps.Copy(all, part)
	}
	for _, l := range ids {
		it, ok := all[l.text]
		if !ok {
			gone = append(gone, l)
			continue
		}
		m, living, err := s.message(it, now)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("read %s: %w", s.table(tMsg), err)
		case !living:
			gone = append(gone, l)
		case m.Topic == t:
			alive = append(alive, m)
		}
	}
	return alive, gone, nil
}
