package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"
)

// The exit codes of all commands.
const (
	// ExitOK: the work is done, or was ended by a signal with everything finished.
	ExitOK = 0
	// ExitFailed: the process could not work or go on.
	ExitFailed = 1
	// ExitUsage: the flags or the configuration are wrong; nothing was begun.
	ExitUsage = 2
	// ExitUndrained: a signal ended the process before all it held was finished. Nothing is lost: it is done again by the next owner.
	ExitUndrained = 3
)

var (
	errSignal    = errors.New("a signal asked the process to end")
	errDrainOver = errors.New("the drain time is over")
)

// Life runs a process from its start to its exit code.
type Life struct {
	// Signals end the process: the first begins the drain, the second ends it at once.
	Signals <-chan os.Signal
	// Drain is how long work goes on after the first signal.
	Drain time.Duration
	// Health is told when the drain begins.
	Health *Health
	Log    *slog.Logger
}

// grace is what a run has to return in after its work context has ended.
const grace = 3 * time.Second

// Run calls run with two contexts: ctx ends at the first signal (take no more), work ends with the drain time (what is not
// finished stays unfinished). It returns the exit code. When run does not return although work has ended, or at a second
// signal, it is not waited for: the process must end.
func (l Life) Run(run func(ctx, work context.Context) error) int {
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	work, end := context.WithCancelCause(context.Background())
	defer end(nil)
	done := make(chan error, 1)
	go func() { // ends with run; the process ends with it
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		done <- run(ctx, work)
	}()
	var drain, kill <-chan time.Time
	var began time.Time
	for {
		select {
		case err := <-done:
			return l.exit(err, began, work)
		case s := <-l.Signals:
			if drain != nil {
				l.Log.WarnContext(work, "second signal, ending at once", "signal", s.String())
				return ExitUndrained
			}
			l.Log.InfoContext(work, "signal, finishing what is held", "signal", s.String(), "drain", l.Drain.String())
			began = time.Now()
			l.Health.Drain()
			stop(errSignal)
			drain = time.After(l.Drain)
		case <-drain:
			end(errDrainOver)
			kill = time.After(grace)
			drain = make(chan time.Time) // the time is over, and the drain still counts as begun
		case <-kill:
			l.Log.ErrorContext(work, "ended without finishing: the run does not return", "after", time.Since(began).String())
			return ExitUndrained
		}
	}
}

func (l Life) exit(err error, began time.Time, work context.Context) int {
	asked := !began.IsZero()
	over := context.Cause(work) != nil
	switch {
	case err == nil && !asked:
		l.Log.InfoContext(work, "done")
		return ExitOK
	case err == nil, asked && !over && (errors.Is(err, context.Canceled) || errors.Is(err, errSignal)):
		l.Log.InfoContext(work, "ended, everything finished", "drained_in", time.Since(began).String())
		return ExitOK
	case asked && over:
		l.Log.ErrorContext(work, "ended before everything was finished", "after", time.Since(began).String(), "err", err)
		return ExitUndrained
	}
	l.Log.ErrorContext(work, "ended by an error", "err", err)
	return ExitFailed
}
