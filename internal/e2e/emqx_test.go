package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mochitest"
	"github.com/restante/restante/mqtt/mqtttest"
)

// ruleBroker is a broker that republishes its events as EMQX's rule engine does.
type ruleBroker struct {
	mochi.HookBase
	t      *testing.T
	server *mochi.Server
	minter event.Minter
	ruled  []event.Filter // the topics of the rules on messages
	post   string         // the URL that the rules' HTTP action posts to; "" = they republish

	mu     sync.Mutex
	ids    map[string]string // message ids by topic and payload: each message of the test is another
	flight map[string]packets.Packet
	queues map[string]int // how much is kept for a client; for others all is
}

// startRuleBroker listens on the address until the test ends. Its rules on messages are about these topics, which must leave out
// restante/events: an ack of an event there would be an event again.
func startRuleBroker(t *testing.T, addr string, topics ...string) *ruleBroker {
	t.Helper()
	return startPostingBroker(t, addr, "", topics...)
}

// startPostingBroker is startRuleBroker with rules that post what happens.
func startPostingBroker(t *testing.T, addr, post string, topics ...string) *ruleBroker {
	t.Helper()
	b := &ruleBroker{
		t: t, post: post, minter: event.Minter{Node: 0xF49D_0000_01D4, Now: time.Now}, ids: map[string]string{}, flight: map[string]packets.Packet{},
		server: mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)}),
	}
	for _, text := range topics {
		f, err := event.ParseFilter(text)
		if err != nil {
			t.Fatal(err)
		}
		b.ruled = append(b.ruled, f)
	}
	if err := b.server.AddHook(b, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.server.AddListener(mochitest.Listener(b.server, e2etest.Listen(t, addr))); err != nil {
		t.Fatal(err)
	}
	if err := b.server.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.server.Close() }) // the test is over
	return b
}

func (b *ruleBroker) Provides(hook byte) bool {
	switch hook {
	case mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnPublished, mochi.OnQosPublish, mochi.OnQosComplete, mochi.OnSubscribed, mochi.OnUnsubscribed, mochi.OnSessionEstablished, mochi.OnDisconnect:
		return true
	}
	return false
}

func (b *ruleBroker) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }

// OnACLCheck keeps what is over the limit from a client's session, as a full queue does.
func (b *ruleBroker) OnACLCheck(cl *mochi.Client, _ string, write bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	most, ok := b.queues[cl.ID]
	return write || !ok || cl.State.Inflight.Len() < most
}

// republish is the action of all rules.
func (b *ruleBroker) republish(event string, cl *mochi.Client, fields map[string]any) {
	fields["event"], fields["timestamp"], fields["node"] = event, time.Now().UnixMilli(), "emqx@127.0.0.1"
	fields["clientid"], fields["username"] = cl.ID, "undefined"
	text, err := json.Marshal(fields)
	if err == nil && b.post != "" {
		err = postUntilTaken(b.t.Context(), b.post, text)
	} else if err == nil {
		err = b.server.Publish("restante/events", text, false, 1)
	}
	if err != nil && b.t.Context().Err() == nil { // at its end ingest may be gone before the clients are
		b.t.Errorf("republish %s: %v", event, err)
	}
}

// matches is the FROM of the rules; that of acks has "or topic =~ 'offline/#'" in WHERE too.
func (b *ruleBroker) matches(text string) bool {
	topic, err := event.ParseTopic(text)
	return err == nil && slices.ContainsFunc(b.ruled, func(f event.Filter) bool { return f.Match(topic) })
}

// message are the fields of a message, pub_props as 4.x and 5.x write them.
func (b *ruleBroker) message(pk packets.Packet) map[string]any {
	key := pk.TopicName + "\x00" + string(pk.Payload)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ids[key] == "" {
		b.ids[key] = b.minter.Mint().String()
	}
	props, pairs, object := map[string]any{}, []map[string]string{}, map[string]string{}
	for _, u := range pk.Properties.User {
		pairs = append(pairs, map[string]string{"key": u.Key, "value": u.Val})
		object[u.Key] = u.Val
	}
	if len(pairs) > 0 {
		props["User-Property-Pairs"], props["User-Property"] = pairs, object
	}
	return map[string]any{"id": b.ids[key], "topic": pk.TopicName, "qos": pk.FixedHeader.Qos, "pub_props": props}
}

func (b *ruleBroker) OnPublished(cl *mochi.Client, pk packets.Packet) {
	if cl.Net.Inline || !b.matches(pk.TopicName) {
		return
	}
	fields := b.message(pk)
	fields["payload_b64"] = base64.StdEncoding.EncodeToString(pk.Payload)
	fields["flags"] = map[string]bool{"retain": pk.FixedHeader.Retain, "dup": false}
	fields["publish_received_at"] = time.Now().UnixMilli()
	b.republish("message.publish", cl, fields)
}

func (b *ruleBroker) OnQosPublish(cl *mochi.Client, pk packets.Packet, _ int64, _ int) {
	if pk.FixedHeader.Type != packets.Publish {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flight[fmt.Sprint(cl.ID, "/", pk.PacketID)] = pk
}

func (b *ruleBroker) OnQosComplete(cl *mochi.Client, pk packets.Packet) {
	key := fmt.Sprint(cl.ID, "/", pk.PacketID)
	b.mu.Lock()
	sent, ok := b.flight[key]
	delete(b.flight, key)
	b.mu.Unlock()
	if pk.FixedHeader.Type != packets.Puback || !ok || !b.matches(sent.TopicName) && !strings.HasPrefix(sent.TopicName, "offline/") {
		return
	}
	fields := b.message(sent)
	fields["from_clientid"] = sent.Origin
	b.republish("message.acked", cl, fields)
}

func (b *ruleBroker) OnSubscribed(cl *mochi.Client, pk packets.Packet, codes []byte) {
	for i, s := range pk.Filters {
		if codes[i] < 0x80 && !cl.Net.Inline {
			b.republish("session.subscribed", cl, map[string]any{"topic": s.Filter, "qos": codes[i], "sub_props": map[string]any{}})
		}
	}
}

func (b *ruleBroker) OnUnsubscribed(cl *mochi.Client, pk packets.Packet) {
	for _, s := range pk.Filters {
		b.republish("session.unsubscribed", cl, map[string]any{"topic": s.Filter, "unsub_props": map[string]any{}})
	}
}

func (b *ruleBroker) OnSessionEstablished(cl *mochi.Client, _ packets.Packet) {
	b.republish("client.connected", cl, map[string]any{"clean_start": cl.Properties.Clean, "connected_at": time.Now().UnixMilli(), "receive_maximum": 32})
}

// leave disconnects a client of a clean session, and waits until the broker has told of it: it may still be at it when the client is back,
// and would then tell that the client has gone again.
func (b *ruleBroker) leave(c *mqtttest.Client, id string) {
	b.t.Helper()
	c.Disconnect()
	e2etest.Await(b.t, id+" is gone", func() bool {
		_, ok := b.server.Clients.Get(id)
		return !ok
	})
}

func (b *ruleBroker) OnDisconnect(cl *mochi.Client, _ error, _ bool) {
	if !cl.Net.Inline {
		b.republish("client.disconnected", cl, map[string]any{"reason": "normal", "disconnected_at": time.Now().UnixMilli()})
	}
}

const ruleProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
sources: {emqx: %[8]s}
sinks: {history: {type: sqlite, path: %[4]q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history, wildcards: true}]
replayer: {settle: 2s, resume_delay: 200ms}
delivery: {to: %[7]s, evidence: broker, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// TestEventsOfEMQXRulesTellTheStory: ingest sees nothing but what the rule engine republishes, or posts.
func TestEventsOfEMQXRulesTellTheStory(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"topic", "prefix", "topic by HTTP"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			s := newSetupWithoutKafka(t)
			to, byHTTP := strings.CutSuffix(way, " by HTTP")
			source, post := fmt.Sprintf(`{type: mqtt, url: "mqtt://%s", decode: emqx}`, s.broker), ""
			if byHTTP {
				listen := ports.Addr(t)
				source = fmt.Sprintf("{type: webhook, format: emqx-rule, listen: %q, token: %q}", listen, postToken)
				post = "http://" + listen + "/events"
			}
			s.configure = func(admin string) string {
				return fmt.Sprintf(ruleProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, to, source)
			}
			startKafka(t, s.kafka)
			if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
				t.Fatal(err)
			}
			startPostingBroker(t, s.broker, post, "t/#")
			s.startAll("ingest", "writer", "replayer")
			binary := "\x00\xff\xfe"
			e2etest.Publish(t, s.broker, "t/1", "one", binary, "three")
			e2etest.AwaitRows(t, s.database, 3)

			filters := []string{"t/1"}
			if to == "prefix" {
				filters = append(filters, "offline/device-1/#")
			}
			c := e2etest.Subscribe(t, s.broker, "device-1", filters...)
			got := e2etest.Receive(t, c, 3)
			if diff := cmp.Diff([]string{"one", binary, "three"}, e2etest.Payloads(got)); diff != "" {
				t.Errorf("replay (-want +got):\n%s", diff)
			}
			if err := e2etest.Replays(got); err != nil {
				t.Error(err)
			}
			e2etest.AwaitRows(t, s.database, 0)
			e2etest.Publish(t, s.broker, "t/1", "live")
			if live := e2etest.Receive(t, c, 1); string(live[0].Payload) != "live" || live[0].User("offline-msgid") != "" {
				t.Errorf("live: %+v", live)
			}
			e2etest.Quiet(t, c, 3*time.Second) // the last pass after settle sends nothing again
			late := e2etest.Subscribe(t, s.broker, "device-2", "t/#")
			e2etest.Quiet(t, late, 3*time.Second)
			e2etest.AwaitRows(t, s.database, 0)
			want := map[string][]string{"t/1": {"one", binary, "three", "live"}}
			if diff := cmp.Diff(want, published(s.records("mqtt.messages"))); diff != "" {
				t.Errorf("publishes in Kafka (-want +got):\n%s", diff)
			}
		})
	}
}
