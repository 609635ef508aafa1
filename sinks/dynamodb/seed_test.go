package dynamodb_test

import (
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
)

// plain is a client of the service that knows nothing of the store.
func plain(tb testing.TB, cfg dynamodb.Config) *ddb.Client {
	tb.Helper()
	transport := &http.Transport{}
	tb.Cleanup(transport.CloseIdleConnections)
	return ddb.New(ddb.Options{
		HTTPClient: &http.Client{Transport: transport}, BaseEndpoint: aws.String(cfg.Endpoint), Region: cfg.Region, Credentials: credentials.NewStaticCredentialsProvider("restante", "secret", ""),
	})
}

// row is an item in the notation of the aws command: {"qos": {"N": "1"}}.
type row = map[string]map[string]any

func notation(it map[string]types.AttributeValue) row {
	out := row{}
	for name, v := range it {
		switch v := v.(type) {
		case *types.AttributeValueMemberS:
			out[name] = map[string]any{"S": v.Value}
		case *types.AttributeValueMemberN:
			out[name] = map[string]any{"N": v.Value}
		case *types.AttributeValueMemberSS:
			slices.Sort(v.Value)
			out[name] = map[string]any{"SS": v.Value}
		case *types.AttributeValueMemberB:
			out[name] = map[string]any{"B": base64.StdEncoding.EncodeToString(v.Value)}
		}
	}
	return out
}

func scan(tb testing.TB, cfg dynamodb.Config, table string) []row {
	tb.Helper()
	c := plain(tb, cfg)
	var rows []row
	for in := (&ddb.ScanInput{TableName: aws.String(cfg.TablePrefix + table), ConsistentRead: aws.Bool(true)}); ; {
		out, err := c.Scan(tb.Context(), in)
		if err != nil {
			tb.Fatal(err)
		}
		for _, it := range out.Items {
			rows = append(rows, notation(it))
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(out.LastEvaluatedKey) == 0 {
			return rows
		}
	}
}

func s(v string) map[string]any     { return map[string]any{"S": v} }
func n(v string) map[string]any     { return map[string]any{"N": v} }
func ss(v ...string) map[string]any { return map[string]any{"SS": v} }

// TestTablesShowWhatTheSeedShows: EMQX's six tables, field by field; beside these fields stand only stamps of ours.
func TestTablesShowWhatTheSeedShows(t *testing.T) {
	t.Parallel()
	for name, strict := range map[string]bool{"plain": false, "strict": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := configOf(t)
			cfg.IDFormat, cfg.Strict = dynamodb.Base62, strict
			store := open(t, cfg)
			const text = "Mjg4MTk1MDYwNTk0NjYwNzYzMTg4MDk3OTQ2MDU2Nzg1OTD"
			id, err := event.ParseBase62(text)
			if err != nil {
				t.Fatal(err)
			}
			topic := eventtest.Topic(t, "test")
			m := sinks.Message{ID: id, Topic: topic, Sender: "mqttjs_231b962d5c", QoS: 1, Payload: []byte(`{ "msg": "Hello, World!" }`), Arrived: time.Unix(1562308553, 0)}
			r := m
			r.Topic, r.Payload, r.Retain, r.Sender, r.Arrived = eventtest.Topic(t, "testtopic"), []byte("test"), true, "mqttjs_d0513acfce", time.Unix(1562312113, 0)
			client := event.ClientID("mqttjs_384b9c73a9")
			apply(
				t, store, sinks.PutMessage{Message: m}, sinks.PutRetained{Message: r},
				sinks.PutClient{Client: client, Up: sinks.ClientUp{Node: "emqx@127.0.0.1", OnlineAt: time.Unix(1562224940, 0), Stamp: 1562224940e6}},
				sinks.PutSub{Client: "test-dynamo", Filter: eventtest.Filter(t, "test-dynamo-sub"), QoS: 2, Stamp: 5},
				sinks.PutAcked{Client: "mqttjs_861e582a70", Topic: "test", Message: id, Stamp: id.Micros()},
			)
			want := map[string]row{
				"mqtt_client": {"offline_at": n("0"), "node": s("emqx@127.0.0.1"), "clientid": s("mqttjs_384b9c73a9"), "connect_state": n("1"), "online_at": n("1562224940")},
				"mqtt_sub":    {"qos": n("2"), "topic": s("test-dynamo-sub"), "clientid": s("test-dynamo")},
				"mqtt_msg": {
					"arrived": n("1562308553"), "qos": n("1"), "sender": s("mqttjs_231b962d5c"), "payload": s(`{ "msg": "Hello, World!" }`), "retain": n("0"),
					"msgid": s(text), "topic": s("test"),
				},
				"mqtt_topic_msg_map": {"topic": s("test"), "MsgId": ss(text)},
				"mqtt_retain": {
					"arrived": n("1562312113"), "qos": n("1"), "sender": s("mqttjs_d0513acfce"), "payload": s("test"), "retain": n("1"),
					"msgid": s(text), "topic": s("testtopic"),
				},
				"mqtt_acked": {"topic": s("test"), "msgid": s(text), "clientid": s("mqttjs_861e582a70")},
			}
			ours := []string{"stamp", "up_stamp", "id"}
			for table, item := range want {
				rows := scan(t, cfg, table)
				if len(rows) != 1 {
					t.Fatalf("%s has %d items, want 1: %v", table, len(rows), rows)
				}
				maps.DeleteFunc(rows[0], func(name string, _ map[string]any) bool { return slices.Contains(ours, name) && item[name] == nil })
				if d := cmp.Diff(item, rows[0]); d != "" {
					t.Errorf("%s (-want +got):\n%s", table, d)
				}
			}
			apply(
				t, store, sinks.PutClient{Client: client, Down: sinks.ClientDown{OfflineAt: time.Unix(1562224999, 0), Stamp: 1562224940e6 + 1}},
				sinks.DeleteMessage{Topic: topic, ID: id, Stamp: id.Micros() + 1},
			)
			c := scan(t, cfg, "mqtt_client")[0]
			if d := cmp.Diff([]any{n("0"), n("1562224999"), n("1562224940")}, []any{c["connect_state"], c["offline_at"], c["online_at"]}); d != "" {
				t.Errorf("the client after its disconnect (-want +got):\n%s", d)
			}
			if rows := scan(t, cfg, "mqtt_topic_msg_map"); len(rows) > 0 {
				t.Errorf("the map after the ack: %v", rows)
			}
			messages := scan(t, cfg, "mqtt_msg")
			switch {
			case !strict && len(messages) > 0:
				t.Errorf("the message after the ack: %v", messages)
			case strict && (len(messages) != 1 || messages[0]["gone"] == nil || messages[0]["payload"] != nil || messages[0]["expires_at"] == nil):
				t.Errorf("the message after the ack: %v, want a small item that says that it is gone, and expires", messages)
			}
		})
	}
}

// TestRowsOfEMQXAreReplayedAndGoAfterTheAck: items that EMQX wrote before, or writes beside.
func TestRowsOfEMQXAreReplayedAndGoAfterTheAck(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	cfg.IDFormat = dynamodb.Base62
	store := open(t, cfg)
	const text = "Mjg4MTk1MDYwNTk0NjYwNzYzMTg4MDk3OTQ2MDU2Nzg1OTD"
	c := plain(t, cfg)
	put := func(table string, it map[string]types.AttributeValue) {
		if _, err := c.PutItem(t.Context(), &ddb.PutItemInput{TableName: aws.String(cfg.TablePrefix + table), Item: it}); err != nil {
			t.Fatal(err)
		}
	}
	S := func(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
	N := func(n string) types.AttributeValue { return &types.AttributeValueMemberN{Value: n} }
	put("mqtt_msg", map[string]types.AttributeValue{
		"msgid": S(text), "topic": S("test"), "payload": S("hi"), "qos": N("1"), "retain": N("0"), "sender": S("x"), "arrived": N("1562308553"),
	})
	put("mqtt_topic_msg_map", map[string]types.AttributeValue{"topic": S("test"), "MsgId": &types.AttributeValueMemberSS{Value: []string{text}}})
	topic := eventtest.Topic(t, "test")
	got := read(t, store, topic, 10, false)
	if len(got) != 1 || string(got[0].Payload) != "hi" || !got[0].Arrived.Equal(time.Unix(1562308553, 0)) {
		t.Fatalf("read %+v", got)
	}
	apply(t, store, sinks.DeleteMessage{Topic: topic, ID: got[0].ID, Stamp: got[0].ID.Micros() + 1})
	if got := read(t, store, topic, 10, false); len(got) > 0 {
		t.Errorf("after the ack: %+v", got)
	}
}

// TestAnItemOfEMQXsThatIsFullTakesNewMessages: one set of ids holds some 12,000, and then not one more.
func TestAnItemOfEMQXsThatIsFullTakesNewMessages(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	store := open(t, cfg)
	topic, at := eventtest.Topic(t, "test"), time.Now().Add(-time.Hour)
	var ids []string
	for i := range 12799 { // 18 bytes are left
		ids = append(ids, message(topic, at.Add(time.Duration(i)*100*time.Millisecond), 0).ID.String())
	}
	it := map[string]types.AttributeValue{"topic": &types.AttributeValueMemberS{Value: "test"}, "MsgId": &types.AttributeValueMemberSS{Value: ids}}
	c := plain(t, cfg)
	_, err := c.PutItem(t.Context(), &ddb.PutItemInput{TableName: aws.String(cfg.TablePrefix + "mqtt_topic_msg_map"), Item: it})
	if err != nil {
		t.Fatal(err)
	}
	m := message(topic, time.Now(), 1)
	first, err := event.ParseID(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	old := m
	old.ID = first
	apply(t, store, sinks.PutMessage{Message: m}, sinks.PutMessage{Message: old})
	got := read(t, store, topic, 500, false)
	if d := cmp.Diff([]string{ids[0], m.ID.String()}, idsOf(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
