package dynamodb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
)

// entry is one id of the map.
type entry struct {
	id      event.ID
	text    string    // as it stands in the map
	expires time.Time // zero = never
}

// place is what a writer knows of a topic's item. Only the holder of the topic's turn uses it.
type place struct {
	// full is until when the item is taken to be full of ids, so that others go to buckets at once.
	full time.Time
	// level is that of the newest bucket: the next one begins there.
	level  int
	newest int64
	// listed are buckets that stand in the item. Only such as nobody may remove yet.
	listed map[bucket]struct{}
}

const (
	aboutID    = 1       // what an id may take in a set beside its text
	small      = 2 << 10 // to add one id to an item of this size costs 2 units
	perID      = 1 << 10 // how much an item may grow for each id that is added at once: about a unit an id
	leastIDs   = 16      // in a cell, however long its key is
	mostListed = 512     // of a place
	mostAtOnce = 8       // requests for one topic
	overdue    = 24 * time.Hour
)

// turnOf is the key of the turn for all that stands in the map for a topic.
func turnOf(t event.Topic) string { return tMap + separator + t.String() }

// list adds ids to the map, behind their messages. nil = all stand there.
func (s *Store) list(ctx context.Context, t event.Topic, ids []entry) error {
	release, err := s.turns.take(ctx, turnOf(t))
	if err != nil {
		return explain("write into", s.table(tMap), err)
	}
	defer release()
	p, ok := s.places.get(t.String())
	if !ok {
		p = &place{listed: make(map[bucket]struct{})}
	}
	now := s.cfg.Now()
	if !now.Before(p.full) {
		n := min(len(ids), s.cfg.FirstIDs)
		have, err := s.update(ctx, tMap, item{aTopic: str(topicKey(t))}, "ADD #MsgId :ids",
			"attribute_not_exists(#MsgId) OR size(#MsgId) <= :room", item{":ids": set(textsOf(ids[:n])), ":room": num(int64(s.cfg.FirstIDs - n))})
		full := len(ids) > n
		if before, no := refused(err); no {
			have, full, n, err = before, true, 0, nil
		}
		if err != nil {
			return explain("write into", s.table(tMap), err)
		}
		p.learn(have, now, s.keep)
		if full {
			p.full = now.Add(s.step())
		}
		ids = ids[n:]
	}
	err = s.listInBuckets(ctx, t, p, ids, now)
	s.places.put(t.String(), p)
	return err
}

func (s *Store) step() time.Duration { return time.Duration(s.cfg.BucketMinutes) * time.Minute }

func textsOf(ids []entry) []string {
	out := make([]string, len(ids))
	for i, e := range ids {
		out[i] = e.text
	}
	return out
}

// learn takes over what a topic's item says of its buckets.
func (p *place) learn(it item, now time.Time, keep time.Duration) {
	for _, text := range texts(it, aBuckets) {
		if b, ok := parseBucket(text); ok {
			p.note(b, now, keep)
		}
	}
}

// note says that a bucket is listed. One that may be removed soon is listed each time.
func (p *place) note(b bucket, now time.Time, keep time.Duration) {
	if b.start > p.newest || b.start == p.newest && b.level > p.level {
		p.newest, p.level = b.start, b.level
	}
	if now.Sub(b.end()) > keep-overdue {
		return
	}
	if len(p.listed) >= mostListed {
		clear(p.listed)
	}
	p.listed[b] = struct{}{}
}

// knows reports whether a bucket is listed for certain, and for a while.
func (p *place) knows(b bucket, now time.Time, keep time.Duration) bool {
	_, ok := p.listed[b]
	return ok && now.Sub(b.end()) <= keep-overdue
}

// listInBuckets adds ids to cells and lists the buckets of these.
func (s *Store) listInBuckets(ctx context.Context, t event.Topic, p *place, ids []entry, now time.Time) error {
	groups := make(map[bucket][]entry)
	for _, e := range ids {
		b := bucketOf(e.id, e.expires, int64(s.step()/time.Second))
		groups[b] = append(groups[b], e)
	}
	var news []string
	var used []bucket
	for _, b := range slices.SortedFunc(maps.Keys(groups), func(x, y bucket) int { return int(x.start - y.start) }) {
		left := groups[b]
		level := p.level
		if b.start < p.newest {
			level = 0
			for l := range p.listed {
				if l.start == b.start && l.step == b.step && l.life == b.life {
					level = max(level, l.level)
				}
			}
		}
		for ; len(left) > 0; level++ {
			at := b.at(min(level, maxLevel))
			refused, err := s.fill(ctx, t, at, left)
			if err != nil {
				return err
			}
			if len(refused) < len(left) && !p.knows(at, now, s.keep) {
				news, used = append(news, at.String()), append(used, at)
			}
			left = refused
		}
	}
	if len(news) == 0 {
		return nil
	}
	have, err := s.update(ctx, tMap, item{aTopic: str(topicKey(t))}, "ADD #buckets :b", "", item{":b": set(news)})
	if c, _ := classify(err); err != nil && c == poison {
		have, err = s.relieve(ctx, t, news)
	}
	if err != nil {
		return explain("write into", s.table(tMap), err)
	}
	for _, b := range used {
		p.note(b, now, s.keep)
	}
	s.tidy(ctx, t, p, have, now)
	return nil
}

// relieve lists buckets in an item that is full to the brim, as one of EMQX's can be: the oldest of its ids move to buckets first.
func (s *Store) relieve(ctx context.Context, t event.Topic, news []string) (item, error) {
	const many = 2000
	it, err := s.get(ctx, tMap, item{aTopic: str(topicKey(t))})
	if err != nil {
		return nil, err
	}
	var ids []entry
	for _, text := range texts(it, aMsgIDs) {
		if id, err := s.parseID(text); err == nil {
			ids = append(ids, entry{id: id, text: text})
		}
	}
	slices.SortFunc(ids, func(a, b entry) int { return a.id.Compare(b.id) })
	ids = ids[:min(many, len(ids))]
	if len(ids) == 0 {
		return nil, fmt.Errorf("list %d buckets of topic %.80q: its item is full, and none of its ids is in the form %s", len(news), t, s.cfg.IDFormat)
	}
	groups := make(map[bucket][]entry)
	for _, e := range ids {
		b := bucketOf(e.id, e.expires, int64(s.step()/time.Second))
		groups[b] = append(groups[b], e)
	}
	all := slices.Clone(news)
	for b, left := range groups {
		for level := 0; len(left) > 0; level++ {
			at := b.at(min(level, maxLevel))
			if left, err = s.fill(ctx, t, at, left); err != nil {
				return nil, err
			}
			all = append(all, at.String())
		}
	}
	slices.Sort(all)
	return s.update(ctx, tMap, item{aTopic: str(topicKey(t))}, "ADD #buckets :b DELETE #MsgId :ids", "",
		item{":b": set(slices.Compact(all)), ":ids": set(textsOf(ids))})
}

// fill adds ids to the cells of a bucket and returns those whose cell is full. A cell may grow with what is added at once, so
// that neither a single id pays for a large item nor many ids make many items.
func (s *Store) fill(ctx context.Context, t event.Topic, b bucket, ids []entry) (refusedIDs []entry, err error) {
	cells := make(map[int64][]entry)
	for _, e := range ids {
		i := b.cell(e.id.Micros())
		cells[i] = append(cells[i], e)
	}
	var mu sync.Mutex
	no := func(ids []entry) {
		mu.Lock()
		defer mu.Unlock()
		refusedIDs = append(refusedIDs, ids...)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mostAtOnce)
	for i, ids := range cells {
		g.Go(func() error {
			key := cellKey(topicKey(t), b, i)
			room := s.room(key, ids)
			if room < 0 && b.level < maxLevel {
				no(ids)
				return nil
			}
			expression, condition, values := "ADD #MsgId :ids", "", item{":ids": set(textsOf(ids))}
			if b.level < maxLevel {
				condition = "attribute_not_exists(#MsgId) OR size(#MsgId) <= :room"
				values[":room"] = num(int64(room))
			}
			if dies := b.dies(s.keep); !dies.IsZero() {
				expression += " SET #expires_at = :e"
				values[":e"] = num(dies.Unix())
			}
			_, err := s.add(ctx, key, expression, condition, values)
			if _, full := refused(err); full {
				no(ids)
				return nil
			}
			return explain("write into", s.table(tMap), err)
		})
	}
	return refusedIDs, g.Wait()
}

// room is how many ids a cell may hold before these are added; < 0 = they are too many for one.
func (s *Store) room(key string, ids []entry) int {
	frame := len(aTopic) + len(key) + len(aMsgIDs) + len(aExpires) + 8
	one := len(ids[0].text) + aboutID
	bound := min(max(small, len(ids)*perID), s.cfg.BucketBytes)
	most := max((bound-frame)/one, leastIDs)
	return most - len(ids)
}

// add changes a cell; what is in it is not asked for.
func (s *Store) add(ctx context.Context, key, expression, condition string, values item) (*ddb.UpdateItemOutput, error) {
	in := &ddb.UpdateItemInput{
		TableName: aws.String(s.table(tMap)), Key: item{aTopic: str(key)}, UpdateExpression: aws.String(expression),
		ExpressionAttributeNames: names(expression, condition), ExpressionAttributeValues: values, ReturnConsumedCapacity: s.consumed(),
	}
	if condition != "" {
		in.ConditionExpression = aws.String(condition)
	}
	return send(ctx, s, "UpdateItem", tMap, s.api.UpdateItem, in)
}

// unlist takes ids out of the map, wherever they stand. It comes behind the removal of their messages, so none of them is seen
// any more whatever becomes of it.
func (s *Store) unlist(ctx context.Context, t event.Topic, ids []entry) error {
	release, err := s.turns.take(ctx, turnOf(t))
	if err != nil {
		return explain("write into", s.table(tMap), err)
	}
	defer release()
	key := item{aTopic: str(topicKey(t))}
	var have item
	for part := range slices.Chunk(ids, manyIDs) {
		have, err = s.update(ctx, tMap, key, "DELETE #MsgId :ids", "attribute_exists(#topic)", item{":ids": set(textsOf(part))})
		if _, no := refused(err); no {
			return nil // the topic has no ids
		}
		if err != nil {
			return explain("write into", s.table(tMap), err)
		}
	}
	buckets := texts(have, aBuckets)
	if len(buckets) == 0 && len(texts(have, aMsgIDs)) == 0 {
		return s.removeEmpty(ctx, topicKey(t))
	}
	cells := make(map[string][]entry)
	for _, text := range buckets {
		b, ok := parseBucket(text)
		if !ok {
			continue
		}
		for _, e := range ids {
			if b.holds(e.id.Micros()) {
				k := cellKey(topicKey(t), b, b.cell(e.id.Micros()))
				cells[k] = append(cells[k], e)
			}
		}
	}
	return s.drop(ctx, cells)
}

// manyIDs bounds an expression, which must not be over 4 KB with large values beside; a set of these is far below 2 MB.
const manyIDs = 4000

// drop takes ids out of items of the map.
func (s *Store) drop(ctx context.Context, ids map[string][]entry) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mostAtOnce)
	for key, ids := range ids {
		g.Go(func() error {
			for part := range slices.Chunk(ids, manyIDs) {
				_, err := s.add(ctx, key, "DELETE #MsgId :ids", "attribute_exists(#MsgId)", item{":ids": set(textsOf(part))})
				if _, no := refused(err); err != nil && !no {
					return explain("write into", s.table(tMap), err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// removeEmpty removes an item of the map that holds nothing: a set cannot be empty.
func (s *Store) removeEmpty(ctx context.Context, key string) error {
	const condition = "attribute_not_exists(#MsgId) AND attribute_not_exists(#buckets)"
	_, err := send(ctx, s, "DeleteItem", tMap, s.api.DeleteItem, &ddb.DeleteItemInput{
		TableName: aws.String(s.table(tMap)), Key: item{aTopic: str(key)}, ConditionExpression: aws.String(condition),
		ExpressionAttributeNames: names(condition), ReturnConsumedCapacity: s.consumed(),
	})
	if _, no := refused(err); no {
		return nil
	}
	return explain("remove a row from", s.table(tMap), err)
}
