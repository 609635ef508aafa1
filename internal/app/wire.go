package app

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/sinks"
)

// Wire holds the parts that the processes share, built from one configuration.
type Wire struct {
	Process *Process
	Kafka   *kafkalog.Client
	Rules   *pipeline.Rules
	Topics  pipeline.Topics
	Metrics *pipeline.Metrics
	Minter  *event.Minter
	Stores  map[string]sinks.Store
	// Alone says that no other process can work on the same data: no earlier owner of a partition can be alive, and the
	// broker's clock is ours.
	Alone bool

	exports   *exports
	kafkaSeen chan struct{}        // closed when the topics were seen to be as they must be; nil where that is waited for first
	seen      map[string]chan bool // by sink, whether its store was seen to be ready, in a channel of one
}

// NewWire builds the parts for the sinks named. Close must be called.
func NewWire(ctx context.Context, p *Process, sinkNames []string) (*Wire, error) {
	c := p.Config
	w := &Wire{
		Process: p, Stores: make(map[string]sinks.Store), seen: make(map[string]chan bool),
		Topics: c.Kafka.TopicNames(),
	}
	var err error
	if w.Rules, err = pipeline.Compile(c.PipelineRules(), c.OwnPrefixes()...); err != nil {
		return nil, err
	}
	w.Rules = w.Rules.WithQoS0(pipeline.QoS0(c.Replayer.QoS0Subscribe))
	node, err := randomNode()
	if err != nil {
		return nil, err
	}
	w.Minter = &event.Minter{Node: node, Now: time.Now}
	w.exports = newExports(p.Registry, c, p.Component, sinkNames)
	w.Metrics = w.exports.pipeline
	if w.Kafka, err = openKafka(ctx, c, w.exports.kafka, p.Log); err != nil {
		return nil, err
	}
	for _, name := range sinkNames {
		parts := SinkParts{ReadOnly: p.Component == ProcessReplayer && !c.keepsPositions(name), Look: p.Component == processLook, Log: p.Log.With("sink", name), Metrics: w.exports.stores}
		s, err := c.OpenSink(ctx, name, parts)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("sinks.%s: %w", name, err)
		}
		w.Stores[name] = s
		w.seen[name] = make(chan bool, 1)
		w.seen[name] <- false
	}
	return w, nil
}

// Close releases the stores and the connections to Kafka. Nothing may use them any more.
func (w *Wire) Close() {
	for name, s := range w.Stores {
		if err := s.Close(); err != nil {
			w.Process.Log.Warn("store ended badly", "sink", name, "err", err)
		}
	}
	w.Kafka.Close()
}

// count is the counter of the broker edge.
func (w *Wire) count(k mqtt.Counter) { w.exports.edge.WithLabelValues(string(k)).Inc() }

func randomNode() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:6]); err != nil {
		return 0, fmt.Errorf("draw a node number: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// OwnPrefixes are the prefixes of the client ids of our own connections.
func (c Config) OwnPrefixes() []string {
	out := []string{c.Delivery.MQTT.ClientPrefix}
	for _, name := range sortedKeys(c.Sources) {
		if m := c.Sources[name].MQTT; m != nil {
			out = append(out, m.ClientPrefix)
		}
	}
	return out
}

// OpenKafka makes the client for the cluster of the configuration. It asks nobody yet; ctx is for the reading of the login alone.
func OpenKafka(ctx context.Context, c Config, reg prometheus.Registerer, log *slog.Logger) (*kafkalog.Client, error) {
	return openKafka(ctx, c, kafkalog.NewMetrics(reg), log)
}

func openKafka(ctx context.Context, c Config, metrics *kafkalog.Metrics, log *slog.Logger) (*kafkalog.Client, error) {
	k := c.Kafka
	tls, err := k.TLS.Config(false)
	if err != nil {
		return nil, fmt.Errorf("kafka.tls: %w", err)
	}
	sasl, err := k.SASL.login(ctx)
	if err != nil {
		return nil, fmt.Errorf("kafka.sasl: %w", err)
	}
	cfg := kafkalog.Config{
		Brokers: k.Brokers, ClientID: k.ClientID, TLS: tls, SASL: sasl,
		Partitions:     c.partitions(),
		SessionTimeout: k.SessionTimeout, RebalanceTimeout: k.RebalanceTimeout,
		Log: log, Metrics: metrics,
	}
	return kafkalog.Open(cfg)
}

// partitions are those of each topic, by its full name.
func (c Config) partitions() map[string]int {
	all := make(map[string]int)
	for _, kind := range []event.Kind{event.Messages, event.Sessions, event.Dead} {
		t := c.Kafka.Topic(kind)
		all[t.Name] = t.Partitions
	}
	return all
}

// Specs are the topics as restante migrate makes them.
func (c Config) Specs() []kafkalog.TopicSpec {
	var specs []kafkalog.TopicSpec
	for _, kind := range []event.Kind{event.Messages, event.Sessions, event.Dead} {
		t := c.Kafka.Topic(kind)
		specs = append(specs, kafkalog.TopicSpec{
			Name: t.Name, Partitions: t.Partitions, Replication: t.Replication,
			Config: map[string]string{
				"retention.ms": strconv.FormatInt(t.Retention.Milliseconds(), 10), "cleanup.policy": "delete",
				"min.insync.replicas": strconv.Itoa(t.MinInsync), "message.timestamp.type": "CreateTime",
			},
		})
	}
	return specs
}

// await repeats check until it succeeds, fails for good, or ctx ends. What is not there yet at the start is waited for, and said
// once a minute.
func (w *Wire) await(ctx context.Context, condition string, check func(context.Context) error) error {
	set := func(ok bool, detail string) { w.Process.Health.Set(condition, ok, detail) }
	return w.awaiting(ctx, condition, set, check)
}

// awaiting is await with a status of its own.
func (w *Wire) awaiting(ctx context.Context, what string, status func(ok bool, detail string), check func(context.Context) error) error {
	status(false, "not yet")
	var said time.Time
	for attempt := 1; ; attempt++ {
		err := check(ctx)
		if err == nil {
			status(true, "")
			return nil
		}
		if fault.IsFatal(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		status(false, err.Error())
		if time.Since(said) >= time.Minute {
			said = time.Now()
			w.Process.Log.WarnContext(ctx, "not there yet, will retry", "what", what, "err", err)
		}
		if err := pipeline.Sleep(ctx, pipeline.DefaultBackoff.Delay(attempt)); err != nil {
			return err
		}
	}
}

// ReadyKafka waits until the topics are there and as they must be.
func (w *Wire) ReadyKafka(ctx context.Context) error {
	return w.await(ctx, conditionKafka, w.verifyKafka)
}

// readySink waits until one store is there and as it must be. Where several parts of the process wait for it, one looks.
func (w *Wire) readySink(ctx context.Context, name string) error {
	var seen bool
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case seen = <-w.seen[name]:
	}
	defer func() { w.seen[name] <- seen }()
	if seen {
		return nil
	}
	check := func(ctx context.Context) error {
		if err := w.Stores[name].Check(ctx); err != nil {
			return err
		}
		return checkRetention(ctx, w.Stores[name], w.Process.Config.Kafka.Messages.Retention)
	}
	if err := w.await(ctx, conditionSink(name), check); err != nil {
		return fmt.Errorf("sinks.%s: %w", name, err)
	}
	seen = true
	return nil
}

// Parts runs functions beside each other. When one returns an error, ctx ends for all.
type Parts struct {
	ctx    context.Context //nolint:containedctx // it is the parts' own
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	err    error
}

// NewParts begins with none.
func NewParts(ctx context.Context) *Parts {
	p := &Parts{}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Run starts fn; [Parts.Wait] waits for it.
func (p *Parts) Run(fn func(ctx context.Context) error) {
	p.wg.Go(func() {
		if err := fn(p.ctx); err != nil {
			p.mu.Lock()
			p.err = errors.Join(p.err, err)
			p.mu.Unlock()
			p.cancel()
		}
	})
}

// Stop ends ctx for all.
func (p *Parts) Stop() { p.cancel() }

// AfterStop calls fn when ctx has ended, unless it is called off before.
func (p *Parts) AfterStop(fn func()) (callOff func() bool) { return context.AfterFunc(p.ctx, fn) }

// Wait returns when all have returned, with their errors.
func (p *Parts) Wait() error {
	p.wg.Wait()
	p.cancel()
	return p.err
}
