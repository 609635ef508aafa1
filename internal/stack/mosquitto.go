package stack

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/restante/restante/internal/stack/ports"
)

// Mosquitto starts the real broker for this test alone, as the system's package installs it, with the given lines of configuration
// beside its listener, and returns its address. It comes from no Maven repository: without it the test is skipped, or fails if
// RESTANTE_REQUIRE_MOSQUITTO is set.
func Mosquitto(tb testing.TB, conf string) string {
	tb.Helper()
	bin, err := exec.LookPath("mosquitto")
	if err != nil {
		bin = "/usr/sbin/mosquitto" // not always in a user's path
	}
	if _, err := os.Stat(bin); err != nil {
		if os.Getenv("RESTANTE_REQUIRE_MOSQUITTO") == "" {
			tb.Skip("no mosquitto on this machine: install it (apt-get install mosquitto) to test against a real broker")
		}
		tb.Fatalf("start mosquitto: %v: install it", err)
	}
	addr := ports.Addr(tb)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(tb.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\n%s\n", port, conf)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(tb.Context()))
	cmd := exec.CommandContext(ctx, bin, "-c", file) //nolint:gosec // the broker of this machine
	cmd.Dir = filepath.Dir(file)                     // what it keeps, it keeps there
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		stop()
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		stop()
		_ = cmd.Wait() // killed
	})
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = c.Close() // only whether it listens was asked
			return addr
		}
		if time.Now().After(until) {
			tb.Fatalf("mosquitto does not listen on %s: %v", addr, err)
		}
	}
}
