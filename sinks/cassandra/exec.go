package cassandra

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gocql/gocql"
)

// acquire waits for one of the places that bound the requests in flight.
func (s *Store) acquire(ctx context.Context) error {
	select {
	case s.slots <- struct{}{}:
		s.cfg.Metrics.InFlight(1)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) release() {
	s.cfg.Metrics.InFlight(-1)
	<-s.slots
}

// twice runs a request, and runs it again, on another server where there is one, when that may help. An error of ctx is
// returned as it is; a time-out of the request alone is not one of ctx.
func (s *Store) twice(ctx context.Context, l *session, what string, limit time.Duration, run func(context.Context) error) error {
	if err := s.acquire(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer s.release()
	for attempt := 0; ; attempt++ {
		err := s.once(ctx, l, limit, run)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
		c, _ := classify(err)
		if c != transient || attempt > 0 {
			return explain(what, err)
		}
		s.cfg.Metrics.Count(Retries, 1)
		pause := 10*time.Millisecond + rand.N(40*time.Millisecond) //nolint:gosec // jitter
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

func (s *Store) once(ctx context.Context, l *session, limit time.Duration, run func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := run(ctx)
	if err != nil && timedOut(err) {
		s.cfg.Metrics.Count(Timeouts, 1)
		err = fmt.Errorf("no answer within %s, which leaves open whether it was done: %w", limit, err)
	}
	if s.link.report(l, err) {
		s.cfg.Metrics.Count(Reconnects, 1)
	}
	return err
}

// exec writes statements of one partition: one as it is, several as an unlogged batch, which one partition takes whole or not
// at all.
func (s *Store) exec(ctx context.Context, l *session, statements []statement) error {
	begin, kind := time.Now(), Batch
	var run func(context.Context) error
	var asked server
	if len(statements) == 1 {
		kind = Single
		run = func(ctx context.Context) error { return s.single(ctx, l, statements[0], &asked) }
	} else {
		run = func(ctx context.Context) error {
			b := l.NewBatch(gocql.UnloggedBatch).WithContext(ctx)
			for _, st := range statements {
				b.Entries = append(b.Entries, gocql.BatchEntry{Stmt: s.texts[st.q], Args: st.args, Idempotent: true})
			}
			return l.ExecuteBatch(b)
		}
	}
	err := s.twice(ctx, l, s.say("write", len(statements)), s.cfg.WriteTimeout, run)
	s.cfg.Metrics.Observe(kind, len(statements), time.Since(begin), err == nil, asked.address)
	return err
}

func (s *Store) say(verb string, rows int) string {
	if rows == 1 {
		return verb + " a row of keyspace " + s.cfg.Keyspace
	}
	return fmt.Sprintf("%s %d rows of keyspace %s", verb, rows, s.cfg.Keyspace)
}

// server is the one that was asked last. It belongs to one request. A batch does not say where it went: only an observer of the driver would
// be told, for which it copies every statement and value.
type server struct{ address string }

func (s *server) is(h *gocql.HostInfo) {
	if h != nil {
		s.address = h.ConnectAddress().String()
	}
}

func (s *Store) single(ctx context.Context, l *session, st statement, asked *server) error {
	iter := l.Query(s.texts[st.q], st.args...).WithContext(ctx).Idempotent(true).Iter()
	asked.is(iter.Host())
	if n := len(iter.Warnings()); n > 0 {
		s.cfg.Metrics.Count(Warnings, n)
	}
	return iter.Close()
}

// reading is a query under way: scan takes one row after another.
type reading struct {
	st   statement
	rows int // the most that come, 0 = not known
	// frame is how many of them come in one answer (frameRows when 0).
	frame int
	// begin forgets the rows of an attempt that failed; scan takes a row, and returns false when there is none.
	begin func()
	scan  func(*gocql.Iter) bool
}

// read runs a query, and says how many warnings the servers gave.
func (s *Store) read(ctx context.Context, r reading) (warnings int, err error) {
	l, err := s.link.get(ctx)
	if err != nil {
		return 0, err
	}
	var asked server
	begin, rows, size := time.Now(), 0, cmp.Or(r.frame, frameRows)
	if r.rows > 0 && r.rows <= size {
		size = r.rows + 1 // else it would be asked whether there are more
	}
	err = s.twice(ctx, l, "read keyspace "+s.cfg.Keyspace, s.cfg.ReadTimeout, func(ctx context.Context) error {
		rows = 0
		if r.begin != nil {
			r.begin()
		}
		iter := l.Query(s.texts[r.st.q], r.st.args...).WithContext(ctx).Idempotent(true).PageSize(size).Iter()
		asked.is(iter.Host())
		warnings = len(iter.Warnings())
		for r.scan(iter) {
			rows++
		}
		warnings = max(warnings, len(iter.Warnings())) // those of the last answer
		return iter.Close()
	})
	if warnings > 0 {
		s.cfg.Metrics.Count(Warnings, warnings)
	}
	s.cfg.Metrics.Observe(Read, rows, time.Since(begin), err == nil, asked.address)
	return warnings, err
}
