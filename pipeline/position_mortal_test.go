package pipeline_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

var errDead = errors.New("the process is dead")

// mortal is one replayer process: a gate around all that it calls. When it is dead none of its calls has an effect.
type mortal struct {
	*process
	dead  atomic.Bool
	armed atomic.Bool // it dies in the middle of its next write
	slow  bool        // so is what it reads, and where it logs
	t     *testing.T
	rng   func(n int) int
	// meanwhile lets something happen to a topic that is about to be read.
	meanwhile func(event.Topic)
}

func (m *mortal) die() {
	m.dead.Store(true)
	m.client.Kill(0)
	m.cancel()
	m.kill()
}

// mortalStore is its way to the store.
type mortalStore struct {
	*store
	m *mortal
}

func (s *mortalStore) Apply(ctx context.Context, ops []sinks.Op) error {
	switch {
	case s.m.dead.Load():
		return errDead
	case s.m.armed.Load():
		_ = pipeline.Sleep(ctx, time.Duration(s.m.rng(4))*time.Second) // ends with ctx too; time for a commit that must not be
		if s.m.dead.Load() {
			return errDead
		}
		some := ops[:s.m.rng(len(ops)+1)]
		if err := s.store.Apply(ctx, some); err != nil {
			return err
		}
		s.m.die()
		return errDead
	}
	return s.store.Apply(ctx, ops)
}

func (s *mortalStore) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	if s.m.slow && s.m.rng(4) == 0 {
		s.m.meanwhile(q.Topic)
		if err := pipeline.Sleep(ctx, time.Duration(200+s.m.rng(1000))*time.Millisecond); err != nil {
			return nil, err
		}
	}
	if err := s.takesItsTime(ctx); err != nil {
		return nil, err
	}
	return s.store.Messages(ctx, q)
}

func (s *mortalStore) Positions(ctx context.Context, c event.ClientID) ([]sinks.PutAcked, error) {
	if err := s.takesItsTime(ctx); err != nil {
		return nil, err
	}
	return s.store.Positions(ctx, c)
}

// takesItsTime lets things happen while the store is read.
func (s *mortalStore) takesItsTime(ctx context.Context) error {
	if s.m.slow {
		if err := pipeline.Sleep(ctx, time.Duration(s.m.rng(4)*s.m.rng(300))*time.Millisecond); err != nil {
			return err
		}
	}
	if s.m.dead.Load() {
		return errDead
	}
	return nil
}

// slowJournal takes its time for what it is told, in which something may happen.
type slowJournal struct{ m *mortal }

func (j slowJournal) Enabled(context.Context, slog.Level) bool { return true }
func (j slowJournal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j slowJournal) WithGroup(string) slog.Handler            { return j }

func (j slowJournal) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "replay ended" && !j.m.dead.Load() && j.m.rng(4) == 0 {
		j.m.meanwhile(eventtest.Topic(j.m.t, pubsubTopics[j.m.rng(len(pubsubTopics))]))
		time.Sleep(time.Duration(200+j.m.rng(1000)) * time.Millisecond)
	}
	return nil
}

// haltingLog gives few records at a time, and now and then none for a while.
type haltingLog struct {
	pipeline.Log
	m *mortal
}

func (l haltingLog) Open(ctx context.Context, tp pipeline.TP, from int64) (pipeline.Stream, error) {
	s, err := l.Log.Open(ctx, tp, from)
	return haltingStream{s, l.m}, err
}

type haltingStream struct {
	pipeline.Stream
	m *mortal
}

func (s haltingStream) Fetch(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	if s.m.rng(8) == 0 {
		if err := pipeline.Sleep(ctx, time.Duration(s.m.rng(5000))*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return s.Stream.Fetch(ctx, min(limit, 1+s.m.rng(4)), wait)
}

// replays starts a replayer.
func (w *pubsubWorld) replays() {
	m := &mortal{
		slow: w.slow, t: w.t,
		rng: func(n int) int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.dice.IntN(n)
		},
		meanwhile: func(t event.Topic) {
			if !w.isWell() {
				w.publishes(t.String(), 3, false)
			}
		},
	}
	at := &mortalStore{w.store, m}
	hook := func(context.Context, fakelog.Call) fakelog.Verdict {
		if m.dead.Load() {
			return fakelog.Verdict{Err: errDead}
		}
		return fakelog.Verdict{}
	}
	m.process = w.start(hook, func(ctx, work context.Context, c *fakelog.Client) error {
		tail := w.tail(c, nil)
		tctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = tail.Run(tctx) }) // it returns nil
		defer wg.Wait()
		defer cancel()
		producer := c.Producer()
		reader := c.Log()
		log := quiet
		if w.slow {
			reader, log = haltingLog{reader, m}, slog.New(slowJournal{m})
		}
		r := &pipeline.Replayer{
			Reader: reader, Topics: topics, Group: replayGroup, Plan: w.rules.Plan,
			Sinks:     map[string]pipeline.ReplaySink{"s": {Store: at, Tail: tail, Positions: storing(at, w.metrics)}},
			Publisher: w, Producer: producer, Evidence: pipeline.EvidenceBroker, Minter: w.minter, Source: "restante/replayer",
			Limits: w.limits, Backoff: pipeline.DefaultBackoff, Metrics: w.metrics, Log: log, Now: time.Now,
			Dead: &pipeline.DeadLetters{
				Producer: producer, Topic: topics.Dead, Group: replayGroup, Component: "replayer", Backoff: pipeline.DefaultBackoff,
				Metrics: w.metrics, Log: quiet,
			},
		}
		err := pipeline.Consume(ctx, work, c.Group(replayGroup, topics.Sessions), quiet, r.Own)
		if !m.dead.Load() {
			_ = producer.Close(work)
		}
		return err
	})
	w.proc = m
}
