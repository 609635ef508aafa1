package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
)

// fates says of each what it means.
var fates = map[dead.Fate]string{
	dead.FateRedriven:  "in their topic again",
	dead.FateSame:      "of a record that is in its topic again, because another sink refused it too, or it was buried twice",
	dead.FateDropped:   "marked as dropped",
	dead.LeftMarked:    "redriven or dropped before: redrive --again takes them",
	dead.LeftMalformed: "still no event that this version can make out: they would come back",
	dead.LeftOversize:  "still over ingest.max_payload: raise it first",
	dead.LeftOld:       "of an event older than kafka.messages.retention, so that a store may have forgotten an ack: --old takes them, and what was acknowledged then comes once more",
	dead.LeftSession:   "of a session, which say what was true then: --sessions takes them",
	dead.LeftNowhere:   "without a topic of ours where they belong",
	dead.LeftRefused:   "refused by Kafka for good",
}

// moved is what redrive and drop print.
type moved struct {
	DryRun  bool              `json:"dry_run"`
	Letters map[dead.Fate]int `json:"letters"`
	Stopped string            `json:"stopped,omitempty"` // why it ended before all was done
}

// mover is what redrive and drop have in common.
type mover struct {
	office
	selection
	dry, each bool
}

func (m *mover) add(cmd *cobra.Command) {
	m.office.add(cmd)
	m.selection.add(cmd, "")
	cmd.Flags().BoolVar(&m.dry, "dry-run", false, "say what would be done and do nothing")
	cmd.Flags().BoolVarP(&m.each, "verbose", "v", false, "say it of each letter, on stderr")
}

// finishing is how long what is on its way may still be finished after a signal.
const finishing = 15 * time.Second

type work func(ctx, work context.Context, at *opened, p pipeline.Producer, told func(*dead.Letter, dead.Fate)) (dead.Tally, error)

// run opens the office, does the work, and reports it.
func (m *mover) run(cmd *cobra.Command, signals <-chan os.Signal, do work) error {
	at, err := m.open(cmd)
	if err != nil {
		return err
	}
	defer at.close()
	ctx, cancel := interruptible(cmd.Context(), signals)
	defer cancel()
	hard, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(finishing, end) })()
	var told func(*dead.Letter, dead.Fate)
	if m.each {
		told = func(l *dead.Letter, f dead.Fate) {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s %s: %s\n", l.At, f, printable(string(l.Record.Key), 200))
		}
	}
	p := at.producer()
	tally, err := do(ctx, hard, at, p, told)
	err = errors.Join(err, p.Close(hard))
	out := moved{DryRun: m.dry, Letters: map[dead.Fate]int(tally)}
	if err != nil {
		out.Stopped = err.Error()
	}
	if m.output == "json" {
		err = errors.Join(err, printJSON(cmd.OutOrStdout(), out))
	} else {
		out.print(cmd.OutOrStdout())
	}
	if ctx.Err() != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "restante: ended by a signal; begin again to go on")
		return exitCode(app.ExitUndrained)
	}
	return err
}

func (m *moved) print(w io.Writer) {
	total := 0
	for _, f := range dead.Fates {
		n := m.Letters[f]
		if total += n; n == 0 {
			continue
		}
		would := ""
		if m.DryRun && (f == dead.FateRedriven || f == dead.FateDropped) {
			would = "would be "
		}
		fmt.Fprintf(w, "%-15s %7d  %s%s\n", f, n, would, fates[f])
	}
	if total == 0 {
		fmt.Fprintln(w, "no letter matches")
	}
}

func newDeadRedrive(signals <-chan os.Signal) *cobra.Command {
	var m mover
	var all, again, old, sessions bool
	var pace float64
	cmd := &cobra.Command{
		Use:   "redrive [LETTER...]",
		Short: "Put dead letters back into the topics that they came from",
		Long: `Put dead letters back into the topics that they came from: key, value and headers as they were, in the partition of the key, with the
event's own time. Do it when the cause is gone. A letter is marked as redriven once its record is durable; marked ones are left
alone. Ended in the middle, by a signal or kill -9, it goes on where it was when it is called again: what is put back twice ends
in the same rows. A record that only one sink had refused goes to all sinks again, where it changes nothing.

Letters that would come back, or do harm, are left and counted with the reason.

Exit codes: 0 done; 1 failed; 2 wrong flags or configuration; 3 a signal ended it before all was done.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := m.output.check(); err != nil {
				return err
			}
			f, err := m.filter(&m.office, args)
			switch {
			case err != nil:
				return err
			case f.IsZero() && !all:
				return &usageError{errors.New("redrive needs a filter, names of letters, or --all")}
			case pace < 0:
				return &usageError{fmt.Errorf("--rate %v: want 0 or more", pace)}
			}
			return m.run(cmd, signals, func(ctx, work context.Context, at *opened, p pipeline.Producer, told func(*dead.Letter, dead.Fate)) (dead.Tally, error) {
				r := dead.Redrive{
					Filter: f, Producer: p, DryRun: m.dry, Again: again, Sessions: sessions, MaxPayload: int(at.config.Ingest.MaxPayload),
					MaxAge: at.config.Kafka.Messages.Retention, Rate: pace, Now: time.Now, Told: told,
				}
				if old {
					r.MaxAge = 0
				}
				return r.Run(ctx, work, at.box)
			})
		},
	}
	m.add(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&all, "all", false, "all letters, without a filter")
	fl.BoolVar(&again, "again", false, "also those that were redriven or dropped before")
	fl.BoolVar(&old, "old", false, "also those whose event is older than kafka.messages.retention")
	fl.BoolVar(&sessions, "sessions", false, "also events of sessions: a subscribe that is put back starts a replay now")
	fl.Float64Var(&pace, "rate", 0, "put back so many `letters` a second; 0 = as fast as Kafka takes them")
	return cmd
}

func newDeadDrop(signals <-chan os.Signal) *cobra.Command {
	var m mover
	var yes bool
	cmd := &cobra.Command{
		Use:   "drop [LETTER...]",
		Short: "Mark dead letters as not needed",
		Long: `Mark dead letters as not needed: list shows them as dropped, redrive leaves them alone. They stay in the topic until its retention
removes them. It needs a filter or the names of letters, and --yes.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := m.output.check(); err != nil {
				return err
			}
			f, err := m.filter(&m.office, args)
			switch {
			case err != nil:
				return err
			case f.IsZero():
				return &usageError{errors.New("drop needs a filter or the names of letters")}
			case !yes && !m.dry:
				return &usageError{errors.New("drop needs --yes; --dry-run says what it would drop")}
			}
			return m.run(cmd, signals, func(ctx, work context.Context, at *opened, p pipeline.Producer, told func(*dead.Letter, dead.Fate)) (dead.Tally, error) {
				d := dead.Drop{Filter: f, Producer: p, DryRun: m.dry, Now: time.Now, Told: told}
				return d.Run(ctx, work, at.box)
			})
		},
	}
	m.add(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
