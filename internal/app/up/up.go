// Package up runs everything in one process: an MQTT broker, Kafka, ingest, writer and replayer, with a SQLite database, all in
// one data directory. It is for small installations, trials and tests; its Kafka has one node and no copies.
package up

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/embedded"
	"github.com/restante/restante/pipeline"
)

// Options say where the data is and what is listened on.
type Options struct {
	// Dir is the data directory; it is made when it is not there, for this user only.
	Dir string
	// Kafka is the loopback address of the embedded Kafka; port 0 takes a free one.
	Kafka string
}

// Addresses are where a running stack is reached.
type Addresses struct {
	MQTT     map[string]string // by source
	Kafka    string
	Database map[string]string // by sink
	Dir      string
}

const (
	lockFile   = "restante.lock"
	dataFile   = "restante.db"
	secretFile = "replay.secret"
	kafkaDir   = "kafka"
)

// Defaults fills what a configuration leaves open: a broker on the MQTT address, a database in the data directory, and one rule
// that keeps every message of QoS 1 and 2. It sets what follows from everything being in one process.
func Defaults(c app.Config, dir, mqttAddr string) app.Config {
	if len(c.Sources) == 0 {
		c.Sources = map[string]app.Source{"embedded": {Type: "embedded", Embedded: &app.EmbeddedSource{Listen: mqttAddr, Node: "embedded"}}}
	}
	if len(c.Sinks) == 0 {
		c.Sinks = map[string]app.Sink{"local": {Type: "sqlite", SQLite: &app.SQLiteSink{Path: filepath.Join(dir, dataFile), TombstoneTTL: 10 * 24 * time.Hour}}}
	}
	if len(c.Rules) == 0 {
		wildcards := true
		for name := range c.Sinks {
			c.Rules = append(c.Rules, app.Rule{Topic: "#", Action: string(pipeline.SaveOfflineMessages), Sink: name, TTL: 7 * 24 * time.Hour, Wildcards: &wildcards})
			break
		}
	}
	if len(c.Delivery.MQTT.URL) == 0 {
		c.Delivery.To = "direct"
	}
	c.Kafka.Brokers = nil
	for _, t := range []*app.KafkaTopic{&c.Kafka.Messages, &c.Kafka.Sessions, &c.Kafka.Dead} {
		// Each batch is synced to the disk, of one partition at a time: with one partition what comes at once shares a sync.
		t.Partitions, t.Replication, t.MinInsync = 1, 1, 1
	}
	if c.OnlyEmbedded() {
		c.Replayer.ClockSkew, c.Replayer.Settle = 0, 0
	}
	return c
}

// Run runs the stack until ctx ends and what it holds is finished. ready is called once clients can connect.
func Run(ctx, work context.Context, p *app.Process, o Options, ready func(Addresses)) (err error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("data directory %q: %w", o.Dir, err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()

	if d := &p.Config.Delivery; d.Secret == "" && d.SecretFile == "" {
		file := filepath.Join(dir, secretFile)
		if _, err := mqtt.LoadOrCreateSecret(file); err != nil {
			return fmt.Errorf("replay secret: %w", err)
		}
		d.SecretFile = file // for all sources and for what is published
	}
	secret, err := p.Config.ReplaySecret()
	if err != nil {
		return err
	}
	cluster, err := startKafka(ctx, filepath.Join(dir, kafkaDir), o.Kafka, p.Log)
	if err != nil {
		return err
	}
	defer cluster.Close()
	p.Config.Kafka.Brokers = cluster.ListenAddrs()
	if spool := &p.Config.Ingest.Spool; spool.Path != "" {
		p.Log.InfoContext(ctx, "ingest.spool is not used: kafka is in this process and on this disk", "path", spool.Path)
		spool.Path = ""
	}

	w, err := app.NewWire(ctx, p, p.Config.UsedSinks())
	if err != nil {
		return err
	}
	defer w.Close()
	w.Alone = true
	if err := prepare(ctx, w); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return serve(ctx, work, w, secret, dir, ready)
}

// prepare makes the topics and clears the groups of members that died: the lock says that none of them lives.
func prepare(ctx context.Context, w *app.Wire) error {
	c := w.Process.Config
	const busy = time.Minute // it is in this process: it answers when the machine has time for it
	if err := pipeline.Patiently(ctx, busy, func() error {
		_, err := w.Kafka.Migrate(ctx, c.Specs(), false)
		return err
	}); err != nil {
		return err
	}
	groups := []string{c.Kafka.ReplayerGroup()}
	for name := range w.Stores {
		groups = append(groups, c.Kafka.WriterGroup(name))
	}
	for _, g := range groups {
		if _, err := w.Kafka.EvictMembers(ctx, g); err != nil {
			w.Process.Log.WarnContext(ctx, "members of the last run not removed, the group begins when their sessions have ended", "group", g, "err", err)
		}
	}
	return w.ReadyKafka(ctx)
}

func serve(ctx, work context.Context, w *app.Wire, secret mqtt.Secret, dir string, ready func(Addresses)) error {
	c := w.Process.Config
	at := Addresses{MQTT: map[string]string{}, Kafka: c.Kafka.Brokers[0], Database: map[string]string{}, Dir: dir}
	var sources []pipeline.Source
	var brokers []*embedded.Broker
	for name, s := range c.Sources {
		if s.Embedded == nil {
			src, err := w.Source(name)
			if err != nil {
				return errors.Join(fmt.Errorf("sources.%s: %w", name, err), closeAll(brokers))
			}
			sources = append(sources, src)
			continue
		}
		b, err := w.Embedded(name, secret)
		if err != nil {
			return errors.Join(fmt.Errorf("sources.%s: %w", name, err), closeAll(brokers))
		}
		at.MQTT[name] = b.Addr().String()
		sources, brokers = append(sources, b), append(brokers, b)
	}
	for name, s := range c.Sinks {
		if s.SQLite != nil {
			at.Database[name] = s.SQLite.Path
		}
	}
	var pub pipeline.Publisher
	var beside []func(context.Context) error
	switch {
	case c.Delivery.To != "direct":
		m, err := w.Publisher()
		if err != nil {
			return errors.Join(fmt.Errorf("delivery: %w", err), closeAll(brokers))
		}
		pub, beside = m, append(beside, m.Run)
	case len(brokers) != 1:
		return errors.Join(fmt.Errorf("delivery.to: direct needs exactly one embedded source, have %d", len(brokers)), closeAll(brokers))
	default:
		pub = brokers[0]
	}
	all := app.NewParts(ctx)
	all.Run(func(ctx context.Context) error { return w.Write(ctx, work) })
	all.Run(func(ctx context.Context) error { return w.Replay(ctx, work, pub, beside...) })
	all.Run(func(ctx context.Context) error { return w.Ingest(ctx, work, sources) })
	if ready != nil {
		ready(at)
	}
	return all.Wait()
}

func closeAll(brokers []*embedded.Broker) error {
	var errs []error
	for _, b := range brokers {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}

// startKafka starts the embedded Kafka. Each batch is synced to disk before it is acknowledged.
func startKafka(ctx context.Context, dir, addr string, log *slog.Logger) (*kfake.Cluster, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("kafka data: %w", err)
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1), kfake.DataDir(dir), kfake.SyncWrites(), kfake.WithLogger(kafkaLogger{log}),
		kfake.BrokerConfigs(map[string]string{"log.cleaner.backoff.ms": "60000"}),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			l, err := (&net.ListenConfig{}).Listen(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return frames{l}, nil
		}),
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, fmt.Errorf("start the embedded kafka on %s: %w", addr, err)
	}
	return c, nil
}

// kafkaLogger passes on what matters of the embedded Kafka's log.
type kafkaLogger struct{ log *slog.Logger }

func (l kafkaLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("embedded kafka", "text", fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("embedded kafka", "text", fmt.Sprintf(format, args...))
	case kfake.LogLevelNone, kfake.LogLevelInfo, kfake.LogLevelDebug:
	}
}
