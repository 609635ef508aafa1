package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/pipeline/trace"
)

// looking is what the commands have that only look.
type looking struct {
	place
	output output
	sinks  []string
}

func (l *looking) add(cmd *cobra.Command) {
	l.place.add(cmd)
	l.output.add(cmd)
	cmd.Flags().StringSliceVar(&l.sinks, "sink", nil, "look at this `sink` only; several with commas")
}

// view is what they look at.
type view struct {
	*app.Look
	names  []string // of the sinks, sorted
	config app.Config
}

// open connects to Kafka and the stores. The view is closed by the caller.
func (l *looking) open(ctx context.Context, cmd *cobra.Command) (*view, error) {
	c, err := l.load()
	if err != nil {
		return nil, err
	}
	names := c.UsedSinks()
	for _, s := range l.sinks {
		if !slices.Contains(names, s) {
			return nil, &usageError{fmt.Errorf("--sink %q: no rule uses such a sink: those used are %s", s, strings.Join(names, ", "))}
		}
	}
	if len(l.sinks) > 0 {
		names = l.sinks
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	for _, s := range names {
		if c.Sinks[s].Memory != nil {
			return nil, &usageError{fmt.Errorf("sink %q is in the memory of its process, where nobody else can look", s)}
		}
	}
	look, err := app.OpenLook(ctx, c, names, noAnswer, app.NewLogger(cmd.ErrOrStderr(), "restante", "warn"))
	if err != nil {
		return nil, err
	}
	return &view{look, names, c}, nil
}

// run opens, works and closes; the work ends at the first signal.
func (l *looking) run(cmd *cobra.Command, signals <-chan os.Signal, work func(context.Context, *view) error) error {
	if err := l.output.check(); err != nil {
		return err
	}
	ctx, cancel := interruptible(cmd.Context(), signals)
	defer cancel()
	v, err := l.open(ctx, cmd)
	if err != nil {
		return err
	}
	return errors.Join(work(ctx, v), v.Close())
}

// tracer reads what has happened since a time, zero = the beginning of the log.
func (v *view) tracer(since time.Time, most int) *trace.Tracer {
	k := v.config.Kafka
	t := &trace.Tracer{
		Log: v.Reader, Topics: v.Topics, Parts: k.Messages.Partitions, SessionParts: k.Sessions.Partitions, DeadParts: k.Dead.Partitions,
		Partition: kafkalog.Partition, Since: since, Most: most, Hold: v.config.Writer.Hold, Now: time.Now, Patience: noAnswer,
	}
	for _, name := range v.names {
		t.Sinks = append(t.Sinks, trace.Sink{Name: name, Group: k.WriterGroup(name), Plan: v.Rules.ForSink(name), Store: v.Stores[name]})
	}
	return t
}

// timeOf is the time of a message id, nil where there is none.
func timeOf(id event.ID) *time.Time {
	if id.IsZero() {
		return nil
	}
	at := id.Time().UTC().Truncate(time.Millisecond)
	return &at
}

// skips say in words why a rule does nothing for a subscribe.
var skips = map[string]string{
	pipeline.SkipQoS0:          "a subscribe at QoS 0 gets nothing (replayer.qos0_subscribe)",
	pipeline.SkipIgnoredClient: "the client is one of our own connections",
	pipeline.SkipWildcard:      "the rule does not replay for wildcard filters (wildcards)",
	pipeline.SkipShared:        "a shared subscription has no one client that messages could wait for",
	pipeline.SkipRetain:        "the subscribe asks for no retained messages (retain handling)",
}

// inWords is a skip in words.
func inWords(skip string) string {
	if text := skips[skip]; text != "" {
		return text
	}
	return skip
}
