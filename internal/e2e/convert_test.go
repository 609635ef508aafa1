package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
)

// TestConvertedConfTellsSeed2: what "restante convert" makes of EMQX's own conf file, with nothing changed but addresses, credentials,
// and the names and sizes that a test needs on servers which it shares.
//
//nolint:paralleltest // the credentials are in the environment, as the file of convert says
func TestConvertedConfTellsSeed2(t *testing.T) {
	endpoint := stack.Shared(t, stack.DynamoDB)
	w := newWorld(t, "")
	file, env := filepath.Join(w.dir, "converted.yaml"), filepath.Join(w.dir, "converted.env")
	if code, out := w.restante("convert", "-w", file, "--kafka", w.kafka, "--broker", "mqtt://"+w.broker,
		"../app/convert/testdata/emqx_backend_dynamo.conf"); code != 0 {
		t.Fatalf("convert: exit code %d:\n%s", code, out)
	}
	credentials, err := os.ReadFile(env)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(credentials)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			t.Setenv(name, value)
		}
	}
	converted, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	prefix := w.name + "_"
	shared := strings.NewReplacer(
		`endpoint: "http://localhost:8000"`, fmt.Sprintf("endpoint: %q\n    table_prefix: %s", endpoint, prefix),
		"  # messages: {replication: 1}", fmt.Sprintf("  names: {topics: %[1]s, groups: %[1]s}\n  messages: {partitions: %[2]d, replication: 1}\n  sessions: {partitions: %[2]d}\n  dead: {partitions: 1} #", w.name, partitions),
	).Replace(string(converted))
	if strings.Contains(shared, "localhost") || !strings.Contains(shared, prefix) || !strings.Contains(shared, "names: ") {
		t.Fatalf("the addresses stand elsewhere:\n%s", shared)
	}
	w.configure = func(admin string) string { return shared + fmt.Sprintf("admin: {listen: %q}\n", admin) }

	config := w.config("restante")
	for _, verb := range [][]string{{"check", "--offline"}, {"migrate"}} {
		if code, out := w.restante(append(verb, "-c", config)...); code != 0 {
			t.Fatalf("%q: exit code %d:\n%s", verb, code, out)
		}
	}
	startRuleBroker(t, w.broker, "test", "testtopic", "raw")
	code, out := w.restante("check", "-c", config)
	if code != 0 {
		t.Errorf("check: exit code %d", code)
	}
	wantLines(t, out, `ok +configuration`, `ok +kafka `+regexp.QuoteMeta(w.kafka), `ok +sink pool1`, `ok +mqtt mqtt://`+regexp.QuoteMeta(w.broker))
	w.startAll("ingest", "writer", "replayer")
	seed2{broker: w.broker, look: lookDynamoDB(endpoint, prefix), read: event.ParseBase62, write: event.ID.Base62}.tell(t, func() {})
}
