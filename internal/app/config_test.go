package app

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

func mapEnv(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

func TestBadFilesAreExplained(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"empty":                     {"", "the file is empty: config.example.yaml shows every key"},
		"comments only":             {"# nothing\n---\n", "the file is empty: config.example.yaml shows every key"},
		"a list":                    {"- a\n", "line 1: the file must be a mapping, with keys such as kafka, sources, sinks and rules"},
		"two documents":             {"log: {}\n---\nlog: {}\n", `line 2: a second YAML document begins: remove the line "---", the file must hold one`},
		"a tab":                     {"log:\n\tlevel: info\n", "line 2: the line is indented by a tab: YAML wants spaces"},
		"a bracket":                 {"log: {level: info\n", "line 1: not YAML: did not find expected ',' or '}'"},
		"UTF-16":                    {"\xff\xfel\x00o\x00", "the file is UTF-16: save it as UTF-8"},
		"Latin-1":                   {"log: {}\n# caf\xe9\n", "line 2: the line is not UTF-8"},
		"too large":                 {strings.Repeat("# much\n", 200_000), "the file is larger than 1MiB: is it the right one?"},
		"unknown section":           {"kafak: {}\n", `kafak (line 1): unknown key: did you mean "kafka"?`},
		"unknown key":               {"log:\n  lvel: info\n", `log.lvel (line 2): unknown key: did you mean "level"?`},
		"nothing near":              {"shutdown: {speed: 3}\n", "shutdown.speed (line 1): unknown key: known here are drain"},
		"nothing to set":            {"sinks: {x: {type: memory, size: 3}}\n", "sinks.x.size (line 1): unknown key: nothing can be set here"},
		"the same key twice":        {"log: {}\nadmin: {}\nlog: {}\n", "log (line 3): stands here for the second time, the first is in line 1"},
		"the same sink twice":       {"sinks:\n  x: {type: memory}\n  x: {type: memory}\n", "sinks.x (line 3): stands here for the second time, the first is in line 2"},
		"merge key":                 {"log: &l {level: info}\nadmin:\n  <<: *l\n", "admin.<< (line 3): merge keys are not supported: write the keys out"},
		"a tag":                     {"log: {level: !!binary aW5mbw==}\n", "log.level (line 1): tag !!binary: tags have no meaning here, remove it"},
		"a list for a value":        {"log: {level: [info]}\n", "log.level (line 1): must be one value, not a list"},
		"a value for a mapping":     {"log: info\n", "log (line 1): must be a mapping of keys to values, not one value"},
		"a value for a list":        {"rules: none\n", "rules (line 1): must be a list, not one value"},
		"a hole in a list":          {"rules:\n  - \n", "rules[0] (line 2): is empty"},
		"a list as a key":           {"? [a]\n: b\n", "line 1: a key must be a name, not a list"},
		"no duration":               {"writer: {hold: 1000}\n", `writer.hold (line 1): "1000" is no duration: write a number with a unit, such as 500ms, 30s, 2h or 7d`},
		"no size":                   {"ingest: {max_payload: 256KB}\n", `ingest.max_payload (line 1): "256KB" is no size: the unit must be KiB, MiB or GiB`},
		"no number":                 {"replayer: {window: many}\n", `replayer.window (line 1): "many" is no whole number`},
		"no truth":                  {"admin: {pprof: yes}\n", `admin.pprof (line 1): "yes" is neither true nor false`},
		"too small":                 {"kafka: {messages: {partitions: 0}}\n", "kafka.messages.partitions (line 1): 0 is too small, the least is 1"},
		"too large a number":        {"writer: {hold: 1d}\n", "writer.hold (line 1): 24h is too large, the most is 1m"},
		"too large a size":          {"ingest: {max_payload: 1GiB}\n", "ingest.max_payload (line 1): 1GiB is too large, the most is 64MiB"},
		"negative":                  {"writer: {hold: -1s}\n", "writer.hold (line 1): -1s is too small, the least is 0s"},
		"not one of":                {"log: {level: warning}\n", `log.level (line 1): "warning" is unknown: did you mean warn?`},
		"far from one of":           {"log: {level: chatty}\n", `log.level (line 1): "chatty" is unknown: one of debug, info, warn, error`},
		"emptied":                   {"kafka: {client_id: \"\"}\n", "kafka.client_id (line 1): is missing"},
		"environment not set":       {"log: {level: \"${LEVEL}\"}\n", "log.level (line 1): environment variable LEVEL is not set"},
		"environment unclosed":      {"log: {level: \"${LEVEL\"}\n", `log.level (line 1): "${" without its name and "}": write ${NAME}, or $$ for a dollar sign`},
		"environment default":       {"log: {level: \"${LEVEL:-info}\"}\n", `log.level (line 1): "${" without its name and "}": write ${NAME}, or $$ for a dollar sign`},
		"source without type":       {"sources:\n  x: {listen: a}\n", "sources.x.type (line 2): is missing: one of embedded, exhook, mqtt, webhook"},
		"null source":               {"sources:\n  x:\n", "sources.x.type (line 2): is missing: one of embedded, exhook, mqtt, webhook"},
		"webhook without a format":  {"sources: {x: {type: webhook}}\ndelivery: {evidence: puback}\n", "sources.x.format (line 1): is missing: one of emqx-rule, emqx-webhook, vernemq"},
		"webhook's path":            {"sources: {x: {type: webhook, format: emqx-rule, path: events}}\n", `sources.x.path (line 1): "events" is no path: it begins with / and holds no ?, # or space`},
		"webhook's token":           {"sources: {x: {type: webhook, format: emqx-rule, token: short}}\n", "sources.x.token (line 1): is too short: 16 bytes or more"},
		"webhook's key twice":       {"sources: {x: {type: webhook, format: emqx-rule, hmac_key: 0123456789abcdef, hmac_key_file: f}}\n", "sources.x.hmac_key (line 1): is given twice: remove it or hmac_key_file"},
		"webhook's small bodies":    {"sources: {x: {type: webhook, format: emqx-rule, max_body: 256KiB}}\n", "sources.x.max_body (line 1): 256KiB has no room for a payload of ingest.max_payload (256KiB) in base64 and what surrounds it: 415060 or more"},
		"webhook without acks":      {"sources: {x: {type: webhook, format: vernemq}}\n", "delivery.evidence: no source tells of acks, so that nothing would ever count as delivered: use puback"},
		"exhook without an address": {"sources: {x: {type: exhook, listen: \"\"}}\ndelivery: {evidence: puback}\n", "sources.x.listen (line 1): is missing"},
		"exhook without a port":     {"sources: {x: {type: exhook, listen: here}}\ndelivery: {evidence: puback}\n", `sources.x.listen (line 1): "here" is no address: write host:port, or :port for all interfaces`},
		"exhook without a key":      {"sources: {x: {type: exhook, tls: {cert_file: c}}}\ndelivery: {evidence: puback}\n", "sources.x.tls.key_file (line 1): is missing: it belongs to cert_file"},
		"exhook without one":        {"sources: {x: {type: exhook, tls: {enabled: true}}}\ndelivery: {evidence: puback}\n", "sources.x.tls.cert_file (line 1): is missing: a server with TLS needs a certificate"},
		"spool slower than exhook":  {"sources: {x: {type: exhook, budget: 1s}}\ndelivery: {evidence: puback}\ningest: {spool: {path: p, after: 501ms}}\n", "ingest.spool.after (line 3): 501ms must be at most half of sources.x.budget (1s): a call that meets the beginning of an outage is answered after it"},
		"spool too small":           {"ingest: {spool: {path: p, size: 127MiB}}\n", "ingest.spool.size (line 1): 127MiB is too small, the least is 128MiB"},
		"exhook without budget":     {"sources: {x: {type: exhook, budget: 0s}}\ndelivery: {evidence: puback}\n", "sources.x.budget (line 1): 0s is too small, the least is 100ms"},
		"exhook with evidence":      {"sources: {x: {type: exhook}}\n", "delivery.secret: is required with exhook: by it ingest knows the replays whose acks it maps; set secret or secret_file, or use puback as evidence"},
		"exhook beside rule events": {"sources: {x: {type: exhook}, y: {type: mqtt, url: \"mqtt://b\", decode: emqx, connections: 999}}\n", "sources.y.connections (line 1): 999 is too large, the most is 256"},
		"cassandra without hosts":   {"sinks: {x: {type: cassandra}}\n", "sinks.x.hosts (line 1): is missing"},
		"cassandra's consistency":   {"sinks: {x: {type: cassandra, hosts: a, consistency: local_quorom}}\n", `sinks.x.consistency (line 1): "local_quorom" is unknown: did you mean local_quorum?`},
		"cassandra's login":         {"sinks: {x: {type: cassandra, hosts: a, password: p}}\n", "sinks.x.user (line 1): is missing: a password was given"},
		"cassandra's keyspace":      {"sinks: {x: {type: cassandra, hosts: a, keyspace: a-b}}\n", `sinks.x.keyspace (line 1): "a-b" is no plain name: lower-case letters, digits and _, a letter first, at most 48`},
		"dynamodb's endpoint":       {"sinks: {x: {type: dynamodb, endpoint: \"localhost:8000\"}}\n", `sinks.x.endpoint (line 1): "localhost:8000" is no URL: http://host:port or https://host`},
		"key without secret":        {"sinks: {x: {type: dynamodb, access_key_id: k}}\n", "sinks.x.secret_access_key (line 1): is missing: access_key_id needs it, or secret_access_key_file"},
		"secret without key":        {"sinks: {x: {type: dynamodb, secret_access_key: k}}\n", "sinks.x.access_key_id (line 1): is missing: secret_access_key needs it"},
		"key and profile":           {"sinks: {x: {type: dynamodb, access_key_id: k, secret_access_key: s, profile: p}}\n", "sinks.x.profile (line 1): stands beside access_key_id: only one of them"},
		"dynamodb's table prefix":   {"sinks: {x: {type: dynamodb, table_prefix: \"a b\"}}\n", `sinks.x.table_prefix (line 1): "a b" is no name for DynamoDB: letters, digits, '.', '_' and '-', at most 200`},
		"dynamodb's unit of time":   {"sinks: {x: {type: dynamodb, time_unit: us}}\n", `sinks.x.time_unit (line 1): "us" is unknown: did you mean s?`},
		"unknown sink type":         {"sinks: {x: {type: sqlite3}}\n", `sinks.x.type (line 1): "sqlite3" is unknown: did you mean sqlite?`},
		"sink without a path":       {"sinks: {x: {type: sqlite}}\n", "sinks.x.path (line 1): is missing"},
		"key of another type":       {"sinks: {x: {type: sqlite, path: a, listen: b}}\n", "sinks.x.listen (line 1): unknown key: known here are path, tombstone_ttl"},
		"odd name":                  {"sinks: {\"a b\": {type: memory}}\n", `sinks.a b (line 1): name "a b": a name has up to 64 lower-case letters, digits, - and _, and begins and ends with a letter or digit`},
		"unknown decoder":           {"sources: {x: {type: mqtt, url: \"mqtt://b\", decode: mosquito}}\ndelivery: {evidence: puback}\n", `sources.x.decode (line 1): "mosquito" is unknown: did you mean mosquitto?`},
		"a log over connections":    {"sources: {x: {type: mqtt, url: \"mqtt://b\", decode: mosquitto, connections: 2}}\ndelivery: {evidence: puback}\n", "sources.x.connections (line 1): 2: the lines of Mosquitto's log must come in order, over one connection; for more add a source with decode: plain, and give this one the log only, filters: $SYS/broker/log/#"},
		"sources that collide":      {"sources: {x: {type: mqtt, url: \"mqtt://b\", decode: mosquitto}, y: {type: mqtt, url: \"mqtt://b\"}}\ndelivery: {evidence: puback}\n", `sources.y.client_prefix (line 1): "restante-" is that of source x at the same broker, and so are the client ids: give it another, such as "restante-y-"`},
		"evidence that is unknown":  {"delivery: {evidence: client}\n", `delivery.evidence (line 1): "client" is unknown: one of broker, puback, app`},
		"answers nobody hears":      {"sources: {x: {type: embedded}}\ndelivery: {evidence: app}\n", "delivery.evidence (line 2): app: no source hears the clients' answers on offline/ack/{clientid}: add one of type mqtt with decode: plain or mosquitto"},
		"answers to direct":         {"sources: {x: {type: embedded}}\ndelivery: {evidence: app, to: direct}\n", "delivery.evidence (line 2): app needs a replay that is published: with delivery to direct use broker"},
		"answers to no client":      {"delivery: {ack_topic: offline/ack}\n", `delivery.ack_topic (line 1): "offline/ack" must hold {clientid} as exactly one level, and no other braces`},
		"unknown qos 0 policy":      {"replayer: {qos0_subscribe: always}\n", "replayer.qos0_subscribe (line 1): \"always\" is unknown: one of skip, repeat, once"},
		"once behind envelopes": {
			"sources: {e: {type: exhook}}\nreplayer: {qos0_subscribe: once}\ndelivery: {secret: 0123456789abcdef}\n", "replayer.qos0_subscribe (line 2): once: with exhook and evidence broker the broker's PUBACK does not tell that it took a replay: use skip or repeat, or puback as evidence",
		},
		"a user for MSK's IAM":      {"kafka: {tls: {enabled: true}, sasl: {mechanism: aws-msk-iam, user: u, password: p}}\n", "kafka.sasl.user (line 1): must be empty: aws-msk-iam takes credentials as AWS's tools do"},
		"MSK's IAM without TLS":     {"kafka: {sasl: {mechanism: aws-msk-iam, region: eu-central-1}}\n", "kafka.tls.enabled (line 1): must be true: aws-msk-iam is spoken over TLS only"},
		"a region for another":      {"kafka: {sasl: {mechanism: plain, user: u, password: p, region: r}}\n", "kafka.sasl.region (line 1): is of use with mechanism aws-msk-iam alone"},
		"drain against session":     {"shutdown: {drain: 25s}\n", "shutdown.drain (line 1): 25s and 5s more must be less than kafka.session_timeout (30s): no heartbeats are sent while a process drains"},
		"drain against rebalance":   {"kafka: {rebalance_timeout: 20s}\n", "shutdown.drain: 20s must be less than kafka.rebalance_timeout (20s)"},
		"names for Kafka":           {"kafka: {names: {topics: \"a b\"}}\n", `kafka.names.topics (line 1): "a b" is no name for Kafka: letters, digits, '.', '_' and '-', at most 170`},
		"min_insync":                {"kafka: {messages: {replication: 2, min_insync: 3}}\n", "kafka.messages.min_insync (line 1): 3 is more than replication (2): nothing could be written"},
		"broker without a port":     {"kafka: {brokers: [\"a:9092\", b]}\n", `kafka.brokers[1] (line 1): "b" is no address: write host:port`},
		"login without mechanism":   {"kafka: {sasl: {user: u, password: p}}\n", "kafka.sasl.mechanism (line 1): is missing: plain, scram-sha-256 or scram-sha-512"},
		"mechanism without login":   {"kafka: {sasl: {mechanism: plain}}\n", "kafka.sasl.user (line 1): is missing: plain needs a user"},
		"no password":               {"kafka: {sasl: {mechanism: plain, user: u}}\n", "kafka.sasl.password (line 1): is missing: give it, or password_file"},
		"password twice":            {"kafka: {sasl: {mechanism: plain, user: u, password: p, password_file: f}}\n", "kafka.sasl.password (line 1): is given twice: remove it or password_file"},
		"certificate without key":   {"kafka: {tls: {cert_file: c}}\n", "kafka.tls.key_file (line 1): is missing: it belongs to cert_file"},
		"server without one":        {"sources: {x: {type: embedded, tls: {enabled: true}}}\n", "sources.x.tls.cert_file (line 1): is missing: a server with TLS needs a certificate"},
		"listen without a port":     {"sources: {x: {type: embedded, listen: here}}\n", `sources.x.listen (line 1): "here" is no address: write host:port, or :port for all interfaces`},
		"URL of HTTP":               {"delivery: {mqtt: {url: \"http://b:1883\"}}\n", `delivery.mqtt.url[0] (line 1): "http://b:1883": write mqtt://host:1883 or mqtts://host:8883`},
		"URL with a login":          {"delivery: {mqtt: {url: \"mqtt://u:hunter2@b:1883\"}}\n", `delivery.mqtt.url[0] (line 1): "mqtt://u:xxxxx@b:1883" holds a login: write it into user and password_file`},
		"URL that is none":          {"delivery: {mqtt: {url: \"mqtt://u:hunter2@b:x\"}}\n", `delivery.mqtt.url[0] (line 1): "…@b:x" is no URL: write mqtt://host:1883 or mqtts://host:8883`},
		"URL with a path":           {"delivery: {mqtt: {url: \"mqtt://b/x\"}}\n", `delivery.mqtt.url[0] (line 1): "mqtt://b/x": nothing may follow the port`},
		"short secret":              {"delivery: {secret: short}\n", "delivery.secret (line 1): is too short: 16 bytes or more"},
		"secret twice":              {"delivery: {secret: 0123456789abcdef, secret_file: f}\n", "delivery.secret (line 1): is given twice: remove it or secret_file"},
		"prefix without topic":      {"delivery: {prefix: \"offline/{clientid}\"}\n", `delivery.prefix (line 1): "offline/{clientid}" must end with /{topic}`},
		"prefix without client":     {"delivery: {prefix: \"offline/{topic}\"}\n", `delivery.prefix (line 1): "offline" must hold {clientid} as exactly one level, and no other braces`},
		"prefix with a wildcard":    {"delivery: {prefix: \"+/{clientid}/{topic}\"}\n", `delivery.prefix (line 1): topic "+/x": wildcard '+' at byte 0: a topic name holds none`},
		"fetch topic":               {"sources: {x: {type: mqtt, url: \"mqtt://b\", fetch_topic: \"a/b{clientid}\"}}\ndelivery: {evidence: puback}\n", `sources.x.fetch_topic (line 1): "a/b{clientid}" must hold {clientid} as exactly one level, and no other braces`},
		"bad filter of a source":    {"sources: {x: {type: mqtt, url: \"mqtt://b\", filters: [a, \"#/b\"]}}\ndelivery: {evidence: puback}\n", `sources.x.filters[1] (line 1): filter "#/b": '#' must be the last level`},
		"direct without embedded":   {"delivery: {to: direct}\n", "delivery.to (line 1): direct needs a source of type embedded in the same process: use topic or prefix"},
		"evidence that never comes": {"sources: {x: {type: mqtt, url: \"mqtt://b\"}}\n", "delivery.evidence: no source tells of acks, so that nothing would ever count as delivered: use puback"},
		"short memory of deletions": {"kafka: {messages: {retention: 10d}}\nsinks: {x: {type: sqlite, path: p}}\n", "sinks.x.tombstone_ttl (line 2): 240h must be longer than kafka.messages.retention (240h): a record read again would bring a deleted message back"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse([]byte(tt.text), noEnv)
			if err == nil {
				t.Fatal("no fault was found")
			}
			if d := cmp.Diff(tt.want, err.Error()); d != "" {
				t.Error(d)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("a password stands in the error")
			}
		})
	}
}

func TestAllFaultsAreReportedAtOnceInOrder(t *testing.T) {
	t.Parallel()
	_, err := Parse([]byte(`
kafka: {brokers: [here], messages: {partitions: -1}}
sinks:
  history: {type: sqlite, pth: x}
rules:
  - {topic: "a/#/b", action: save_offline_messages, sink: histroy}
  - {on: message.publish, topic: "#", do: on_message_pubish, sink: history}
shutdown: {drain: long}
admin: {listen: "8080"}
`), noEnv)
	var got []string
	for _, f := range faultsOf(err) {
		got = append(got, fmt.Sprintf("%d %s", f.Line, f.Path))
	}
	want := []string{
		"2 kafka.brokers[0]", "2 kafka.messages.partitions", "4 sinks.history.pth", "4 sinks.history.path",
		"6 rules[0].topic", "6 rules[0].sink", "7 rules[1].do", "8 shutdown.drain", "9 admin.listen",
	}
	less := cmp.Transformer("set", func(s []string) map[string]bool {
		m := map[string]bool{}
		for _, x := range s {
			m[x] = true
		}
		return m
	})
	if d := cmp.Diff(want, got, less); d != "" {
		t.Errorf("%s\n%v", d, err)
	}
}

func TestAliasesCannotBlowUp(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("kafka: {brokers: [a: 1]}\nrules:\n  - &a0 {topic: t, action: save_offline_messages, sink: s, do: [")
	b.WriteString(strings.Repeat("x,", 200) + "]}\n")
	for range 600 {
		b.WriteString("  - *a0\n")
	}
	_, err := Parse([]byte(b.String()), noEnv)
	if err == nil || !strings.Contains(err.Error(), "too many values: the file's aliases multiply") {
		t.Errorf("got %.300v", err)
	}
	if c, err := Parse([]byte("kafka: {tls: &t {server_name: x}}\nsources: {e: {type: mqtt, url: mqtt://b, tls: *t}}\ndelivery: {evidence: puback}\n"), noEnv); err != nil ||
		c.Sources["e"].MQTT.TLS.ServerName != "x" {
		t.Errorf("an honest alias: %v", err)
	}
	if _, err := Parse([]byte("rules: &r [*r]\n"), noEnv); err == nil {
		t.Error("an alias to itself was taken")
	}
}

func TestEnvironmentFillsValuesOnly(t *testing.T) {
	t.Parallel()
	env := mapEnv(map[string]string{
		"BROKERS": "a:1, b:2", "N": "7", "PASS": "x: {y}\n$z", "EMPTY": "", "HOLD": "2s",
	})
	c, err := Parse([]byte(`
kafka:
  brokers: ${BROKERS}
  messages: {partitions: "${N}"}
  sasl: {mechanism: plain, user: "$$${N}$", password: "${PASS}"}
  tls: {server_name: "${EMPTY}"}
writer: {hold: "${HOLD}"}
`), env)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Addresses{"a:1", "b:2"}, c.Kafka.Brokers); d != "" {
		t.Error(d)
	}
	got := fmt.Sprint(c.Kafka.Messages.Partitions, c.Kafka.SASL.User, c.Kafka.SASL.Password.Reveal(), c.Kafka.TLS.ServerName, c.Writer.Hold)
	if want := fmt.Sprint(7, "$7$", "x: {y}\n$z", "", 2*time.Second); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

func TestByteOrderMarkAndWindowsLinesAreTaken(t *testing.T) {
	t.Parallel()
	c, err := Parse([]byte("\xef\xbb\xbflog:\r\n  level: warn\r\n"), noEnv)
	if err != nil || c.Log.Level != "warn" {
		t.Errorf("got %q, %v", c.Log.Level, err)
	}
}

func TestEachProcessSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	const rule = "rules: [{topic: t, action: save_offline_messages, sink: s}]\n"
	tests := map[string]struct {
		text, process string
		want          []string
	}{
		"ingest of nothing":   {"log: {}", ProcessIngest, []string{"kafka.brokers", "sources"}},
		"writer of nothing":   {"log: {}", ProcessWriter, []string{"kafka.brokers", "sinks", "rules"}},
		"replayer of nothing": {"log: {}", ProcessReplayer, []string{"kafka.brokers", "sinks", "rules", "delivery.mqtt.url"}},
		"up of nothing":       {"log: {}", ProcessUp, []string{"sinks", "rules", "sources", "delivery.mqtt.url"}},
		"memory between processes": {
			"kafka: {brokers: \"k:1\"}\nsinks: {s: {type: memory}}\n" + rule, ProcessWriter, []string{"sinks.s.type"},
		},
		"direct between processes": {
			"kafka: {brokers: \"k:1\"}\nsources: {e: {type: embedded}}\nsinks: {s: {type: sqlite, path: p}}\ndelivery: {to: direct}\n" + rule,
			ProcessReplayer,
			[]string{"delivery.to"},
		},
		"direct and memory in one": {
			"sources: {e: {type: embedded}}\nsinks: {s: {type: memory}}\ndelivery: {to: direct}\n" + rule, ProcessUp, nil,
		},
		"no key for a source that does not see who published": {
			"kafka: {brokers: \"k:1\"}\nsources: {e: {type: mqtt, url: \"mqtt://b\"}}\ndelivery: {evidence: puback}\n", ProcessIngest, []string{"delivery.secret_file"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Parse([]byte(tt.text), noEnv)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range faultsOf(c.For(tt.process)) {
				got = append(got, f.Path)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
	if Default().For("nobody") == nil {
		t.Error("an unknown process was taken")
	}
}

func TestKafkaNamesAndTopics(t *testing.T) {
	t.Parallel()
	k := Default().Kafka
	if g := k.WriterGroup("history") + " " + k.ReplayerGroup(); g != "restante.writer.history restante.replayer" {
		t.Errorf("groups are %s", g)
	}
	want := TopicSpec{"mqtt.dead", 4, 3, 2, 336 * time.Hour}
	if d := cmp.Diff(want, k.Topic(event.Dead)); d != "" {
		t.Error(d)
	}
	k.Messages.Replication, k.Sessions.MinInsync = 1, 1
	for _, kind := range []event.Kind{event.Messages, event.Sessions, event.Dead} {
		if s := k.Topic(kind); s.Replication != 1 || s.MinInsync != 1 {
			t.Errorf("%s: got %+v, want one copy everywhere", kind, s)
		}
	}
}

func TestSourceSubscribesToWhatRulesStore(t *testing.T) {
	t.Parallel()
	c := example()
	want := []string{"cmd/+/#", "log/#", "news/#", "pool/#", "t/#"}
	if d := cmp.Diff(want, c.SourceFilters("plant")); d != "" {
		t.Error(d)
	}
	c.Sources["plant"].MQTT.Decode = decodeLog
	if d := cmp.Diff(append(want, "$SYS/broker/log/M/#", "$SYS/broker/log/N"), c.SourceFilters("plant")); d != "" {
		t.Error(d)
	}
	c.Sources["plant"].MQTT.Filters = List{"$SYS/broker/log/#"}
	if d := cmp.Diff([]string{"$SYS/broker/log/#"}, c.SourceFilters("plant")); d != "" {
		t.Error(d)
	}
	c.Sources["plant"].MQTT.Decode, c.Sources["plant"].MQTT.Filters = decodePlain, List{"x"}
	if d := cmp.Diff([]string{"x"}, c.SourceFilters("plant")); d != "" || c.SourceFilters("devices") != nil {
		t.Error(d)
	}
}

func TestPipelineTakesTheRules(t *testing.T) {
	t.Parallel()
	if _, err := pipeline.Compile(example().PipelineRules(), "restante-"); err != nil {
		t.Error(err)
	}
}
