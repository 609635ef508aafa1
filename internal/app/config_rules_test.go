package app

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// withRules is a configuration of rules on two sinks and a source that sees all.
func withRules(rules string) []byte {
	return []byte("sources: {e: {type: embedded}}\nsinks: {s: {type: sqlite, path: p}, z: {type: sqlite, path: q}}\ndelivery: {to: direct}\nrules:\n" + rules)
}

func lines(c Config) []string {
	var out []string
	for _, r := range c.PipelineRules() {
		out = append(out, fmt.Sprintf("%s %s %s", r.Hook, r.Action, r.Topic))
	}
	return out
}

func TestAllFormsOfARuleAreExpanded(t *testing.T) {
	t.Parallel()
	offline := []string{
		"message.publish on_message_publish t/#",
		"session.subscribed on_message_fetch_for_queue t/#",
		"message.acked on_message_acked_for_queue t/#",
	}
	tests := map[string]struct {
		rule string
		want []string
	}{
		"the statement of EMQX's guide": {"  - sql: " + seedSQL + "\n    action: save_offline_messages\n    sink: s\n", offline},
		"topic and action":              {`  - {topic: "t/#", action: save_offline_messages, sink: s}`, offline},
		"preset for Cassandra":          {`  - {preset: emqx-offline-cassandra, topic: "t/#", sink: s}`, offline},
		"hook and actions": {
			`  - {on: message.publish, topic: "#", do: [on_message_publish, on_message_retain, on_retain_delete], sink: s}`,
			[]string{"message.publish on_message_publish #", "message.publish on_message_retain #", "message.publish on_retain_delete #"},
		},
		"one action without a list": {
			`  - {on: client.connected, do: on_client_connected, sink: s}`,
			[]string{"client.connected on_client_connected "},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Parse(withRules(tt.rule), noEnv)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, lines(c)); d != "" {
				t.Error(d)
			}
		})
	}
}

// The golden file has what each preset becomes: the rules that run with their options, and by name what this version leaves out.
func TestPresetsBecomeTheRulesOfEMQX(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	preset := func(text []byte, rule string) {
		c, err := Parse(text, noEnv)
		if err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
		fmt.Fprintln(&b, rule)
		for _, r := range c.PipelineRules() {
			fmt.Fprintf(&b, "  %s %s %q ttl=%s max=%d range=%s addressee=%q ignore=%q\n",
				r.Hook, r.Action, r.Topic, r.TTL, r.MaxReturned, r.TimeRange, r.Addressee, r.IgnoreClients)
		}
		for _, w := range c.Warnings() {
			fmt.Fprintln(&b, "  warning:", w)
		}
		if err := c.PrintRules(&b); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range sortedKeys(presets) {
		for _, options := range []string{"", `, topic: "t/+/#", ttl: 1h, max_returned_count: 500, time_range: 2h, addressee: "t/{clientid}/#", ack: {ignore_clients: m-*}`} {
			rule := fmt.Sprintf("{preset: %s, sink: s%s}", name, options)
			preset(withRules("  - "+rule), rule)
		}
	}
	const lone = "{preset: emqx-backend-dynamo, sink: s}"
	preset([]byte("sinks: {s: {type: sqlite, path: s.db}}\nrules: ["+lone+"]\n"), lone+", where no broker can subscribe clients")
	golden(t, "testdata/presets.golden", b.Bytes())
}

func TestOptionsReachTheActionsThatTakeThem(t *testing.T) {
	t.Parallel()
	c, err := Parse(withRules(`  - {topic: "t/+/#", action: save_offline_messages, sink: s, ttl: 7d, max_returned_count: 5, time_range: 2h, addressee: "t/{clientid}/#", wildcards: false, ack: {ignore_clients: x-*}}`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	r := c.PipelineRules()
	publish, fetch, acked := r[0], r[1], r[2]
	if publish.TTL.Hours() != 168 || publish.Addressee != "" || publish.MaxReturned != 0 {
		t.Errorf("publish: %+v", publish)
	}
	if fetch.MaxReturned != 5 || fetch.TimeRange.Hours() != 2 || fetch.Addressee != "t/{clientid}/#" || fetch.Wildcards == nil || *fetch.Wildcards {
		t.Errorf("fetch: %+v", fetch)
	}
	if d := cmp.Diff([]string{"x-*"}, acked.IgnoreClients); d != "" || acked.Addressee != "t/{clientid}/#" {
		t.Errorf("acked: %+v", acked)
	}
}

func TestBadRulesAreExplained(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ rules, want string }{
		"nothing to do":                {`  - {topic: "#", sink: s}`, "rules[0] (line 5): says nothing to do: write on, topic and do; or topic and action; or sql and action; or preset"},
		"two forms":                    {`  - {on: message.publish, topic: "#", do: on_message_publish, action: save_offline_messages, sink: s}`, "rules[0] (line 5): mixes forms"},
		"sql without action":           {"  - sql: " + seedSQL + "\n    sink: s", "rules[0].action (line 5): is missing: save_offline_messages is what sql needs"},
		"sql and topic":                {"  - sql: " + seedSQL + "\n    action: save_offline_messages\n    topic: t\n    sink: s", "rules[0].topic (line 7): has no place beside sql"},
		"no hook":                      {`  - {topic: "#", do: on_message_publish, sink: s}`, "rules[0].on (line 5): is missing"},
		"no action":                    {`  - {on: message.publish, topic: "#", sink: s}`, "rules[0].do (line 5): is missing"},
		"no topic":                     {`  - {on: message.publish, do: on_message_publish, sink: s}`, `rules[0].topic (line 5): is missing: "#" for all topics`},
		"no sink":                      {`  - {topic: "#", action: save_offline_messages}`, "rules[0].sink (line 5): is missing"},
		"unknown sink":                 {`  - {topic: "#", action: save_offline_messages, sink: ss}`, `rules[0].sink (line 5): sink "ss" is not configured: did you mean "s"?`},
		"bad filter":                   {`  - {topic: "a/#/b", action: save_offline_messages, sink: s}`, `rules[0].topic (line 5): filter "a/#/b": '#' must be the last level`},
		"shared filter":                {`  - {topic: "$share/g/a", action: save_offline_messages, sink: s}`, `rules[0].topic (line 5): filter "$share/g/a": a rule selects topics and cannot be shared`},
		"unknown hook":                 {`  - {on: message.published, topic: a, do: on_message_publish, sink: s}`, `rules[0].on (line 5): "message.published" is unknown: did you mean message.publish?`},
		"unknown preset":               {`  - {preset: emqx, sink: s}`, `rules[0].preset (line 5): "emqx" is unknown`},
		"action on another hook":       {`  - {on: message.acked, topic: a, do: on_message_publish, sink: s}`, "rules[0].on (line 5): on_message_publish cannot run on"},
		"topic without meaning":        {`  - {on: client.connected, topic: a, do: on_client_connected, sink: s}`, "rules[0].topic (line 5): means nothing: events of client.connected have no topic"},
		"option without meaning":       {`  - {on: message.publish, topic: a, do: on_message_publish, max_returned_count: 3, sink: s}`, "rules[0].max_returned_count (line 5): means nothing to on_message_publish on message.publish"},
		"a first subscribe of no time": {`  - {on: session.subscribed, topic: "#", do: on_message_fetch_for_pubsub, first_subscribe: some, sink: s}`, `rules[0].first_subscribe (line 5): "some" is neither none nor all nor a duration above zero, such as 24h`},
		"a first subscribe in queue":   {`  - {on: session.subscribed, topic: "#", do: on_message_fetch_for_queue, first_subscribe: all, sink: s}`, "rules[0].first_subscribe (line 5): means nothing to on_message_fetch_for_queue"},
		"addressee":                    {`  - {topic: "a/#", action: save_offline_messages, addressee: "a/x{clientid}", sink: s}`, "rules[0].addressee (line 5): "},
		"addressee elsewhere":          {`  - {topic: "a/#", action: save_offline_messages, addressee: "b/{clientid}/#", sink: s}`, `rules[0].addressee (line 5): "b/{clientid}/#" fits no topic of the rule's filter "a/#"`},
		"negative ttl":                 {`  - {topic: a, action: save_offline_messages, ttl: -1h, sink: s}`, "rules[0].ttl (line 5): -1h is too small, the least is 0s"},
		"sql that asks for more":       {"  - sql: SELECT payload FROM \"t\"\n    action: save_offline_messages\n    sink: s", `rules[0].sql (line 5): character 8: "payload" stands where * is expected; supported is SELECT * FROM`},
		"pub/sub to the topic": {
			"  - {on: session.subscribed, topic: a, do: on_message_fetch_for_pubsub, sink: s}\ndelivery: {to: topic}", "delivery",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse(withRules(tt.rules), noEnv)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if n := len(faultsOf(err)); n > 2 {
				t.Errorf("one fault is reported %d times:\n%v", n, err)
			}
		})
	}
}

func TestContradictionsNameBothRules(t *testing.T) {
	t.Parallel()
	const first = `  - {topic: "t/#", action: save_offline_messages, sink: s}` + "\n"
	tests := map[string]struct{ rules, want string }{
		"the same twice":              {first + `  - {preset: emqx-offline-cassandra, topic: "t/#", sink: s}`, "rules[1] (line 6): says the same as rules[0]: on_message_publish on message.publish \"t/#\""},
		"the same action twice":       {`  - {on: message.publish, topic: t, do: [on_message_publish, on_message_publish], sink: s}`, "rules[0] (line 5): says the same as itself"},
		"queue and pub/sub":           {first + `  - {on: session.subscribed, topic: "+/1", do: on_message_fetch_for_pubsub, sink: s}`, "rules[1] (line 6): contradicts rules[0]: on_message_fetch_for_pubsub"},
		"another ttl":                 {first + `  - {on: message.publish, topic: "t/1", do: on_message_publish, ttl: 1h, sink: s}`, "rules[1] (line 6): contradicts rules[0]: on_message_publish"},
		"an addressee on one only":    {`  - {on: session.subscribed, topic: "t/+", do: on_message_fetch_for_queue, addressee: "t/{clientid}", sink: s}` + "\n" + `  - {on: message.acked, topic: "t/#", do: on_message_acked_for_queue, sink: s}`, "rules[1] (line 6): contradicts rules[0]: on_message_acked_for_queue on \"t/#\" has addressee \"\""},
		"other sink":                  {first + `  - {on: message.publish, topic: "t/1", do: on_message_publish, ttl: 1h, sink: z}`, ""},
		"other topics":                {first + `  - {on: session.subscribed, topic: "u/#", do: on_message_fetch_for_pubsub, sink: s}`, ""},
		"two addressees in pub/sub":   {`  - {on: session.subscribed, topic: "t/+", do: on_message_fetch_for_pubsub, addressee: "t/{clientid}", sink: s}` + "\n" + `  - {on: message.acked, topic: "t/#", do: on_message_acked_for_pubsub, sink: s}`, "rules[1] (line 6): contradicts rules[0]: on_message_acked_for_pubsub on \"t/#\" has addressee \"\""},
		"wider topics, the same mode": {first + `  - {on: message.publish, topic: "#", do: on_message_publish, sink: s}`, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse(withRules(tt.rules), noEnv)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got  %v\nwant %s", err, tt.want)
			case err != nil && strings.Count(err.Error(), "contradicts") > 1:
				t.Errorf("one contradiction is reported more than once:\n%v", err)
			}
		})
	}
}

func TestManyRulesAreCompared(t *testing.T) {
	t.Parallel()
	many := func(n int, format string) []byte {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format+"\n", i)
		}
		return withRules(b.String())
	}
	c, err := Parse(many(maxRules, `  - {topic: "t/%d/#", action: save_offline_messages, sink: s}`), noEnv)
	if err != nil {
		t.Error(err)
	}
	c.Warnings()
	_, err = Parse(many(maxRules, `  - {topic: "#", action: save_offline_messages, ttl: %dh, sink: s}`), noEnv)
	if n := len(faultsOf(err)); n != maxRules-1 {
		t.Errorf("got %d faults, want one for each rule but the first", n)
	}
	if _, err = Parse(many(maxRules+1, `  - {topic: "t/%d", action: save_offline_messages, sink: s}`), noEnv); err == nil {
		t.Error("more rules than allowed were taken")
	}
}

func TestPubsubIsRefusedWithDeliveryToTheTopic(t *testing.T) {
	t.Parallel()
	text := "rules: [{on: session.subscribed, topic: a, do: on_message_fetch_for_pubsub, sink: s}]\nsinks: {s: {type: memory}}\n"
	_, err := Parse([]byte(text), noEnv)
	if err == nil || !strings.Contains(err.Error(), "delivery.to: topic reaches every subscriber, and rules[0] replays for one") {
		t.Errorf("got %v", err)
	}
	_, err = Parse([]byte(text+"delivery: {to: prefix}\n"), noEnv)
	if err != nil {
		t.Errorf("with prefix delivery: got %v", err)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want []string
	}{
		"nothing": {string(withRules(`  - {topic: t, action: save_offline_messages, sink: s}` + "\n  - {topic: t, action: save_offline_messages, sink: z}")), nil},
		"unused, forgetful": {
			"sinks: {a: {type: memory}}",
			[]string{"sinks.a: no rule uses it", "sinks.a: memory forgets everything when the process ends"},
		},
		"open to all": {"sources: {e: {type: embedded, listen: \":1883\"}}", []string{"sources.e: anybody who reaches :1883 may connect: set users_file"}},
		"open to forgers": {
			"sources: {e: {type: exhook, listen: \":9000\"}}\ndelivery: {evidence: puback}",
			[]string{"sources.e: anybody who reaches :9000 may make up events: set tls with client_ca_file, or keep the address inside"},
		},
		"exhook without a spool": {
			"kafka: {brokers: \"k:1\"}\nsources: {e: {type: exhook, budget: 3s}}\ndelivery: {evidence: puback}",
			[]string{"sources.e: while Kafka is away calls fail after 3s and their events are lost to the store: set ingest.spool.path"},
		},
		"exhook with a spool": {
			"kafka: {brokers: \"k:1\"}\nsources: {e: {type: exhook}}\ndelivery: {evidence: puback}\ningest: {spool: {path: p}}", nil,
		},
		"blind for retained": {
			"sources: {e: {type: exhook}}\nsinks: {s: {type: sqlite, path: p}}\ndelivery: {evidence: puback}\nrules: [{on: message.publish, topic: t, do: [on_message_retain, on_retain_delete], sink: s}]",
			[]string{
				"rules[0]: exhook does not tell whether a message is retained: on_message_retain never runs",
				"rules[0]: exhook does not tell whether a message is retained: on_retain_delete never runs",
			},
		},
		"blind": {
			"sources: {e: {type: mqtt, url: \"mqtt://b\", fetch_topic: \"\"}}\nsinks: {s: {type: sqlite, path: p}}\ndelivery: {evidence: puback}\nrules: [{topic: t, action: save_offline_messages, sink: s}]",
			[]string{
				"rules[0]: no source tells session.subscribed: on_message_fetch_for_queue never runs",
				"rules[0]: no source tells message.acked: what is delivered live stays stored until a replay delivers it again",
			},
		},
		"history that is removed": {
			"sinks: {s: {type: sqlite, path: p}}\nrules:\n  - {topic: t, action: save_offline_messages, sink: s}\n  - {on: message.publish, topic: \"#\", do: on_message_store, sink: s}",
			[]string{`rules[1]: on_message_store keeps a history of "#" and on_message_acked_for_queue removes from it what is acked`},
		},
		"stored for nobody": {
			"sinks: {s: {type: sqlite, path: p}}\nrules: [{on: message.publish, topic: t, do: on_message_publish, sink: s}]",
			[]string{`rules[0]: messages of "t" are stored in s and no rule fetches them`},
		},
		"fetched from nowhere": {
			"sinks: {s: {type: sqlite, path: p}}\nrules: [{on: session.subscribed, topic: t, do: on_message_fetch_for_queue, sink: s}]",
			[]string{
				`rules[0]: messages of "t" are fetched from s and no rule stores them there`,
				`rules[0]: no rule on message.acked: every subscribe replays messages of "t" again until they expire`,
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Parse([]byte(tt.text), noEnv)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, c.Warnings()); d != "" {
				t.Error(d)
			}
		})
	}
}
