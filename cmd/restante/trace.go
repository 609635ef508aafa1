package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline/trace"
)

// lineJSON is a line of trace as -o json shows it.
type lineJSON struct {
	At        *time.Time `json:"at,omitempty"` // none: it holds now
	What      string     `json:"what"`
	Topic     string     `json:"topic,omitempty"`
	Client    string     `json:"client,omitempty"`
	Message   string     `json:"message,omitempty"`
	Sink      string     `json:"sink,omitempty"`
	Says      string     `json:"says,omitempty"`
	Kafka     string     `json:"kafka_topic,omitempty"`
	Partition *int       `json:"partition,omitempty"`
	Offset    *int64     `json:"offset,omitempty"`
}

// tracedJSON is what trace prints.
type tracedJSON struct {
	Lines []lineJSON `json:"lines"`
	Cut   bool       `json:"cut,omitempty"` // there are older ones
}

// tracing are the flags of trace.
type tracing struct {
	looking
	since, topic string
	client       bool
	limit        int
}

// beforeID is how far before the time of a message's id its publish may be in the log.
const beforeID = 10 * time.Minute

func newTrace(signals <-chan os.Signal) *cobra.Command {
	var x tracing
	cmd := &cobra.Command{
		Use:   "trace MSGID|CLIENT",
		Short: "Tell what has happened to a message or a client, one line an event",
		Long: `Tell what has happened to a message (32 hexadecimal digits) or to a client (any other text, or --client): what was published,
acknowledged, replayed, dropped or buried by the log, and what the stores hold of it now. One line an event, the oldest first; it
changes nothing and shows no payload.

It reads all partitions of the log since --since, which is 2h, and the time of the message where that is known; --topic saves most
of that for a message whose topic is known.

Exit codes: 0 done; 1 failed, or nothing is known of it; 2 wrong flags or configuration.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return x.run(cmd, signals, func(ctx context.Context, v *view) error { return x.trace(ctx, cmd, v, args[0]) })
		},
	}
	x.add(cmd)
	f := cmd.Flags()
	f.StringVar(&x.since, "since", "", "read the log since this `time`, or so long ago: 2026-01-31T12:00:00Z, 2h, 3d")
	f.StringVar(&x.topic, "topic", "", "the message's MQTT `topic`")
	f.BoolVar(&x.client, "client", false, "the argument is a client id, whatever it looks like")
	f.IntVar(&x.limit, "limit", 1000, "show so many of the newest `lines`; 0 = all")
	return cmd
}

func (x *tracing) trace(ctx context.Context, cmd *cobra.Command, v *view, arg string) error {
	now := time.Now()
	since, err := parseWhen("since", x.since, now)
	if err != nil {
		return err
	}
	if x.limit < 0 {
		return &usageError{fmt.Errorf("--limit %d: want 0 or more", x.limit)}
	}
	var topic event.Topic
	if x.topic != "" {
		if topic, err = event.ParseTopic(x.topic); err != nil {
			return &usageError{fmt.Errorf("--topic: %w", err)}
		}
	}
	id, notID := event.ParseID(arg)
	if since.IsZero() {
		since = now.Add(-2 * time.Hour)
		if notID == nil && !x.client {
			since = id.Time().Add(-beforeID)
		}
	}
	var lines []trace.Line
	var cut bool
	t := v.tracer(since, x.limit)
	if notID == nil && !x.client {
		lines, cut, err = t.Message(ctx, id, topic)
	} else {
		var client event.ClientID
		if client, err = event.ParseClientID(arg); err != nil {
			return &usageError{err}
		}
		if x.topic != "" {
			return &usageError{errors.New("--topic is for messages")}
		}
		lines, cut, err = t.Client(ctx, client)
	}
	switch {
	case err != nil:
		return err
	case len(lines) == 0:
		return fmt.Errorf("%s: nothing is known of it since %s", printable(arg, 200), since.UTC().Format(time.RFC3339))
	}
	all := tracedJSON{Cut: cut}
	for _, l := range lines {
		all.Lines = append(all.Lines, newLine(l))
	}
	if x.output == "json" {
		return printJSON(cmd.OutOrStdout(), all)
	}
	all.print(cmd.OutOrStdout())
	return nil
}

func newLine(l trace.Line) lineJSON {
	j := lineJSON{What: string(l.What), Topic: l.Topic.String(), Client: string(l.Client), Sink: l.Sink, Says: l.Says, Kafka: l.TP.Topic}
	if !l.At.IsZero() {
		j.At = &l.At
	}
	if !l.Message.IsZero() {
		j.Message = l.Message.String()
	}
	if l.TP.Topic != "" {
		j.Partition, j.Offset = &l.TP.Part, &l.Offset
	}
	return j
}

func (a *tracedJSON) print(w io.Writer) {
	if a.Cut {
		fmt.Fprintln(w, "older lines are left out, --limit shows more")
	}
	for _, l := range a.Lines {
		at := "now"
		if l.At != nil {
			at = l.At.Format("2006-01-02T15:04:05.000Z07:00")
		}
		fmt.Fprintf(w, "%-24s  %-12s", at, l.What)
		for _, part := range []struct{ name, value string }{{"sink ", l.Sink}, {"", l.Message}, {"", l.Topic}, {"client ", l.Client}} {
			if part.value != "" {
				fmt.Fprintf(w, "  %s%s", part.name, printable(part.value, 300))
			}
		}
		if l.Says != "" {
			fmt.Fprintf(w, "  %s", printable(l.Says, 1000))
		}
		if l.Partition != nil {
			fmt.Fprintf(w, "  [%s/%d@%d]", cmp.Or(l.Kafka, "?"), *l.Partition, *l.Offset)
		}
		fmt.Fprintln(w)
	}
}
