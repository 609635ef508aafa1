package dynamodb

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/restante/restante/event"
)

// tidy un-lists buckets that nobody can write into any more: all in them has expired, or they are empty; and in both cases they
// are older than anything that the log can still hold. A bucket that is merely empty is left: a writer that takes it for
// listed may be about to add an id. What fails here is done by another.
func (s *Store) tidy(ctx context.Context, t event.Topic, p *place, it item, now time.Time) {
	var dead []string
	var old []bucket
	for _, text := range texts(it, aBuckets) {
		b, ok := parseBucket(text)
		if !ok || now.Sub(b.end()) <= s.keep+overdue {
			continue
		}
		if dies := b.dies(s.keep); !dies.IsZero() {
			if now.Sub(dies) > overdue {
				dead = append(dead, text)
			}
		} else {
			old = append(old, b)
		}
	}
	var looked bucket
	if len(old) > 0 { // one each time, whichever: those before it may be full for ever
		b := old[rand.IntN(len(old))] //nolint:gosec // no secret
		if empty, err := s.emptied(ctx, t, b); err != nil {
			s.hint(ctx, t, err)
		} else if empty {
			looked, dead = b, append(dead, b.String())
		}
	}
	if len(dead) == 0 {
		return
	}
	_, err := s.add(ctx, topicKey(t), "DELETE #buckets :b", "attribute_exists(#topic)", item{":b": set(dead)})
	if _, no := refused(err); err != nil && !no {
		s.hint(ctx, t, err)
		return
	}
	for _, text := range dead {
		b, ok := parseBucket(text)
		if !ok {
			continue
		}
		delete(p.listed, b)
		if b != looked {
			continue // its cells have expired
		}
		for i := range b.cells() {
			if err := s.removeEmpty(ctx, cellKey(topicKey(t), b, i)); err != nil {
				s.hint(ctx, t, err)
				return
			}
		}
	}
}

// mostTidied is the level up to which the cells of a bucket are looked at one by one.
const mostTidied = 6

// emptied reports whether a bucket holds no ids. One with very many cells is not looked at.
func (s *Store) emptied(ctx context.Context, t event.Topic, b bucket) (bool, error) {
	if b.level > mostTidied {
		return false, nil
	}
	var keys []item
	for i := range b.cells() {
		keys = append(keys, item{aTopic: str(cellKey(topicKey(t), b, i))})
	}
	found, err := s.getAll(ctx, tMap, keys)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(found, func(it item) bool { return len(texts(it, aMsgIDs)) > 0 }), nil
}

func (s *Store) hint(ctx context.Context, t event.Topic, err error) {
	s.cfg.Log.DebugContext(ctx, "map of a topic not tidied", "topic", fmt.Sprintf("%.80s", t), "err", err)
}
