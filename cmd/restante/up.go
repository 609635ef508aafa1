package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/app/up"
)

func newUp(signals <-chan os.Signal) *cobra.Command {
	var config, dir, listen, kafka, admin string
	var o output
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process: MQTT broker, Kafka, SQLite, ingest, writer, replayer",
		Long: `Run everything in one process, with all its data in one directory.

What it has told a publisher is on disk, also after kill -9. It is meant for small installations, trials and tests: its Kafka
has one node. Without a configuration it keeps every message of QoS 1 and 2, for 7 days, and hands it to whoever subscribes to
its topic at QoS 1 or 2, wildcards included; the first ack removes it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			c := app.Default()
			if config != "" {
				var err error
				if c, err = app.Load(config, os.LookupEnv); err != nil {
					return err
				}
			}
			c = up.Defaults(c, dir, listen)
			c.Admin.Listen = admin
			if err := c.Validate(); err != nil {
				return err
			}
			if err := c.For(app.ProcessUp); err != nil {
				return err
			}
			c, err := c.WithSecrets()
			if err != nil {
				return err
			}
			code := app.Serve(app.ProcessUp, c, c.UsedSinks(), cmd.ErrOrStderr(), signals, func(ctx, work context.Context, p *app.Process) error {
				return up.Run(ctx, work, p, up.Options{Dir: dir, Kafka: kafka}, func(a up.Addresses) {
					if o == "json" {
						_ = printJSON(cmd.OutOrStdout(), stackAddresses{MQTT: a.MQTT, Kafka: a.Kafka, Database: a.Database, Data: a.Dir, Admin: p.AdminAddr}) // nobody may listen
						return
					}
					greet(cmd.OutOrStdout(), a, p)
				})
			})
			if code != app.ExitOK {
				return exitCode(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&config, "config", "c", "", "configuration `file`; without it everything is kept")
	f.StringVarP(&dir, "data", "d", "restante-data", "data `directory`")
	f.StringVar(&listen, "listen", "127.0.0.1:1883", "`address` of the MQTT broker when the configuration has no source; port 0 takes a free one")
	f.StringVar(&kafka, "kafka-listen", "127.0.0.1:0", "loopback `address` of the embedded Kafka; port 0 takes a free one")
	f.StringVar(&admin, "admin", "127.0.0.1:0", "`address` of /livez, /readyz and /metrics; empty = none")
	o.add(cmd)
	return cmd
}

// greet says where everything is, and what to try.
func greet(w io.Writer, a up.Addresses, p *app.Process) {
	fmt.Fprintln(w, "restante is up")
	for _, name := range slices.Sorted(maps.Keys(a.MQTT)) {
		fmt.Fprintf(w, "  mqtt      %s  (source %s)\n", a.MQTT[name], name)
	}
	fmt.Fprintf(w, "  kafka     %s  (topics %s.*)\n", a.Kafka, p.Config.Kafka.Names.Topics)
	for _, name := range slices.Sorted(maps.Keys(a.Database)) {
		fmt.Fprintf(w, "  database  %s  (sink %s)\n", a.Database[name], name)
	}
	fmt.Fprintf(w, "  data      %s\n", a.Dir)
	if p.AdminAddr != "" {
		fmt.Fprintf(w, "  admin     http://%s/metrics\n", p.AdminAddr)
	}
	for _, name := range slices.Sorted(maps.Keys(a.MQTT)) {
		host, port, err := net.SplitHostPort(a.MQTT[name])
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		fmt.Fprintf(w, "try, with nobody subscribed yet:\n  mosquitto_pub -h %s -p %s -q 1 -t t/1 -m hello\n  mosquitto_sub -h %s -p %s -q 1 -t t/1 -v\n", host, port, host, port)
		break
	}
}
