package stack

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childEnv makes this test binary the child of one of its own tests.
const childEnv = "RESTANTE_STACK_CHILD"

// child runs one test of this binary in a process of its own.
func child(t *testing.T, test string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.v")
	// What is set twice counts as set last.
	cmd.Env = slices.Concat(os.Environ(), []string{childEnv + "=" + test}, env)
	return cmd
}

func inChild(t *testing.T) {
	t.Helper()
	if os.Getenv(childEnv) != t.Name() {
		t.Skip("it runs in a child of another test")
	}
}

func TestChildThatIsKilled(t *testing.T) {
	inChild(t)
	for _, kind := range []Kind{Cassandra, DynamoDB} {
		in, err := prepare(t.Context(), kind)
		if err != nil {
			giveUp(t, err)
		}
		servers, err := newNodes(in, startPlan{dir: t.TempDir(), nodes: 1}, 1)
		if err != nil {
			t.Fatal(err)
		}
		// Not until it serves, which would be long.
		p, err := servers[0].launch()
		if err != nil {
			t.Fatal(err)
		}
		for {
			text, err := os.ReadFile(servers[0].Log())
			if err == nil && len(text) > 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		fmt.Println("server:", p.pid)
	}
	fmt.Println("ready")
	time.Sleep(time.Minute)
}

func TestNoServerOutlivesAProcessThatIsKilled(t *testing.T) {
	needJava(t)
	tmp := t.TempDir()
	cmd := child(t, "TestChildThatIsKilled", "TMPDIR="+tmp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	said := ""
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
		said += lines.Text() + "\n"
		if text, ok := strings.CutPrefix(lines.Text(), "server: "); ok {
			pid, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	alive := 0
	for _, pid := range pids {
		if isJava(pid) {
			alive++
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if alive != 2 {
		t.Fatalf("the child has %d servers of processes %v, want 2:\n%s", alive, pids, said)
	}
	for deadline := time.Now().Add(10 * time.Second); slices.ContainsFunc(pids, isJava); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("of the processes %v some are there still", pids)
		}
	}
}

// isJava says whether the process runs Java: one that has ended, and that nobody waited for, has no command line.
func isJava(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	name, _, _ := strings.Cut(string(line), "\x00")
	return err == nil && filepath.Base(name) == "java"
}

// The death signal comes with the end of the thread that started the child: a test's goroutine may end with its thread.
func TestAProcessOutlivesTheThreadThatAskedForIt(t *testing.T) {
	t.Parallel()
	var p *process
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		p, err = spawn([]string{"sleep", "60"}, t.TempDir(), filepath.Join(t.TempDir(), "log"))
	}()
	<-ended
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.exited:
		t.Error("it died with the thread")
	case <-time.After(300 * time.Millisecond):
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.exited
}

func TestChildThatOwns(t *testing.T) {
	inChild(t)
	Own(t, DynamoDB)
}

func TestWithoutJavaServersAreSkippedOnlyIfTheyNeedNotBe(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		required string
		want     string
	}{
		"not required": {"", "--- SKIP: TestChildThatOwns"},
		"required":     {"1", "--- FAIL: TestChildThatOwns"},
	} {
		out, _ := child(t, "TestChildThatOwns", "PATH="+t.TempDir(), RequireEnv+"="+c.required).CombinedOutput()
		if !strings.Contains(string(out), c.want) || !strings.Contains(string(out), "openjdk-17-jre-headless") {
			t.Errorf("%s: want %q and what to install:\n%s", sentence, c.want, out)
		}
	}
}

func TestChildThatShares(t *testing.T) {
	inChild(t)
	fmt.Println("address:", Shared(t, DynamoDB))
}

func TestTheAddressInTheEnvironmentIsUsed(t *testing.T) {
	address := Shared(t, DynamoDB)
	if again := Shared(t, DynamoDB); again != address {
		t.Errorf("shared twice: %s and %s", address, again)
	}
	out, _ := child(t, "TestChildThatShares", DynamoDB.Env()+"="+address, "PATH=").CombinedOutput()
	if !strings.Contains(string(out), "address: "+address+"\n") {
		t.Errorf("want %s:\n%s", address, out)
	}
	out, _ = child(t, "TestChildThatShares", DynamoDB.Env()+"=http://127.0.0.1:1").CombinedOutput()
	if !strings.Contains(string(out), "reach the dynamodb that RESTANTE_TEST_DYNAMODB names") || !strings.Contains(string(out), "FAIL") {
		t.Errorf("want a failure that names the variable:\n%s", out)
	}
}

func needJava(t *testing.T) {
	t.Helper()
	if _, err := javaCommand(Kafka); err != nil {
		giveUp(t, err)
	}
}
