package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each example is a configuration for all processes, and warns of nothing but what its comments say.
func TestExamplesAreAccepted(t *testing.T) {
	t.Parallel()
	const folder = "../../examples"
	warnings := map[string][]string{
		"mqtt5-plain.yaml": {"rules[0]: no source tells message.acked: what is delivered live stays stored until a replay delivers it again"},
		"seed-2-dynamodb.yaml": {
			"rules[0]: preset emqx-backend-dynamo runs without on_subscribe_lookup: needs EMQX's HTTP API to subscribe clients: set delivery.api",
			"rules[0]: on_retain_lookup is off: the broker hands over what it retains; for one that does not set delivery.broker_retains to false",
			`rules[0]: "#" covers "restante/events", by which sources.emqx hears of EMQX's events: these are left out here, but a rule of EMQX FROM "#" would feed itself, so name narrower topics there`,
		},
		"mosquitto.yaml":        {"rules[0]: no source tells message.acked: what is delivered live stays stored until a replay delivers it again"},
		"vernemq-webhook.yaml":  {"rules[0]: no source tells message.acked: what is delivered live stays stored until a replay delivers it again"},
		"emqx-4-exhook.yaml":    nil,
		"emqx-5-exhook.yaml":    nil,
		"emqx-rules.yaml":       nil,
		"embedded.yaml":         nil,
		"seed-1-cassandra.yaml": nil,
	}
	files, err := filepath.Glob(folder + "/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(folder + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		name := filepath.Base(file)
		seen[name] = true
		c, err := Load(file, noEnv)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, process := range []string{ProcessIngest, ProcessWriter, ProcessReplayer} {
			if err := c.For(process); err != nil {
				t.Errorf("%s: %s: %v", name, process, err)
			}
		}
		if d := cmp.Diff(warnings[name], c.Warnings()); d != "" {
			t.Errorf("%s warns of other things (-want +got):\n%s", name, d)
		}
		if !strings.Contains(string(page), "("+name+")") {
			t.Errorf("%s/README.md does not name %s", folder, name)
		}
	}
	for name := range warnings {
		if !seen[name] {
			t.Errorf("%s/%s is missing", folder, name)
		}
	}
}
