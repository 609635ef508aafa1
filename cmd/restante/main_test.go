package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/restante/restante/internal/e2e/e2etest"
)

// The tests start this program as a process of its own: it is the test binary itself.
func TestMain(m *testing.M) {
	e2etest.Main(m, map[string]func() int{"restante": func() int { return run(os.Args[1:], os.Stdout, os.Stderr) }})
}

// call runs a command that ends by itself in this process.
func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "restante.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// stack is a running "restante up".
type stack struct {
	*e2etest.Process
	at stackAddresses
}

// startUp starts "restante up" on free ports and waits until it serves.
func startUp(t *testing.T, dir string, args ...string) stack {
	t.Helper()
	args = append([]string{"up", "-d", dir, "--listen", "127.0.0.1:0", "-o", "json"}, args...)
	s := stack{Process: e2etest.Start(t, "restante", args...)}
	s.AwaitOut("\n")
	if err := json.Unmarshal([]byte(s.Out()), &s.at); err != nil {
		t.Fatalf("%v: %s", err, s.Out())
	}
	return s
}

// wants fails unless the text holds every part.
func wants(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s lacks %q:\n%s", what, p, text)
		}
	}
}
