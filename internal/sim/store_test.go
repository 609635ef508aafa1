package sim

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

// store is one process's way to the store that all share.
type store struct {
	in  *incarnation
	mem *memory.Store
	// whole says that the store tells a poison op from the others by its error only, not by its place.
	whole bool
}

var poisonMark = []byte("poison")

func poisonous(o sinks.Op) bool {
	m, ok := o.(sinks.PutMessage)
	return ok && bytes.HasPrefix(m.Payload, poisonMark)
}

// write applies ops as a real store does that got them: poison is refused, the others are durable.
func (s *store) write(ops []sinks.Op) error {
	var good []sinks.Op
	bad := make(map[int]error)
	for i, o := range ops {
		if poisonous(o) {
			bad[i] = fault.Poison(fmt.Errorf("%s cannot be stored", o.Row()))
			continue
		}
		good = append(good, o)
	}
	if len(bad) > 0 && s.whole {
		return fault.Poison(fmt.Errorf("one of %d ops cannot be stored", len(ops)))
	}
	if err := s.mem.Apply(context.Background(), good); err != nil {
		return err
	}
	if s.in.w.planted == staleStore {
		h := s.in.w.hist
		h.mu.Lock()
		s.in.w.journal = append(s.in.w.journal, entry{time.Now(), good})
		h.mu.Unlock()
	}
	if len(bad) > 0 {
		return &sinks.ApplyError{Failed: bad}
	}
	return nil
}

func rows(ops []sinks.Op) string {
	h := fnv.New32a()
	for _, o := range ops {
		fmt.Fprintf(h, "%s|%d|", o.Row(), sinks.Stamp(o))
	}
	return fmt.Sprintf("%d ops %08x", len(ops), h.Sum32())
}

func (s *store) Apply(ctx context.Context, ops []sinks.Op) error {
	c := &call{in: s.in, op: opApply, key: opApply + " " + rows(ops), land: func() { _ = s.write(ops) }}
	v := s.in.w.step.park(ctx, c)
	if v.Err != nil && !v.Done {
		return v.Err
	}
	if v.Empty && len(ops) > 1 { // some of it fails
		var part []sinks.Op
		failed := make(map[int]error)
		var at []int
		for i, o := range ops {
			if h := fnv.New32a(); i == 0 || func() bool { _, _ = h.Write([]byte(o.Row())); return h.Sum32()%3 == 0 }() {
				failed[i] = errInjected
				continue
			}
			part = append(part, o)
			at = append(at, i)
		}
		err := s.write(part)
		if e, ok := err.(*sinks.ApplyError); ok { //nolint:errorlint // write returns it as it is
			for i, cause := range e.Failed {
				failed[at[i]] = cause
			}
		} else if err != nil {
			return err
		}
		return &sinks.ApplyError{Failed: failed}
	}
	err := s.write(ops)
	if v.Err != nil {
		return v.Err
	}
	return err
}

func (s *store) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	key := fmt.Sprintf("%s %s %s..%s %d", opRead, q.Topic, q.After, q.Until, q.Limit)
	if v := s.in.w.step.park(ctx, &call{in: s.in, op: opRead, key: key, twin: true}); v.Err != nil {
		return nil, v.Err
	}
	return s.mem.Messages(ctx, q)
}

func (s *store) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	key := fmt.Sprintf("%s %s %s", opRead, f, after)
	if v := s.in.w.step.park(ctx, &call{in: s.in, op: opRead, key: key, twin: true}); v.Err != nil {
		return nil, v.Err
	}
	return s.mem.Topics(ctx, f, after, limit)
}

func (s *store) Retained(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]sinks.Message, error) {
	key := fmt.Sprintf("%s retained %s %s", opRead, f, after)
	if v := s.in.w.step.park(ctx, &call{in: s.in, op: opRead, key: key, twin: true}); v.Err != nil {
		return nil, v.Err
	}
	return s.mem.Retained(ctx, f, after, limit)
}

func (s *store) Acked(ctx context.Context, c event.ClientID, topic string) (event.ID, bool, error) {
	return s.mem.Acked(ctx, c, topic)
}

func (s *store) Client(ctx context.Context, c event.ClientID) (sinks.Client, bool, error) {
	return s.mem.Client(ctx, c)
}

func (s *store) Subs(ctx context.Context, c event.ClientID) ([]sinks.Sub, error) {
	return s.mem.Subs(ctx, c)
}

func (s *store) Positions(ctx context.Context, c event.ClientID) ([]sinks.PutAcked, error) {
	key := fmt.Sprintf("%s positions of %s", opRead, c)
	if v := s.in.w.step.park(ctx, &call{in: s.in, op: opRead, key: key}); v.Err != nil {
		return nil, v.Err
	}
	return s.mem.Positions(ctx, c)
}

func (s *store) Check(context.Context) error { return nil }
func (s *store) Close() error                { return nil }
