package app

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/restante/restante/pipeline"
)

const (
	lookupRule = "{on: session.created, do: on_subscribe_lookup, sink: s}"
	soundAPI   = "{type: emqx, url: \"http://emqx:18083\", key: k, secret: s}"
)

// lookingUp is a configuration with one source, one rule and one way of delivery.
func lookingUp(source, delivery string) []byte {
	return fmt.Appendf(nil, "sources: {a: %s}\nsinks: {s: {type: sqlite, path: s.db}}\nrules: [%s]\ndelivery: %s\n", source, lookupRule, delivery)
}

func TestLookupsAreRefusedWhereTheBrokerCannot(t *testing.T) {
	t.Parallel()
	const (
		exhook  = "{type: exhook}"
		mqtt    = `{type: mqtt, decode: %s, url: "mqtt://b:1883"}`
		webhook = "{type: webhook, format: %s, token: sixteen-bytes-or-more}"
		topic   = "{to: topic, secret: sixteen-bytes-or-more, evidence: %s}"
		with    = "{to: topic, secret: sixteen-bytes-or-more, api: " + soundAPI + "}"
	)
	api := "needs EMQX's HTTP API to subscribe clients: set delivery.api"
	for name, c := range map[string]struct{ source, delivery, want string }{
		"exhook":                     {exhook, fmt.Sprintf(topic, "broker"), api},
		"exhook with the api":        {exhook, with, ""},
		"rule events":                {fmt.Sprintf(mqtt, "emqx"), fmt.Sprintf(topic, "broker"), api},
		"rule events with the api":   {fmt.Sprintf(mqtt, "emqx"), with, ""},
		"rule events by http":        {fmt.Sprintf(webhook, "emqx-rule"), with, ""},
		"mosquitto":                  {fmt.Sprintf(mqtt, "mosquitto"), fmt.Sprintf(topic, "puback"), "the broker of source a (mqtt, mosquitto) cannot be asked to subscribe a client: leave it out"},
		"plain":                      {fmt.Sprintf(mqtt, "plain"), fmt.Sprintf(topic, "puback"), "the broker of source a (mqtt, plain) cannot be asked"},
		"vernemq":                    {fmt.Sprintf(webhook, "vernemq"), fmt.Sprintf(topic, "puback"), "the broker of source a (webhook, vernemq) cannot be asked"},
		"embedded, beside":           {"{type: embedded}", fmt.Sprintf(topic, "broker"), "the embedded broker subscribes clients only with delivery.to: direct, in the same process"},
		"embedded, in the process":   {"{type: embedded}", "{to: direct}", ""},
		"embedded, with the api too": {"{type: embedded}", "{to: direct, api: " + soundAPI + "}", "delivery.api.type (line 4): means nothing with delivery.to: direct"},
		"mosquitto with the api":     {fmt.Sprintf(mqtt, "mosquitto"), strings.Replace(with, "api:", "evidence: puback, api:", 1), "delivery.api.type (line 4): no source tells of the connections of an EMQX"},
	} {
		_, err := Parse(lookingUp(c.source, c.delivery), noEnv)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got  %v\nwant %s", name, err, c.want)
		}
		if c.want != "" && len(faultsOf(err)) != 1 {
			t.Errorf("%s: more than one fault: %v", name, err)
		}
	}
}

func TestAFaultyAPIIsExplained(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ api, want string }{
		"no type":         {"{url: \"http://emqx:18083\", key: k, secret: s}", "delivery.api.type (line 4): is missing"},
		"another":         {"{type: hivemq}", "delivery.api.type (line 4): \"hivemq\" is unknown"},
		"version":         {"{type: emqx, version: 3, url: \"http://emqx:18083\", key: k, secret: s}", "delivery.api.version (line 4): 3 is too small"},
		"no address":      {"{type: emqx, key: k, secret: s}", "delivery.api.url"},
		"mqtt":            {"{type: emqx, url: \"mqtt://emqx:1883\", key: k, secret: s}", "write http://host:port"},
		"with the path":   {"{type: emqx, url: \"http://emqx:18083/api/v5\", key: k, secret: s}", "leave out /api"},
		"with a login":    {"{type: emqx, url: \"http://u:geheim@emqx:18083\", key: k, secret: s}", "\"…@emqx:18083\""},
		"no key":          {"{type: emqx, url: \"http://emqx:18083\", secret: s}", "delivery.api.key"},
		"no secret":       {"{type: emqx, url: \"http://emqx:18083\", key: k}", "delivery.api.secret_file"},
		"secret twice":    {"{type: emqx, url: \"http://emqx:18083\", key: k, secret: s, secret_file: f}", "given twice"},
		"half a key pair": {"{type: emqx, url: \"http://emqx:18083\", key: k, secret: s, tls: {cert_file: f}}", "delivery.api.tls.key_file"},
	} {
		_, err := Parse(lookingUp("{type: exhook}", "{secret: sixteen-bytes-or-more, api: "+c.api+"}"), noEnv)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got  %v\nwant %s", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: the password is shown: %v", name, err)
		}
	}
}

func TestTheAPISecretComesFromItsFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("geheim\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Parse(lookingUp("{type: exhook}", fmt.Sprintf("{secret: sixteen-bytes-or-more, api: {type: emqx, url: \"http://emqx:18083\", key: k, secret_file: %q}}", file)), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = c.WithSecrets(); err != nil || c.Delivery.API.Secret != "geheim" {
		t.Errorf("secret %q, %v", string(c.Delivery.API.Secret), err)
	}
	var b strings.Builder
	if err := c.Print(&b); err != nil || strings.Contains(b.String(), "geheim") {
		t.Errorf("the secret is printed, or nothing is: %v", err)
	}
	if r := c.PipelineRules(); len(r) != 1 || r[0].Action != pipeline.OnSubscribeLookup {
		t.Errorf("rules %+v", r)
	}
}
