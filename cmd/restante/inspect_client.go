package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/pipeline/trace"
)

// positionJSON is a row of acked messages.
type positionJSON struct {
	Topic   string `json:"topic"`
	Message string `json:"message"`
}

// knownJSON is what a sink knows of a client.
type knownJSON struct {
	Sink      string         `json:"sink"`
	Known     bool           `json:"known"`
	State     string         `json:"state,omitempty"`
	Positions []positionJSON `json:"positions"` // the newest acknowledged messages, or positions in pub/sub
	Found     int            `json:"positions_found"`
}

// subJSON is a subscription.
type subJSON struct {
	Client string     `json:"client"`
	Filter string     `json:"filter"`
	QoS    event.QoS  `json:"qos"`
	At     *time.Time `json:"at,omitempty"`
	Sink   string     `json:"sink,omitempty"`
}

func subsOf(all []trace.Subscription) []subJSON {
	out := []subJSON{}
	for _, s := range all {
		j := subJSON{Client: string(s.Client), Filter: s.Filter.String(), QoS: s.QoS, Sink: s.Sink}
		if !s.At.IsZero() {
			j.At = &s.At
		}
		out = append(out, j)
	}
	return out
}

// knownClientJSON is what inspect client prints.
type knownClientJSON struct {
	Client        string      `json:"client"`
	Kafka         string      `json:"kafka_topic"`
	Partition     int         `json:"partition"`
	End           int64       `json:"end"`
	Committed     int64       `json:"committed"` // of the replayers, < 0 = nothing yet
	Subscriptions []subJSON   `json:"subscriptions"`
	Sinks         []knownJSON `json:"sinks"`
}

func (x *inspecting) client(ctx context.Context, cmd *cobra.Command, v *view, name string) error {
	id, err := event.ParseClientID(name)
	if err != nil {
		return &usageError{err}
	}
	since, err := parseWhen("since", x.since, time.Now())
	if err != nil {
		return err
	}
	part := kafkalog.Partition(name, v.config.Kafka.Sessions.Partitions)
	spans, errSpans := v.Reader.Spans(ctx, v.Topics.Sessions, part)
	committed, errCommitted := v.Reader.Committed(ctx, v.config.Kafka.ReplayerGroup(), v.Topics.Sessions, part)
	subs, errSubs := v.tracer(since, 0).Subscriptions(ctx, id)
	if err := errors.Join(errSpans, errCommitted, errSubs); err != nil {
		return err
	}
	all := knownClientJSON{
		Client: name, Kafka: v.Topics.Sessions, Partition: part, End: spans[part].End, Committed: committed[part], Subscriptions: subsOf(subs),
	}
	for _, sink := range v.names {
		k := knownJSON{Sink: sink, Positions: []positionJSON{}}
		err := pipeline.Patiently(ctx, noAnswer, func() error {
			c, known, err := v.Stores[sink].Client(ctx, id)
			if err != nil {
				return fmt.Errorf("sink %s: read the client: %w", sink, err)
			}
			rows, err := v.Stores[sink].Positions(ctx, id)
			if err != nil {
				return fmt.Errorf("sink %s: read the positions: %w", sink, err)
			}
			if k.Known = known; known {
				k.State = trace.StateOf(c)
			}
			k.Found, k.Positions = len(rows), k.Positions[:0]
			for i := range rows {
				if x.limit == 0 || i < x.limit {
					k.Positions = append(k.Positions, positionJSON{rows[i].Topic, rows[i].Message.String()})
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		all.Sinks = append(all.Sinks, k)
	}
	if x.output == "json" {
		return printJSON(cmd.OutOrStdout(), all)
	}
	all.print(cmd.OutOrStdout())
	return nil
}

func (a *knownClientJSON) print(w io.Writer) {
	fmt.Fprintf(w, "client %s: partition %d of %s; the replayers have committed %d of %d\n", printable(a.Client, 500), a.Partition, a.Kafka, max(a.Committed, 0), a.End)
	for _, s := range a.Subscriptions {
		by := "by sink " + s.Sink
		if s.At != nil {
			by = "since " + s.At.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "subscribed to %s at QoS %d, %s\n", printable(s.Filter, 500), s.QoS, by)
	}
	for _, k := range a.Sinks {
		state := "nothing is known of its state"
		if k.Known {
			state = k.State
		}
		fmt.Fprintf(w, "sink %s: %s; %d positions\n", k.Sink, state, k.Found)
		for _, p := range k.Positions {
			fmt.Fprintf(w, "  %s  %s\n", p.Message, printable(p.Topic, 500))
		}
		if len(k.Positions) < k.Found {
			fmt.Fprintf(w, "  the first %d are shown, --limit shows more\n", len(k.Positions))
		}
	}
}
