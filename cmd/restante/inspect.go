package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/pipeline/trace"
	"github.com/restante/restante/sinks"
)

// inspecting are the flags of inspect.
type inspecting struct {
	looking
	since string
	limit int
}

func newInspect(signals <-chan os.Signal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Show what is stored and known of a topic, a client or a subscription",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	verb := func(use, short, long, limited string, most int, show func(x *inspecting, ctx context.Context, cmd *cobra.Command, v *view, name string) error) {
		var x inspecting
		c := &cobra.Command{
			Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if x.limit < 0 {
					return &usageError{fmt.Errorf("--limit %d: want 0 or more", x.limit)}
				}
				return x.run(cmd, signals, func(ctx context.Context, v *view) error { return show(&x, ctx, cmd, v, args[0]) })
			},
		}
		x.add(c)
		c.Flags().IntVar(&x.limit, "limit", most, limited)
		c.Flags().StringVar(&x.since, "since", "72h", "take what the log tells of subscriptions since this `time`, or so long ago")
		cmd.AddCommand(c)
	}
	verb("topic TOPIC", "Show what is stored of a topic",
		"Show what is stored of an MQTT topic in each sink: the messages that wait, the retained one, and how far its writers are. Nothing is changed.",
		"count so many `messages`; 0 = all", 100_000, (*inspecting).topic)
	verb("client CLIENT", "Show what is known of a client",
		"Show what is known of a client: its state and positions in each sink, and its subscriptions. Nothing is changed.",
		"show so many `positions` of a sink; 0 = all", 100, (*inspecting).client)
	verb("sub FILTER", "Show what a subscription to a filter leads to",
		`Show what a subscription leads to: the rules that fetch for it, the topics that match it in each sink, and the clients that have it, as far as the
log tells. restante explain says of one of them what it would get. Nothing is changed.`,
		"show so many `topics` of a sink, and so many clients; 0 = all", 100, (*inspecting).sub)
	return cmd
}

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

// patiently tries what fails for as long as an answer may take.
func patiently(ctx context.Context, fn func() error) error {
	began := time.Now()
	for attempt := 1; ; attempt++ {
		err := fn()
		if err == nil || ctx.Err() != nil || time.Since(began) > noAnswer {
			return err
		}
		if pipeline.Sleep(ctx, pipeline.DefaultBackoff.Delay(attempt)) != nil {
			return err
		}
	}
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
		err := patiently(ctx, func() (err error) {
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
	return patiently(ctx, func() error {
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
		err := patiently(ctx, func() error {
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

// fetchJSON is a rule that fetches for a filter.
type fetchJSON struct {
	Action  string `json:"action"`
	Topic   string `json:"topic"`
	Sink    string `json:"sink"`
	Skipped string `json:"skipped,omitempty"`
}

// matchedJSON are the stored topics of a sink that match.
type matchedJSON struct {
	Sink   string   `json:"sink"`
	Topics []string `json:"topics"`
	More   bool     `json:"more,omitempty"`
}

// subscriptionJSON is what inspect sub prints.
type subscriptionJSON struct {
	Filter  string        `json:"filter"`
	Rules   []fetchJSON   `json:"rules"`
	Sinks   []matchedJSON `json:"sinks"`
	Clients []subJSON     `json:"clients"`
	Found   int           `json:"clients_found"`
}

func (x *inspecting) sub(ctx context.Context, cmd *cobra.Command, v *view, name string) error {
	filter, err := event.ParseFilter(name)
	if err != nil {
		return &usageError{err}
	}
	since, err := parseWhen("since", x.since, time.Now())
	if err != nil {
		return err
	}
	all := subscriptionJSON{Filter: name, Rules: []fetchJSON{}}
	const somebody, qos = "somebody", 1
	for _, f := range v.Fetches(v.Subscribe(somebody, filter, qos)) {
		all.Rules = append(all.Rules, fetchJSON{string(f.Action), f.Topic.String(), f.Sink, f.Skipped})
	}
	for _, sink := range v.names {
		m, err := x.matched(ctx, v, sink, filter)
		if err != nil {
			return err
		}
		all.Sinks = append(all.Sinks, m)
	}
	subs, err := v.tracer(since, 0).Subscribers(ctx, filter)
	if err != nil {
		return err
	}
	all.Found = len(subs)
	if x.limit > 0 && len(subs) > x.limit {
		subs = subs[:x.limit]
	}
	all.Clients = subsOf(subs)
	if x.output == "json" {
		return printJSON(cmd.OutOrStdout(), all)
	}
	all.print(cmd.OutOrStdout())
	return nil
}

// matched lists the stored topics of a sink that a filter matches. A shared one is no topic's.
func (x *inspecting) matched(ctx context.Context, v *view, sink string, f event.Filter) (matchedJSON, error) {
	m := matchedJSON{Sink: sink, Topics: []string{}}
	const page = 500
	for after := (event.Topic{}); f.Group() == ""; {
		var ts []event.Topic
		err := patiently(ctx, func() (err error) {
			ts, err = v.Stores[sink].Topics(ctx, f, after, page)
			return err
		})
		if err != nil {
			return m, fmt.Errorf("sink %s: list the topics: %w", sink, err)
		}
		for _, t := range ts {
			if x.limit > 0 && len(m.Topics) == x.limit {
				m.More = true
				return m, nil
			}
			m.Topics = append(m.Topics, t.String())
		}
		if len(ts) < page {
			break
		}
		after = ts[len(ts)-1]
	}
	return m, nil
}

func (a *subscriptionJSON) print(w io.Writer) {
	fmt.Fprintf(w, "filter %s\n", printable(a.Filter, 500))
	for _, r := range a.Rules {
		does := "fetches"
		if r.Skipped != "" {
			does = "does nothing: " + inWords(r.Skipped)
		}
		fmt.Fprintf(w, "rule %s on %s, sink %s: %s\n", r.Action, printable(r.Topic, 300), r.Sink, does)
	}
	if len(a.Rules) == 0 {
		fmt.Fprintln(w, "no rule fetches anything for it")
	}
	for _, m := range a.Sinks {
		more := ""
		if m.More {
			more = " and more, --limit shows them"
		}
		fmt.Fprintf(w, "sink %s: %d topics may have messages%s\n", m.Sink, len(m.Topics), more)
		for _, t := range m.Topics {
			fmt.Fprintf(w, "  %s\n", printable(t, 500))
		}
	}
	fmt.Fprintf(w, "%d clients have it, by the log\n", a.Found)
	for _, c := range a.Clients {
		fmt.Fprintf(w, "  %s  QoS %d since %s\n", printable(c.Client, 300), c.QoS, c.At.Format(time.RFC3339))
	}
	if len(a.Clients) < a.Found {
		fmt.Fprintf(w, "  the first %d are shown, --limit shows more\n", len(a.Clients))
	}
}
