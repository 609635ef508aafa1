package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/restante/restante/internal/e2e/e2etest"
)

func TestDemoPasses(t *testing.T) {
	t.Parallel()
	p := e2etest.Start(t, "restante", "demo")
	if code := p.Code(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	for step := 1; step <= 7; step++ {
		wants(t, "demo", p.Out(), "\n("+strconv.Itoa(step)+") ")
	}
	lines := strings.Split(strings.TrimSpace(p.Out()), "\n")
	if last := lines[len(lines)-1]; !regexp.MustCompile(`^demo passed: 7 of 7 steps as expected, in \d+\.\d s$`).MatchString(last) {
		t.Errorf("last line is %q", last)
	}
	dir := regexp.MustCompile(`data in (\S+)`).FindStringSubmatch(p.Out())
	if dir == nil {
		t.Fatalf("the data directory is not named:\n%s", p.Out())
	}
	if _, err := os.Stat(dir[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory is left behind: %v", err)
	}
}

// The stack under the demo is killed: the step under way must fail, and be said to.
func TestDemoFailsWhenAStepDoes(t *testing.T) {
	t.Parallel()
	p := e2etest.Start(t, "restante", "demo")
	p.AwaitOut("\n(2) ")
	dir := regexp.MustCompile(`data in (\S+)`).FindStringSubmatch(p.Out())
	b, err := os.ReadFile(filepath.Join(dir[1], "restante.lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := p.Code(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	wants(t, "demo", p.Out(), "\nFAILED: ")
	if strings.Contains(p.Out(), "demo passed") {
		t.Error("it says that it passed")
	}
}

func TestAStepThatSeesSomethingElseSaysWhatWasExpected(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	tell := &teller{out: &out}
	tell.step("the first")
	tell.step("the %s", "second")
	if err := tell.expect(true, "3 rows", "%d rows", 3); err != nil {
		t.Errorf("as expected: %v", err)
	}
	err := tell.expect(false, "3 rows", "%d rows", 2)
	if err == nil || err.Error() != "step 2: expected 3 rows, saw 2 rows" {
		t.Errorf("got %v", err)
	}
	if want := "\n(1) the first\n\n(2) the second\n    3 rows\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}
