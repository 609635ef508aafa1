package app

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write docs/config.md and config.example.yaml anew")

const (
	referenceFile = "../../docs/config.md"
	exampleFile   = "../../config.example.yaml"
)

// variants are the types of sources and sinks with their defaults, in the order of the reference.
func variants() map[string][]any {
	var cassandra, dynamodb, sqlite, memory Sink
	var embedded, exhook, mqtt, webhook Source
	cassandra.choose("cassandra")
	dynamodb.choose("dynamodb")
	sqlite.choose("sqlite")
	memory.choose("memory")
	embedded.choose("embedded")
	exhook.choose("exhook")
	mqtt.choose("mqtt")
	webhook.choose("webhook")
	return map[string][]any{"sources": {embedded, exhook, mqtt, webhook}, "sinks": {cassandra, dynamodb, sqlite, memory}}
}

// example is a configuration in which every key stands.
func example() Config {
	c := Default()
	c.Kafka.Brokers = Addresses{"kafka-1:9092", "kafka-2:9092"}
	var embedded, exhook, mqtt, webhook Source
	embedded.choose("embedded")
	exhook.choose("exhook")
	mqtt.choose("mqtt")
	mqtt.MQTT.URL = Addresses{"mqtt://broker:1883"}
	webhook.choose("webhook")
	webhook.Webhook.Format, webhook.Webhook.TokenFile = "vernemq", "/run/secrets/webhook"
	c.Sources = map[string]Source{"devices": embedded, "emqx": exhook, "plant": mqtt, "site": webhook}
	var sqlite Sink
	sqlite.choose("sqlite")
	sqlite.SQLite.Path = "restante.db"
	var cassandra, dynamodb Sink
	cassandra.choose("cassandra")
	cassandra.Cassandra.Hosts = Addresses{"cass-1", "cass-2"}
	dynamodb.choose("dynamodb")
	dynamodb.DynamoDB.Region = "us-west-2"
	c.Sinks = map[string]Sink{"archive": cassandra, "history": sqlite, "pool1": dynamodb}
	c.Delivery.MQTT.URL = Addresses{"mqtt://broker:1883"}
	c.Ingest.Spool.Path = "/var/lib/restante/spool"
	c.Delivery.SecretFile = "/run/secrets/replay"
	yes, ttl := true, defaultRule().TTL
	c.Rules = []Rule{
		{
			SQL:    `SELECT * FROM "t/#", "$events/session_subscribed", "$events/message_acked" WHERE topic =~ 't/#'`,
			Action: "save_offline_messages", Sink: "history", TTL: ttl,
		},
		{
			Topic: "cmd/+/#", Action: "save_offline_messages", Sink: "history", TTL: 14 * 24 * time.Hour, MaxReturned: 100,
			TimeRange: 48 * time.Hour, Addressee: "cmd/{clientid}/#", Wildcards: &yes, Ack: RuleAck{IgnoreClients: List{"monitor-*"}},
		},
		{On: "message.publish", Topic: "log/#", Do: List{"on_message_store"}, Sink: "history", TTL: 0},
		{Preset: "emqx-offline-cassandra", Topic: "news/#", Sink: "archive", TTL: ttl},
		{Topic: "pool/#", Action: "save_offline_messages", Sink: "pool1", TTL: ttl},
		{On: "session.subscribed", Topic: "pool/#", Do: List{"on_subscribe_store"}, Sink: "pool1", TTL: ttl},
		{On: "client.connected", Topic: "pool/#", Do: List{"on_message_fetch_for_queue"}, Sink: "pool1", TTL: ttl, Delay: 30 * time.Second},
	}
	return c
}

const exampleHead = `# Every key of Restante's configuration, with its default where it has one. What has no default is made up:
# brokers, sources, sinks, rules, URLs and secret files. docs/config.md says more on values. Begin with a copy and leave out
# what you do not change.

`

func writeExample(t *testing.T) []byte {
	t.Helper()
	seen := map[string]bool{}
	note := func(f field) string {
		if seen[f.Key+f.Doc] {
			return ""
		}
		seen[f.Key+f.Doc] = true
		return wrap(f.Doc + choices(f))
	}
	var b bytes.Buffer
	b.WriteString(exampleHead)
	if err := writeYAML(&b, encode(reflect.ValueOf(example()), note)); err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^([^#\n].*\n)(#[^\n]*\n)+[a-z]`).ReplaceAllFunc(b.Bytes(), func(m []byte) []byte {
		return bytes.Replace(m, []byte("\n#"), []byte("\n\n#"), 1)
	})
}

// wrap breaks a comment into lines.
func wrap(text string) string {
	var b strings.Builder
	n := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case n > 0 && n+len(word) > 100:
			b.WriteByte('\n')
			n = 0
		case n > 0:
			b.WriteByte(' ')
		}
		b.WriteString(word)
		n += len(word) + 1
	}
	return b.String()
}

func choices(f field) string {
	var known []string
	for _, one := range f.One {
		if one != "" {
			known = append(known, one)
		}
	}
	if len(known) < 2 {
		return ""
	}
	return " One of " + strings.Join(known, ", ") + "."
}

const referenceHead = `# Configuration

<!-- Made from the struct tags in internal/app: go test ./internal/app -run TestReference -update -->

All processes read one YAML file. ` + "`-check`" + ` of each process checks the file and prints it with all defaults; secrets are
masked. Every fault is reported at once, with its key and line. Unknown keys are faults.

- **Environment**: ` + "`${NAME}`" + ` in a value is replaced by the environment variable; one that is not set is a fault. ` + "`$$`" + ` is a
  dollar sign; a dollar sign before anything else stands for itself.
- **Durations** are written as in Go, with ` + "`d`" + ` for 24 hours: ` + "`500ms`, `90s`, `1h30m`, `7d`" + `.
- **Sizes** are bytes, or a number with ` + "`KiB`, `MiB` or `GiB`" + `.
- **Secrets** can be given in the file, through the environment, or as the name of a file (` + "`…_file`" + `) whose content, without
  the newline at its end, is the secret. They are never printed or logged.
- A key whose value is empty (` + "`key:`" + `) keeps its default.

`

func writeReference() []byte {
	var b strings.Builder
	b.WriteString(referenceHead)
	c := Default()
	for _, f := range fieldsOf(reflect.TypeFor[Config]()) {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", f.Key, f.Doc)
		switch f.Key {
		case "sources", "sinks":
			for _, p := range variants()[f.Key] {
				v := reflect.ValueOf(p)
				typ := v.FieldByName("Type").String()
				fmt.Fprintf(&b, "### %s.&lt;name&gt;, type: %s\n\n", f.Key, typ)
				table(&b, v, f.Key+".<name>")
			}
		case "rules":
			b.WriteString(rulesText)
			table(&b, reflect.ValueOf(defaultRule()), "rules[]")
		default:
			table(&b, reflect.ValueOf(c).Field(f.Index), f.Key)
		}
	}
	return []byte(strings.TrimRight(b.String(), "\n") + "\n")
}

const rulesText = `A rule has one of four forms:

` + "```yaml" + `
rules:
  - {on: message.publish, topic: "state/#", do: [on_message_publish, on_message_retain, on_retain_delete], sink: history}
  - {topic: "cmd/#", action: save_offline_messages, sink: history}
  - sql: SELECT * FROM "t/#", "$events/session_subscribed", "$events/message_acked" WHERE topic =~ 't/#'
    action: save_offline_messages
    sink: history
  - {preset: emqx-offline-cassandra, topic: "news/#", sink: history}
  - {on: client.connected, do: on_message_fetch_for_queue, delay: 10s, sink: history}
` + "```" + `

A preset stands for what EMQX 4 had for the store. Its options are those of the actions in it:

- ` + "`emqx-offline-cassandra`" + `: the rule action "save offline messages to Cassandra", that is on_message_publish,
  on_message_fetch_for_queue and on_message_acked_for_queue. It is the same as ` + "`action: save_offline_messages`" + ` on the topic.
- ` + "`emqx-backend-dynamo`" + `: the hooks of emqx_backend_dynamo.conf, all but the one that is commented out there. It runs
  without on_subscribe_lookup where the broker cannot be asked to subscribe a client,
  and without on_retain_lookup unless ` + "`delivery.broker_retains`" + ` is false: the check and each start say so.

on_subscribe_lookup gives a client its stored subscriptions back, those of the table mqtt_sub: on session.created when it comes with
a new session, on client.connected whenever it comes. It needs a broker that subscribes clients when it is asked to: EMQX, by its
HTTP API (` + "`delivery.api`" + `), or the embedded one with ` + "`delivery.to: direct`" + `. Anywhere else it is refused. The rows are yours, or
on_subscribe_store and on_unsubscribe_delete write them. What the client itself says in the session stays. Replays follow as after
a subscribe of the client's own.

on_retain_lookup hands the retained messages over that on_message_retain stored: at each subscribe the newest of every topic of the
filter, out of the store and of what the writers have not written yet; a wildcard asks for those of all topics. It is for brokers that
keep none (` + "`delivery.broker_retains: false`" + `); one that does hands over its own, and a client would get each twice. The retain handling
of the subscribe counts: with 1 only a new subscription gets them (and one of which the source does not say whether it is new), with 2
none does. The QoS is the lower of the message's and the subscription's, 0 included. With ` + "`delivery.to: direct`" + ` they carry the RETAIN
flag; over MQTT they cannot, since a publish with the flag would set the message for everybody. Nothing waits for their acks. One that
is published after the subscribe comes live only.

on_message_fetch_for_queue on client.connected catches up where a broker resumes a session: no subscribe is told then, and the
broker's own queue may have been full or lost. ` + "`delay`" + ` after the connect what is still un-acked of the client's stored subscriptions
(on_subscribe_store) is replayed, up to the time of the connect; its topic, if it has one, selects among them. New sessions are left out
where the source tells of them.

A subscribe, too, may only repeat one of a session that goes on. Where the source says that it does, nothing is replayed, unless an
earlier replay of it was cut short; where nothing is known, the replay waits for ` + "`replayer.resume_delay`" + `; where the session or the
subscription is new, and at QoS 0, it begins at once.

A subscribe at QoS 0 gets what ` + "`replayer.qos0_subscribe`" + ` says. ` + "`repeat`" + ` is what EMQX's plugins did: everything that is stored, at each
subscribe, and nothing is removed by it. With ` + "`once`" + ` the broker's acceptance removes a message: what the network loses after it is lost.

Both presets work on every type of sink. An action that is not in this version is refused where a rule names it itself.
` + "`restante convert`" + ` makes rules of a conf file, line by line.

In pub/sub (on_message_fetch_for_pubsub, on_message_acked_for_pubsub) every subscriber gets every message, and has positions of its
own; on_acked_delete forgets them at an unsubscribe. ` + "`first_subscribe`" + ` says where they begin. It needs ` + "`delivery.to: prefix`" + ` or direct:
a replay on the topic itself would reach every subscriber. [docs/pubsub.md](pubsub.md) says more.

EMQX rule SQL may select whole events by topic: ` + "`SELECT * FROM`" + ` a list of topic filters, ` + "`$events/session_subscribed`" + ` and
` + "`$events/message_acked`" + ` in double quotes, and ` + "`WHERE topic =~ 'filter'`" + ` or ` + "`WHERE topic = 'topic'`" + ` or nothing. A column, a function,
another condition or event is refused with its position.

Options that mean nothing to the actions of a rule are faults. So are two rules on one sink whose topics overlap when one is in
queue mode and the other in pub/sub mode, or when they do the same with different options.

`

func table(b *strings.Builder, v reflect.Value, path string) {
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	rows(b, v, path)
	b.WriteString("\n")
}

func rows(b *strings.Builder, v reflect.Value, path string) {
	for _, f := range fieldsOf(v.Type()) {
		x, at := v.Field(f.Index), join(path, f.Key)
		if f.Type.Kind() == reflect.Struct {
			rows(b, x, at)
			continue
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", at, f.typeName(), defaultText(f, x), strings.NewReplacer("|", "\\|", "<", "&lt;").Replace(meaning(f)))
	}
	if part, ok := partOf(v); ok {
		rows(b, part, path)
	}
}

func defaultText(f field, v reflect.Value) string {
	if f.Key == "type" && !slices.Contains(f.One, "") || f.Need && v.IsZero() || f.Need && v.Kind() == reflect.Slice && v.Len() == 0 {
		return "required"
	}
	if isEmpty(v) && v.Kind() != reflect.Bool && v.Kind() != reflect.Int && v.Type() != durationType || v.Kind() == reflect.Pointer && v.IsNil() {
		return "unset"
	}
	return "`" + show(v) + "`"
}

func meaning(f field) string {
	s := f.Doc + choices(f)
	switch {
	case f.Min != "" && f.Max != "":
		s += fmt.Sprintf(" From %s to %s.", f.Min, f.Max)
	case f.Min != "" && f.Min != "0" && f.Min != "0s":
		s += fmt.Sprintf(" At least %s.", f.Min)
	}
	if len(f.Later) > 0 {
		s += " Not in this version: " + strings.Join(f.Later, ", ") + "."
	}
	return s
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s is not what the struct tags say; run with -update (-file +tags):\n%s", file, d)
	}
}

func TestReferenceListsEveryKeyWithItsDefault(t *testing.T) {
	t.Parallel()
	golden(t, referenceFile, writeReference())
	text, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range allKeys() {
		if !strings.Contains(string(text), "| `"+path+"` |") {
			t.Errorf("%s misses %s", referenceFile, path)
		}
	}
}

func TestExampleListsEveryKeyAndIsValid(t *testing.T) {
	t.Parallel()
	golden(t, exampleFile, writeExample(t))
	c, err := Load(exampleFile, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range []string{ProcessIngest, ProcessWriter, ProcessReplayer, ProcessUp} {
		if err := c.For(process); err != nil {
			t.Errorf("%s: %v", process, err)
		}
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	text, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	collect(tree, "", has)
	const otherDelivery = "rules[].first_subscribe" // pub/sub, which cannot stand beside the default of delivery.to
	for _, path := range allKeys() {
		if !has[path] && path != otherDelivery {
			t.Errorf("%s misses %s", exampleFile, path)
		}
	}

	// Each section of the example is the default but for what it cannot have.
	want := Default()
	want.Kafka.Brokers, want.Sources, want.Sinks, want.Rules = c.Kafka.Brokers, c.Sources, c.Sinks, c.Rules
	want.Ingest.Spool.Path = c.Ingest.Spool.Path
	want.Delivery.MQTT.URL, want.Delivery.SecretFile = c.Delivery.MQTT.URL, c.Delivery.SecretFile
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("the example differs from the defaults (-want +got):\n%s", d)
	}
}

// collect notes the paths of all keys, with names and numbers made general.
func collect(v any, path string, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			at := join(path, k)
			if path == "sources" || path == "sinks" {
				at = path + ".<name>"
			}
			into[at] = true
			collect(x, at, into)
		}
	case []any:
		for _, x := range v {
			collect(x, path+"[]", into)
		}
	}
}

// allKeys are the paths of all keys that have a value of their own.
func allKeys() []string {
	var keys []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(string(writeReference()), -1) {
		keys = append(keys, m[1])
	}
	return keys
}

func TestEveryKeyIsDescribed(t *testing.T) {
	t.Parallel()
	if n := len(allKeys()); n < 100 {
		t.Errorf("only %d keys were found", n)
	}
	var visit func(reflect.Type, string)
	visit = func(typ reflect.Type, path string) {
		switch typ.Kind() {
		case reflect.Struct:
			for _, f := range fieldsOf(typ) {
				at := join(path, f.Key)
				if !strings.HasSuffix(f.Doc, ".") {
					t.Errorf("%s: doc %q is no sentence", at, f.Doc)
				}
				if f.Min != "" && f.Max != "" && f.bound(f.Min) >= f.bound(f.Max) {
					t.Errorf("%s: min %s, max %s", at, f.Min, f.Max)
				}
				visit(f.Type, at)
			}
		case reflect.Map, reflect.Slice, reflect.Pointer:
			visit(typ.Elem(), path)
		}
	}
	visit(reflect.TypeFor[Config](), "")
	for _, list := range variants() {
		for _, p := range list {
			part, ok := partOf(reflect.ValueOf(p))
			if !ok {
				t.Errorf("%T has no part", p)
				continue
			}
			visit(part.Type(), "")
		}
	}
}

func noEnv(string) (string, bool) { return "", false }

func faultsOf(err error) Faults {
	var f Faults
	errors.As(err, &f)
	return f
}
