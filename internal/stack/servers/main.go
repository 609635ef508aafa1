// Command servers starts Kafka, Cassandra and DynamoDB Local for tests and for work by hand.
//
// With a command it sets the addresses in its environment, runs it, stops the servers after it and ends with its exit code:
//
//	go run ./internal/stack/servers go test ./...
//
// Without one it prints the addresses and stays until it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/restante/restante/internal/stack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "servers: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run gives the exit code of the command, and what went wrong with the servers.
func run(ctx context.Context, args []string, out, notes io.Writer) (code int, err error) {
	flags := flag.NewFlagSet("servers", flag.ContinueOnError)
	flags.SetOutput(notes)
	only := flags.String("only", "kafka,cassandra,dynamodb", "the kinds to start, parted by commas")
	if err := flags.Parse(args); err != nil {
		return 2, err
	}
	kinds, err := parseKinds(*only)
	if err != nil {
		return 2, err
	}
	dir, err := os.MkdirTemp("", "restante-servers-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() { orphaned(ctx, cancel) })

	servers, err := startAll(ctx, dir, kinds, notes)
	defer func() { err = errors.Join(err, stopAll(servers)) }()
	if ctx.Err() != nil {
		return 130, nil // interrupted; what the servers say of it is no news
	}
	if err != nil {
		return 1, err
	}
	if command := flags.Args(); len(command) > 0 {
		return execute(ctx, command, servers)
	}
	show(out, servers)
	<-ctx.Done()
	fmt.Fprintln(notes, "stopping the servers")
	return 0, nil
}

func parseKinds(text string) ([]stack.Kind, error) {
	var kinds []stack.Kind
	for name := range strings.SplitSeq(text, ",") {
		i := slices.IndexFunc(all, func(k stack.Kind) bool { return k.String() == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("parse -only: %q is none of kafka, cassandra, dynamodb", name)
		}
		kinds = append(kinds, all[i])
	}
	return kinds, nil
}

//nolint:gochecknoglobals // never written
var all = []stack.Kind{stack.Kafka, stack.Cassandra, stack.DynamoDB}

// orphaned ends ctx when the process that started this one is gone, as when make is killed.
func orphaned(ctx context.Context, cancel context.CancelCauseFunc) {
	parent := os.Getppid()
	for os.Getppid() == parent {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
	cancel(errors.New("the process that started this one is gone"))
}

// startAll starts what the environment does not name already. The servers that were started are given with an error too.
func startAll(ctx context.Context, dir string, kinds []stack.Kind, notes io.Writer) ([]*stack.Server, error) {
	var mu sync.Mutex
	var started []*stack.Server
	errs := make([]error, len(kinds))
	var wg sync.WaitGroup
	begun := time.Now()
	for i, kind := range kinds {
		if address := os.Getenv(kind.Env()); address != "" {
			fmt.Fprintf(notes, "servers: %s is given: %s\n", kind, address)
			continue
		}
		wg.Go(func() {
			servers, err := stack.Start(ctx, stack.Config{Kind: kind, Dir: dir, Fast: true})
			if err != nil {
				errs[i] = err
				return
			}
			mu.Lock()
			defer mu.Unlock()
			started = append(started, servers...)
			fmt.Fprintf(notes, "servers: %s serves on %s after %v, log %s\n",
				kind, servers[0].Address(), time.Since(begun).Round(100*time.Millisecond), servers[0].Log())
		})
	}
	wg.Wait()
	return started, errors.Join(errs...)
}

// stopAll ends the servers, and tells of those that had ended before. What they hold is thrown away, so it need not take its time.
func stopAll(servers []*stack.Server) error {
	var errs []error
	for _, s := range servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// execute runs the command with the addresses in its environment. An interrupt is handed on to it.
func execute(ctx context.Context, command []string, servers []*stack.Server) (int, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // it is what the caller asks for
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = os.Environ()
	for _, s := range servers {
		cmd.Env = append(cmd.Env, s.Kind().Env()+"="+s.Address())
	}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, fmt.Errorf("run %s: %w", filepath.Base(command[0]), err)
	}
	return 0, nil
}

func show(out io.Writer, servers []*stack.Server) {
	slices.SortFunc(servers, func(a, b *stack.Server) int { return int(a.Kind()) - int(b.Kind()) })
	fmt.Fprintln(out)
	for _, s := range servers {
		fmt.Fprintf(out, "export %s=%s\n", s.Kind().Env(), s.Address())
	}
	fmt.Fprintln(out, "\n# In another terminal, after these lines:")
	for _, s := range servers {
		switch s.Kind() {
		case stack.Kafka:
			fmt.Fprintln(out, "go test ./pipeline/kafkalog/...")
		case stack.Cassandra:
			fmt.Fprintf(out, "go test ./sinks/cassandra/...   # user %s, password %s\n", stack.User, stack.Password)
		case stack.DynamoDB:
			fmt.Fprintln(out, "go test ./sinks/dynamodb/...    # any region, any access key of letters and digits")
		case stack.HiveMQ: // tests start their own
		}
	}
	for _, s := range servers {
		fmt.Fprintf(out, "tail -f %s\n", s.Log())
	}
	fmt.Fprintln(out, "\n# Ctrl-C here stops them; what they hold is gone then.")
}
