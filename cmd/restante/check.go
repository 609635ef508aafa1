package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
)

// output is how data is printed.
type output string

func (o *output) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", "text", "output `format`: text or json")
}

func (o output) check() error {
	if o != "text" && o != "json" {
		return &usageError{fmt.Errorf("-o %q: want text or json", string(o))}
	}
	return nil
}

func printJSON(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// found is what check found of one server, or migrate did to it.
type found struct {
	What  string   `json:"what"`
	OK    bool     `json:"ok"`
	Error string   `json:"error,omitempty"`
	Done  []string `json:"done,omitempty"`
}

// report prints the findings and fails when one is bad.
func report(w io.Writer, o output, all []found) error {
	bad := 0
	for _, f := range all {
		if !f.OK {
			bad++
		}
	}
	if o == "json" {
		if err := printJSON(w, all); err != nil {
			return err
		}
	} else {
		for _, f := range all {
			state := "ok    "
			if !f.OK {
				state = "FAILED"
			}
			fmt.Fprintf(w, "%s  %s", state, f.What)
			if f.Error != "" {
				fmt.Fprintf(w, ": %s", f.Error)
			}
			fmt.Fprintln(w)
			for _, d := range f.Done {
				fmt.Fprintf(w, "        %s\n", d)
			}
		}
	}
	if bad > 0 {
		return exitCode(app.ExitFailed)
	}
	return nil
}

// outcome keeps to one line for each server, however much is wrong with it.
func outcome(what string, err error, done ...string) found {
	f := found{What: what, OK: err == nil, Done: done}
	if err != nil {
		f.Error = strings.ReplaceAll(err.Error(), "\n", "; ") // joined errors stand on lines of their own
	}
	return f
}

// loadConfig reads a configuration with its secrets.
func loadConfig(path string, secrets bool) (app.Config, error) {
	c, err := app.Load(path, os.LookupEnv)
	if err != nil {
		return c, err
	}
	if !secrets {
		return c, nil
	}
	c, err = c.WithSecrets()
	if err != nil {
		return c, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

func newCheck() *cobra.Command {
	var config string
	var offline bool
	var o output
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and reach every server that it names",
		Long: `Check the configuration, then reach Kafka and each sink: log in, verify topics and tables, write and read a probe row;
and the broker that the replayer publishes to, with its HTTP API where there is one: log in. One line for each says what is wrong
and what to do. --offline checks the configuration only and prints it with all its defaults, secrets masked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			c, err := loadConfig(config, !offline)
			if err != nil {
				return err
			}
			for _, w := range c.Warnings() {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			if offline {
				if o == "json" {
					return printJSON(cmd.OutOrStdout(), []found{outcome("configuration", nil)})
				}
				if err := c.Print(cmd.OutOrStdout()); err != nil {
					return err
				}
				return errors.Join(c.PrintRules(cmd.OutOrStdout()), c.PrintSight(cmd.OutOrStdout()))
			}
			return report(cmd.OutOrStdout(), o, checkServers(cmd.Context(), c))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&config, "config", "c", "restante.yaml", "configuration `file`")
	f.BoolVar(&offline, "offline", false, "check the configuration only, and print it")
	o.add(cmd)
	return cmd
}

// longestCheck bounds the check of one server.
const longestCheck = 30 * time.Second

func checkServers(ctx context.Context, c app.Config) []found {
	all := []found{outcome("configuration", nil)}
	if len(c.Kafka.Brokers) > 0 {
		all = append(all, outcome("kafka "+strings.Join(c.Kafka.Brokers, ","), checkKafka(ctx, c)))
	} else {
		all = append(all, outcome("kafka", errors.New("kafka.brokers is empty: name the brokers (restante up brings its own)")))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sinks)) {
		all = append(all, checkSink(ctx, c, name)...)
	}
	if len(c.Delivery.MQTT.URL) > 0 {
		all = append(all, outcome("mqtt "+strings.Join(c.Delivery.MQTT.URL, ","), app.CheckDelivery(ctx, c)))
	}
	if a := c.Delivery.API; a.Type != "" {
		all = append(all, outcome("delivery.api "+a.URL, app.CheckAPI(ctx, c)))
	}
	return all
}

func checkKafka(ctx context.Context, c app.Config) error {
	ctx, cancel := context.WithTimeout(ctx, longestCheck)
	defer cancel()
	k, err := app.OpenKafka(ctx, c, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.Ping(ctx); err != nil {
		return err
	}
	return k.Verify(ctx, c.Specs())
}

func checkSink(ctx context.Context, c app.Config, name string) []found {
	ctx, cancel := context.WithTimeout(ctx, longestCheck)
	defer cancel()
	var all []found
	for _, t := range c.TestSink(ctx, name) {
		what := "sink " + name
		if t.Server != "" {
			what += ", server " + t.Server
		}
		all = append(all, outcome(what, t.Err, t.Notes...))
	}
	return all
}
