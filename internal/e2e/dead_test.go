package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
)

// sqlite adds a sink of that name in a file of the test, and gives the file.
func (w *world) sqlite(sink string) string {
	file := filepath.Join(w.dir, sink+".db")
	w.sinks += fmt.Sprintf("\n  %s: {type: sqlite, path: %q}", sink, file)
	return file
}

// letters runs a verb of restante dead that must succeed, and reads what it prints.
func (w *world) letters(into any, args ...string) {
	w.t.Helper()
	code, out := w.restante(append([]string{"dead"}, append(args, "-o", "json", "-c", w.config("restante"))...)...)
	if err := json.Unmarshal([]byte(out), into); err != nil || code != 0 {
		w.t.Fatalf("dead %q: exit code %d, %v:\n%s", args, code, err, out)
	}
}

// listed is how many letters wait, and how many have been redriven.
func (w *world) listed() (waiting, redriven int) {
	w.t.Helper()
	var list struct{ States map[string]int }
	w.letters(&list, "list", "--state", "all", "--limit", "1")
	return list.States["waiting"], list.States["redriven"]
}

// redriven runs a redrive and gives the fates.
func (w *world) redriven(args ...string) map[string]int {
	w.t.Helper()
	var out struct{ Letters map[string]int }
	w.letters(&out, append([]string{"redrive"}, args...)...)
	return out.Letters
}

// messages is how many records the messages topic has.
func (w *world) messages() int {
	w.t.Helper()
	sum := -1
	e2etest.Await(w.t, "the end offsets of messages", func() bool {
		ends, _, err := w.ends(w.t.Context(), "messages", w.group("nobody"))
		if err != nil {
			return false
		}
		sum = 0
		for _, end := range ends {
			sum += int(end)
		}
		return true
	})
	return sum
}

// agrees runs an audit that must find nothing.
func (w *world) agrees() {
	w.t.Helper()
	if code, out := w.restante("audit", "-c", w.config("restante")); code != 0 {
		w.t.Errorf("audit: exit code %d:\n%s", code, out)
	}
}

func TestAThousandDeadLettersGoBackAndAreStoredOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	file := w.sqlite("local")
	w.offline("local")
	w.more = "ingest: {max_payload: 1KiB}"
	w.migrate()
	all := w.startAll("ingest", "writer")

	const least = 1000
	load := e2etest.StartLoad(t, w.broker, "t/"+strings.Repeat("x", 1<<10)+"/%d", 20, 0) // each payload has its topic in it
	e2etest.Await(t, "enough messages over the limit", func() bool { return load.Acked() >= least })
	promised := load.Stop()
	all["ingest"].Stop() // what had no PUBACK is a dead letter too, or never was
	waiting, _ := w.listed()
	if waiting < len(promised) || waiting > len(promised)+20 {
		t.Fatalf("%d dead letters of %d messages", waiting, len(promised))
	}
	if fates := w.redriven("--all"); !cmp.Equal(fates, map[string]int{"left_oversize": waiting}) {
		t.Errorf("the limit is as it was: %v", fates)
	}
	w.more = "ingest: {max_payload: 64KiB}"
	if fates := w.redriven("--all", "--dry-run"); !cmp.Equal(fates, map[string]int{"redriven": waiting}) {
		t.Errorf("a dry run: %v", fates)
	}
	if n := w.messages(); n != 0 {
		t.Fatalf("%d records in messages, want none yet", n)
	}

	killed := e2etest.StartFile(t, e2etest.Build(t, "cmd/restante"), "dead", "redrive", "--all", "--rate", "100", "-c", w.config("restante"))
	e2etest.Await(t, "some are back", func() bool { return w.messages() >= 300 })
	killed.Kill()
	back := w.messages()
	left, marked := w.listed()
	t.Logf("killed with %d records back and %d of %d letters marked", back, marked, waiting)
	if marked > back {
		t.Errorf("%d letters are marked, %d records are back", marked, back)
	}
	fates := w.redriven("--all")
	want := map[string]int{"redriven": left, "left_marked": marked}
	if marked == 0 {
		delete(want, "left_marked")
	}
	if left == 0 { // it had gone through before it was killed
		delete(want, "redriven")
	}
	if diff := cmp.Diff(want, fates); diff != "" {
		t.Errorf("the second redrive (-want +got):\n%s", diff)
	}
	twice := w.messages() - waiting
	t.Logf("%d records came twice", twice)
	if twice < 0 || twice > 200 {
		t.Errorf("%d records came twice, want 200 at most", twice)
	}
	w.awaitCommitted("local")
	published := w.book().waiting()
	if len(published) != waiting {
		t.Errorf("%d messages, want %d", len(published), waiting)
	}
	have, lost := payloads(t, published), 0
	for p := range promised {
		if !have[p] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d messages that had their PUBACK are lost", lost)
	}
	e2etest.AwaitRows(t, file, waiting)
	rows := map[string]stored{}
	_, table := e2etest.Table(t, file, "mqtt_msg")
	for _, r := range table {
		rows[r[1]] = stored{r[0], r[3]} // topic, msgid, arrived, payload
	}
	if !cmp.Equal(rows, published) {
		t.Errorf("%d rows differ from the %d messages", len(rows), len(published))
	}
	w.agrees()
	if fates := w.redriven("--all"); !cmp.Equal(fates, map[string]int{"left_marked": waiting}) {
		t.Errorf("the third redrive: %v", fates)
	}
}

// What one sink has refused goes to all again, and changes nothing in those that had stored it.
func TestARedriveForOneSinkLeavesTheOthersAsTheyAre(t *testing.T) {
	t.Parallel()
	server := stack.Shared(t, stack.Cassandra)
	w := newWorld(t, "")
	w.cassandra("history", server, w.name, ", max_row: 64KiB")
	file := w.sqlite("local")
	w.offline("history")
	w.offline("local")
	w.migrate()
	look := lookCassandra(t, server, w.name)
	all := w.startAll("ingest", "writer", "replayer")
	const topics, each = 4, 5
	padding := strings.Repeat("x", 64<<10)
	for i := range topics {
		var texts []string
		for n := range each {
			texts = append(texts, fmt.Sprintf("%d-%d %s", i, n, padding))
		}
		e2etest.Publish(t, w.broker, fmt.Sprintf("t/%d", i), texts...)
	}
	e2etest.AwaitRows(t, file, topics*each)
	device := e2etest.Subscribe(t, w.broker, "device", "t/0")
	e2etest.Receive(t, device, each)
	e2etest.AwaitRows(t, file, (topics-1)*each)
	device.Disconnect()
	for _, sink := range []string{"history", "local"} {
		w.awaitCommitted(sink)
	}
	if rows, err := look.messages(t.Context()); err != nil || len(rows) > 0 {
		t.Fatalf("%d rows that are too large: %v", len(rows), err)
	}
	w.agrees()
	_, before := e2etest.Table(t, file, "mqtt_msg")

	all["writer"].Stop()
	w.sinks = strings.ReplaceAll(w.sinks, "max_row: 64KiB", "max_row: 1MiB")
	w.start("writer")
	if fates := w.redriven("--sink", "history", "--reason", "sink_rejected"); !cmp.Equal(fates, map[string]int{"redriven": topics * each}) {
		t.Errorf("redrive: %v", fates)
	}
	for _, sink := range []string{"history", "local"} {
		w.awaitCommitted(sink)
	}
	awaitStored(t, look, w.book().waiting())
	if rows, err := look.messages(t.Context()); err != nil || len(rows) != (topics-1)*each {
		t.Errorf("%d rows, want %d: what was acknowledged meanwhile is over: %v", len(rows), (topics-1)*each, err)
	}
	_, after := e2etest.Table(t, file, "mqtt_msg")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("rows of the other sink (-before +after):\n%.2000s", diff)
	}
	w.agrees()
}
