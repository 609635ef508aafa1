package app

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// Process is what a command's run is given.
type Process struct {
	Component string
	Config    Config // valid for the component, secrets read
	Sinks     []string
	Log       *slog.Logger
	Registry  *prometheus.Registry
	Health    *Health
	AdminAddr string // where the admin server listens, "" = there is none
}

// Run is the work of a command. It takes no more when ctx ends, finishes what it holds while work lasts, and returns nil when
// nothing is left unfinished.
type Run func(ctx, work context.Context, p *Process) error

// Main runs the command of a component with the program's flags, environment and signals, and returns its exit code.
func Main(component string, run Run) int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	return Program{
		Component: component, Run: run, Args: os.Args[1:], Env: os.LookupEnv,
		Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals,
	}.Main()
}

// Program is [Main] with everything of the outside handed in.
type Program struct {
	Component      string // one of the process names of [Config.For]
	Run            Run
	Args           []string
	Env            func(string) (string, bool)
	Stdout, Stderr io.Writer
	Signals        <-chan os.Signal
}

type flags struct {
	config  string
	sinks   sinkList
	check   bool
	version bool
}

// sinkList is a flag that may be given several times, or once with commas.
type sinkList []string

func (s *sinkList) String() string { return strings.Join(*s, ",") }

func (s *sinkList) Set(text string) error {
	for name := range strings.SplitSeq(text, ",") {
		if name = strings.TrimSpace(name); name == "" {
			return errors.New("a name is empty")
		}
		if !slices.Contains(*s, name) {
			*s = append(*s, name)
		}
	}
	return nil
}

var purposes = map[string]string{
	ProcessIngest:   "takes MQTT events from the sources and produces them to Kafka.",
	ProcessWriter:   "consumes Kafka and writes to the sinks.",
	ProcessReplayer: "reacts to subscribes: fetches stored messages and hands them over.",
}

const usageEnd = `
Signals: SIGTERM or SIGINT ends the process after it has finished what it holds (shutdown.drain); a second one ends it at once.
Exit codes: 0 done, or ended by a signal with everything finished; 1 failed; 2 wrong flags or configuration;
  3 ended before everything was finished: nothing is lost, the next owner does it again.
`

// parse returns the flags, or an exit code ≥ 0 when the command ends here.
func (p Program) parse() (flags, int) {
	var f flags
	fs := flag.NewFlagSet(p.Component, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&f.config, "config", "restante.yaml", "configuration `file`")
	fs.BoolVar(&f.check, "check", false, "check the configuration, print it with all defaults, and end")
	fs.BoolVar(&f.version, "version", false, "print the version and end")
	if p.Component == ProcessWriter {
		fs.Var(&f.sinks, "sink", "write to this sink only; several `names` with commas (default: all that rules use)")
	}
	usage := func(w io.Writer) {
		say(w, "Usage: %s [flags]\n\n%s %s\n\n", p.Component, p.Component, purposes[p.Component])
		fs.SetOutput(w)
		fs.PrintDefaults()
		say(w, "%s", usageEnd)
	}
	switch err := fs.Parse(p.Args); {
	case errors.Is(err, flag.ErrHelp):
		usage(p.Stdout)
		return f, ExitOK
	case err != nil:
		say(p.Stderr, "%s: %v: -help lists the flags\n", p.Component, err)
		return f, ExitUsage
	case fs.NArg() > 0:
		say(p.Stderr, "%s: argument %q is not understood: -help lists the flags\n", p.Component, fs.Arg(0))
		return f, ExitUsage
	}
	return f, -1
}

// Main runs the program and returns its exit code.
func (p Program) Main() int {
	f, code := p.parse()
	switch {
	case code >= 0:
		return code
	case f.version:
		say(p.Stdout, "restante %s %s\n", p.Component, ReadBuild())
		return ExitOK
	}
	c, sinks, err := p.load(f)
	if err != nil {
		PrintFaults(p.Stderr, p.Component, err)
		return ExitUsage
	}
	if f.check {
		return p.check(c)
	}
	if c, err = c.WithSecrets(); err != nil {
		PrintFaults(p.Stderr, p.Component, fmt.Errorf("config %s: %w", f.config, err))
		return ExitUsage
	}
	return p.serve(c, sinks)
}

// load reads the configuration and what the flags say of it.
func (p Program) load(f flags) (Config, []string, error) {
	c, err := Load(f.config, p.Env)
	if err != nil {
		return c, nil, err
	}
	if err := c.For(p.Component); err != nil {
		return c, nil, fmt.Errorf("config %s: %w", f.config, err)
	}
	sinks := c.UsedSinks()
	for _, name := range f.sinks {
		if !slices.Contains(sinks, name) {
			return c, nil, fmt.Errorf("flag -sink: no rule uses a sink %q: those used are %s", name, strings.Join(sinks, ", "))
		}
	}
	if len(f.sinks) > 0 {
		sinks = f.sinks
	}
	return c, sinks, nil
}

func (p Program) check(c Config) int {
	for _, w := range c.Warnings() {
		say(p.Stderr, "warning: %s\n", w)
	}
	if err := errors.Join(c.Print(p.Stdout), c.PrintRules(p.Stdout), c.PrintSight(p.Stdout)); err != nil {
		say(p.Stderr, "%v\n", err)
		return ExitFailed
	}
	return ExitOK
}

// serve runs the work between the start and the end of the admin server.
func (p Program) serve(c Config, sinks []string) int {
	return Serve(p.Component, c, sinks, p.Stderr, p.Signals, p.Run)
}

// Serve runs the work of a component between the start and the end of its admin server, and returns the exit code.
func Serve(component string, c Config, sinks []string, stderr io.Writer, signals <-chan os.Signal, run Run) int {
	log := NewLogger(stderr, component, c.Log.Level)
	health := NewHealth(c.Conditions(component, sinks)...)
	proc := &Process{
		Component: component, Config: c, Sinks: sinks, Log: log, Registry: NewRegistry(component, health), Health: health,
	}
	b := ReadBuild()
	log.Info("starting", "version", b.Version, "revision", b.Revision, "go", b.GoVersion)
	for _, w := range c.Warnings() {
		log.Warn("configuration", "warning", w)
	}
	if component == ProcessIngest || component == ProcessUp {
		for _, line := range c.Sight() {
			log.Info("sources do not tell all", "what", line)
		}
	}
	if c.Admin.Listen != "" {
		admin, err := StartAdmin(context.Background(), c.Admin, proc.Registry, proc.Health, log)
		if err != nil {
			log.Error("cannot start", "err", err)
			return ExitFailed
		}
		defer func() {
			if err := admin.Close(); err != nil {
				log.Warn("admin server ended badly", "err", err)
			}
		}()
		proc.AdminAddr = admin.Addr.String()
		log.Info("admin server listens", "addr", admin.Addr.String())
	}
	code := Life{Signals: signals, Drain: c.Shutdown.Drain, Health: proc.Health, Log: log}.Run(
		func(ctx, work context.Context) error { return run(ctx, work, proc) },
	)
	// Nobody scrapes a process that has ended, so the log has the figure too.
	log.Info("gone", "code", code, "undrained", undrained(proc.Registry))
	return code
}

const undrainedName = "restante_shutdown_undrained_messages_total"

// undrained is how many records were held and not committed when time ran out, by the metric that counts them.
func undrained(reg *prometheus.Registry) int {
	families, err := reg.Gather()
	if err != nil {
		return -1
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != undrainedName {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue()
		}
	}
	return int(sum)
}

// say writes for people; where nobody reads any more, nothing can be done about it.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

// PrintFaults writes an error for people: one fault a line.
func PrintFaults(w io.Writer, component string, err error) {
	var faults Faults
	if !errors.As(err, &faults) {
		say(w, "%s: %v\n", component, err)
		return
	}
	head := strings.TrimSuffix(strings.TrimSuffix(err.Error(), faults.Error()), ": ")
	things := "1 fault"
	if len(faults) != 1 {
		things = fmt.Sprintf("%d faults", len(faults))
	}
	say(w, "%s: %s: %s\n", component, head, things)
	for _, f := range faults {
		say(w, "  %s\n", f)
	}
}
