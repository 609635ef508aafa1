package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/internal/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// needJava skips as the tests on servers do.
func needJava(t *testing.T) {
	t.Helper()
	for _, name := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(name); err != nil && os.Getenv(stack.RequireEnv) == "" {
			t.Skip(err)
		}
	}
	t.Setenv(stack.DynamoDB.Env(), "") // as "make test" sets it
}

func TestACommandGetsTheAddressesAndItsExitCodeIsGiven(t *testing.T) {
	needJava(t)
	var notes bytes.Buffer
	script := `case "$RESTANTE_TEST_DYNAMODB" in http://127.0.0.1:*) exit 7;; esac; exit 1`
	code, err := run(t.Context(), []string{"-only", "dynamodb", "sh", "-c", script}, io.Discard, &notes)
	if err != nil || code != 7 {
		t.Errorf("got code %d, %v, want 7:\n%s", code, err, notes.String())
	}
	if !strings.Contains(notes.String(), "dynamodb serves on http://127.0.0.1:") {
		t.Errorf("it says %s", notes.String())
	}
}

func TestItStaysUntilItIsInterruptedAndStopsTheServers(t *testing.T) {
	needJava(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	r, w := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		code, err := run(ctx, []string{"-only", "dynamodb"}, w, io.Discard)
		if code != 0 || err != nil {
			t.Errorf("got code %d, %v", code, err)
		}
		_ = w.Close()
	})
	var out strings.Builder
	buf := make([]byte, 1024)
	for !strings.Contains(out.String(), "Ctrl-C") {
		n, err := r.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			t.Fatalf("it ended: %v\n%s", err, out.String())
		}
	}
	_, rest, found := strings.Cut(out.String(), "export RESTANTE_TEST_DYNAMODB=")
	address, _, _ := strings.Cut(rest, "\n")
	if !found {
		t.Fatalf("no line to export:\n%s", out.String())
	}
	if err := stack.Ping(t.Context(), stack.DynamoDB, address); err != nil {
		t.Error(err)
	}
	interrupt()
	_, _ = io.Copy(io.Discard, r)
	wg.Wait()
	after, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := stack.Ping(after, stack.DynamoDB, address); err == nil {
		t.Errorf("%s answers still", address)
	}
}

func TestAKindThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	if code, err := run(t.Context(), []string{"-only", "kafka,redis"}, io.Discard, io.Discard); code != 2 || err == nil || !strings.Contains(err.Error(), `"redis"`) {
		t.Errorf("got code %d, %v", code, err)
	}
}

func TestAServerThatIsGivenIsNotStarted(t *testing.T) {
	t.Setenv(stack.DynamoDB.Env(), "http://127.0.0.1:1")
	code, err := run(t.Context(), []string{"-only", "dynamodb", "sh", "-c", `test "$RESTANTE_TEST_DYNAMODB" = http://127.0.0.1:1`}, io.Discard, io.Discard)
	if code != 0 || err != nil {
		t.Errorf("got code %d, %v", code, err)
	}
}
