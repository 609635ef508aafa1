package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

const (
	writerGroup = "restante.writer.s"
	replayGroup = "restante.replayer"
)

var topics = pipeline.Topics{Messages: "mqtt.messages", Sessions: "mqtt.sessions", Dead: "mqtt.dead"}

// stack is what outlives all processes: the log, and one sink. It lives in a synctest bubble.
type stack struct {
	t       *testing.T
	parts   int
	cluster *fakelog.Cluster
	store   *store
	rules   *pipeline.Rules
	metrics *pipeline.Metrics
	minter  *event.Minter

	mu      sync.Mutex
	commits []string // of the writers: "part@offset"
	log     map[pipeline.TP][]pipeline.Record
	last    map[int]int64 // commit by partition
	broken  []string      // what broke the law
}

func newStack(t *testing.T, parts int, rules ...pipeline.Rule) *stack {
	t.Helper()
	if rules == nil {
		rules = queueRules(t, "t/#", func(r *pipeline.Rule) { r.Wildcards = new(true) })
	}
	s := &stack{
		t: t, parts: parts, store: &store{}, rules: compile(t, rules...), metrics: newMetrics(),
		minter: &event.Minter{Node: 1, Now: time.Now}, log: make(map[pipeline.TP][]pipeline.Record), last: make(map[int]int64),
	}
	s.cluster = fakelog.New(fakelog.Config{
		Partitions: map[string]int{topics.Messages: parts, topics.Sessions: 1, topics.Dead: 1},
		OnAppend: func(r pipeline.Record) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.log[r.TP] = append(s.log[r.TP], r)
		},
		OnCommit: s.committed,
	})
	t.Cleanup(func() {
		for _, b := range s.broken {
			t.Error(b)
		}
	})
	return s
}

// committed is the law: at each commit of the writers everything below it is stored, acknowledged or in the dead letters, and no
// commit goes back.
func (s *stack) committed(group string, tp pipeline.TP, at int64) {
	if group != writerGroup || tp.Topic != topics.Messages {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commits = append(s.commits, fmt.Sprintf("%d@%d", tp.Part, at))
	if last := s.last[tp.Part]; at < last {
		s.broken = append(s.broken, fmt.Sprintf("the commit of %s goes back from %d to %d", tp, last, at))
	}
	s.last[tp.Part] = at
	acked := map[event.ID]bool{}
	for _, r := range s.log[tp] {
		if e, err := event.Decode(event.Messages, r.Wire); err == nil {
			if a, ok := e.(event.Acked); ok {
				acked[a.Message] = true
			}
		}
	}
	dead := map[string]bool{}
	for _, r := range s.log[pipeline.TP{Topic: topics.Dead}] {
		dead[header(r, pipeline.HeaderDeadPartition)+"@"+header(r, pipeline.HeaderDeadOffset)] = true
	}
	stored := map[event.Topic]map[event.ID]bool{}
	for _, r := range s.log[tp][:at] {
		if dead[fmt.Sprintf("%d@%d", r.Part, r.Offset)] {
			continue
		}
		e, err := event.Decode(event.Messages, r.Wire)
		if err != nil {
			s.broken = append(s.broken, fmt.Sprintf("commit %d of %s: offset %d is malformed and not in the dead letters", at, tp, r.Offset))
			continue
		}
		m, ok := e.(event.Published)
		if !ok || acked[m.ID] || m.QoS == 0 || !slices.ContainsFunc(s.rules.Plan(e).Ops, pends) {
			continue
		}
		if stored[m.Topic] == nil {
			stored[m.Topic] = s.stored(m.Topic)
		}
		if !stored[m.Topic][m.ID] {
			s.broken = append(s.broken, fmt.Sprintf("commit %d of %s: the message of offset %d is not stored", at, tp, r.Offset))
		}
	}
}

// pends reports whether the op makes a message wait for clients, now.
func pends(o sinks.Op) bool {
	m, ok := o.(sinks.PutMessage)
	return ok && !m.History && (m.Expires.IsZero() || m.Expires.After(time.Now()))
}

func (s *stack) stored(topic event.Topic) map[event.ID]bool {
	found, err := s.store.Messages(context.Background(), sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now().Add(24 * time.Hour)), Limit: 1 << 20})
	if err != nil {
		panic(err)
	}
	out := map[event.ID]bool{}
	for _, m := range found {
		out[m.ID] = true
	}
	return out
}

func header(r pipeline.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// put appends an event at once, to all its topics.
func (s *stack) put(e event.Event) {
	for _, r := range e.Routes() {
		s.cluster.Put(pipeline.Outgoing{Topic: topics.Of(r.Kind), Wire: event.Encode(e, r, time.Now())})
	}
}

func (s *stack) head() event.Head {
	return event.Head{ID: s.minter.Mint(), Source: "restante/test", At: time.Now()}
}

// publish appends a publish at QoS 1.
func (s *stack) publish(topic, payload string) event.Published {
	e := event.Published{Head: s.head(), Topic: eventtest.Topic(s.t, topic), Sender: "pub", QoS: 1, Payload: []byte(payload)}
	s.put(e)
	return e
}

// ack appends the ack of a live delivery.
func (s *stack) ack(client event.ClientID, m event.Published) {
	s.put(event.Acked{Head: s.head(), Topic: m.Topic, Client: client, Message: m.ID})
}

func (s *stack) messages(part int) pipeline.TP {
	return pipeline.TP{Topic: topics.Messages, Part: part}
}

func (s *stack) writerAt(part int) int64 { return s.cluster.Committed(writerGroup, s.messages(part)) }

func (s *stack) commitsSoFar() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commits)
}

func (s *stack) dead() []pipeline.Record { return s.cluster.Records(pipeline.TP{Topic: topics.Dead}) }

// process is a running process.
type process struct {
	client       *fakelog.Client
	cancel, kill context.CancelFunc
	done         chan struct{}
	err          error
}

// stop ends the process as SIGTERM does.
func (p *process) stop() error {
	p.cancel()
	<-p.done
	return p.err
}

// start runs a process on a client of its own; it is stopped at the end of the test.
func (s *stack) start(hook fakelog.Hook, run func(ctx, work context.Context, c *fakelog.Client) error) *process {
	ctx, cancel := context.WithCancel(context.Background())
	work, kill := context.WithCancel(context.Background())
	p := &process{client: s.cluster.Client(), cancel: cancel, kill: kill, done: make(chan struct{})}
	p.client.Hook = hook
	go func() { // ends with ctx
		defer close(p.done)
		p.err = run(ctx, work, p.client)
	}()
	s.t.Cleanup(func() {
		_ = p.stop()
		kill()
	})
	return p
}

var testLimits = pipeline.Limits{
	Hold: time.Second, Records: 1000, Bytes: 1 << 20, Fetch: 100, Drain: 5 * time.Second, Session: 30 * time.Second,
	Memory: 1000, Recall: time.Minute,
}

// writer starts a writer of the sink.
func (s *stack) writer(limits pipeline.Limits, hook fakelog.Hook) *process {
	return s.start(hook, func(ctx, work context.Context, c *fakelog.Client) error {
		producer := c.Producer()
		st := storing(s.store, s.metrics)
		err := pipeline.Consume(ctx, work, c.Group(writerGroup, topics.Messages), quiet,
			func(ctx, work context.Context, g pipeline.Generation, tp pipeline.TP, from int64) error {
				w := &pipeline.Worker{
					TP: tp, Kind: event.Messages, From: from, Group: writerGroup, Generation: g, Reader: c.Log(), Plan: s.rules.ForSink("s"),
					Storing: st, Limits: limits, Metrics: s.metrics, Log: quiet, Now: time.Now,
					Dead: &pipeline.DeadLetters{
						Producer: producer, Topic: topics.Dead, Group: writerGroup, Component: "writer", Backoff: pipeline.DefaultBackoff,
						Metrics: s.metrics, Log: quiet,
					},
				}
				return w.Run(ctx, work)
			})
		_ = producer.Close(work)
		return err
	})
}

func (s *stack) tail(c *fakelog.Client, change func(*pipeline.Tail)) *pipeline.Tail {
	t := &pipeline.Tail{
		Reader: c.Log(), Topic: topics.Messages, Parts: s.parts, Group: writerGroup,
		Partition: func(key string) int { return fakelog.Partition(key, s.parts) }, Plan: s.rules.ForSink("s"),
		Budget: 1 << 20, LookBack: 2 * time.Second, Pause: 10 * time.Millisecond, Metrics: s.metrics, Log: quiet,
	}
	if change != nil {
		change(t)
	}
	return pipeline.NewTail(t)
}

func (s *stack) counter(got, want float64, what string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func (s *stack) elided() float64 { return testutil.ToFloat64(s.metrics.Elided.WithLabelValues("s")) }
