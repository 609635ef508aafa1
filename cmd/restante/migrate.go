package main

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
)

func newMigrate() *cobra.Command {
	var config string
	var dry bool
	var o output
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Make the Kafka topics and the tables of all sinks",
		Long: `Make the Kafka topics and the tables of all sinks that the configuration names. What exists is compared and never changed:
each difference is named. Running it again does nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			c, err := loadConfig(config, true)
			if err != nil {
				return err
			}
			return report(cmd.OutOrStdout(), o, migrate(cmd.Context(), c, dry))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&config, "config", "c", "restante.yaml", "configuration `file`")
	f.BoolVar(&dry, "dry-run", false, "say what would be done and do nothing")
	o.add(cmd)
	return cmd
}

func migrate(ctx context.Context, c app.Config, dry bool) []found {
	var all []found
	if len(c.Kafka.Brokers) > 0 {
		done, err := migrateKafka(ctx, c, dry)
		all = append(all, outcome("kafka "+strings.Join(c.Kafka.Brokers, ","), err, orNothing(done)...))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sinks)) {
		done, err := c.MigrateSink(ctx, name, dry)
		all = append(all, outcome("sink "+name, err, words(done, dry)...))
	}
	return all
}

func migrateKafka(ctx context.Context, c app.Config, dry bool) ([]string, error) {
	k, err := app.OpenKafka(ctx, c, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer k.Close()
	return k.Migrate(ctx, c.Specs(), dry)
}

// orNothing says so when there was nothing to do.
func orNothing(done []string) []string {
	if len(done) == 0 {
		return []string{"nothing to do"}
	}
	return done
}

// words says of each piece of work whether it is done, or would be.
func words(work []string, dry bool) []string {
	var out []string
	for _, w := range work {
		if dry {
			out = append(out, "would "+w)
		} else {
			out = append(out, "done: "+w)
		}
	}
	return orNothing(out)
}
