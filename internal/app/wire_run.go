package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/sinks/sqlite"
)

// RunIngest is the run of cmd/ingest: all sources into Kafka.
func RunIngest(ctx, work context.Context, p *Process) error {
	w, err := NewWire(ctx, p, nil)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.kafkaOrSpool(ctx); err != nil {
		return endedEarly(ctx, err)
	}
	var list []pipeline.Source
	for _, name := range sortedKeys(p.Config.Sources) {
		s, err := w.Source(name)
		if err != nil {
			return fmt.Errorf("sources.%s: %w", name, err)
		}
		list = append(list, s)
	}
	return w.Ingest(ctx, work, list)
}

// RunWriter is the run of cmd/writer: one group for each sink.
func RunWriter(ctx, work context.Context, p *Process) error {
	w, err := NewWire(ctx, p, p.Sinks)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.ReadyKafka(ctx); err != nil {
		return endedEarly(ctx, err)
	}
	return w.Write(ctx, work)
}

// RunReplayer is the run of cmd/replayer.
func RunReplayer(ctx, work context.Context, p *Process) error {
	w, err := NewWire(ctx, p, p.Config.UsedSinks())
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.ReadyKafka(ctx); err != nil {
		return endedEarly(ctx, err)
	}
	pub, err := w.Publisher()
	if err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	return w.Replay(ctx, work, pub, pub.Run)
}

// endedEarly is nil when the process was asked to end before it had begun.
func endedEarly(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ReplaySecret is the key of the mark on replays; the zero one when none is configured.
func (c Config) ReplaySecret() (mqtt.Secret, error) {
	switch {
	case c.Delivery.SecretFile != "":
		return mqtt.LoadSecret(c.Delivery.SecretFile)
	case c.Delivery.Secret != "":
		return mqtt.NewSecret([]byte(c.Delivery.Secret))
	}
	return mqtt.Secret{}, nil
}

// Source makes the named source.
func (w *Wire) Source(name string) (pipeline.Source, error) {
	c := w.Process.Config
	secret, err := c.ReplaySecret()
	if err != nil {
		return nil, err
	}
	switch s := c.Sources[name]; {
	case s.Embedded != nil:
		return w.Embedded(name, secret)
	case s.Exhook != nil:
		return w.exhookSource(name, *s.Exhook, secret)
	case s.MQTT != nil:
		return w.mqttSource(name, *s.MQTT, secret)
	case s.Webhook != nil:
		return w.webhookSource(name, *s.Webhook, secret)
	default:
		return nil, fmt.Errorf("type %q cannot be opened", s.Type)
	}
}

// Embedded makes the named embedded broker. It listens from now on.
func (w *Wire) Embedded(name string, secret mqtt.Secret) (*embedded.Broker, error) {
	c := w.Process.Config
	s := c.Sources[name].Embedded
	tls, err := s.TLS.Config()
	if err != nil {
		return nil, err
	}
	users, err := ReadUsers(s.UsersFile)
	if err != nil {
		return nil, err
	}
	template, err := c.template()
	if err != nil {
		return nil, err
	}
	const slack = 128 << 10 // for what surrounds a payload; what is larger is refused by the protocol itself
	b, err := embedded.Open(embedded.Config{
		Listen: s.Listen, TLS: tls, Users: users, Source: "restante/" + name, Node: s.Node, Minter: w.Minter,
		Secret: secret, OwnPrefix: c.Delivery.MQTT.ClientPrefix, Template: template,
		MaxPacket: uint32(min(int(c.Ingest.MaxPayload)+slack, 1<<28)), //nolint:gosec // bounded
		NoRetain:  !c.Delivery.Retains,
		Drain:     c.Shutdown.Drain, Count: w.count, Log: w.Process.Log,
	})
	if err != nil {
		return nil, err
	}
	w.Process.Log.Info("embedded broker listens", "source", name, "addr", b.Addr().String())
	return b, nil
}

// template is the topic template of prefix delivery, the zero one for the others.
func (c Config) template() (mqtt.Template, error) {
	if c.Delivery.To != "prefix" {
		return mqtt.Template{}, nil
	}
	return mqtt.ParseTemplate(c.Delivery.Prefix)
}

// answers is how clients say that they have a replay, the zero one where that is not the evidence.
func (c Config) answers(secret mqtt.Secret) (mqtt.Answers, error) {
	if c.Delivery.Evidence != evidenceApp {
		return mqtt.Answers{}, nil
	}
	t, err := mqtt.ParseFetchTopic(c.Delivery.AckTopic)
	if err != nil {
		return mqtt.Answers{}, fmt.Errorf("delivery.ack_topic: %w", err)
	}
	return mqtt.Answers{Topic: t, Secret: secret}, nil
}

// Ingest runs the sources until ctx ends and what they took is durable.
func (w *Wire) Ingest(ctx, work context.Context, sources []pipeline.Source) error {
	producer, err := w.ingestProducer()
	if err != nil {
		return err
	}
	ing := pipeline.NewIngest(pipeline.Ingest{
		Producer: producer, Topics: w.Topics, Rules: w.Rules, Minter: w.Minter, MaxPayload: int(w.Process.Config.Ingest.MaxPayload),
		Metrics: w.Metrics, Log: w.Process.Log, Now: time.Now,
	})
	queue := NewParts(context.WithoutCancel(ctx)) // ends after the sources
	queue.Run(func(ctx context.Context) error { return ing.Run(ctx, work) })
	takers := NewParts(ctx)
	if w.kafkaSeen != nil {
		takers.Run(w.lookForKafka)
	}
	for _, s := range sources {
		takers.Run(func(ctx context.Context) error { return s.Run(ctx, ing.Accept) })
	}
	takers.Run(func(ctx context.Context) error { return w.readySources(ctx, sources) })
	takers.Run(w.observeLag)
	err = takers.Wait()
	queue.Stop()
	return errors.Join(err, queue.Wait(), producer.Close(work))
}

// readySources makes the process ready when every source has what it needs for the first time: one that subscribes at a broker loses
// what is published before, and nobody should take ingest for ready then.
func (w *Wire) readySources(ctx context.Context, sources []pipeline.Source) error {
	const pause = 20 * time.Millisecond
	waits := func(s pipeline.Source) bool {
		r, ok := s.(interface{ Ready() bool })
		return ok && !r.Ready()
	}
	for slices.ContainsFunc(sources, waits) {
		w.Process.Health.Set(conditionSources, false, "not yet subscribed at a broker")
		if pipeline.Sleep(ctx, pause) != nil {
			return nil
		}
	}
	w.Process.Health.Set(conditionSources, true, "")
	return nil
}

// Write runs a group for each store until ctx ends and what they hold is durable. Each waits for its own store first: one that is
// away at the start stalls no other.
func (w *Wire) Write(ctx, work context.Context) error {
	c := w.Process.Config
	producer := w.Kafka.Producer()
	all := NewParts(ctx)
	for _, name := range sortedKeys(w.Stores) {
		group := c.Kafka.WriterGroup(name)
		g, err := w.Kafka.Group(group, w.Topics.Messages, w.Topics.Sessions)
		if err != nil {
			all.Stop()
			return errors.Join(err, all.Wait())
		}
		joined := w.joining(group, g)
		storing := &pipeline.Storing{
			Sink: name, Store: w.Stores[name], Backoff: pipeline.DefaultBackoff, Timeout: c.Writer.FlushTimeout,
			Metrics: w.Metrics, Log: w.Process.Log,
		}
		dead := w.deadLetters(producer, group, "writer")
		plan := w.Rules.ForSink(name)
		reader := w.Kafka.Log(group)
		limits := w.limits()
		if p, ok := w.Stores[name].(purger); ok {
			all.Run(func(ctx context.Context) error { return w.purge(ctx, name, p) })
		}
		all.Run(func(ctx context.Context) error {
			if err := w.readySink(ctx, name); err != nil {
				return endedEarly(ctx, err)
			}
			turn := w.Process.Health.Loop("writer "+name, 2*time.Minute+c.Writer.FlushTimeout)
			defer turn.Stop()
			storing.Turn = turn.Turn
			return pipeline.Consume(ctx, work, joined, w.Process.Log, func(ctx, work context.Context, gen pipeline.Generation, tp pipeline.TP, from int64) error {
				kind := event.Messages
				if tp.Topic == w.Topics.Sessions {
					kind = event.Sessions
				}
				worker := &pipeline.Worker{
					TP: tp, Kind: kind, From: from, Group: group, Generation: gen, Reader: reader, Plan: plan, Storing: storing, Dead: dead,
					Limits: limits, Metrics: w.Metrics, Log: w.Process.Log, Now: time.Now,
				}
				return worker.Run(ctx, work)
			})
		})
	}
	return errors.Join(all.Wait(), producer.Close(work))
}

// purger is a store that does not remove what has expired by itself.
type purger interface {
	Purge(ctx context.Context) (sqlite.Purged, error)
}

// purge gets the space of what has expired back, now and then.
func (w *Wire) purge(ctx context.Context, sink string, p purger) error {
	const every = time.Minute
	for pipeline.Sleep(ctx, every) == nil {
		done, err := p.Purge(ctx)
		if w.exports.stores.expired.WithLabelValues(sink).Add(float64(done.Messages)); err != nil && ctx.Err() == nil {
			w.Process.Log.WarnContext(ctx, "purge failed, will be tried again", "sink", sink, "err", err)
		} else if done != (sqlite.Purged{}) {
			w.Process.Log.DebugContext(ctx, "purged", "sink", sink, "expired", done.Expired, "tombstones", done.Tombstones, "topics", done.Topics)
		}
	}
	return nil
}

// limits are the writers' limits of the configuration.
func (w *Wire) limits() pipeline.Limits {
	c := w.Process.Config
	l := pipeline.DefaultLimits
	l.Hold, l.Records, l.Bytes = c.Writer.Hold, c.Writer.MaxBatchRecords, int(c.Writer.MaxBatchBytes)
	l.Drain, l.Session = c.Shutdown.Drain, c.Kafka.SessionTimeout
	l.MarkAfter = c.Kafka.SessionTimeout + c.Writer.FlushTimeout
	l.ClockSkew = c.Replayer.ClockSkew
	const remembered = 1_000_000 // messages in all partitions
	l.Memory = remembered / c.Kafka.Messages.Partitions
	if w.Alone {
		l.MarkAfter = 0
	}
	return l
}

func (w *Wire) deadLetters(p pipeline.Producer, group, component string) *pipeline.DeadLetters {
	return &pipeline.DeadLetters{
		Producer: p, Topic: w.Topics.Dead, Group: group, Component: component, Backoff: pipeline.DefaultBackoff,
		Metrics: w.Metrics, Log: w.Process.Log, Now: time.Now,
	}
}

// Replay runs the replayer until ctx ends. The functions beside run as long as it does.
func (w *Wire) Replay(ctx, work context.Context, pub pipeline.Publisher, beside ...func(context.Context) error) error {
	c := w.Process.Config
	group := c.Kafka.ReplayerGroup()
	g, err := w.Kafka.Group(group, w.Topics.Sessions)
	if err != nil {
		return err
	}
	restore, end, err := w.resubscriber(pub)
	if err != nil {
		return errors.Join(err, g.Close())
	}
	defer end()
	joined := w.joining(group, g)
	producer := w.Kafka.Producer()
	reader := w.Kafka.Log(group)
	helpers := NewParts(context.WithoutCancel(ctx)) // end after the replays
	read := make(map[string]pipeline.ReplaySink)
	for name, store := range w.Stores {
		tail := w.tail(reader, name)
		read[name] = pipeline.ReplaySink{Store: store, Tail: tail, Positions: w.positions(name)}
		helpers.Run(tail.Run)
	}
	for _, fn := range beside {
		helpers.Run(fn)
	}
	r := &pipeline.Replayer{
		Reader: reader, Topics: w.Topics, Group: group, Plan: w.Rules.Plan, Sinks: read, Publisher: pub, Resubscriber: restore, Producer: producer,
		Evidence: pipeline.Evidence(c.Delivery.Evidence), Aliases: c.envelopes(), Dead: w.deadLetters(producer, group, "replayer"), Minter: w.Minter,
		Source: "restante/replayer", Limits: w.replayLimits(), Backoff: pipeline.DefaultBackoff, Metrics: w.Metrics,
		Log: w.Process.Log, Now: time.Now,
	}
	main := NewParts(ctx)
	for _, name := range sortedKeys(w.Stores) { // beside the replays: one that is away stalls those of no other
		main.Run(func(ctx context.Context) error { return endedEarly(ctx, w.readySink(ctx, name)) })
	}
	main.Run(func(ctx context.Context) error { return pipeline.Consume(ctx, work, joined, w.Process.Log, r.Own) })
	if w.Process.Component == ProcessReplayer {
		main.Run(w.observeLag)
	}
	defer helpers.AfterStop(main.Stop)()
	err = main.Wait()
	helpers.Stop()
	return errors.Join(err, helpers.Wait(), producer.Close(work))
}

// tail is the log behind a sink's writers.
func (w *Wire) tail(reader pipeline.Log, sink string) *pipeline.Tail {
	c := w.Process.Config
	return pipeline.NewTail(&pipeline.Tail{
		Reader: reader, Topic: w.Topics.Messages, Parts: c.Kafka.Messages.Partitions, Group: c.Kafka.WriterGroup(sink),
		Partition: func(key string) int { return kafkalog.Partition(key, c.Kafka.Messages.Partitions) },
		Plan:      w.Rules.ForSink(sink), Budget: int(c.Replayer.TailBudget), LookBack: 2 * time.Second, Pause: 10 * time.Millisecond,
		Retained: w.Rules.LooksUpRetained(sink),
		Metrics:  w.Metrics, Log: w.Process.Log,
	})
}

// positions is how the replayer writes clients' positions; nil where no rule of the sink has any.
func (w *Wire) positions(sink string) *pipeline.Storing {
	c := w.Process.Config
	if !c.keepsPositions(sink) {
		return nil
	}
	return &pipeline.Storing{
		Sink: sink, Store: w.Stores[sink], Backoff: pipeline.DefaultBackoff, Timeout: c.Writer.FlushTimeout,
		Metrics: w.Metrics, Log: w.Process.Log,
	}
}

// replayLimits are the replayer's limits of the configuration. Where every source is class S nothing needs to settle; behind a spool
// none is while Kafka is away.
func (w *Wire) replayLimits() pipeline.ReplayLimits {
	c := w.Process.Config
	l := pipeline.DefaultReplayLimits
	l.Window, l.Active, l.Slice, l.AckTimeout = c.Replayer.Window, c.Replayer.MaxActive, c.Replayer.SliceMessages, c.Replayer.AckTimeout
	l.ClockSkew, l.Settle, l.ResumeDelay = c.Replayer.ClockSkew, c.Replayer.Settle, c.Replayer.ResumeDelay
	l.Reads, l.ReadTarget = c.Replayer.MaxReads, c.Replayer.ReadLatency
	l.ClientRate, l.ProcessRate = c.Replayer.Rate.Client, c.Replayer.Rate.Process
	l.Drain = c.Shutdown.Drain
	if c.OnlyEmbedded() && !c.Ingest.Spool.used() {
		l.Settle = 0
	}
	return l
}

// OnlyEmbedded reports whether every source is an embedded broker: class S, an event is in the log before its publisher is
// answered.
func (c Config) OnlyEmbedded() bool {
	for _, s := range c.Sources {
		if s.Embedded == nil {
			return false
		}
	}
	return len(c.Sources) > 0
}
