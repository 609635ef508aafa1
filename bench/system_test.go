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

// patience is how long anything of a system may take.
const patience = 2 * time.Minute

// system is what devices connect to: "restante up", or ingest, writer and replayer.
type system struct {
	up       *process // nil = it is three processes
	mqtt     string
	database string
}

// process is one of our commands.
type process struct {
	name string
	cmd  *exec.Cmd
	out  io.Reader
	log  bytes.Buffer // valid once the process has ended
}

// build builds a command of ours into a directory of the benchmark.
func build(b *testing.B, command string) (program string) {
	b.Helper()
	program = filepath.Join(b.TempDir(), command)
	cmd := exec.CommandContext(b.Context(), "go", "build", "-o", program, "github.com/restante/restante/cmd/"+command)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build %s: %v\n%s", command, err, out)
	}
	return program
}

// start starts a program. It is stopped with the benchmark, and must then end well.
func start(b *testing.B, program string, args ...string) *process {
	b.Helper()
	p := &process{name: filepath.Base(program), cmd: exec.CommandContext(context.WithoutCancel(b.Context()), program, args...)}
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p.out = out
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.stop(b) })
	return p
}

func (p *process) stop(b *testing.B) {
	b.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		b.Error(err)
	}
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() }) // Wait says so
	defer late.Stop()
	_, _ = io.Copy(io.Discard, p.out) // ends with the process
	if err := p.cmd.Wait(); err != nil {
		b.Errorf("%s: %v\n%s", p.name, err, p.log.Bytes())
	}
}

// startUp builds the command and starts it with empty data.
func startUp(b *testing.B) *system {
	b.Helper()
	args := []string{"up", "-o", "json", "--listen", "127.0.0.1:0", "--data", filepath.Join(b.TempDir(), "data")}
	if config := os.Getenv("RESTANTE_BENCH_CONFIG"); config != "" {
		args = append(args, "-c", config)
	}
	s := &system{up: start(b, build(b, "restante"), args...)}
	line, err := bufio.NewReader(s.up.out).ReadBytes('\n')
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

// memory reads a line of the process's status, in MB: VmRSS is what it has in memory now, VmHWM the most it ever had.
func (s *system) memory(b *testing.B, name string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.up.cmd.Process.Pid))
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
func (s *system) connect(b *testing.B, id string) *device.Device {
	b.Helper()
	d, err := device.Connect(b.Context(), device.Options{Addr: s.mqtt, ClientID: id})
	if err != nil {
		b.Fatal(err)
	}
	return d
}
