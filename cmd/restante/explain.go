package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
)

// topicJSON is what a replay sends of a topic, as -o json shows it.
type topicJSON struct {
	Topic    string         `json:"topic"`
	Messages int            `json:"messages"`
	Bytes    int            `json:"bytes"`
	Oldest   *time.Time     `json:"oldest,omitempty"`
	Newest   *time.Time     `json:"newest,omitempty"`
	LeftOut  map[string]int `json:"left_out,omitempty"` // by reason
	Excluded string         `json:"excluded,omitempty"` // why the whole topic is none of the replay's
	AtLeast  bool           `json:"at_least,omitempty"` // counting has ended at --count
}

// ruleJSON is what one rule does for a subscribe, as -o json shows it.
type ruleJSON struct {
	Action     string         `json:"action"`
	Topic      string         `json:"topic"`
	Sink       string         `json:"sink"`
	Skipped    string         `json:"skipped,omitempty"` // why it does nothing
	Messages   int            `json:"messages"`
	Bytes      int            `json:"bytes"`
	Oldest     *time.Time     `json:"oldest,omitempty"`
	LeftOut    map[string]int `json:"left_out,omitempty"`
	AtLeast    bool           `json:"at_least,omitempty"`
	Topics     []topicJSON    `json:"topics"`
	Found      int            `json:"topics_found"`    // also those over the limit
	Outside    int            `json:"topics_outside"`  // of the subscription, and not of the rule
	First      bool           `json:"first,omitempty"` // there is no position yet
	Unfinished int            `json:"unfinished"`      // subscribes of the client that are not finished with
	Complete   bool           `json:"complete"`
	Error      string         `json:"error,omitempty"`
}

// subscribeJSON is one subscription, as -o json shows it.
type subscribeJSON struct {
	Filter string     `json:"filter"`
	QoS    event.QoS  `json:"qos"`
	Known  string     `json:"known_by"` // flag, log, or the sink that has it
	Rules  []ruleJSON `json:"rules"`
}

// explainedJSON is what explain prints.
type explainedJSON struct {
	Client        string          `json:"client"`
	Subscriptions []subscribeJSON `json:"subscriptions"`
	Complete      bool            `json:"complete"`
}

// explaining are the flags of explain.
type explaining struct {
	looking
	filter       string
	qos          int
	since        string
	limit, count int
}

func newExplain(signals <-chan os.Signal) *cobra.Command {
	var x explaining
	cmd := &cobra.Command{
		Use:   "explain CLIENT",
		Short: "Say what a subscribe of a client would be sent now, and what not, and why",
		Long: `Say what a subscribe of a client would be sent now: of each topic how many messages and bytes and how old the oldest is, and how many
are left out and why. It asks what the replayers ask, in the same way, and changes nothing.

Without --filter it explains the subscriptions that the client has: those that the log tells since --since, and those that a store
knows. docs/explain.md says what each reason means.

Exit codes: 0 done; 1 failed; 2 wrong flags or configuration; 3 something could not be looked at, or the writers lag so far that there is more.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := x.check(args[0])
			if err != nil {
				return err
			}
			return x.run(cmd, signals, func(ctx context.Context, v *view) error { return x.explain(ctx, cmd, v, client) })
		},
	}
	x.add(cmd)
	f := cmd.Flags()
	f.StringVar(&x.filter, "filter", "", "explain a subscribe to this `filter`, whether the client has it or not")
	f.IntVar(&x.qos, "qos", 1, "with --filter: at this `QoS`")
	f.StringVar(&x.since, "since", "72h", "without --filter: look for subscriptions since this `time`, or so long ago")
	f.IntVar(&x.limit, "limit", 100, "show so many `topics` of a rule; 0 = all. All are counted")
	f.IntVar(&x.count, "count", 100_000, "count so many `messages` of a topic; 0 = all")
	return cmd
}

func (x *explaining) check(arg string) (event.ClientID, error) {
	client, err := event.ParseClientID(arg)
	errs := []error{err}
	if x.filter != "" {
		_, err := event.ParseFilter(x.filter)
		errs = append(errs, err)
	}
	if x.qos < 0 || x.qos > 2 {
		errs = append(errs, fmt.Errorf("--qos %d: want 0, 1 or 2", x.qos))
	}
	if x.limit < 0 || x.count < 0 {
		errs = append(errs, errors.New("--limit and --count: want 0 or more"))
	}
	if err := errors.Join(errs...); err != nil {
		return "", &usageError{err}
	}
	return client, nil
}

// subscriptions are those to explain.
func (x *explaining) subscriptions(ctx context.Context, v *view, client event.ClientID) ([]subscribeJSON, error) {
	if x.filter != "" {
		return []subscribeJSON{{Filter: x.filter, QoS: event.QoS(x.qos), Known: "flag"}}, nil //nolint:gosec // 0 to 2
	}
	since, err := parseWhen("since", x.since, time.Now())
	if err != nil {
		return nil, err
	}
	all, err := v.tracer(since, 0).Subscriptions(ctx, client)
	if err != nil {
		return nil, err
	}
	var out []subscribeJSON
	for _, s := range all {
		known := s.Sink
		if known == "" {
			known = "log"
		}
		out = append(out, subscribeJSON{Filter: s.Filter.String(), QoS: s.QoS, Known: known})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("client %q has no subscription that the log (since %s ago) or a store knows: name one by --filter", client, x.since)
	}
	return out, nil
}

func (x *explaining) explain(ctx context.Context, cmd *cobra.Command, v *view, client event.ClientID) error {
	subs, err := x.subscriptions(ctx, v, client)
	if err != nil {
		return err
	}
	all := explainedJSON{Client: string(client), Complete: true}
	for _, s := range subs {
		f, err := event.ParseFilter(s.Filter)
		if err != nil {
			return err
		}
		e := v.Subscribe(client, f, s.QoS)
		s.Rules = []ruleJSON{}
		for _, rule := range v.Fetches(e) {
			if v.Stores[rule.Sink] == nil {
				continue // --sink leaves it out
			}
			r := x.rule(ctx, v, rule, e)
			all.Complete = all.Complete && r.Complete
			s.Rules = append(s.Rules, r)
		}
		all.Subscriptions = append(all.Subscriptions, s)
	}
	if x.output == "json" {
		err = printJSON(cmd.OutOrStdout(), all)
	} else {
		err = all.print(cmd.OutOrStdout())
	}
	if err == nil && !all.Complete {
		return exitCode(app.ExitUndrained)
	}
	return err
}

// rule explains what one rule does.
func (x *explaining) rule(ctx context.Context, v *view, f pipeline.Fetch, e event.Subscribed) ruleJSON {
	r := ruleJSON{Action: string(f.Action), Topic: f.Topic.String(), Sink: f.Sink, Skipped: f.Skipped, Topics: []topicJSON{}, LeftOut: map[string]int{}, Complete: true}
	if f.Skipped != "" {
		return r
	}
	var oldest event.ID
	got, err := v.Explain(ctx, f, e, x.count, func(t pipeline.ExplainedTopic) error {
		r.Found++
		one := topicJSON{
			Topic: t.Topic.String(), Messages: t.Messages, Bytes: t.Bytes, Oldest: timeOf(t.Oldest), Newest: timeOf(t.Newest),
			LeftOut: map[string]int{}, Excluded: string(t.Excluded), AtLeast: t.AtLeast,
		}
		for why, n := range t.Left {
			one.LeftOut[string(why)] = n
			r.LeftOut[string(why)] += n
		}
		if t.Excluded != "" {
			r.LeftOut[string(t.Excluded)] += t.Messages
		} else {
			r.Messages += t.Messages
			r.Bytes += t.Bytes
			if !t.Oldest.IsZero() && (oldest.IsZero() || t.Oldest.Compare(oldest) < 0) {
				oldest = t.Oldest
			}
		}
		r.AtLeast = r.AtLeast || t.AtLeast
		if x.limit == 0 || len(r.Topics) < x.limit {
			r.Topics = append(r.Topics, one)
		}
		return nil
	})
	r.Oldest, r.Outside, r.First, r.Unfinished, r.Complete = timeOf(oldest), got.Outside, got.First, got.Unfinished, got.Complete
	if err != nil {
		r.Error, r.Complete = err.Error(), false
	}
	return r
}

// leftOut lists what is left out, in the order of the reasons.
func leftOut(left map[string]int) string {
	var parts []string
	add := func(why string) {
		if n := left[why]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, why))
		}
	}
	for _, why := range pipeline.LeftOuts {
		add(string(why))
	}
	add(string(pipeline.ExcludedAddressee))
	add(string(pipeline.ExcludedUnstored))
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}

func (a *explainedJSON) print(w io.Writer) error {
	for _, s := range a.Subscriptions {
		fmt.Fprintf(w, "client %s, filter %s at QoS %d (by %s)\n", printable(a.Client, 300), printable(s.Filter, 300), s.QoS, s.Known)
		if len(s.Rules) == 0 {
			fmt.Fprintln(w, "  no rule fetches anything for it")
		}
		for i := range s.Rules {
			if err := s.Rules[i].print(w); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *ruleJSON) print(w io.Writer) error {
	fmt.Fprintf(w, "  %s on %s, sink %s: ", r.Action, printable(r.Topic, 300), r.Sink)
	if r.Skipped != "" {
		fmt.Fprintf(w, "nothing: %s\n", inWords(r.Skipped))
		return nil
	}
	more := ""
	if r.AtLeast {
		more = "at least "
	}
	fmt.Fprintf(w, "%s%d messages, %d bytes", more, r.Messages, r.Bytes)
	if r.Oldest != nil {
		fmt.Fprintf(w, ", the oldest of %s", r.Oldest.Format(time.RFC3339))
	}
	if text := leftOut(r.LeftOut); text != "-" {
		fmt.Fprintf(w, "; left out: %s", text)
	}
	fmt.Fprintln(w)
	if r.First {
		fmt.Fprintln(w, "    the client has no position of this filter yet: it begins where the rule says (first_subscribe)")
	}
	if r.Unfinished > 0 {
		fmt.Fprintf(w, "    %d subscribes of the client are not finished with: what they send counts here until it is acknowledged\n", r.Unfinished)
	}
	if r.Outside > 0 {
		fmt.Fprintf(w, "    %d stored topics match the filter and not the rule\n", r.Outside)
	}
	if len(r.Topics) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "    TOPIC\tMESSAGES\tBYTES\tOLDEST\tLEFT OUT")
		for _, x := range r.Topics {
			oldest, left := "-", leftOut(x.LeftOut)
			if x.Oldest != nil {
				oldest = x.Oldest.Format(time.RFC3339)
			}
			n, bytes := x.Messages, x.Bytes
			if x.Excluded != "" {
				n, bytes, left = 0, 0, fmt.Sprintf("%d %s", x.Messages, x.Excluded)
			}
			if x.AtLeast {
				left += " (at least)"
			}
			fmt.Fprintf(t, "    %s\t%d\t%d\t%s\t%s\n", printable(x.Topic, 200), n, bytes, oldest, left)
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("write the topics: %w", err)
		}
	}
	if len(r.Topics) < r.Found {
		fmt.Fprintf(w, "    the first %d of %d topics are shown, --limit shows more\n", len(r.Topics), r.Found)
	}
	switch {
	case r.Error != "":
		fmt.Fprintf(w, "    NOT COMPLETE: %s\n", printable(r.Error, 2000))
	case !r.Complete:
		fmt.Fprintln(w, "    NOT COMPLETE: the writers lag, and what lies behind them is over replayer.tail_budget")
	}
	return nil
}
