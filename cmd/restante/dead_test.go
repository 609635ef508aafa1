package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/pipeline/dead"
)

func TestADeadLetterOfUpIsListedShownPutBackAndDropped(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := startUp(t, dir)
	over := strings.Repeat("large ä", 40_000) // over 256 KiB
	e2etest.Publish(t, s.at.mqtt(), "t/1", over, "fits", over)
	e2etest.AwaitRows(t, s.at.database(), 1)
	verb := func(code int, args ...string) (out, errs string) {
		t.Helper()
		got, out, errs := call(append(append([]string{"dead"}, args...), "--up", s.at.Kafka, "-d", dir)...)
		if got != code {
			t.Errorf("dead %q: exit code %d, want %d: %s%s", args, got, code, out, errs)
		}
		return out, errs
	}
	out, _ := verb(0, "list")
	wants(t, "list", out, "LETTER", "waiting", "oversize", "ingest", "t/1", "payload of ", "2 letters, 2 waiting\n")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 4 {
		t.Errorf("%d lines, want a head, two letters and the sum:\n%s", len(lines), out)
	}
	var list listed
	out, _ = verb(0, "list", "-o", "json", "--topic", "t/#", "--reason", "oversize")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Letters) != 2 || list.Letters[0].Bytes != len(over) || *list.Letters[0].Key != "t/1" {
		t.Fatalf("list as JSON: %v: %.2000s", err, out)
	}
	if out, _ = verb(0, "list", "--topic", "u/#"); out != "0 letters\n" {
		t.Errorf("list of another topic: %s", out)
	}
	first, second := list.Letters[0].Letter, list.Letters[1].Letter

	out, _ = verb(0, "show", first, "--limit", "4KiB")
	wants(t, "show", out, "letter      "+first, "state       waiting", "reason      oversize", "for         mqtt.messages, where it never was", "key         t/1",
		"header      ce_type: mqtt.message.publish", "bytes, the first 4096 are shown, --payload writes all\nlarge ä")
	if len(out) > 8<<10 {
		t.Errorf("show writes %d bytes", len(out))
	}
	if out, _ = verb(0, "show", first, "--payload"); out != over {
		t.Errorf("the payload is %d bytes, want %d", len(out), len(over))
	}
	var one shown
	out, _ = verb(0, "show", first, "-o", "json")
	if err := json.Unmarshal([]byte(out), &one); err != nil || one.Payload == nil || !strings.HasPrefix(over, *one.Payload) || !one.Cut || len(one.Headers) < 5 {
		t.Errorf("show as JSON: %v: %.2000s", err, out)
	}
	_, errs := verb(1, "show", "0/999")
	wants(t, "a letter that is not there", errs, "letter 0/999: there is none")

	out, _ = verb(0, "redrive", "--all")
	wants(t, "redrive", out, "left_oversize", "2", "still over ingest.max_payload")
	config := writeConfig(t, "ingest: {max_payload: 512KiB}\n")
	out, _ = verb(0, "redrive", first, "--dry-run", "-c", config)
	wants(t, "dry run", out, "redriven", "1", "would be in their topic again")
	var result moved
	out, errs = verb(0, "redrive", first, "-v", "-o", "json", "-c", config)
	if err := json.Unmarshal([]byte(out), &result); err != nil || result.Letters[dead.FateRedriven] != 1 || len(result.Letters) != 1 || result.DryRun {
		t.Errorf("redrive as JSON: %v: %s", err, out)
	}
	wants(t, "redrive -v", errs, first+" redriven: t/1")
	e2etest.AwaitRows(t, s.at.database(), 2)

	out, _ = verb(0, "drop", second, "--yes")
	wants(t, "drop", out, "dropped", "marked as dropped")
	out, _ = verb(0, "list")
	wants(t, "list", out, "0 letters")
	out, _ = verb(0, "list", "--state", "all")
	wants(t, "list of all", out, "2 letters, 1 redriven, 1 dropped")
	c := e2etest.Subscribe(t, s.at.mqtt(), "device", "t/1")
	if diff := cmp.Diff([]string{over, "fits"}, e2etest.Payloads(e2etest.Receive(t, c, 2))); diff != "" { // in the order of publishing
		t.Errorf("replayed (-want +got):\n%.300s", diff)
	}

	if code, out, errs := call("audit", "--up", s.at.Kafka, "-d", dir); code != app.ExitOK || !strings.Contains(out, "sink local: 2 published = ") {
		t.Errorf("audit: exit code %d: %s%s", code, out, errs)
	}
	s.Stop()
	if code, out, errs := call("audit", "--up", s.at.Kafka, "-d", dir); code != app.ExitUndrained || !strings.Contains(errs, "refused") {
		t.Errorf("audit without Kafka: exit code %d, want 3: %s%s", code, out, errs)
	}
}

func TestEveryFateHasItsWords(t *testing.T) {
	t.Parallel()
	for _, f := range dead.Fates {
		if fates[f] == "" {
			t.Errorf("%s says nothing", f)
		}
	}
	if len(fates) != len(dead.Fates) {
		t.Errorf("%d fates have words, and there are %d", len(fates), len(dead.Fates))
	}
}

func TestARedriveThatIsEndedBySignalSaysSoAndGoesOnLater(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := startUp(t, dir)
	const letters = 8
	over := strings.Repeat("x", 256<<10)
	for i := range letters {
		e2etest.Publish(t, s.at.mqtt(), fmt.Sprintf("t/%d", i), fmt.Sprint(i, over))
	}
	config := writeConfig(t, "ingest: {max_payload: 512KiB}\n")
	at := []string{"--up", s.at.Kafka, "-d", dir, "-c", config, "-o", "json"}
	p := e2etest.Start(t, "restante", append([]string{"dead", "redrive", "--all", "--rate", "0.1", "-v"}, at...)...)
	p.AwaitLog("redriven: t/") // one is marked, the next ones wait for their turn
	p.Signal(syscall.SIGTERM)
	if code := p.Code(); code != app.ExitUndrained {
		t.Errorf("exit code %d, want 3: %s%s", code, p.Out(), p.Log())
	}
	var first, second moved
	if err := json.Unmarshal([]byte(p.Out()), &first); err != nil || first.Stopped == "" {
		t.Errorf("%v: %s", err, p.Out())
	}
	done := first.Letters[dead.FateRedriven]
	if done < 1 || done >= letters {
		t.Errorf("%d letters of %d were redriven before the signal", done, letters)
	}
	code, out, errs := call(append([]string{"dead", "redrive", "--all"}, at...)...)
	if err := json.Unmarshal([]byte(out), &second); err != nil || code != app.ExitOK {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	if diff := cmp.Diff(map[dead.Fate]int{dead.FateRedriven: letters - done, dead.LeftMarked: done}, second.Letters); diff != "" {
		t.Errorf("the second redrive (-want +got):\n%s", diff)
	}
	e2etest.AwaitRows(t, s.at.database(), letters)
}

func TestDeadAndAuditRefuseWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	config := writeConfig(t, "kafka: {brokers: \"127.0.0.1:1\"}\nsinks: {history: {type: memory}}\nrules: [{topic: \"t/#\", action: save_offline_messages, sink: history}]\n")
	nowhere := writeConfig(t, "log: {level: info}\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"dead", "redrive", "-c", config}, "needs a filter, names of letters, or --all"},
		{[]string{"dead", "drop", "--yes", "-c", config}, "needs a filter or the names of letters"},
		{[]string{"dead", "drop", "0/1", "-c", config}, "needs --yes"},
		{[]string{"dead", "list", "--reason", "because", "-c", config}, "want one of [malformed sink_rejected oversize kafka_refused]"},
		{[]string{"dead", "list", "--state", "lost", "-c", config}, "want one of waiting, redriven, dropped or all"},
		{[]string{"dead", "list", "--sink", "other", "-c", config}, "there is no such sink"},
		{[]string{"dead", "list", "--since", "yesterday", "-c", config}, "how long ago"},
		{[]string{"dead", "list", "--topic", "a/#/b", "-c", config}, "--topic"},
		{[]string{"dead", "list", "--limit", "-1", "-c", config}, "want 0 or more"},
		{[]string{"dead", "list", "one", "-c", config}, "want partition/offset"},
		{[]string{"dead", "show", "-c", config}, "accepts 1 arg"},
		{[]string{"dead", "show", "0/1", "--limit", "much", "-c", config}, "is no size"},
		{[]string{"dead", "redrive", "--all", "--rate", "-1", "-c", config}, "want 0 or more"},
		{[]string{"dead", "list", "-o", "xml", "-c", config}, "want text or json"},
		{[]string{"dead", "list", "-c", nowhere}, "kafka.brokers is empty"},
		{[]string{"dead", "bury"}, "bury"},
		{[]string{"audit", "x", "-c", config}, "x"},
		{[]string{"audit", "--topic", "$share/g/t", "-c", config}, "shared"},
		{[]string{"audit", "--sink", "history", "-c", config}, "in the memory of its process"},
		{[]string{"audit", "--sink", "other", "-c", config}, "no rule uses such a sink"},
	} {
		code, out, errs := call(c.args...)
		if code != app.ExitUsage || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q, want 2 and %q", c.args, code, out, errs, c.want)
		}
	}
	if code, _, errs := call("dead", "list", "-c", config); code != app.ExitFailed || !strings.Contains(errs, "refused") {
		t.Errorf("without Kafka: exit code %d: %s", code, errs)
	}
}
