package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/internal/e2e/e2etest"
)

// drains ends a process by SIGTERM and checks that it had finished all it held. How long it may take its own configuration says: code 0
// is in time.
func drains(t *testing.T, name string, p *e2etest.Process) {
	t.Helper()
	began := time.Now()
	p.Stop()
	t.Logf("%s ended %v after SIGTERM", name, time.Since(began).Round(10*time.Millisecond))
	times(t, p, 1, `"msg":"gone"`, `"code":0`, `"undrained":0`)
}

// TestSIGTERMUnderLoadLeavesNothingUndrained: of each process, while messages come and go, twice; and in the end nothing is lost.
func TestSIGTERMUnderLoadLeavesNothingUndrained(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.configure = func(admin string) string { // with the time that processes have by default
		text := fmt.Sprintf(processes, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin)
		return strings.NewReplacer("_timeout: 12s", "_timeout: 30s", "drain: 6500ms", "drain: 20s").Replace(text)
	}
	all := s.startAll("ingest", "writer", "replayer")
	load := e2etest.StartLoad(t, s.broker, "t/load/%d", 4, 10*time.Millisecond)
	visitor := e2etest.StartVisitor(t, s.broker, "visitor", "t/load/0") // so that replays and acks are on their way too
	for range 2 {
		for _, name := range []string{"writer", "replayer", "ingest"} {
			progress(t, load, 200)
			drains(t, name, all[name])
			all[name] = s.start(name)
		}
	}
	progress(t, load, 200)
	acked, had := load.Stop(), visitor.Stop()
	left := map[string]bool{}
	for p := range acked {
		if !had[p] {
			left[p] = true
		}
	}
	e2etest.AwaitAll(t, s.broker, "the last", "t/load/#", left)
	t.Logf("%d PUBACKs, %d had by the visitor, %d by the last one", len(acked), len(had), len(left))
	for name, p := range all {
		drains(t, name, p)
	}
}
