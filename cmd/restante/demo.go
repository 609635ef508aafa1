package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
)

func newDemo(signals <-chan os.Signal) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the main job with real MQTT clients, each step with what was seen",
		Long: `Show the main job: start everything on free loopback ports in a temporary directory, and tell the story of offline messages
with real MQTT clients over TCP. Each step says what was expected and what was seen. Exit code 1 when a step saw something else.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := interruptible(cmd.Context(), signals)
			defer cancel()
			const longest = 2 * time.Minute
			ctx, stop := context.WithTimeout(ctx, longest)
			defer stop()
			return demo(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr(), verbose)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the log of the stack")
	return cmd
}

// teller prints the story and checks it.
type teller struct {
	out   io.Writer
	steps int
	began time.Time
}

func (t *teller) step(format string, args ...any) {
	t.steps++
	fmt.Fprintf(t.out, "\n(%d) %s\n", t.steps, fmt.Sprintf(format, args...))
}

func (t *teller) saw(format string, args ...any) {
	fmt.Fprintf(t.out, "    %s\n", fmt.Sprintf(format, args...))
}

// mismatch is a step that saw something else than expected.
type mismatch struct {
	step           int
	expected, seen string
}

func (m *mismatch) Error() string {
	return fmt.Sprintf("step %d: expected %s, saw %s", m.step, m.expected, m.seen)
}

// expect fails unless ok.
func (t *teller) expect(ok bool, expected, format string, args ...any) error {
	seen := fmt.Sprintf(format, args...)
	if !ok {
		return &mismatch{t.steps, expected, seen}
	}
	t.saw("%s", seen)
	return nil
}

func demo(ctx context.Context, out, logs io.Writer, verbose bool) error {
	dir, err := os.MkdirTemp("", "restante-demo-")
	if err != nil {
		return fmt.Errorf("temporary directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // a leftover is only untidy
	if !verbose {
		logs = io.Discard
	}
	t := &teller{out: out, began: time.Now()}
	fmt.Fprintln(out, "restante demo: offline messages, told by real MQTT clients")
	s := &story{t: t, dir: dir, logs: logs}
	defer s.kill()
	if err := s.start(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "stack: mqtt %s, kafka %s, admin %s, data in %s\n", s.at.mqtt(), s.at.Kafka, s.at.Admin, dir)
	for _, tell := range []func(context.Context) error{
		s.publishToNobody, s.showRows, s.subscribe, s.rowsAreGone, s.wildcard, s.online, s.killed,
	} {
		if err := tell(ctx); err != nil {
			fmt.Fprintf(out, "\nFAILED: %v\n", err)
			return exitCode(app.ExitFailed)
		}
	}
	if err := s.stop(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\ndemo passed: %d of %d steps as expected, in %.1f s\n", t.steps, t.steps, time.Since(t.began).Seconds())
	return nil
}
