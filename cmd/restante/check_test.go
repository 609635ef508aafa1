package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/stack/ports"
)

func processConfig(kafka, broker, database string) string {
	return fmt.Sprintf(`
kafka: {brokers: %q, messages: {partitions: 3, replication: 1}, sessions: {partitions: 2}}
sources: {devices: {type: embedded, listen: %q}}
sinks: {history: {type: sqlite, path: %q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
delivery: {secret: a-secret-of-some-length, mqtt: {url: "mqtt://%s", user: replay, password: never-to-be-shown}}
`, kafka, broker, database, broker)
}

func TestCheckSaysOfEachServerHowItStands(t *testing.T) {
	t.Parallel()
	kafka, broker := ports.Addr(t), ports.Addr(t)
	file := filepath.Join(t.TempDir(), "no", "such", "folder", "restante.db")
	config := writeConfig(t, processConfig(kafka, broker, file))
	code, out, errs := call("check", "-c", config)
	if code != app.ExitFailed {
		t.Errorf("exit code %d, want 1: %s", code, errs)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 4 {
		t.Fatalf("want a line for each of configuration, kafka, sink and mqtt:\n%s", out)
	}
	for i, want := range []string{"ok      configuration", "FAILED  kafka " + kafka + ": ", "FAILED  sink history: ", "FAILED  mqtt mqtt://" + broker + ": "} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d is %q, want it to begin with %q", i+1, lines[i], want)
		}
	}
	wants(t, "what to do", out, "refused")
	if strings.Contains(out+errs, "never-to-be-shown") {
		t.Error("the password is shown")
	}
	code, out, _ = call("check", "-c", config, "-o", "json")
	var all []found
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 4 || all[1].OK || all[1].Error == "" || code != app.ExitFailed {
		t.Errorf("-o json: exit code %d, %v: %s", code, err, out)
	}
}

func TestCheckAsksTheBrokersAPIAndChangesNothingThere(t *testing.T) {
	t.Parallel()
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method)
		if key, secret, _ := r.BasicAuth(); key != "key" || secret != "never-to-be-shown" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"code":"CLIENTID_NOT_FOUND"}`))
	}))
	defer server.Close()
	nobody := ports.Addr(t)
	for key, want := range map[string]string{
		"key":   "ok      delivery.api " + server.URL,
		"other": "FAILED  delivery.api " + server.URL + `: emqx api: HTTP 401 for the key "other": put delivery.api.key and its secret right`,
	} {
		config := writeConfig(t, fmt.Sprintf(`
kafka: {brokers: %[1]q}
sources: {emqx: {type: mqtt, url: "mqtt://%[1]s", decode: emqx}}
sinks: {history: {type: sqlite, path: %[2]q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
delivery:
  secret: a-secret-of-some-length
  mqtt: {url: "mqtt://%[1]s"}
  api: {type: emqx, url: %[3]q, key: %[4]s, secret: never-to-be-shown}
`, nobody, filepath.Join(t.TempDir(), "restante.db"), server.URL, key))
		code, out, errs := call("check", "-c", config)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if last := lines[len(lines)-1]; code != app.ExitFailed || !strings.HasPrefix(last, want) {
			t.Errorf("key %s: exit code %d and %q, want %q: %s", key, code, last, want, errs)
		}
		if strings.Contains(out+errs, "never-to-be-shown") {
			t.Error("the secret is shown")
		}
	}
	if diff := cmp.Diff([]string{"GET", "GET"}, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestCheckOfflineAsksNobodyAndHidesSecrets(t *testing.T) {
	t.Parallel()
	config := writeConfig(t, processConfig("127.0.0.1:1", "127.0.0.1:1", "/no/such/folder/restante.db"))
	code, out, errs := call("check", "--offline", "-c", config)
	if code != app.ExitOK {
		t.Errorf("exit code %d, want 0: %s", code, errs)
	}
	wants(t, "configuration", out, "session_timeout: 30s", "hold: 1s", "/no/such/folder/restante.db", "on_message_publish")
	for _, secret := range []string{"never-to-be-shown", "a-secret-of-some-length"} {
		if strings.Contains(out+errs, secret) {
			t.Errorf("%q is shown", secret)
		}
	}
}

func TestMigrateMakesWhatIsMissingOnceAndDryRunNothing(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	config := writeConfig(t, processConfig(cluster.ListenAddrs()[0], ports.Addr(t), filepath.Join(t.TempDir(), "restante.db")))
	check := func(want ...string) {
		t.Helper()
		_, out, _ := call("check", "-c", config)
		wants(t, "check", out, want...)
	}
	migrate := func(want []string, args ...string) {
		t.Helper()
		code, out, errs := call(append([]string{"migrate", "-c", config}, args...)...)
		if code != app.ExitOK {
			t.Errorf("migrate %v: exit code %d: %s%s", args, code, out, errs)
		}
		wants(t, "migrate", out, want...)
	}
	check("FAILED  kafka", "FAILED  sink history", "restante migrate")
	if _, out, _ := call("check", "-c", config); strings.Count(out, "\n") != 4 || !strings.Contains(out, "mqtt.messages is missing") || !strings.Contains(out, "mqtt.dead is missing") {
		t.Errorf("want one line for each of configuration, kafka, sink and mqtt, and all that is missing:\n%s", out)
	}
	for range 2 { // a dry run leaves everything to be done
		migrate([]string{"would create topic mqtt.messages", "would create topic mqtt.sessions", "would create topic mqtt.dead", "sink history", "mqtt_msg"}, "--dry-run")
	}
	check("FAILED  kafka", "FAILED  sink history")
	migrate([]string{"created topic mqtt.messages", "done: create table mqtt_msg"})
	check("ok      kafka", "ok      sink history")
	_, out, _ := call("migrate", "-c", config)
	if strings.Count(out, "nothing to do") != 2 || strings.Contains(out, "create") {
		t.Errorf("the second time:\n%s", out)
	}
}

func TestAFaultyConfigurationIsExplained(t *testing.T) {
	t.Parallel()
	const head = `
sources: {devices: {type: embedded}}
sinks: {history: {type: sqlite, path: restante.db}}
`
	tests := map[string]struct {
		text string
		want []string
	}{
		"an unknown key": {
			head + "rules: [{topic: \"t/#\", action: save_offline_messages, sink: history}]\nwriter:\n  holt: 2s\n",
			[]string{"writer.holt", "hold", "line 6"},
		},
		"a bad filter": {
			head + "rules: [{topic: \"t/#/x\", action: save_offline_messages, sink: history}]\n",
			[]string{"rules[0].topic", "t/#/x", "line 4"},
		},
		"two rules that contradict": {
			head + "rules:\n  - {topic: \"t/#\", action: save_offline_messages, sink: history, ttl: 1h}\n  - {topic: \"t/+\", action: save_offline_messages, sink: history, ttl: 2h}\n",
			[]string{"rules[1]", "rules[0]", "line 6"},
		},
		"several at once": {
			head + "rules: [{topic: \"a+\", action: save_offline_messages, sink: histori}]\nlog: {level: loud}\n",
			[]string{"rules[0].topic", "histori", "log.level", "faults"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := writeConfig(t, tt.text)
			for _, args := range [][]string{{"check", "--offline"}, {"check"}, {"migrate"}, {"up", "-d", t.TempDir()}} {
				code, out, errs := call(append(args, "-c", config)...)
				if code != app.ExitUsage || out != "" {
					t.Errorf("%v: exit code %d, want 2; stdout %q", args, code, out)
				}
				wants(t, args[0], errs, tt.want...)
			}
		})
	}
}

func TestAWrongCommandLineIsExplained(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"upp"}, {"up", "--no-such-flag"}, {"up", "x"}, {"check", "-o", "xml"}, {"migrate", "--dry-run=perhaps"}} {
		code, out, errs := call(args...)
		if code != app.ExitUsage || out != "" || !strings.Contains(errs, "--help lists the flags") && !strings.Contains(errs, "unknown command") {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
	if code, out, _ := call("--help"); code != app.ExitOK || !strings.Contains(out, "restante up") {
		t.Errorf("--help: exit code %d: %s", code, out)
	}
	if code, out, _ := call("--version"); code != app.ExitOK || !strings.Contains(out, "go1.") {
		t.Errorf("--version: exit code %d: %s", code, out)
	}
}
