package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/sinks"
)

// heldJSON is what a sink has of a topic.
type heldJSON struct {
	Sink      string     `json:"sink"`
	Actions   []string   `json:"actions"` // what rules do with the topic's messages
	Messages  int        `json:"messages"`
	Bytes     int        `json:"bytes"`
	Oldest    *time.Time `json:"oldest,omitempty"`
	Newest    *time.Time `json:"newest,omitempty"`
	AtLeast   bool       `json:"at_least,omitempty"`
	Retained  string     `json:"retained,omitempty"` // its message id
	Committed int64      `json:"committed"`          // of its writers, < 0 = nothing yet
}

// heldTopicJSON is what inspect topic prints.
type heldTopicJSON struct {
	Topic     string     `json:"topic"`
	Kafka     string     `json:"kafka_topic"`
	Partition int        `json:"partition"`
	First     int64      `json:"first"`
	End       int64      `json:"end"`
	Sinks     []heldJSON `json:"sinks"`
}

func (x *inspecting) topic(ctx context.Context, cmd *cobra.Command, v *view, name string) error {
	topic, err := event.ParseTopic(name)
	if err != nil {
		return &usageError{err}
	}
	part := kafkalog.Partition(name, v.config.Kafka.Messages.Partitions)
	spans, err := v.Reader.Spans(ctx, v.Topics.Messages, part)
	if err != nil {
		return err
	}
	all := heldTopicJSON{Topic: name, Kafka: v.Topics.Messages, Partition: part, First: spans[part].First, End: spans[part].End}
	for _, sink := range v.names {
		h := heldJSON{Sink: sink, Actions: []string{}}
		for _, r := range v.config.PipelineRules() {
			if r.Sink == sink && r.Hook == pipeline.MessagePublish && r.Topic.Match(topic) {
				h.Actions = append(h.Actions, string(r.Action))
			}
		}
		committed, err := v.Reader.Committed(ctx, v.config.Kafka.WriterGroup(sink), v.Topics.Messages, part)
		if err != nil {
			return err
		}
		h.Committed = committed[part]
		if err := x.hold(ctx, v.Stores[sink], topic, &h); err != nil {
			return fmt.Errorf("sink %s: %w", sink, err)
		}
		all.Sinks = append(all.Sinks, h)
	}
	if x.output == "json" {
		return printJSON(cmd.OutOrStdout(), all)
	}
	all.print(cmd.OutOrStdout())
	return nil
}

// hold counts what a store has of a topic.
func (x *inspecting) hold(ctx context.Context, store sinks.Reader, topic event.Topic, h *heldJSON) error {
	const page = 500
	q := sinks.Query{Topic: topic, Until: event.LastIDAt(time.Now().Add(24 * time.Hour)), Limit: page}
	for {
		var ms []sinks.Message
		err := pipeline.Patiently(ctx, noAnswer, func() (err error) {
			ms, err = store.Messages(ctx, q)
			return err
		})
		if err != nil {
			return fmt.Errorf("read the messages: %w", err)
		}
		for i := range ms {
			if x.limit > 0 && h.Messages == x.limit {
				h.AtLeast = true
				ms = nil
				break
			}
			if h.Messages == 0 {
				h.Oldest = timeOf(ms[i].ID)
			}
			h.Newest = timeOf(ms[i].ID)
			h.Messages++
			h.Bytes += len(ms[i].Payload)
		}
		if len(ms) < page {
			break
		}
		q.After = ms[len(ms)-1].ID
	}
	filter, err := event.ParseFilter(topic.String())
	if err != nil {
		return err
	}
	return pipeline.Patiently(ctx, noAnswer, func() error {
		kept, err := store.Retained(ctx, filter, event.Topic{}, 1)
		if err != nil {
			return fmt.Errorf("read the retained message: %w", err)
		}
		if len(kept) > 0 {
			h.Retained = kept[0].ID.String()
		}
		return nil
	})
}

func (a *heldTopicJSON) print(w io.Writer) {
	fmt.Fprintf(w, "topic %s: partition %d of %s, offsets %d to %d\n", printable(a.Topic, 500), a.Partition, a.Kafka, a.First, a.End)
	for _, h := range a.Sinks {
		more := ""
		if h.AtLeast {
			more = "at least "
		}
		fmt.Fprintf(w, "sink %s: %s%d messages, %d bytes", h.Sink, more, h.Messages, h.Bytes)
		if h.Oldest != nil {
			fmt.Fprintf(w, ", from %s to %s", h.Oldest.Format(time.RFC3339), h.Newest.Format(time.RFC3339))
		}
		if h.Retained != "" {
			fmt.Fprintf(w, "; retained: %s", h.Retained)
		}
		if behind := a.End - max(h.Committed, a.First); behind > 0 {
			fmt.Fprintf(w, "; its writers have %d records of the partition before them", behind)
		}
		fmt.Fprintf(w, "; rules: %v\n", h.Actions)
	}
}
