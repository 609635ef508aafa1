package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
)

// processLook is the component that only reads.
const processLook = "look"

// Look is the pipeline as one sees it who only reads: it writes and commits nothing, also not what reads otherwise leave for later
// ones. Close must be called.
type Look struct {
	*Wire
	// Reader reads the log.
	Reader   pipeline.Log
	replayer *pipeline.Replayer
	helpers  *Parts
}

// OpenLook opens Kafka and the stores of the sinks named. What fails is tried for as long as patience.
func OpenLook(ctx context.Context, c Config, sinkNames []string, patience time.Duration, log *slog.Logger) (*Look, error) {
	w, err := NewWire(ctx, &Process{
		Component: processLook, Config: c, Sinks: sinkNames, Log: log, Registry: prometheus.NewRegistry(), Health: NewHealth(),
	}, sinkNames)
	if err != nil {
		return nil, err
	}
	if err := w.Kafka.Verify(ctx, c.Specs()); err != nil {
		w.Close()
		return nil, err
	}
	group := c.Kafka.ReplayerGroup()
	l := &Look{Wire: w, Reader: w.Kafka.Log("restante.look"), helpers: NewParts(context.WithoutCancel(ctx))}
	read := make(map[string]pipeline.ReplaySink)
	for name, store := range w.Stores {
		tail := w.tail(l.Reader, name)
		read[name] = pipeline.ReplaySink{Store: store, Tail: tail}
		l.helpers.Run(tail.Run)
	}
	l.replayer = &pipeline.Replayer{
		Reader: l.Reader, Topics: w.Topics, Group: group, Plan: w.Rules.Plan, Sinks: read, Minter: w.Minter, Source: "restante/look",
		Limits: w.replayLimits(), Backoff: pipeline.DefaultBackoff, Metrics: w.Metrics, Log: log, Now: time.Now, GiveUp: patience,
	}
	return l, nil
}

// Close ends what runs and releases the connections.
func (l *Look) Close() error {
	l.helpers.Stop()
	err := l.helpers.Wait()
	l.Wire.Close()
	return err
}

// Subscribe is a subscribe as it would be told now.
func (l *Look) Subscribe(client event.ClientID, f event.Filter, qos event.QoS) event.Subscribed {
	return event.Subscribed{
		Head:   event.Head{ID: l.Minter.Mint(), Source: "restante/look", At: time.Now().Truncate(time.Millisecond)},
		Client: client, Filter: f, QoS: qos, New: event.Yes,
	}
}

// Fetches are the rules that a subscribe concerns.
func (l *Look) Fetches(e event.Subscribed) []pipeline.Fetch { return l.Rules.Fetches(e) }

// Explain says what a rule would send because of a subscribe; see [pipeline.Replayer.Explain].
func (l *Look) Explain(ctx context.Context, f pipeline.Fetch, e event.Subscribed, most int, found func(pipeline.ExplainedTopic) error) (pipeline.Explained, error) {
	if f.Skipped != "" {
		return pipeline.Explained{}, errors.New("explain a rule that does nothing")
	}
	x, err := l.replayer.Explain(ctx, f.Replay, e, pipeline.Explaining{
		SessionPart: kafkalog.Partition(string(e.Client), l.Process.Config.Kafka.Sessions.Partitions), Most: most, Found: found,
	})
	if err != nil {
		return x, fmt.Errorf("explain %s of sink %s: %w", f.Action, f.Sink, err)
	}
	return x, nil
}
