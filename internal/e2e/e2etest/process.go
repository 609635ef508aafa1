package e2etest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// command is the environment variable that makes the test binary one of our commands.
const command = "RESTANTE_TEST_COMMAND"

// Main is the TestMain of a package whose tests start commands: the test binary itself, started again, so that the race
// detector is in them too. The tests are a *testing.M, or that with more to do around it.
func Main(m interface{ Run() int }, commands map[string]func() int) {
	name := os.Getenv(command)
	if name == "" {
		os.Exit(m.Run())
	}
	if run := commands[name]; run != nil {
		os.Exit(run())
	}
	panic("no command is called " + name)
}

// Process is a command that was started.
type Process struct {
	t     *testing.T
	name  string
	began time.Time
	cmd   *exec.Cmd
	ended chan struct{}

	out, log text
}

// text collects what a process writes.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (x *text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(p)
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// Start starts a command. It is killed, and waited for, at the end of the test at the latest.
func Start(t *testing.T, name string, args ...string) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), self, args...) //nolint:gosec // itself
	cmd.Env = append(os.Environ(), command+"="+name)
	return begin(t, name, args, cmd)
}

// StartFile starts a program of that file, as [Start] does.
func StartFile(t *testing.T, file string, args ...string) *Process {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), file, args...) //nolint:gosec // a program of ours
	return begin(t, filepath.Base(file), args, cmd)
}

func begin(t *testing.T, name string, args []string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{t: t, name: name, cmd: cmd, began: time.Now(), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.log
	p.cmd.WaitDelay = 30 * time.Second // a child of its own may hold the pipes
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { // ends with the process, which the cleanup waits for
		defer close(p.ended)
		_ = p.cmd.Wait() // the exit code is asked for
	}()
	t.Cleanup(func() {
		p.Kill()
		log := p.Log()
		if t.Failed() {
			t.Logf("%s %s ended with code %d and wrote:\n%s%s", name, strings.Join(args, " "), p.cmd.ProcessState.ExitCode(), p.Out(), tail(log, 60))
		}
		for _, bad := range []string{"DATA RACE", "panic: ", "goroutine 1 ["} {
			if strings.Contains(log, bad) {
				t.Errorf("%s wrote %q:\n%s", name, bad, log)
				break
			}
		}
	})
	return p
}

func tail(s string, lines int) string {
	all := strings.SplitAfter(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// Out and Log are what the process has written to stdout and stderr.
func (p *Process) Out() string { return p.out.String() }

// Log is what the process has written to stderr.
func (p *Process) Log() string { return p.log.String() }

// Age is how long ago it was started.
func (p *Process) Age() time.Duration { return time.Since(p.began) }

// Pid is its process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill is kill -9. It returns when the process is gone; it may have been before.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.ended
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %s: %v", p.name, err)
	}
}

// Stop is SIGTERM. It fails the test unless the process ends with code 0, which says that it was in time by its own configuration.
func (p *Process) Stop() {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	if code := p.Code(); code != 0 {
		p.t.Errorf("%s ended with code %d after SIGTERM, want 0", p.name, code)
	}
}

// Code waits for the end of the process and returns its exit code.
func (p *Process) Code() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Patience):
		p.Signal(syscall.SIGQUIT) // say where it hangs
		p.t.Fatalf("%s has not ended within %v", p.name, Patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// AwaitOut waits until stdout holds the text.
func (p *Process) AwaitOut(text string) {
	p.t.Helper()
	p.await("stdout", text, p.Out)
}

// AwaitLog waits until the log holds the text.
func (p *Process) AwaitLog(text string) {
	p.t.Helper()
	p.await("stderr", text, p.Log)
}

func (p *Process) await(where, text string, read func() string) {
	p.t.Helper()
	for until := time.Now().Add(Patience); !strings.Contains(read(), text); time.Sleep(20 * time.Millisecond) {
		if p.Ended() && !strings.Contains(read(), text) || time.Now().After(until) {
			p.t.Fatalf("%s has not written %q to %s within %v", p.name, text, where, Patience)
		}
	}
}

// Await waits until the condition holds.
func Await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for until := time.Now().Add(Patience); !holds(); time.Sleep(25 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("not within %v: %s", Patience, what)
		}
	}
}

// Listen listens on an address that was free.
func Listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
