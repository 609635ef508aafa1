package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/exhook/exhooktest"
	"github.com/restante/restante/mqtt/mqtttest"
)

// The hooks of the manual's conf file, and those of its tables, that this version has: not on_acked_delete. on_subscribe_lookup and
// on_retain_lookup need a broker of another kind.
const seed2Rules = `
  - {on: client.connected, do: on_client_connected, sink: pool1}
  - {on: client.disconnected, do: on_client_disconnected, sink: pool1}
  - {on: session.subscribed, topic: "#", do: [on_message_fetch_for_queue, on_subscribe_store], sink: pool1}
  - {on: session.unsubscribed, topic: "#", do: on_unsubscribe_delete, sink: pool1}
  - {on: message.publish, topic: "#", do: [on_message_publish, on_message_retain, on_retain_delete], sink: pool1}
  - {on: message.acked, topic: "#", do: on_message_acked_for_queue, sink: pool1}`

// ours are the attributes that EMQX's tables do not show: stamps by which writes know which is the newer, and the expiry. id is the
// message id in its own order, where msgid is written in EMQX's form.
var ours = []string{"stamp", "up_stamp", "down_stamp", "id", "expires_at"}

var hexID = regexp.MustCompile(`^[0-9A-F]{32}$`)

// seedItems scans a table and takes our attributes off, each of which must be a number, or id the digits of one.
func seedItems(t *testing.T, p plainDynamoDB, table string) []map[string]value {
	t.Helper()
	all := p.scan(t, table)
	for _, it := range all {
		for _, name := range ours {
			text, _ := it[name]["S"].(string)
			if v, ok := it[name]; ok && v["N"] == nil && (name != "id" || !hexID.MatchString(text)) {
				t.Errorf("%s: %s is %v, want a number", table, name, v)
			}
			delete(it, name)
		}
	}
	return all
}

// awaitItem waits until the table has an item with these attributes.
func awaitItem(t *testing.T, p plainDynamoDB, table string, with map[string]value) map[string]value {
	t.Helper()
	var all []map[string]value
	var found map[string]value
	defer func() {
		if t.Failed() {
			t.Logf("%s: %v", table, all)
		}
	}()
	e2etest.Await(t, fmt.Sprintf("%s has %v", table, with), func() bool {
		all = seedItems(t, p, table)
		for _, it := range all {
			sub := map[string]value{}
			for name := range with {
				sub[name] = it[name]
			}
			if cmp.Equal(sub, with) {
				found = it
				return true
			}
		}
		return false
	})
	return found
}

// wantItem checks an item whole. The attributes of inSeconds are seconds since 1970, not before began.
func wantItem(t *testing.T, table string, got, want map[string]value, began time.Time, inSeconds ...string) {
	t.Helper()
	got, want = maps.Clone(got), maps.Clone(want)
	for _, name := range inSeconds {
		text, _ := got[name]["N"].(string)
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < began.Unix() || n > time.Now().Unix() {
			t.Errorf("%s: %s is %v, want seconds from %d to now", table, name, got[name], began.Unix())
		}
		delete(got, name)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", table, d)
	}
}

func s(text string) value { return value{"S": text} }
func n(text string) value { return value{"N": text} }

// TestSeed2 is the manual's page "DynamoDB message storage": its scans, field by field, whatever tells ingest of them.
func TestSeed2(t *testing.T) {
	t.Parallel()
	endpoint := stack.Shared(t, stack.DynamoDB)
	for name, start := range map[string]func(*testing.T, *world) seed2{
		"embedded": func(_ *testing.T, w *world) seed2 {
			w.startAll("ingest", "writer", "replayer")
			return seed2{}
		},
		"rule events": func(t *testing.T, w *world) seed2 {
			t.Helper()
			w.source = fmt.Sprintf(`{type: mqtt, url: "mqtt://%s", decode: emqx}`, w.broker)
			startRuleBroker(t, w.broker, "test", "testtopic", "raw")
			w.startAll("ingest", "writer", "replayer")
			return seed2{}
		},
		"ExHook v1": func(t *testing.T, w *world) seed2 {
			t.Helper()
			return startHookedSeed2(t, w, 1)
		},
		"ExHook v2": func(t *testing.T, w *world) seed2 {
			t.Helper()
			return startHookedSeed2(t, w, 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			prefix := w.name + "_"
			w.dynamodb("pool1", endpoint, prefix, ", pool_size: 8")
			w.rules = seed2Rules
			if code, out := w.restante("migrate", "-c", w.config("restante")); code != 0 {
				t.Fatalf("migrate: exit code %d:\n%s", code, out)
			}
			told := start(t, w)
			code, out := w.restante("check", "-c", w.config("restante"))
			if code != 0 {
				t.Errorf("check: exit code %d", code)
			}
			wantLines(t, out, `ok +configuration`, `ok +kafka `+regexp.QuoteMeta(w.kafka), `ok +sink pool1`, `ok +mqtt mqtt://`+regexp.QuoteMeta(w.broker))
			told.broker, told.look, told.read, told.write = w.broker, lookDynamoDB(endpoint, prefix), event.ParseID, event.ID.String
			told.tell(t, func() { tellSubscriptions(t, w.broker, told.look) })
			if told.after != nil {
				told.after()
			}
		})
	}
}

// startHookedSeed2 starts a broker that tells ingest by ExHook and nothing else, and the processes.
func startHookedSeed2(t *testing.T, w *world, version int) seed2 {
	t.Helper()
	hooks := ports.Addr(t)
	w.source = fmt.Sprintf("{type: exhook, listen: %q, budget: 30s}", hooks)
	broker := exhooktest.Start(t, exhooktest.Options{
		Servers: []string{hooks}, Version: version, Listen: w.broker, RequestTimeout: time.Minute, AutoReconnect: 100 * time.Millisecond,
	})
	w.startAll("ingest", "writer", "replayer")
	broker.AwaitLoaded(1)
	return seed2{noRetain: true, after: func() {
		if broker.Failed() != 0 || broker.Puzzled() != 0 {
			t.Errorf("%d calls failed, %d answers puzzled the broker", broker.Failed(), broker.Puzzled())
		}
	}}
}

// seed2 is where the story of the manual's page is told, and how message ids are written there.
type seed2 struct {
	broker string
	look   plainDynamoDB
	read   func(string) (event.ID, error)
	write  func(event.ID) string
	// noRetain: the broker does not tell which messages are retained.
	noRetain bool
	// after is a last look at the broker; nil = none.
	after func()
}

// tell tells it, with more after the client has come.
func (w seed2) tell(t *testing.T, more func()) {
	t.Helper()
	look := w.look

	// mqtt_client: who is connected.
	began := time.Now()
	c := e2etest.Dial(t, w.broker, "mqttjs_384b9c73a9")
	client := map[string]value{"clientid": s("mqttjs_384b9c73a9"), "node": s("emqx@127.0.0.1"), "connect_state": n("1"), "offline_at": n("0")}
	it := awaitItem(t, look, "mqtt_client", map[string]value{"clientid": client["clientid"], "connect_state": n("1")})
	wantItem(t, "mqtt_client", it, client, began, "online_at")
	online := it["online_at"]

	more()

	// mqtt_msg and mqtt_topic_msg_map: what was published.
	for _, m := range []mqtttest.Message{
		{Topic: "test", Payload: []byte("at QoS 0")},
		{Topic: "test", Payload: []byte(`{ "msg": "Hello, World!" }`), QoS: 1},
		{Topic: "testtopic", Payload: []byte("test"), QoS: 1, Retain: true},
		{Topic: "raw", Payload: []byte("\xff\x00"), QoS: 2},
	} {
		if err := c.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	raw := awaitItem(t, look, "mqtt_msg", map[string]value{"topic": s("raw")})
	if d := cmp.Diff([]value{{"B": "\xff\x00"}, n("2")}, []value{raw["payload"], raw["qos"]}); d != "" {
		t.Errorf("a payload that is no UTF-8 (-want +got):\n%s", d)
	}
	msg := awaitItem(t, look, "mqtt_msg", map[string]value{"topic": s("test")})
	id, _ := msg["msgid"]["S"].(string)
	read, err := w.read(id)
	if err != nil || w.write(read) != id {
		t.Errorf("message id %v: %v", msg["msgid"], err)
	}
	wantItem(t, "mqtt_msg", msg, map[string]value{
		"qos": n("1"), "sender": s("mqttjs_384b9c73a9"), "payload": s(`{ "msg": "Hello, World!" }`), "retain": n("0"), "msgid": s(id), "topic": s("test"),
	}, began, "arrived")
	wantItem(t, "mqtt_topic_msg_map", awaitItem(t, look, "mqtt_topic_msg_map", map[string]value{"topic": s("test")}),
		map[string]value{"topic": s("test"), "MsgId": {"SS": []string{id}}}, began)
	awaitItem(t, look, "mqtt_msg", map[string]value{"topic": s("testtopic")})
	if got := look.scan(t, "mqtt_msg"); len(got) != 3 {
		t.Errorf("mqtt_msg has %d items, want those of QoS > 0: %v", len(got), got)
	}

	w.tellRetained(t, c, began)

	// mqtt_acked: who took what. The message is gone then.
	device := e2etest.Subscribe(t, w.broker, "mqttjs_861e582a70", "test")
	got := e2etest.Receive(t, device, 1)
	if err := e2etest.Replays(got); err != nil || string(got[0].Payload) != `{ "msg": "Hello, World!" }` || got[0].User("offline-msgid") != read.String() {
		t.Errorf("replay %+v, want message %s: %v", got[0], id, err)
	}
	wantItem(t, "mqtt_acked", awaitItem(t, look, "mqtt_acked", map[string]value{"topic": s("test")}),
		map[string]value{"topic": s("test"), "msgid": s(id), "clientid": s("mqttjs_861e582a70")}, began)
	e2etest.Await(t, "the message is gone from both tables", func() bool {
		for _, table := range []string{"mqtt_msg", "mqtt_topic_msg_map"} {
			for _, it := range look.scan(t, table) {
				if it["topic"]["S"] == "test" {
					return false
				}
			}
		}
		return true
	})

	// mqtt_client: who is not any more, with the time that it came.
	began = time.Now()
	c.Disconnect()
	client["connect_state"], client["online_at"] = n("0"), online
	delete(client, "offline_at")
	it = awaitItem(t, look, "mqtt_client", map[string]value{"clientid": client["clientid"], "connect_state": n("0")})
	wantItem(t, "mqtt_client", it, client, began, "offline_at")
}

// tellRetained is the part about mqtt_retain: the retained message, until an empty one comes. Without the flag that is one message,
// and the empty one is another.
func (w seed2) tellRetained(t *testing.T, c *mqtttest.Client, began time.Time) {
	t.Helper()
	table, flag := "mqtt_retain", "1"
	if w.noRetain {
		table, flag = "mqtt_msg", "0"
	}
	retained := awaitItem(t, w.look, table, map[string]value{"topic": s("testtopic")})
	wantItem(t, table, retained, map[string]value{
		"qos": n("1"), "sender": s("mqttjs_384b9c73a9"), "payload": s("test"), "retain": n(flag), "msgid": retained["msgid"], "topic": s("testtopic"),
	}, began, "arrived")
	if err := c.Publish(t.Context(), mqtttest.Message{Topic: "testtopic", QoS: 1, Retain: true}); err != nil {
		t.Fatal(err)
	}
	if w.noRetain {
		awaitItem(t, w.look, "mqtt_msg", map[string]value{"topic": s("testtopic"), "payload": s("")})
		if got := w.look.scan(t, "mqtt_retain"); len(got) > 0 {
			t.Errorf("mqtt_retain has %v, and nothing told that they are retained", got)
		}
		return
	}
	e2etest.Await(t, "the retained message is gone", func() bool {
		for _, it := range w.look.scan(t, "mqtt_retain") {
			if it["payload"] != nil && it["topic"]["S"] == "testtopic" {
				return false
			}
		}
		return true
	})
}

// tellSubscriptions is the part about mqtt_sub, which EMQX's plugin left to its users.
func tellSubscriptions(t *testing.T, broker string, look plainDynamoDB) {
	t.Helper()
	began := time.Now()
	dynamo := e2etest.Dial(t, broker, "test-dynamo")
	if _, err := dynamo.Subscribe(t.Context(), 2, "test-dynamo-sub", "test-dynamo-sub-1", "test-dynamo-sub-2"); err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"test-dynamo-sub", "test-dynamo-sub-1", "test-dynamo-sub-2"} {
		sub := map[string]value{"clientid": s("test-dynamo"), "topic": s(topic), "qos": n("2")}
		wantItem(t, "mqtt_sub", awaitItem(t, look, "mqtt_sub", map[string]value{"topic": s(topic)}), sub, began)
	}
	if _, err := dynamo.Unsubscribe(t.Context(), "test-dynamo-sub-2"); err != nil {
		t.Fatal(err)
	}
	e2etest.Await(t, "the subscription is gone", func() bool { return len(look.scan(t, "mqtt_sub")) == 2 })
}

// TestSeed2History is the hook that the manual's conf file has commented out: every QoS is stored, for the record only.
func TestSeed2History(t *testing.T) {
	t.Parallel()
	endpoint := stack.Shared(t, stack.DynamoDB)
	w := newWorld(t, "")
	prefix := w.name + "_"
	look := lookDynamoDB(endpoint, prefix)
	w.dynamodb("pool1", endpoint, prefix, "")
	w.rules = `
  - {on: message.publish, topic: "#", do: on_message_store, sink: pool1}`
	w.migrate()
	w.startAll("ingest", "writer")
	c := e2etest.Dial(t, w.broker, "mqttjs_231b962d5c")
	began := time.Now()
	for qos := range 3 {
		if err := c.Publish(t.Context(), mqtttest.Message{Topic: "test", Payload: []byte("QoS " + strconv.Itoa(qos)), QoS: event.QoS(qos)}); err != nil {
			t.Fatal(err)
		}
	}
	for qos := range 3 {
		text := strconv.Itoa(qos)
		it := awaitItem(t, look, "mqtt_msg", map[string]value{"payload": s("QoS " + text)})
		delete(it, "msgid")
		wantItem(t, "mqtt_msg", it, map[string]value{
			"qos": n(text), "sender": s("mqttjs_231b962d5c"), "payload": s("QoS " + text), "retain": n("0"), "topic": s("test"),
		}, began, "arrived")
	}
	if got := look.scan(t, "mqtt_topic_msg_map"); len(got) > 0 {
		t.Errorf("the map has %v, want nothing: nobody waits for these", got)
	}
}
