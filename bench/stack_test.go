package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/restante/restante/mqtt/device"
)

// patience is how long anything of the stack may take.
const patience = 2 * time.Minute

// stack is "restante up", a process of its own.
type stack struct {
	cmd      *exec.Cmd
	log      bytes.Buffer // valid once the process has ended
	mqtt     string
	database string
}

// startUp builds the command and starts it with empty data. It is stopped with the benchmark, and must then end well.
func startUp(b *testing.B) *stack {
	b.Helper()
	dir := b.TempDir()
	program := filepath.Join(dir, "restante")
	build := exec.CommandContext(b.Context(), "go", "build", "-o", program, "github.com/restante/restante/cmd/restante")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build restante: %v\n%s", err, out)
	}
	args := []string{"up", "-o", "json", "--listen", "127.0.0.1:0", "--data", filepath.Join(dir, "data")}
	if config := os.Getenv("RESTANTE_BENCH_CONFIG"); config != "" {
		args = append(args, "-c", config)
	}
	s := &stack{cmd: exec.CommandContext(context.WithoutCancel(b.Context()), program, args...)}
	s.cmd.Stderr = &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.stop(b, out) })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		b.Fatalf("restante up printed no addresses: %v", err)
	}
	var at struct{ MQTT, Database map[string]string }
	if err := json.Unmarshal(line, &at); err != nil {
		b.Fatal(err)
	}
	for _, s.mqtt = range at.MQTT {
	}
	for _, s.database = range at.Database {
	}
	return s
}

func (s *stack) stop(b *testing.B, out io.Reader) {
	b.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		b.Error(err)
	}
	late := time.AfterFunc(patience, func() { _ = s.cmd.Process.Kill() }) // Wait says so
	defer late.Stop()
	_, _ = io.Copy(io.Discard, out) // ends with the process
	if err := s.cmd.Wait(); err != nil {
		b.Errorf("restante up: %v\n%s", err, s.log.Bytes())
	}
}

// memory reads a line of the process's status, in MB: VmRSS is what it has in memory now, VmHWM the most it ever had.
func (s *stack) memory(b *testing.B, name string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		b.Skipf("the memory of a process cannot be read here: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == name+":" {
			kb, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	b.Fatalf("the status has no %s", name)
	return 0
}

// connect connects a device. The caller closes it.
func (s *stack) connect(b *testing.B, id string) *device.Device {
	b.Helper()
	d, err := device.Connect(b.Context(), device.Options{Addr: s.mqtt, ClientID: id})
	if err != nil {
		b.Fatal(err)
	}
	return d
}
