package app

import (
	"fmt"
	"strings"
	"testing"
)

// sighted are configurations by what they show; each has the rules below.
var sighted = []struct{ name, sources, delivery string }{
	{"no sources", "{}", ""},
	{"the embedded broker", "{b: {type: embedded}}", ""},
	{"ExHook", "{emqx: {type: exhook}}", "evidence: puback"},
	{"ExHook beside rule events", "{hook: {type: exhook}, rules: {type: mqtt, url: 'mqtt://b', decode: emqx}}", ""},
	{"ExHook beside plain subscriptions", "{hook: {type: exhook}, plant: {type: mqtt, url: 'mqtt://b'}}", "evidence: puback"},
	{"rule events by HTTP", "{rules: {type: webhook, format: emqx-rule}}", ""},
	{"EMQX's plugin", "{plugin: {type: webhook, format: emqx-webhook}}", "evidence: puback"},
	{"VerneMQ", "{site: {type: webhook, format: vernemq}}", "evidence: puback"},
	{"Mosquitto", "{plant: {type: mqtt, url: 'mqtt://b', decode: mosquitto}}", "evidence: puback"},
	{"Mosquitto whose devices answer", "{plant: {type: mqtt, url: 'mqtt://b', decode: mosquitto}}", "evidence: app"},
	{"any broker", "{plant: {type: mqtt, url: 'mqtt://b'}}", "evidence: puback"},
	{"any broker without the fetch topic", "{plant: {type: mqtt, url: 'mqtt://b', fetch_topic: ''}}", "evidence: puback"},
}

const sightedRules = `
  - {topic: "t/#", action: save_offline_messages, sink: s}
  - {on: message.publish, topic: "t/#", do: [on_message_retain, on_retain_delete], sink: s}
  - {on: session.subscribed, topic: "t/#", do: on_retain_lookup, sink: s}
  - {on: client.connected, do: on_client_connected, sink: s}
  - {on: client.disconnected, do: on_client_disconnected, sink: s}
  - {on: session.subscribed, topic: "#", do: on_subscribe_store, sink: s}
  - {on: session.unsubscribed, topic: "#", do: on_unsubscribe_delete, sink: s}
`

// What a configuration cannot see is told before anything is lost by it.
func TestSightNamesWhatNoSourceTells(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, one := range sighted {
		text := fmt.Sprintf("sources: %s\ndelivery: {broker_retains: false, %s}\nsinks: {s: {type: sqlite, path: p}}\nrules:%s", one.sources, one.delivery, sightedRules)
		c, err := Parse([]byte(text), noEnv)
		if err != nil {
			t.Fatalf("%s: %v", one.name, err)
		}
		fmt.Fprintf(&b, "%s\n", one.name)
		for _, line := range c.Sight() {
			fmt.Fprintf(&b, "  %s\n", line)
		}
		for _, line := range c.Warnings() {
			fmt.Fprintf(&b, "  warning: %s\n", line)
		}
	}
	golden(t, "testdata/sight.golden", []byte(b.String()))
}

// Every rule that a hook is bound to needs something that a source can lack.
func TestEveryHookNeedsASense(t *testing.T) {
	t.Parallel()
	c := Config{Sources: map[string]Source{"blind": {MQTT: &MQTTSource{Decode: decodePlain}}}}
	for hook, what := range sensesOf {
		if what != seesPublish && c.sees(hook) {
			t.Errorf("a source that sees publishes only tells %s", hook)
		}
	}
	if len(sensesOf) != 7 {
		t.Errorf("%d hooks have a sense, want all 7", len(sensesOf))
	}
}
