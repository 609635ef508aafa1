package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
)

// fromEnv names the version to upgrade from, as git knows it: a tag, a branch, a commit.
const fromEnv = "RESTANTE_UPGRADE_FROM"

// command runs a program and gives what it printed.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, errs.String())
	}
	return out.String()
}

// olderBinaries builds the processes of a version and gives the directory that they are in.
func olderBinaries(t *testing.T, ref string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	commit := strings.TrimSpace(command(t, root, "git", "rev-parse", "--verify", ref+"^{commit}"))
	dir := t.TempDir()
	source, archive := filepath.Join(dir, "source"), filepath.Join(dir, "source.tar")
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, root, "git", "archive", "--format=tar", "-o", archive, commit)
	command(t, source, "tar", "-xf", archive)
	bin := filepath.Join(dir, "bin")
	command(t, source, "go", "build", "-buildvcs=false", "-o", bin+"/", "./cmd/ingest", "./cmd/writer", "./cmd/replayer")
	t.Logf("upgrading from %s (%s)", ref, commit)
	return bin
}

// TestTwoVersionsWorkSideBySide: the version before and this one, in each other's groups and on each other's records, under load: up in
// the order that docs/operations.md gives, and back again.
//
//	RESTANTE_UPGRADE_FROM=v0.1.0 go test ./internal/e2e -run TwoVersions -v
func TestTwoVersionsWorkSideBySide(t *testing.T) {
	t.Parallel()
	ref := os.Getenv(fromEnv)
	if ref == "" {
		t.Skipf("NOT TESTED: no version to upgrade from is named by %s", fromEnv)
	}
	if _, err := os.Stat("../../.git"); err != nil {
		t.Skipf("NOT TESTED: the versions before are in git, which is not here: %v", err)
	}
	bin := olderBinaries(t, ref)
	dynamodb := stack.Shared(t, stack.DynamoDB)
	w := newWorld(t, "")
	w.dynamodb("history", dynamodb, w.name+"_", "")
	w.offline("history")
	w.migrate()
	processes := map[string]*e2etest.Process{}
	begin := func(names ...string) {
		t.Helper()
		for _, name := range names {
			kind, version, _ := strings.Cut(name, " ")
			file := strings.ReplaceAll(name, " ", "-")
			if version == "old" {
				processes[name] = e2etest.StartFile(t, filepath.Join(bin, kind), "-config", w.config(file))
			} else {
				processes[name] = e2etest.Start(t, kind, "-config", w.config(file))
			}
		}
		for _, name := range names {
			e2etest.AwaitReady(t, w.admin[strings.ReplaceAll(name, " ", "-")])
		}
	}
	end := func(names ...string) {
		t.Helper()
		for _, name := range names {
			processes[name].Stop()
			delete(processes, name)
		}
	}
	begin("ingest old", "writer old", "replayer old")
	load := e2etest.StartLoad(t, w.broker, "t/load/%d", 3, gentle)
	visitor := e2etest.StartVisitor(t, w.broker, "visitor", "t/load/0")
	lasts := func(what string) {
		t.Helper()
		progress(t, load, few(60, 600))
		t.Logf("%s: %d PUBACKs", what, load.Acked())
	}
	lasts("all old")
	begin("writer new", "replayer new")
	lasts("consumers side by side")
	end("writer old", "replayer old")
	lasts("new consumers, old ingest")
	end("ingest old") // its broker is in it, so the two cannot listen at a time
	begin("ingest new")
	lasts("all new")
	end("ingest new")
	begin("ingest old")
	lasts("back: old ingest, new consumers")
	begin("writer old", "replayer old")
	lasts("back: consumers side by side")
	end("writer new", "replayer new")
	lasts("all old again")
	end("ingest old")
	begin("ingest new")
	lasts("new ingest before its consumers, which is not the order")
	acked, had := load.Stop(), visitor.Stop()
	w.awaitCommitted("history")
	b := w.book()
	promised(t, b, acked)
	awaitStored(t, lookDynamoDB(dynamodb, w.name+"_"), b.waiting())
	left := map[string]bool{}
	for p := range acked {
		if !had[p] {
			left[p] = true
		}
	}
	e2etest.AwaitAll(t, w.broker, "the last", "t/load/#", left)
	if len(b.acked) == 0 {
		t.Error("the visitor has acknowledged nothing")
	}
	t.Logf("%d PUBACKs, %d acknowledged by the visitor", len(acked), len(b.acked))
}

// few is a number that is small, but for the second in a soak.
func few(short, soak int) int {
	if soaking() {
		return soak
	}
	return short
}
