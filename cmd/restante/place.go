package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/app/up"
	"github.com/restante/restante/pipeline/kafkalog"
)

// place is where the data is that a command works on: that of a configuration, or of a running restante up.
type place struct{ config, up, data string }

func (p *place) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&p.config, "config", "c", "", "configuration `file` (restante.yaml; with --up none)")
	f.StringVar(&p.up, "up", "", "`address` of the Kafka of a running restante up, as it says when it starts")
	f.StringVarP(&p.data, "data", "d", "restante-data", "data `directory` of that restante up")
}

// load reads the configuration with its secrets.
func (p *place) load() (app.Config, error) {
	if p.up == "" {
		file := p.config
		if file == "" {
			file = "restante.yaml"
		}
		c, err := loadConfig(file, true)
		if err == nil && len(c.Kafka.Brokers) == 0 {
			err = &usageError{errors.New("kafka.brokers is empty: name the brokers, or a running restante up by --up")}
		}
		return c, err
	}
	c := app.Default()
	if p.config != "" {
		var err error
		if c, err = app.Load(p.config, os.LookupEnv); err != nil {
			return c, err
		}
	}
	c = up.Defaults(c, p.data, "127.0.0.1:0")
	c.Kafka.Brokers = app.Addresses{p.up}
	if err := c.Validate(); err != nil {
		return c, err
	}
	return c.WithSecrets()
}

// openKafka connects to the cluster and sees that it answers and has the topics.
func openKafka(cmd *cobra.Command, c app.Config) (*kafkalog.Client, error) {
	level := slog.LevelWarn.String()
	k, err := app.OpenKafka(cmd.Context(), c, prometheus.NewRegistry(), app.NewLogger(cmd.ErrOrStderr(), "restante", level))
	if err != nil {
		return nil, err
	}
	if err := k.Verify(cmd.Context(), c.Specs()); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// parseWhen reads a time: RFC 3339, or how long ago.
func parseWhen(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	d, err := app.ParseDuration(text)
	if err != nil || d < 0 {
		return time.Time{}, &usageError{fmt.Errorf("--%s %q: want a time such as 2026-01-31T12:00:00Z, or how long ago, such as 2h or 3d", flag, text)}
	}
	return now.Add(-d), nil
}
