// Package memory is the plainest correct store: one map a table, each row folded by [sinks.Merge]. It keeps everything,
// tombstones as well, until the process ends. It starts no goroutine and waits for nothing but a mutex.
package memory

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// Store keeps its rows in memory. The zero Store is ready; it must not be copied.
type Store struct {
	// Now is the clock that expiry goes by; nil = time.Now.
	Now func() time.Time

	mu       sync.RWMutex
	messages map[event.Topic]map[event.ID]sinks.Op
	retained map[event.Topic]sinks.Op
	acked    map[position]sinks.Op
	clients  map[event.ClientID]sinks.Op
	subs     map[event.ClientID]map[event.Filter]sinks.Op
}

type position struct {
	client event.ClientID
	topic  string
}

var _ sinks.Store = (*Store)(nil)

func (s *Store) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func expired(m *sinks.Message, now time.Time) bool {
	return !m.Expires.IsZero() && !now.Before(m.Expires)
}

// Apply folds the ops into their rows, all or (when ctx has ended) none. It keeps the payloads that it is given.
func (s *Store) Apply(ctx context.Context, ops []sinks.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.messages == nil {
		s.messages = map[event.Topic]map[event.ID]sinks.Op{}
		s.retained = map[event.Topic]sinks.Op{}
		s.acked = map[position]sinks.Op{}
		s.clients = map[event.ClientID]sinks.Op{}
		s.subs = map[event.ClientID]map[event.Filter]sinks.Op{}
	}
	for _, op := range ops { // what is kept is op: to make an Op of o again would copy it
		switch o := op.(type) {
		case sinks.PutMessage:
			if !expired(&o.Message, now) {
				fold(row(s.messages, o.Topic), o.ID, op)
			}
		case sinks.DeleteMessage:
			fold(row(s.messages, o.Topic), o.ID, op)
		case sinks.PutAcked:
			fold(s.acked, position{o.Client, o.Topic}, op)
		case sinks.DeleteAcked:
			fold(s.acked, position{o.Client, o.Topic}, op)
		case sinks.PutRetained:
			fold(s.retained, o.Topic, op) // expired or not: it replaces what was there
		case sinks.DeleteRetained:
			fold(s.retained, o.Topic, op)
		case sinks.PutClient:
			fold(s.clients, o.Client, op)
		case sinks.PutSub:
			fold(row(s.subs, o.Client), o.Filter, op)
		case sinks.DeleteSub:
			fold(row(s.subs, o.Client), o.Filter, op)
		}
	}
	return nil
}

func row[K, L comparable](m map[K]map[L]sinks.Op, k K) map[L]sinks.Op {
	r, ok := m[k]
	if !ok {
		r = map[L]sinks.Op{}
		m[k] = r
	}
	return r
}

func fold[K comparable](m map[K]sinks.Op, k K, o sinks.Op) {
	if old, ok := m[k]; ok {
		o = sinks.Merge(old, o)
	}
	m[k] = o
}

// pending returns the message of a row, when it is there for a replay.
func pending(o sinks.Op, now time.Time) (sinks.Message, bool) {
	m, ok := o.(sinks.PutMessage)
	return m.Message, ok && !m.History && !expired(&m.Message, now)
}

// Messages implements [sinks.Reader].
func (s *Store) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := s.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []sinks.Message
	for id, o := range s.messages[q.Topic] {
		if m, ok := pending(o, now); ok && id.Compare(q.After) > 0 && id.Compare(q.Until) <= 0 {
			found = append(found, m)
		}
	}
	slices.SortFunc(found, func(a, b sinks.Message) int { return a.ID.Compare(b.ID) })
	if over := len(found) - q.Limit; over > 0 && q.Newest {
		found = found[over:]
	}
	return found[:min(q.Limit, len(found))], nil
}

// Topics implements [sinks.Reader].
func (s *Store) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := s.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []event.Topic
	for t, rows := range s.messages {
		if t.String() <= after.String() || !f.Match(t) {
			continue
		}
		for _, o := range rows {
			if _, ok := pending(o, now); ok {
				found = append(found, t)
				break
			}
		}
	}
	slices.SortFunc(found, func(a, b event.Topic) int { return strings.Compare(a.String(), b.String()) })
	return found[:min(limit, len(found))], nil
}

// Retained implements [sinks.Reader].
func (s *Store) Retained(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]sinks.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := s.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []sinks.Message
	for t, o := range s.retained {
		if m, ok := o.(sinks.PutRetained); ok && t.String() > after.String() && f.Match(t) && !expired(&m.Message, now) {
			found = append(found, m.Message)
		}
	}
	slices.SortFunc(found, func(a, b sinks.Message) int { return strings.Compare(a.Topic.String(), b.Topic.String()) })
	return found[:min(limit, len(found))], nil
}

// Acked implements [sinks.Reader].
func (s *Store) Acked(ctx context.Context, client event.ClientID, topic string) (event.ID, bool, error) {
	if err := ctx.Err(); err != nil {
		return event.ID{}, false, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.acked[position{client, topic}].(sinks.PutAcked)
	return o.Message, ok, nil
}

// Positions implements [sinks.Reader].
func (s *Store) Positions(ctx context.Context, client event.ClientID) ([]sinks.PutAcked, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []sinks.PutAcked
	for at, o := range s.acked {
		if o, ok := o.(sinks.PutAcked); ok && at.client == client {
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b sinks.PutAcked) int { return strings.Compare(a.Topic, b.Topic) })
	return found, nil
}

// Client implements [sinks.Reader].
func (s *Store) Client(ctx context.Context, client event.ClientID) (sinks.Client, bool, error) {
	if err := ctx.Err(); err != nil {
		return sinks.Client{}, false, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.clients[client].(sinks.PutClient)
	if !ok {
		return sinks.Client{}, false, nil
	}
	c := sinks.Client{ID: client, Online: o.Up.Stamp > o.Down.Stamp, Node: o.Up.Node, OnlineAt: o.Up.OnlineAt}
	if !c.Online {
		c.OfflineAt = o.Down.OfflineAt
	}
	return c, true, nil
}

// Subs implements [sinks.Reader].
func (s *Store) Subs(ctx context.Context, client event.ClientID) ([]sinks.Sub, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []sinks.Sub
	for _, o := range s.subs[client] {
		if o, ok := o.(sinks.PutSub); ok {
			found = append(found, sinks.Sub{Filter: o.Filter, QoS: o.QoS})
		}
	}
	slices.SortFunc(found, func(a, b sinks.Sub) int { return strings.Compare(a.Filter.String(), b.Filter.String()) })
	return found, nil
}

// Check finds nothing wrong: there is no schema.
func (s *Store) Check(ctx context.Context) error { return ctx.Err() }

// Close has nothing to release.
func (s *Store) Close() error { return nil }
