package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

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
		err := pipeline.Patiently(ctx, noAnswer, func() (err error) {
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
