package e2etest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
)

// program is a command of the module that was built.
type program struct {
	once sync.Once
	file string
	err  error
}

//nolint:gochecknoglobals // the tests of one process share what was built
var built struct {
	mu       sync.Mutex
	dir      string
	programs map[string]*program
}

// Build builds a command of the module, such as cmd/restante, once for all tests of the package, and returns its file. It has
// the race detector in it when the tests have. [RemoveBuilt] removes it.
func Build(t *testing.T, pkg string) string {
	t.Helper()
	p, err := wanted(pkg)
	if err != nil {
		t.Fatal(err)
	}
	p.once.Do(func() {
		args := []string{"build", "-o", p.file}
		if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
			args = append(args, "-race")
		}
		// Not bound to the test that asks first: the others need it too.
		out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "go", append(args, "github.com/restante/restante/"+pkg)...).CombinedOutput() //nolint:gosec // a test names it
		if p.err = err; err != nil {
			t.Logf("go %v: %s", args, out)
		}
	})
	if p.err != nil {
		t.Fatalf("build %s: %v", pkg, p.err)
	}
	return p.file
}

// wanted is the program of the package, which may not be built yet.
func wanted(pkg string) (*program, error) {
	built.mu.Lock()
	defer built.mu.Unlock()
	if p := built.programs[pkg]; p != nil {
		return p, nil
	}
	if built.dir == "" {
		var err error
		if built.dir, err = os.MkdirTemp("", "restante-e2e-"); err != nil {
			return nil, err
		}
		built.programs = map[string]*program{}
	}
	p := &program{file: filepath.Join(built.dir, filepath.Base(pkg))}
	built.programs[pkg] = p
	return p, nil
}

// RemoveBuilt runs the tests and removes what [Build] built after them.
type RemoveBuilt struct{ M interface{ Run() int } }

// Run runs the tests.
func (r RemoveBuilt) Run() int {
	code := r.M.Run()
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir) // a temporary directory
	}
	return code
}
