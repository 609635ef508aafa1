package sim

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

const (
	sink     = "s"
	writers  = "w" // consumer groups
	readers  = "r"
	opApply  = "apply"
	opRead   = "read"
	opSource = "source"
	// opConfirm is ingest's acknowledgement to the broker, opPublish a replay's way there.
	opConfirm = "confirm"
	opPublish = "publish"
	opSync    = "sync" // of an ingest's disk

	ownPrefix = "own-"
)

var topics = pipeline.Topics{Messages: "m.messages", Sessions: "m.sessions", Dead: "m.dead"}

func mustTopic(s string) event.Topic {
	t, err := event.ParseTopic(s)
	if err != nil {
		panic(err)
	}
	return t
}

func mustFilter(s string) event.Filter {
	f, err := event.ParseFilter(s)
	if err != nil {
		panic(err)
	}
	return f
}

func deadPlace(r pipeline.Record) (pipeline.TP, int64) {
	var tp pipeline.TP
	var offset int64
	for _, h := range r.Headers {
		switch h.Key {
		case pipeline.HeaderDeadTopic:
			tp.Topic = string(h.Value)
		case pipeline.HeaderDeadPartition:
			tp.Part, _ = strconv.Atoi(string(h.Value))
		case pipeline.HeaderDeadOffset:
			offset, _ = strconv.ParseInt(string(h.Value), 10, 64)
		}
	}
	return tp, offset
}

// world is everything of one run.
type world struct {
	plan    plan
	rules   *pipeline.Rules
	step    *stepper
	hist    *history
	cluster *fakelog.Cluster
	mem     *memory.Store
	broker  *broker
	log     *slog.Logger
	planted planted
	journal []entry // of the store; guarded by hist.mu
	disks   []*disk // of the ingests
	calm    bool    // nothing happens to the one replayer

	procs  map[string]*incarnation // alive, by role and number
	all    []*incarnation
	clocks map[string]*atomic.Int64 // by process and broker node: what it is ahead, in ns
	mood   atomic.Pointer[mood]
	wake   []func() // from outside the driver, for the agenda
	wakeMu sync.Mutex
}

// mood is how the store and the log feel.
type mood struct {
	faults
	// until these times the store, its writes, the log, the disks' writes answer nothing but errors
	storeDown, storeFull, logDown, diskFull time.Time
	// until this time what that ingest appends takes long
	lagging string
	lagsFor time.Time
}

// change changes the mood from now on.
func (w *world) change(how func(*mood)) {
	m := *w.mood.Load()
	how(&m)
	w.mood.Store(&m)
}

// faults are chances, per call.
type faults struct {
	store, storeUnknown, storePart, log, logUnknown, empty, publish, slow, disk float64
}

func newWorld(p plan, log *slog.Logger) *world {
	w := &world{
		plan: p, rules: p.rules(), hist: newHistory(), mem: &memory.Store{}, log: log, procs: make(map[string]*incarnation), planted: p.planted,
		clocks: make(map[string]*atomic.Int64), calm: p.isCalm(),
	}
	for name, ahead := range p.ahead {
		w.clocks[name] = new(atomic.Int64)
		w.clocks[name].Store(int64(ahead))
	}
	for range p.ingests {
		w.disks = append(w.disks, newDisk())
	}
	w.hist.counts = w.counts
	plan := w.rules.ForSink(sink)
	w.hist.ops = func(e event.Event) []sinks.Op {
		if e.Routes()[0].Kind != event.Sessions {
			return nil // a copy for the replayer
		}
		return plan(e).Ops
	}
	w.mood.Store(&mood{})
	w.step = newStepper(rand.New(rand.NewPCG(p.seed, 2)))
	w.step.judge, w.step.delay, w.step.gather = w.judge, w.delay, w.takeLater
	w.cluster = fakelog.New(fakelog.Config{
		Partitions: map[string]int{topics.Messages: p.parts, topics.Sessions: p.sessionParts, topics.Dead: 1},
		Heartbeat:  700 * time.Millisecond, Session: sessionTime, Rebalance: 4 * time.Second, Rotate: true,
		OnAppend: w.hist.appended, OnCommit: w.committed,
	})
	w.broker = newBroker(w)
	return w
}

// clock is the time that a process or a broker node goes by.
func (w *world) clock(name string) time.Time {
	now := time.Now()
	if c := w.clocks[name]; c != nil {
		now = now.Add(time.Duration(c.Load()))
	}
	return now
}

// count notes that something has happened that is worth being tried.
func (w *world) count(what seen) {
	w.hist.mu.Lock()
	defer w.hist.mu.Unlock()
	w.hist.seen[what]++
}

// chance is a number in [0, 1) that depends on the seed and the name only.
func (w *world) chance(name string) float64 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, w.plan.seed, name)
	return rand.New(rand.NewPCG(h.Sum64(), 3)).Float64()
}

// later puts fn on the agenda from any goroutine.
func (w *world) later(d time.Duration, fn func()) {
	at := time.Now().Add(d)
	w.wakeMu.Lock()
	w.wake = append(w.wake, func() { w.step.at(at, fn) })
	w.wakeMu.Unlock()
	select {
	case w.step.wake <- struct{}{}:
	default:
	}
}

func (w *world) takeLater() {
	w.wakeMu.Lock()
	fns := w.wake
	w.wake = nil
	w.wakeMu.Unlock()
	for _, fn := range fns {
		fn()
	}
}

// delay is how long a call takes at the least.
func (w *world) delay(c *call) time.Duration {
	r, m := w.step.rng, w.mood.Load()
	now := time.Now()
	if wait := m.logDown.Sub(now); wait > 0 && (c.op == fakelog.OpAppend || c.op == fakelog.OpJoin) {
		return wait + time.Duration(r.Int64N(1e9))
	}
	switch x := r.Float64(); {
	case x < m.slow:
		return time.Duration(r.Int64N(int64(flushTime)))
	case x < 0.5:
		return time.Duration(r.Int64N(1e5))
	default:
		return time.Duration(r.Int64N(5e6))
	}
}

// judge decides what becomes of a call.
func (w *world) judge(c *call) fakelog.Verdict {
	now, x, y := time.Now(), w.step.rng.Float64(), w.step.rng.Float64()
	err := fakelog.Verdict{Err: errInjected}
	unknown := fakelog.Verdict{Err: errUnknown, Done: true}
	n := w.mood.Load()
	switch c.op {
	case opApply:
		switch {
		case now.Before(n.storeFull):
			return err
		case now.Before(n.storeDown):
			if y < 0.3 {
				return unknown
			}
			return err
		case x < n.store:
			return err
		case x < n.store+n.storeUnknown:
			return unknown
		case x < n.store+n.storeUnknown+n.storePart:
			return fakelog.Verdict{Empty: true}
		}
	case opRead:
		if now.Before(n.storeDown) || x < n.store {
			return err
		}
	case opSync:
		if x < n.disk {
			return err
		}
	case opPublish:
		switch {
		case x < n.publish/2:
			return err
		case x < n.publish:
			return unknown
		}
	case fakelog.OpSpans, fakelog.OpCommitted, fakelog.OpOffsetAt, fakelog.OpOpen, fakelog.OpFetch, fakelog.OpFetched:
		if now.Before(n.logDown) && y < 0.5 || x < n.empty {
			if c.op == fakelog.OpFetch || c.op == fakelog.OpFetched {
				return fakelog.Verdict{Empty: true}
			}
		}
		if now.Before(n.logDown) || x < n.log {
			return err
		}
	case fakelog.OpCommit:
		switch {
		case now.Before(n.logDown), x < n.log:
			return err
		case x < n.log+n.logUnknown:
			return unknown
		}
	}
	return fakelog.Verdict{}
}

var backoff = pipeline.Backoff{First: 50 * time.Millisecond, Most: 2 * time.Second, Rand: func() float64 { return 0.37 }}
