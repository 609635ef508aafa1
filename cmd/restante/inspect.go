package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
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
