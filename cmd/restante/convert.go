package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/app/convert"
)

// conversion are the flags of convert.
type conversion struct {
	write, env, kafka, broker, source string
	output                            output
}

// converted is what convert says with -o json.
type converted struct {
	Config    string         `json:"config,omitempty"` // when it was not written to a file
	Written   []string       `json:"written,omitempty"`
	Variables []string       `json:"variables"` // that the configuration names
	Lines     []convert.Line `json:"lines"`
}

func newConvert() *cobra.Command {
	var o conversion
	cmd := &cobra.Command{
		Use:   "convert FILE",
		Short: "Make a configuration of EMQX's emqx_backend_dynamo.conf",
		Long: `Make a configuration of the conf file of EMQX's DynamoDB backend plugin, emqx_backend_dynamo.conf. Pools become sinks, hooks
become rules, and every line of the file is accounted for: it stands in the result with its number, as a setting or, with the
reason, as a comment. What could not be carried over whole is listed on stderr too; -o json lists each line.

Credentials are never in the result: it names environment variables, and with -w (or --env) a file of mode 0600 is written that
sets them, with a new key that marks replays. What the file does not tell are the addresses of Kafka and of the MQTT broker, and
the way to the broker's events: --source rules (EMQX's rule engine republishes them) or exhook (EMQX calls ingest).

Exit codes: 0 a configuration was made that "restante check --offline" accepts, even when lines could not be carried over;
1 a file could not be read or written (none that exists is overwritten); 2 wrong flags, or the file is malformed: each fault is
named with its line.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return o.run(args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.write, "write", "w", "", "write the configuration to this `file` and not to stdout")
	f.StringVar(&o.env, "env", "", "write the credentials to this `file` (with -w the same name that ends in .env)")
	f.StringVar(&o.kafka, "kafka", "localhost:9092", "Kafka's brokers, `host:port` with commas between")
	f.StringVar(&o.broker, "broker", "mqtt://localhost:1883", "`URL` of the MQTT broker")
	f.StringVar(&o.source, "source", "rules", "the `way` to the broker's events: rules or exhook")
	o.output.add(cmd)
	return cmd
}

func (o *conversion) check() error {
	if o.source != "rules" && o.source != "exhook" {
		return &usageError{fmt.Errorf("--source %q: want rules or exhook", o.source)}
	}
	if o.write != "" && o.env == "" {
		o.env = strings.TrimSuffix(o.write, filepath.Ext(o.write)) + ".env"
	}
	if o.write != "" && o.env == o.write {
		return &usageError{errors.New("-w and --env name the same file")}
	}
	return o.output.check()
}

func (o *conversion) run(file string, stdout, stderr io.Writer) error {
	conf, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return fmt.Errorf("read conf: %w", err)
	}
	r, err := convert.Dynamo(conf, convert.Options{
		Name: filepath.Base(file), Kafka: strings.Split(o.kafka, ","), Broker: o.broker, Source: o.source, Secret: app.Secret(rand.Text()),
	})
	if err != nil {
		return fmt.Errorf("conf %s: %w", file, err)
	}
	written, err := o.save(r)
	if err != nil {
		return err
	}
	if o.output == "json" {
		out := converted{Written: written, Lines: r.Lines}
		for _, v := range r.Env {
			out.Variables = append(out.Variables, v.Name)
		}
		if o.write == "" {
			out.Config = string(r.YAML)
		}
		return printJSON(stdout, out)
	}
	if o.write == "" {
		if _, err := stdout.Write(r.YAML); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	o.report(stderr, file, r)
	return nil
}

// save writes the files that the flags name, or none of them.
func (o *conversion) save(r convert.Result) (written []string, err error) {
	defer func() {
		if err != nil {
			for _, name := range written {
				_ = os.Remove(name) // it was made a moment ago
			}
		}
	}()
	save := func(name string, mode fs.FileMode, data []byte) error {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) //nolint:gosec // the operator names the file
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("write %s: it exists already: remove it, or name another file", name)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		written = append(written, name)
		_, err = f.Write(data)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	}
	if o.env != "" {
		if err := save(o.env, 0o600, o.credentials(r)); err != nil {
			return written, err
		}
	}
	if o.write != "" {
		if err := save(o.write, 0o644, r.YAML); err != nil {
			return written, err
		}
	}
	return written, nil
}

// credentials is the text of the env file: a shell, systemd and containers read it.
func (o *conversion) credentials(r convert.Result) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# The credentials that the configuration names. For a shell: %s\n", sourcing(o.env))
	for _, v := range r.Env {
		fmt.Fprintf(&b, "%s=%s\n", v.Name, shellWord(v.Value.Reveal()))
	}
	return []byte(b.String())
}

// sourcing is the command by which a shell takes the file in.
func sourcing(file string) string {
	if !strings.ContainsRune(file, filepath.Separator) {
		file = "./" + file
	}
	return "set -a; . " + shellWord(file) + "; set +a"
}

// shellWord quotes what a shell would change. AWS's keys need no quotes.
func shellWord(s string) string {
	plain := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/+=_.:@-", r)
	}) < 0
	if plain && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// report says what became of the lines, and what is to be done next.
func (o *conversion) report(w io.Writer, file string, r convert.Result) {
	count := map[convert.State]int{}
	settings := 0
	for _, l := range r.Lines {
		if l.State != convert.Blank && l.State != convert.Comment {
			settings++
			count[l.State]++
		}
	}
	fmt.Fprintf(w, "%s: %d lines, %d settings:", file, len(r.Lines), settings)
	sep := " "
	for _, s := range []convert.State{convert.Translated, convert.Partly, convert.Later, convert.Refused, convert.Unknown, convert.Replaced} {
		if count[s] > 0 {
			fmt.Fprintf(w, "%s%d %s", sep, count[s], s)
			sep = ", "
		}
	}
	fmt.Fprintln(w)
	for _, l := range r.Lines {
		if l.Why != "" {
			fmt.Fprintf(w, "  line %d, %s: %s: %s\n", l.Number, l.State, l.Key, l.Why)
		}
	}
	name := o.write
	if name == "" {
		name = "restante.yaml"
	}
	if o.env == "" {
		names := make([]string, len(r.Env))
		for i, v := range r.Env {
			names[i] = v.Name
		}
		fmt.Fprintf(w, "credentials: set %s; --env FILE writes them to a file\n", strings.Join(names, ", "))
		fmt.Fprintf(w, "next: the addresses of Kafka and the broker; then restante check --offline -c %s\n", name)
		return
	}
	fmt.Fprintf(w, "credentials: %s, of mode 0600\n", o.env)
	fmt.Fprintf(w, "next: the addresses of Kafka and the broker; then %s; restante check --offline -c %s\n", sourcing(o.env), name)
}
