package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// process is a child that dies with this process.
type process struct {
	pid    int
	exited chan struct{}
	err    error // how it ended; to be read after exited
}

// spawn starts the command with its output appended to the log.
func spawn(argv []string, dir, logPath string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", argv[0], err)
	}
	p := &process{exited: make(chan struct{})}
	started := make(chan error)
	// It ends with the child. The system sends the death signal when the thread that made the child ends, and Go ends threads: so this
	// one is kept until the child is gone.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec,noctx // a command line of ours, which outlives the call that starts it
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
		// A group of its own: Ctrl-C at a terminal reaches this process alone, which then stops the child in its own way.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		err := cmd.Start()
		_ = log.Close()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return p, nil
}

// signal does nothing to a process that has ended.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.exited:
		return nil
	default:
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", sig, p.pid, err)
	}
	return nil
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.exited
	return nil
}

// stop asks the process to end and waits until it is gone; when ctx ends first, it is killed.
func (p *process) stop(ctx context.Context) error {
	// A paused process hears nothing but the signal to go on.
	if err := errors.Join(p.signal(syscall.SIGTERM), p.signal(syscall.SIGCONT)); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop process %d: %w: it was killed", p.pid, ctx.Err()), p.kill())
	}
}

// run starts the command, waits for its end and gives the end of its log with its error. When ctx ends it is killed.
func run(ctx context.Context, argv []string, dir, logPath string) error {
	p, err := spawn(argv, dir, logPath)
	if err != nil {
		return err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("run %s: %w", argv[0], ctx.Err()), p.kill())
	}
	if p.err != nil {
		return fmt.Errorf("run %s: %w\n%s", argv[0], p.err, tail(logPath))
	}
	return nil
}

// tailBytes is how much of a log an error shows.
const tailBytes = 6000

// tail gives the end of a log, headed by its path.
func tail(path string) string {
	head := "the end of " + path + ":\n"
	file, err := os.Open(path) //nolint:gosec // a path of ours
	if err != nil {
		return head + err.Error()
	}
	defer func() { _ = file.Close() }()
	cut := false
	if info, err := file.Stat(); err == nil && info.Size() > tailBytes {
		_, err = file.Seek(-tailBytes, io.SeekEnd)
		cut = err == nil
	}
	text, err := io.ReadAll(io.LimitReader(file, tailBytes))
	if err != nil {
		return head + err.Error()
	}
	lines := string(text)
	if _, rest, ok := strings.Cut(lines, "\n"); cut && ok {
		lines = rest
	}
	return head + strings.TrimSpace(lines)
}
