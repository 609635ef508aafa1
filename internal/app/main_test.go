package app

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const writerConfig = `
kafka: {brokers: "kafka:9092"}
sinks: {history: {type: sqlite, path: restante.db}, other: {type: sqlite, path: other.db}}
rules:
  - {topic: "t/#", action: save_offline_messages, sink: history}
  - {topic: "u/#", action: save_offline_messages, sink: other}
admin: {listen: "127.0.0.1:0"}
`

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "restante.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// ended is what a program leaves behind.
type ended struct {
	code        int
	out, errors string
}

func runProgram(t *testing.T, component string, run Run, signals chan os.Signal, args ...string) ended {
	t.Helper()
	var out, errs bytes.Buffer
	p := Program{Component: component, Run: run, Args: args, Env: noEnv, Stdout: &out, Stderr: &errs, Signals: signals}
	code := p.Main()
	return ended{code, out.String(), errs.String()}
}

func neverRun(context.Context, context.Context, *Process) error { panic("must not run") }

func TestFlagsDecideBeforeAnythingRuns(t *testing.T) {
	t.Parallel()
	good := writeFile(t, writerConfig)
	tests := map[string]struct {
		component string
		args      []string
		code      int
		out, errs []string
	}{
		"help goes to stdout": {
			ProcessWriter,
			[]string{"-help"},
			ExitOK,
			[]string{"Usage: writer", "-sink", "Exit codes"},
			nil,
		},
		"only the writer knows sinks":  {ProcessIngest, []string{"-sink", "x"}, ExitUsage, nil, []string{"-sink", "-help"}},
		"version":                      {ProcessWriter, []string{"-version"}, ExitOK, []string{"restante writer ", "go1."}, nil},
		"an unknown flag":              {ProcessWriter, []string{"-x"}, ExitUsage, nil, []string{"-help lists the flags"}},
		"an argument":                  {ProcessWriter, []string{"x"}, ExitUsage, nil, []string{`argument "x"`}},
		"an empty sink":                {ProcessWriter, []string{"-sink", "a,,b"}, ExitUsage, nil, []string{"a name is empty"}},
		"no file says what to do":      {ProcessWriter, []string{"-config", "/no/such"}, ExitUsage, nil, []string{"no file /no/such", "-config", "config.example.yaml"}},
		"an unknown sink":              {ProcessWriter, []string{"-config", good, "-sink", "nope"}, ExitUsage, nil, []string{`"nope"`, "history, other"}},
		"check prints the whole":       {ProcessWriter, []string{"-config", good, "-check"}, ExitOK, []string{"session_timeout: 30s", "# ", "on_message_publish", `"t/#"`}, nil},
		"another process needs others": {ProcessIngest, []string{"-config", good, "-check"}, ExitUsage, nil, []string{"1 fault", "sources: is empty"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := runProgram(t, tt.component, neverRun, nil, tt.args...)
			if got.code != tt.code {
				t.Errorf("got exit code %d, want %d; stderr: %s", got.code, tt.code, got.errors)
			}
			for _, want := range tt.out {
				if !strings.Contains(got.out, want) {
					t.Errorf("stdout misses %q:\n%s", want, got.out)
				}
			}
			for _, want := range tt.errs {
				if !strings.Contains(got.errors, want) {
					t.Errorf("stderr misses %q:\n%s", want, got.errors)
				}
			}
		})
	}
}

func TestRunIsGivenWhatTheFlagsSay(t *testing.T) {
	t.Parallel()
	file := writeFile(t, writerConfig)
	for name, tt := range map[string]struct {
		args []string
		want []string
	}{
		"all sinks by default": {nil, []string{"history", "other"}},
		"one sink":             {[]string{"-sink", "other"}, []string{"other"}},
		"two, one named twice": {[]string{"-sink", "other,history", "-sink", "other"}, []string{"other", "history"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sinks []string
			got := runProgram(t, ProcessWriter, func(_, _ context.Context, p *Process) error {
				sinks = p.Sinks
				p.Health.Set("group", true, "")
				return nil
			}, nil, append([]string{"-config", file}, tt.args...)...)
			if got.code != ExitOK || cmp.Diff(tt.want, sinks) != "" {
				t.Errorf("got exit code %d, sinks %q; want %q\n%s", got.code, sinks, tt.want, got.errors)
			}
		})
	}
}

func TestFailureEndsWithOneAndALogLine(t *testing.T) {
	t.Parallel()
	file := writeFile(t, writerConfig)
	for name, run := range map[string]Run{
		"an error": func(context.Context, context.Context, *Process) error { return errors.New("kafka: connection refused") },
		"a panic":  func(context.Context, context.Context, *Process) error { panic("kafka: connection refused") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := runProgram(t, ProcessWriter, run, nil, "-config", file)
			if got.code != ExitFailed || !strings.Contains(got.errors, "connection refused") {
				t.Errorf("got exit code %d and %s", got.code, got.errors)
			}
		})
	}
}

func TestSignalIsDrained(t *testing.T) {
	t.Parallel()
	file := writeFile(t, writerConfig)
	signals := make(chan os.Signal, 1)
	var ready bool
	got := runProgram(t, ProcessWriter, func(ctx, work context.Context, p *Process) error {
		p.Health.Set("group", true, "")
		signals <- syscall.SIGTERM
		<-ctx.Done()
		ready, _ = p.Health.Ready()
		return work.Err()
	}, signals, "-config", file)
	if got.code != ExitOK || ready {
		t.Errorf("got exit code %d, ready %v; want %d and not ready\n%s", got.code, ready, ExitOK, got.errors)
	}
}

func TestSecretFilesAreReadBeforeTheRun(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "password")
	text := writerConfig + "\ndelivery: {mqtt: {user: u, password_file: " + secret + "}}\n"
	file := writeFile(t, text)
	got := runProgram(t, ProcessWriter, neverRun, nil, "-config", file)
	if got.code != ExitUsage || !strings.Contains(got.errors, "delivery.mqtt.password_file: open ") {
		t.Errorf("missing file: got exit code %d\n%s", got.code, got.errors)
	}
	if got := runProgram(t, ProcessWriter, neverRun, nil, "-config", file, "-check"); got.code != ExitOK {
		t.Errorf("-check must not need the file: got exit code %d\n%s", got.code, got.errors)
	}
	if err := os.WriteFile(secret, []byte("pass word \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var read Secret
	got = runProgram(t, ProcessWriter, func(ctx, _ context.Context, p *Process) error {
		read = p.Config.Delivery.MQTT.Password
		p.Log.InfoContext(ctx, "config", "password", read, "all", p.Config)
		return nil
	}, nil, "-config", file)
	if got.code != ExitOK || read.Reveal() != "pass word " {
		t.Errorf("got exit code %d, password %q", got.code, read.Reveal())
	}
	if strings.Contains(got.errors, "pass word") {
		t.Errorf("the password is in the log:\n%s", got.errors)
	}
}

// life runs one life in a bubble and returns its exit code and how long it took.
func life(t *testing.T, drain time.Duration, signals []time.Duration, run func(ctx, work context.Context) error) (code int, took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan os.Signal)
		stop := make(chan struct{})
		go func() {
			began := time.Now()
			for _, at := range signals {
				time.Sleep(at - time.Since(began))
				select {
				case ch <- syscall.SIGTERM:
				case <-stop:
					return
				}
			}
		}()
		began := time.Now()
		l := Life{Signals: ch, Drain: drain, Health: NewHealth(), Log: NewLogger(t.Output(), "test", "debug")}
		code = l.Run(run)
		took = time.Since(began)
		close(stop)
		time.Sleep(time.Hour) // a run that was given up ends in the bubble, too
	})
	return code, took
}

func TestLifeEndsInTwoStages(t *testing.T) {
	t.Parallel()
	const s = time.Second
	unfinished := errors.New("3 records are still held")
	tests := map[string]struct {
		drain   time.Duration
		signals []time.Duration
		run     func(ctx, work context.Context) error
		code    int
		took    time.Duration
	}{
		"finished in time": {20 * s, []time.Duration{s}, func(ctx, work context.Context) error {
			<-ctx.Done()
			time.Sleep(5 * s)
			return work.Err()
		}, ExitOK, 6 * s},
		"the end of ctx is no failure": {20 * s, []time.Duration{s}, func(ctx, _ context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}, ExitOK, s},
		"a failure while draining": {20 * s, []time.Duration{s}, func(ctx, _ context.Context) error {
			<-ctx.Done()
			return unfinished
		}, ExitFailed, s},
		"out of time": {20 * s, []time.Duration{s}, func(_, work context.Context) error {
			<-work.Done()
			return unfinished
		}, ExitUndrained, 21 * s},
		"finished with the last second": {20 * s, []time.Duration{s}, func(_, work context.Context) error {
			<-work.Done()
			return nil
		}, ExitOK, 21 * s},
		"no drain": {0, []time.Duration{s}, func(_, work context.Context) error {
			<-work.Done()
			return unfinished
		}, ExitUndrained, s},
		"a run that hangs is left": {20 * s, []time.Duration{s}, func(_, _ context.Context) error {
			time.Sleep(time.Minute)
			return nil
		}, ExitUndrained, 24 * s},
		"a second signal ends at once": {20 * s, []time.Duration{s, 3 * s}, func(_, work context.Context) error {
			<-work.Done()
			return nil
		}, ExitUndrained, 3 * s},
		"a second signal after the drain": {s, []time.Duration{s, 3 * s}, func(_, _ context.Context) error {
			time.Sleep(time.Minute)
			return nil
		}, ExitUndrained, 3 * s},
		"no signal": {20 * s, nil, func(context.Context, context.Context) error { return nil }, ExitOK, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, took := life(t, tt.drain, tt.signals, tt.run)
			if code != tt.code || took != tt.took {
				t.Errorf("got exit code %d after %v, want %d after %v", code, took, tt.code, tt.took)
			}
		})
	}
}
