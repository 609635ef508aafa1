package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/app/convert"
)

const backendConf = "../../internal/app/convert/testdata/emqx_backend_dynamo.conf"

// What is made of EMQX's own file passes the check as it is, once its credentials are in the environment.
func TestConvertedConfPassesTheCheck(t *testing.T) {
	dir := t.TempDir()
	config, env := filepath.Join(dir, "restante.yaml"), filepath.Join(dir, "restante.env")
	code, out, errs := call("convert", "-w", config, "--kafka", "kafka-1:9092,kafka-2:9092", "--broker", "mqtts://emqx:8883", backendConf)
	if code != app.ExitOK || out != "" {
		t.Fatalf("exit code %d, stdout %q: %s", code, out, errs)
	}
	wants(t, "report", errs, "28 lines, 15 settings: 14 translated, 1 refused",
		"line 18, refused: backend.dynamo.hook.session.created.1: on_subscribe_lookup",
		env, "restante check --offline -c "+config)
	info, err := os.Stat(env)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the credentials have mode %o", info.Mode().Perm())
	}
	const secret = "TZt7XoRi+vtCJYQ9YsAinh19jR1rngm/hxZMWR2P"
	text, err := os.ReadFile(config)
	if err != nil || strings.Contains(string(text), secret) || strings.Contains(errs, secret) {
		t.Errorf("%v, or the secret is shown:\n%s%s", err, text, errs)
	}

	code, _, errs = call("check", "--offline", "-c", config)
	if code != app.ExitUsage {
		t.Errorf("check without the credentials: exit code %d", code)
	}
	wants(t, "check without the credentials", errs, "environment variable RESTANTE_POOL1_SECRET_ACCESS_KEY is not set")
	for _, name := range setEnv(t, env) {
		wants(t, "configuration", string(text), "${"+name+"}")
	}
	code, out, errs = call("check", "--offline", "-c", config)
	// The hooks of the file are on "#", and so would a rule of EMQX be that covers its own output. EMQX retains itself.
	if code != app.ExitOK || strings.Count(errs, "warning") != 2 || !strings.Contains(errs, "feed itself") || !strings.Contains(errs, "on_retain_lookup is off") {
		t.Errorf("check: exit code %d: %s", code, errs)
	}
	wants(t, "effective configuration", out, "kafka-2:9092", "mqtts://emqx:8883", "region: us-west-2", "endpoint: http://localhost:8000", "msgid_format: base62", "on_message_retain")
}

// setEnv sets what the file sets, and returns the names.
func setEnv(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			t.Setenv(name, value)
			names = append(names, name)
		}
	}
	if len(names) != 3 {
		t.Errorf("%s sets %q, want the two of the pool and the key of replays", file, names)
	}
	return names
}

func TestConvertOverwritesNothingAndLeavesNoHalf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config, env := filepath.Join(dir, "restante.yaml"), filepath.Join(dir, "restante.env")
	if err := os.WriteFile(config, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := call("convert", "-w", config, backendConf)
	if code != app.ExitFailed {
		t.Errorf("exit code %d", code)
	}
	wants(t, "error", errs, config+": it exists already: remove it, or name another file")
	if _, err := os.Stat(env); err == nil {
		t.Error("the credentials were written although the configuration was not")
	}
	if text, err := os.ReadFile(config); err != nil || string(text) != "mine" {
		t.Errorf("%v, the file holds %q", err, text)
	}
}

func TestConvertWritesToStdoutWithoutCredentials(t *testing.T) {
	t.Parallel()
	code, out, errs := call("convert", "--source", "exhook", backendConf)
	if code != app.ExitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	wants(t, "configuration", out, "type: exhook", "evidence: broker", "${RESTANTE_POOL1_ACCESS_KEY_ID}")
	wants(t, "report", errs, "set RESTANTE_POOL1_ACCESS_KEY_ID, RESTANTE_POOL1_SECRET_ACCESS_KEY, RESTANTE_REPLAY_SECRET; --env FILE")

	code, out, errs = call("convert", "-o", "json", backendConf)
	var got converted
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != app.ExitOK || errs != "" {
		t.Fatalf("-o json: exit code %d, %v: %s%s", code, err, out, errs)
	}
	if len(got.Lines) != 28 || got.Lines[17].State != convert.Refused || len(got.Variables) != 3 || !strings.Contains(got.Config, "pool1:") || strings.Contains(out, "TZt7XoRi") {
		t.Errorf("-o json: %s", out)
	}
}

func TestConvertNamesWhatIsMalformed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "x.conf")
	if err := os.WriteFile(file, []byte("backend.dynamo.region = us-west-2\nbackend.dynamo.pool1.pool_size = x\nsecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := call("convert", file)
	if code != app.ExitUsage || out != "" {
		t.Errorf("exit code %d, stdout %q", code, out)
	}
	wants(t, "error", errs, "restante: conf "+file+": 1 fault", `line 3: is neither "key = value" nor a comment`)
	for _, args := range [][]string{
		{"convert"},
		{"convert", file, file},
		{"convert", "--source", "http", file},
		{"convert", "-o", "yaml", file},
		{"convert", "-w", "x.env", file},
		{"convert", "--kafka", "kafka-1", backendConf},
		{"convert", "--broker", "http://x", backendConf},
	} {
		if code, out, errs := call(args...); code != app.ExitUsage || out != "" {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
	if code, _, errs := call("convert", filepath.Join(t.TempDir(), "none.conf")); code != app.ExitFailed || !strings.Contains(errs, "read conf: ") {
		t.Errorf("a file that is not there: exit code %d: %s", code, errs)
	}
}
