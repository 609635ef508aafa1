// Package sinktest is the conformance suite of all stores: what [sinks.Store] promises, as tests.
//
// Its heart are two laws. Commute: random histories, permuted, duplicated, cut off part-way and applied by several owners at
// once, end in one state. Replay: with the order of each row kept, any restart, repetition and cut-off ends in one state. What
// that state is, a plain fold by [sinks.Merge] says. States are compared through the [sinks.Reader] alone.
//
// The suite never needs an empty store: each test works in topics and clients of its own.
package sinktest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// Law says which law a store keeps.
type Law int

// The laws of the package's comment. A store that commutes keeps the law of replay as well.
const (
	Commute Law = iota
	Replay
)

// Config describes the store under test. Open and nothing else is required.
type Config struct {
	// Open gives the store of one test; the suite closes it. Expiry should go by now; a store whose clock is elsewhere says
	// RealClock.
	Open func(t *testing.T, now func() time.Time) sinks.Store
	// Reopen closes a store of Open and opens what it left; nil = the store is volatile.
	Reopen func(t *testing.T, s sinks.Store, now func() time.Time) sinks.Store
	// RealClock: expiry goes by a clock that nobody can move, so the suite waits for it.
	RealClock bool

	Law Law

	// TimePrecision is that of Arrived, OnlineAt and OfflineAt; 0 = ms.
	TimePrecision time.Duration
	// ExpiryPrecision is how far an expiry that is read may be from the one written; 0 = exact to the µs.
	ExpiryPrecision time.Duration

	// MaxTopic and MaxPayload are the store's documented limits in bytes; 0 = what MQTT allows, and 256 KiB.
	MaxTopic, MaxPayload int
	// OneTopicAnID: a message is found by its id alone, so the suite gives no two topics one id, as no broker does.
	OneTopicAnID bool
	// Poison makes an op that the store can never take, by a documented limit, beside the topic given; nil = there is none.
	Poison func(topic event.Topic) sinks.Op
}

// check is one promise. It returns an error so that the suite itself can be tested on stores that break it.
type check struct {
	name string
	run  func(ctx context.Context, e *env) error
}

func checks() []check {
	return []check{
		{"its own check finds nothing wrong", func(ctx context.Context, e *env) error { return e.store.Check(ctx) }},
		{"pages of messages are complete and ascending", pages},
		{"topics are found by filter", topicsByFilter},
		{"retained messages are found by filter", retainedByFilter},
		{"retained messages replace each other by id", retainedByID},
		{"positions are kept per client and topic", positions},
		{"a client's state is its latest connection's", clients},
		{"subscriptions are kept per client", subscriptions},
		{"what is stored for the record only is not pending", history},
		{"expired messages are neither written nor read", expiry},
		{"payloads come back byte for byte", payloads},
		{"properties come back", properties},
		{"odd but legal topics are topics", oddTopics},
		{"odd but legal client ids are client ids", oddClients},
		{"a large mixed batch is stored whole", largeBatch},
		{"poison is named and spares the others", poisoned},
		{"an empty batch is durable", empty},
		{"a call whose context has ended does nothing", cancelled},
	}
}

// Run runs the suite.
func Run(t *testing.T, cfg Config) {
	t.Helper()
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := open(t, cfg)
			if err := c.run(t.Context(), e); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("the state survives", func(t *testing.T) {
		t.Parallel()
		survives(t, cfg)
	})
	laws := map[string]func(*env) func(*rapid.T){"histories replay": replays}
	if cfg.Law == Commute {
		laws["histories commute"] = commutes
	}
	for name, law := range laws {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := open(t, cfg)
			rapid.Check(t, law(e))
		})
	}
}

// env is a store under test, with its clock and a name space of its own.
type env struct {
	cfg   Config
	store sinks.Store
	clock clock
	ns    string
}

// clock runs with the wall clock, and can be moved on.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// spaces numbers the name spaces of this process; began keeps them apart from those of earlier ones.
var (
	spaces atomic.Int64
	began  = strconv.FormatInt(time.Now().UnixMicro(), 36)
)

func space() string { return fmt.Sprintf("st%s-%d", began, spaces.Add(1)) }

func open(t *testing.T, cfg Config) *env {
	t.Helper()
	e := &env{cfg: cfg, ns: space()}
	e.store = cfg.Open(t, e.clock.now)
	t.Cleanup(func() {
		if err := e.store.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return e
}

// pass lets d go by on the clock that the store's expiry goes by.
func (e *env) pass(ctx context.Context, d time.Duration) error {
	if !e.cfg.RealClock {
		e.clock.add(d)
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// apply applies until all ops are durable, as the pipeline does. Poison is an error here.
func (e *env) apply(ctx context.Context, ops ...sinks.Op) error {
	ops, _ = sinks.Coalesce(ops)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := e.store.Apply(ctx, ops)
		if err == nil {
			return nil
		}
		if fault.IsPoison(err) || fault.IsFatal(err) || ctx.Err() != nil {
			return fmt.Errorf("apply %d ops: %w", len(ops), err)
		}
		if part, ok := errors.AsType[*sinks.ApplyError](err); ok {
			var left []sinks.Op
			for i, o := range ops {
				if part.Failed[i] != nil {
					left = append(left, o)
				}
			}
			if len(left) == 0 {
				return fmt.Errorf("an ApplyError names no op of its batch: %w", err)
			}
			ops = left
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func survives(t *testing.T, cfg Config) {
	t.Helper()
	if cfg.Reopen == nil {
		t.Skip("the store is volatile")
	}
	e := &env{cfg: cfg, ns: space()}
	e.store = cfg.Open(t, e.clock.now)
	u := newUniverse(e.ns, e.clock.now(), e.cfg.OneTopicAnID)
	var ops []sinks.Op
	for seed := range 200 {
		ops = append(ops, u.op(genSpec.Example(seed)))
	}
	if err := e.apply(t.Context(), ordered(ops)...); err != nil {
		t.Fatal(err)
	}
	e.store = cfg.Reopen(t, e.store, e.clock.now)
	defer func() {
		if err := e.store.Close(); err != nil {
			t.Error("close:", err)
		}
	}()
	if err := e.compare(t.Context(), u, fold(ops)); err != nil {
		t.Error(err)
	}
	if err := e.store.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// wrong says what is wrong, and why where a call failed.
func wrong(err error, format string, args ...any) error {
	return errors.Join(fmt.Errorf(format, args...), err)
}
