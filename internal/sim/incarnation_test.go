package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/spool"
)

// incarnation is one process from its start to its end.
type incarnation struct {
	w      *world
	name   string
	role   string
	client *fakelog.Client
	dead   atomic.Bool
	ended  bool
	ctx    context.Context
	cancel context.CancelFunc
	work   context.Context
	abort  context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{}
	err    error
	reg    *prometheus.Registry
	m      *pipeline.Metrics
	rng    *rand.Rand // of the producer's landings
}

func (w *world) incarnate(role string, i int) *incarnation {
	in := &incarnation{
		w: w, role: role, name: fmt.Sprintf("%s%d.%d", role, i, len(w.all)), client: w.cluster.Client(),
		done: make(chan struct{}), rng: rand.New(rand.NewPCG(w.plan.seed, uint64(100+len(w.all)))), reg: prometheus.NewRegistry(),
	}
	in.client.Hook = func(ctx context.Context, c fakelog.Call) fakelog.Verdict {
		if w.calm && role == "replayer" && c.Op == fakelog.OpFetch && c.TP.Topic == topics.Sessions {
			w.hist.mu.Lock()
			w.hist.hears(c.TP, c.Offset)
			w.hist.mu.Unlock()
		}
		return w.step.park(ctx, &call{in: in, op: c.Op, key: c.String()})
	}
	in.client.Landing = func(pipeline.TP, int) (time.Duration, int) {
		m := w.mood.Load()
		d, copies := time.Duration(1+in.rng.Int64N(3e6)), 1
		if in.rng.Float64() < m.slow {
			d += time.Duration(in.rng.Int64N(1e9))
		}
		if m.lagging == in.slot() && time.Now().Before(m.lagsFor) {
			d += 300*time.Millisecond + time.Duration(in.rng.Int64N(8e8))
		}
		if in.rng.Float64() < m.logUnknown {
			copies = 2
		}
		return max(d, time.Until(m.logDown)+d), copies
	}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	in.work, in.abort = context.WithCancel(context.Background())
	in.m = pipeline.NewMetrics(in.reg, []string{writers, readers}, []string{sink})
	w.procs[fmt.Sprint(role, i)] = in
	w.all = append(w.all, in)
	w.hist.note("%s starts", in.name)
	return in
}

// now is the time by the process's own clock.
func (in *incarnation) now() time.Time { return in.w.clock(in.slot()) }

func (in *incarnation) run(fn func() error) {
	in.wg.Go(func() { // ends with its process; the end of the run waits for it
		in.err = fn()
		close(in.done)
	})
}

func (in *incarnation) deadLetters(group, component string) *pipeline.DeadLetters {
	return &pipeline.DeadLetters{
		Producer: in.w.planted.producer(atDead, in.client.Producer()), Topic: topics.Dead, Group: group, Component: component, Backoff: backoff, Metrics: in.m, Log: in.w.log,
	}
}

func (in *incarnation) storing(whole bool) *pipeline.Storing {
	s := in.w.planted.store(&store{in: in, mem: in.w.mem, whole: whole})
	return &pipeline.Storing{Sink: sink, Store: s, Backoff: backoff, Metrics: in.m, Log: in.w.log}
}

func (w *world) startWriter(i int) {
	in := w.incarnate("writer", i)
	dead, storing := in.deadLetters(writers, "writer"), in.storing(w.plan.wholePoison)
	reader := in.client.Log()
	planner := w.rules.ForSink(sink)
	in.run(func() error {
		return pipeline.Consume(in.ctx, in.work, in.client.Group(writers, topics.Messages, topics.Sessions), w.log,
			func(ctx, work context.Context, g pipeline.Generation, tp pipeline.TP, from int64) error {
				kind := event.Messages
				if tp.Topic == topics.Sessions {
					kind = event.Sessions
				}
				wk := &pipeline.Worker{
					TP: tp, Kind: kind, From: from, Group: writers, Generation: g, Reader: reader, Plan: planner, Storing: storing, Dead: dead,
					Limits: w.plan.limits, Metrics: in.m, Log: w.log.With("proc", in.name), Now: in.now,
				}
				w.planted.worker(in, wk)
				return wk.Run(ctx, work)
			})
	})
}

func (w *world) startReplayer(i int) {
	in := w.incarnate("replayer", i)
	reader := in.client.Log()
	rows := w.planted.reader(&store{in: in, mem: w.mem})
	tail := &pipeline.Tail{
		Reader: reader, Topic: topics.Messages, Parts: w.plan.parts, Group: writers,
		Partition: func(key string) int { return fakelog.Partition(key, w.plan.parts) }, Plan: w.rules.ForSink(sink),
		Budget: w.plan.budget, LookBack: 2 * time.Second, Pause: 10 * time.Millisecond, Retained: w.rules.LooksUpRetained(sink),
		Metrics: in.m, Log: w.log,
	}
	w.planted.tail(w, tail)
	tail = pipeline.NewTail(tail)
	at := pipeline.ReplaySink{Store: rows, Tail: tail}
	if w.plan.pubsub {
		at.Positions = in.storing(false)
	}
	r := &pipeline.Replayer{
		Reader: reader, Topics: topics, Group: readers, Plan: w.rules.Plan, Sinks: map[string]pipeline.ReplaySink{sink: at},
		Publisher: &publisher{in}, Producer: w.planted.producer(atReplayer, in.client.Producer()), Evidence: w.plan.evidence, Aliases: w.plan.renames, Dead: in.deadLetters(readers, "replayer"),
		Minter: &event.Minter{Node: uint64(50 + len(w.all)), Now: in.now}, Source: "restante/replayer", Limits: w.plan.replay, Backoff: backoff,
		Metrics: in.m, Log: w.log.With("proc", in.name), Now: in.now,
	}
	in.run(func() error {
		tctx, stop := context.WithCancel(in.work)
		var wg sync.WaitGroup
		wg.Go(func() { _ = tail.Run(tctx) }) // ends with stop
		err := pipeline.Consume(in.ctx, in.work, in.client.Group(readers, topics.Sessions), w.log, r.Own)
		stop()
		wg.Wait()
		return err
	})
}

func (w *world) startIngest(i int) {
	in := w.incarnate("ingest", i)
	inner := in.client.Producer()
	src := &source{in: in, box: w.broker.boxes[i]}
	minter := &event.Minter{Node: uint64(50 + len(w.all)), Now: in.now}
	in.run(func() error {
		prod, err := in.spool(inner, w.disks[i])
		if err != nil {
			return nil //nolint:nilerr // it was stopped before its disk could be read
		}
		g := pipeline.NewIngest(pipeline.Ingest{
			Producer: prod, Topics: topics, Rules: w.rules, Minter: minter,
			MaxPayload: 1000, Metrics: in.m, Log: w.log, Now: in.now,
		})
		ictx, stop := context.WithCancel(context.WithoutCancel(in.ctx))
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.Run(ictx, in.work) }) // ends with stop
		src.Run(in.ctx, in.work, g.Accept)
		stop()
		wg.Wait()
		return prod.Close(in.work)
	})
}

// spool puts a spool before a producer, where the plan has one. A disk that is ill is tried again, as a supervisor would.
func (in *incarnation) spool(inner pipeline.Producer, d *disk) (pipeline.Producer, error) {
	p := in.w.plan
	if p.spool == 0 {
		return p.planted.producer(atIngest, inner), nil
	}
	for {
		s, err := spool.Open(spool.Config{
			Disk: &mount{in, d}, Size: p.spool, After: p.spoolAfter, Inner: p.planted.producer(atDrain, inner), Topics: topics, Backoff: backoff, Now: in.now,
			Changed: func(why string) {
				if why != "" {
					in.w.count(seenSpool)
				}
			},
			Metrics: spool.NewMetrics(nil), Log: in.w.log.With("proc", in.name),
		})
		if err == nil {
			return p.planted.producer(atIngest, s), nil
		}
		if err := pipeline.Sleep(in.ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

func (w *world) start(role string, i int) {
	switch old := w.procs[fmt.Sprint(role, i)]; {
	case old == nil || old.dead.Load():
	case !old.ended:
		return
	default:
		select {
		case <-old.done:
		default:
			w.kill(role, i) // it has had its time to finish
		}
	}
	switch role {
	case "writer":
		w.startWriter(i)
	case "replayer":
		w.startReplayer(i)
	case "ingest":
		w.startIngest(i)
	}
}

// kill is kill -9: from now on none of the incarnation's calls returns.
func (w *world) kill(role string, i int) {
	in := w.procs[fmt.Sprint(role, i)]
	if in == nil || in.dead.Load() {
		return
	}
	w.hist.note("%s is killed", in.name)
	w.step.bury(in, time.Second)
	in.client.Kill(w.step.rng.IntN(2))
	if in.role == "ingest" && w.step.rng.IntN(2) == 0 {
		w.disks[i].cut(w.step.rng)
	}
}

// expel lets the coordinator take a process out of its groups, which works on until it learns that.
func (w *world) expel(role string, i int, learn time.Duration) {
	if in := w.procs[fmt.Sprint(role, i)]; in != nil && !in.dead.Load() {
		w.hist.note("%s is out of its group", in.name)
		in.client.Expel(learn)
	}
}

// stop is a SIGTERM: the process finishes what it holds within its drain time.
func (w *world) stop(role string, i int) {
	in := w.procs[fmt.Sprint(role, i)]
	if in == nil || in.dead.Load() || in.ended {
		return
	}
	w.hist.note("%s is stopped", in.name)
	in.ended = true
	in.cancel()
	w.step.after(10*time.Second, in.abort)
}

func (in *incarnation) metric(c prometheus.Collector) float64 { return testutil.ToFloat64(c) }
