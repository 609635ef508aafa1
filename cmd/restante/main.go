// Restante keeps MQTT messages for clients that are offline. This command runs everything in one process, shows the main job,
// and checks and prepares what the separate processes need.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its surroundings handed in; it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	root := newRoot(signals)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	var code exitCode
	switch {
	case err == nil:
		return app.ExitOK
	case errors.As(err, &code):
		return int(code)
	}
	app.PrintFaults(stderr, "restante", err)
	var faults app.Faults
	var usage *usageError
	if errors.As(err, &faults) || errors.As(err, &usage) {
		return app.ExitUsage
	}
	return app.ExitFailed
}

// exitCode ends the program without another word: what was to be said is said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a command line that is wrong.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() + ": --help lists the flags" }
func (e *usageError) Unwrap() error { return e.err }

const longHelp = `Restante: offline messages for MQTT.

Messages for clients that are offline are kept in a store of your own, and handed over when the client subscribes again.
"restante up" runs everything in one process. For production the commands ingest, writer and replayer work beside the broker,
Kafka and store that you have.

Exit codes: 0 done; 1 failed; 2 wrong flags or configuration; 3 ended before everything was finished (nothing is lost).`

func newRoot(signals <-chan os.Signal) *cobra.Command {
	root := &cobra.Command{
		Use: "restante", Short: "Offline messages for MQTT", Long: longHelp, SilenceErrors: true, SilenceUsage: true,
		Version: app.ReadBuild().String(), Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(newUp(signals), newDemo(signals), newCheck(), newMigrate(), newConvert(), newDead(signals), newAudit(signals),
		newExplain(signals), newTrace(signals), newInspect(signals), newRoundtrip(signals))
	explainArgs(root)
	return root
}

// explainArgs has wrong arguments explained as wrong flags are, for a command and all below it.
func explainArgs(root *cobra.Command) {
	for _, c := range root.Commands() {
		explainArgs(c)
	}
	check := root.Args
	root.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}

// interruptible ends the context at the first signal.
func interruptible(parent context.Context, signals <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	go func() { // ends with ctx
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
