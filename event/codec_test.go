package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
)

// now is ingest's clock in the golden files.
var now = time.Date(2026, 11, 22, 19, 47, 37, 0, time.UTC)

// sameEvent compares events: words by their value, times by their instant.
var sameEvent = cmp.Options{
	cmp.Comparer(func(a, b event.ID) bool { return a == b }),
	cmp.Comparer(func(a, b event.Topic) bool { return a == b }),
	cmp.Comparer(func(a, b event.Filter) bool { return a == b }),
}

// readBack is what a reader of the route gets for the event: an ack in sessions is one that the replayer watches.
func readBack(e event.Event, r event.Route) event.Event {
	if a, ok := e.(event.Acked); ok {
		a.Watched = r.Kind == event.Sessions
		return a
	}
	return e
}

type goldenCase struct {
	name  string
	event event.Event
}

func goldenCases(t *testing.T) []goldenCase {
	t.Helper()
	message := eventtest.ID(t, "000660E2BFC3B3B2F49E000001AD0001")
	broker := eventtest.ID(t, "000660E373EA2EF2F4EB000001A40001")
	at := time.UnixMilli(1795376856413)
	head := event.Head{ID: event.IDOf(1795376856500001, 0xA1B2C3D4E5F6, 1), Source: "restante/emqx/emqx@10.0.0.7", At: at}
	published := event.Head{ID: message, Source: "restante/emqx/emqx@10.0.0.7", At: at}
	topic, client := eventtest.Topic(t, "t/1"), event.ClientID("dev 1/ü+#")
	return []goldenCase{
		{"publish", event.Published{Head: published, Topic: topic, Sender: "pub1", QoS: 1, Payload: []byte(`{"msg":"Hello, World!"}`)}},
		{"publish_empty_retained", event.Published{Head: published, Topic: topic, QoS: 0, Retain: true, Payload: []byte{}}},
		{"publish_binary", event.Published{Head: published, Topic: eventtest.Topic(t, "$odd/ /é/"), Sender: "pub1", QoS: 2, Payload: []byte{0, 0xff, '\n'}}},
		{"publish_mqtt5", event.Published{
			Head: published, Topic: topic, Sender: "pub1", QoS: 1, Retain: true, Payload: []byte("<a/>"), Expiry: 90 * time.Second,
			Properties: event.Properties{
				User:        []event.UserProperty{{Key: "k", Value: "1"}, {Key: "k", Value: "2 & more"}, {Key: "", Value: ""}},
				ContentType: "text/xml", ResponseTopic: "answers/1", CorrelationData: []byte{1, 2, 0xfe}, PayloadFormat: 1,
			},
		}},
		{"publish_content_type_only", event.Published{
			Head: published, Topic: topic, QoS: 1, Payload: []byte("{}"), Properties: event.Properties{ContentType: "application/json"},
		}},
		{"publish_broker_clock_behind", event.Published{
			Head:  event.Head{ID: message, Source: "restante/emqx", At: now.Add(-5*time.Minute - time.Millisecond)},
			Topic: topic, QoS: 1, Payload: []byte("late"),
		}},
		{"acked", event.Acked{Head: head, Topic: topic, Client: client, Message: message}},
		{"acked_watched", event.Acked{Head: head, Topic: topic, Client: client, Message: message, Watched: true}},
		{"acked_replay", event.Acked{Head: head, Topic: topic, Client: client, Message: message, Replayed: true}},
		{"acked_replay_by_broker_id", event.Acked{Head: head, Topic: topic, Client: client, BrokerID: broker, Replayed: true}},
		{"replayed", event.Replayed{Head: head, Topic: topic, Client: client, Message: message, BrokerID: broker}},
		{"dropped", event.Dropped{Head: head, Topic: topic, Client: client, Message: message, Reason: "queue_full"}},
		{"subscribed", event.Subscribed{Head: head, Client: client, Filter: eventtest.Filter(t, "t/#"), QoS: 1}},
		{"subscribed_shared_mqtt5", event.Subscribed{
			Head: head, Client: client, Filter: eventtest.Filter(t, "$share/g1/t/+"), QoS: 2,
			Options: &event.SubOptions{RetainHandling: 2, RetainAsPublished: true, NoLocal: true}, New: event.Yes,
		}},
		{"subscribed_again", event.Subscribed{
			Head: head, Client: client, Filter: eventtest.Filter(t, "t/1"), QoS: 0, Options: &event.SubOptions{}, New: event.No,
		}},
		{"unsubscribed", event.Unsubscribed{Head: head, Client: client, Filter: eventtest.Filter(t, "t/#")}},
		{"connected", event.Connected{Head: head, Client: client, ExpiryInterval: -1}},
		{"connected_all", event.Connected{
			Head: head, Client: client, ConnectedAt: at, CleanStart: event.No, SessionPresent: event.Yes, ExpiryInterval: 2 * time.Hour,
			ReceiveMaximum: 32, Node: "emqx@10.0.0.7", Username: "u1",
		}},
		{"connected_clean", event.Connected{
			Head: head, Client: client, ConnectedAt: at, CleanStart: event.Yes, SessionPresent: event.No, ExpiryInterval: 0,
		}},
		{"disconnected", event.Disconnected{Head: head, Client: client, Reason: "keepalive_timeout"}},
		{"disconnected_all", event.Disconnected{
			Head: head, Client: client, Reason: "normal", ConnectedAt: at.Add(-time.Hour), DisconnectedAt: at,
		}},
		{"continued", event.ReplayContinued{
			Head: head, Client: client, Filter: eventtest.Filter(t, "t/#"), QoS: 1, Bound: message, Subscribe: 4711, Slice: 3, Rule: "history t/#",
		}},
		{"continued_after", event.ReplayContinued{
			Head: head, Client: client, Filter: eventtest.Filter(t, "t/#"), QoS: 1, Bound: message, Subscribe: 4711, Slice: 3, Rule: "history t/#",
			After: eventtest.Topic(t, "t/ü"),
		}},
	}
}

// goldenRecord is a record as the files in testdata show it.
type goldenRecord struct {
	Topic       event.Kind `json:"topic"`
	Key         string     `json:"key"`
	Timestamp   time.Time  `json:"timestamp"`
	Headers     []string   `json:"headers"`
	Value       string     `json:"value"`
	ValueBase64 []byte     `json:"value_base64,omitempty"` // instead of Value where that is no text
}

func toGolden(kind event.Kind, w event.Wire) goldenRecord {
	g := goldenRecord{Topic: kind, Key: string(w.Key), Timestamp: w.Time.UTC()}
	for _, h := range w.Headers {
		g.Headers = append(g.Headers, h.Key+": "+string(h.Value))
	}
	if utf8.Valid(w.Value) {
		g.Value = string(w.Value)
	} else {
		g.ValueBase64 = w.Value
	}
	return g
}

func (g goldenRecord) wire() event.Wire {
	w := event.Wire{Key: []byte(g.Key), Value: []byte(g.Value), Time: g.Timestamp}
	if g.ValueBase64 != nil {
		w.Value = g.ValueBase64
	}
	for _, h := range g.Headers {
		k, v, _ := strings.Cut(h, ": ")
		w.Headers = append(w.Headers, event.Header{Key: k, Value: []byte(v)})
	}
	return w
}

func goldenFile(name string, kind event.Kind) string {
	return filepath.Join("testdata", name+"."+string(kind)+".json")
}

func readGolden(tb testing.TB, file string) goldenRecord {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	var g goldenRecord
	if err := json.Unmarshal(b, &g); err != nil {
		tb.Fatalf("%s: %v", file, err)
	}
	return g
}

func writeGolden(tb testing.TB, file string, g goldenRecord) {
	tb.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(g); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		tb.Fatal(err)
	}
}

// The encoding is a promise to every reader of the topics, and to records that wait there since the last release.
func TestEncodingIsPinnedByGoldenFiles(t *testing.T) {
	t.Parallel()
	var written []string
	seen := map[string]bool{}
	for _, c := range goldenCases(t) {
		seen[event.TypeOf(c.event)] = true
		for _, r := range c.event.Routes() {
			file := goldenFile(c.name, r.Kind)
			written = append(written, file)
			wire := event.Encode(c.event, r, now)
			if *update {
				writeGolden(t, file, toGolden(r.Kind, wire))
			}
			want := readGolden(t, file)
			if diff := cmp.Diff(want, toGolden(r.Kind, wire)); diff != "" {
				t.Errorf("%s: encoding changed (-want +got):\n%s", file, diff)
			}
			if wire.Value == nil {
				t.Errorf("%s: the value is null", file)
			}
			got, err := event.Decode(r.Kind, want.wire())
			if err != nil {
				t.Errorf("%s: %v", file, err)
			} else if diff := cmp.Diff(readBack(c.event, r), got, sameEvent); diff != "" {
				t.Errorf("%s: decodes to another event (-want +got):\n%s", file, diff)
			}
		}
	}
	for _, e := range []event.Event{
		event.Published{},
		event.Acked{},
		event.Replayed{},
		event.Dropped{},
		event.Subscribed{},
		event.Unsubscribed{},
		event.Connected{},
		event.Disconnected{},
		event.ReplayContinued{},
	} {
		if !seen[event.TypeOf(e)] {
			t.Errorf("no golden file for %s", event.TypeOf(e))
		}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(written, f) {
			t.Errorf("%s belongs to no event", f)
		}
	}
}

func TestEventTimeMayBeFiveMinutesOffTheRecords(t *testing.T) {
	t.Parallel()
	e := event.Unsubscribed{Head: event.Head{ID: event.IDOf(1, 1, 1), Source: "restante/x"}, Client: "c", Filter: eventtest.Filter(t, "a")}
	for _, c := range []struct {
		sentence string
		at       time.Time
		own      bool // the event time is the record's
	}{
		{"on time", now, true},
		{"five minutes early", now.Add(-5 * time.Minute), true},
		{"five minutes late", now.Add(5 * time.Minute), true},
		{"more than five minutes early", now.Add(-5*time.Minute - time.Millisecond), false},
		{"more than five minutes late", now.Add(5*time.Minute + time.Millisecond), false},
		{"years early", now.AddDate(-40, 0, 0), false},
	} {
		e.At = c.at
		r := e.Routes()[0]
		w := event.Encode(e, r, now)
		has := slices.ContainsFunc(w.Headers, func(h event.Header) bool { return h.Key == "ce_time" })
		if has == c.own {
			t.Errorf("%s: ce_time is there: %v", c.sentence, has)
		}
		if want := map[bool]time.Time{true: c.at, false: now}[c.own]; !w.Time.Equal(want) {
			t.Errorf("%s: the record's time is %v, want %v", c.sentence, w.Time, want)
		}
		if got, err := event.Decode(r.Kind, w); err != nil || !got.Meta().At.Equal(c.at) {
			t.Errorf("%s: decodes to %+v, %v", c.sentence, got, err)
		}
	}
}

// A clock before 1970 or beyond all reason, or none at all, must not make a record that nobody can read.
func TestImpossibleEventTimeIsTheRecordsTime(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{{}, time.UnixMilli(-1), time.UnixMilli(1<<52 + 1)} {
		e := event.Disconnected{
			Head: event.Head{ID: event.IDOf(1, 1, 1), At: at}, Client: "c", ConnectedAt: at, DisconnectedAt: at,
		}
		got, err := event.Decode(event.Sessions, event.Encode(e, e.Routes()[0], now))
		want := event.Disconnected{Head: event.Head{ID: e.ID, At: now}, Client: "c"}
		if diff := cmp.Diff(event.Event(want), got, sameEvent); err != nil || diff != "" {
			t.Errorf("%v: %v (-want +got):\n%s", at, err, diff)
		}
	}
}

func publishWire() event.Wire {
	return event.Wire{Key: []byte("t/1"), Value: []byte("hello"), Time: now, Headers: []event.Header{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_type", Value: []byte("mqtt.message.publish")},
		{Key: "ce_id", Value: []byte("000660E2BFC3B3B2F49E000001AD0001")},
		{Key: "ce_source", Value: []byte("restante/emqx")},
		{Key: "ce_qos", Value: []byte("1")},
	}}
}

// with returns the record with a header set, or without it when value is "".
func with(w event.Wire, key, value string) event.Wire {
	w.Headers = slices.DeleteFunc(slices.Clone(w.Headers), func(h event.Header) bool { return h.Key == key })
	if value != "" {
		w.Headers = append(w.Headers, event.Header{Key: key, Value: []byte(value)})
	}
	return w
}

func TestDecodeIgnoresUnknownHeaders(t *testing.T) {
	t.Parallel()
	want, err := event.Decode(event.Messages, publishWire())
	if err != nil {
		t.Fatal(err)
	}
	w := publishWire()
	for _, h := range []event.Header{
		{Key: "traceparent", Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")},
		{Key: "ce_future", Value: []byte("x")},
		{Key: "", Value: nil},
		{Key: "CE_QOS", Value: []byte("2")},
		{Key: "ce_dataschema", Value: []byte("https://example.org/not-ours")},
	} {
		w.Headers = append([]event.Header{h}, w.Headers...)
	}
	got, err := event.Decode(event.Messages, w)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, sameEvent); diff != "" {
		t.Errorf("unknown headers changed the event (-want +got):\n%s", diff)
	}
}

func TestDecodeStopsAtAnUnknownMajor(t *testing.T) {
	t.Parallel()
	for schema, stops := range map[string]bool{
		"urn:restante:event:1": false, "urn:restante:event:2": true, "urn:restante:event:10": true, "urn:restante:event:x": false,
	} {
		_, err := event.Decode(event.Messages, with(publishWire(), "ce_dataschema", schema))
		if errors.Is(err, event.ErrUnknownMajor) != stops || !stops && err != nil {
			t.Errorf("%s: %v", schema, err)
		}
	}
	// A new major may change anything else, its CloudEvents version included.
	_, err := event.Decode(event.Sessions, event.Wire{Headers: []event.Header{
		{Key: "ce_specversion", Value: []byte("2.0")}, {Key: "ce_dataschema", Value: []byte("urn:restante:event:2")},
	}})
	if !errors.Is(err, event.ErrUnknownMajor) {
		t.Errorf("a record of another shape with an unknown major: %v", err)
	}
}

func TestDecodeNamesTheFieldAtFault(t *testing.T) {
	t.Parallel()
	typed := func(typ, key string, headers ...string) event.Wire {
		w := with(with(publishWire(), "ce_type", typ), "ce_qos", "")
		w.Key = []byte(key)
		for _, h := range headers {
			k, v, _ := strings.Cut(h, "=")
			w = with(w, k, v)
		}
		return w
	}
	const id = "000660E2BFC3B3B2F49E000001AD0001"
	for _, c := range []struct {
		sentence, field string
		kind            event.Kind
		wire            event.Wire
	}{
		{"a record without headers", "ce_specversion", event.Messages, event.Wire{Key: []byte("k"), Value: []byte("v"), Time: now}},
		{"an empty record", "ce_specversion", event.Sessions, event.Wire{}},
		{"JSON of a broker's own bridge", "ce_specversion", event.Messages, event.Wire{
			Key: []byte("dev1"), Value: []byte(`{"topic":"t/1","payload":"x","event":"message.publish"}`), Time: now,
			Headers: []event.Header{{Key: "content-type", Value: []byte("application/json")}},
		}},
		{"a structured CloudEvent", "ce_specversion", event.Messages, event.Wire{
			Value:   []byte(`{"specversion":"1.0","type":"mqtt.message.publish","id":"1","source":"x"}`),
			Headers: []event.Header{{Key: "content-type", Value: []byte("application/cloudevents+json")}},
		}},
		{"another CloudEvents version", "ce_specversion", event.Messages, with(publishWire(), "ce_specversion", "0.3")},
		{"another's CloudEvent, by its id", "ce_id", event.Messages, with(with(publishWire(), "ce_type", "com.example.made"), "ce_id", "A234-1234-1234")},
		{"another's CloudEvent, by its type", "ce_type", event.Sessions, with(publishWire(), "ce_type", "com.example.made")},
		{"an event without a type", "ce_type", event.Messages, with(publishWire(), "ce_type", "")},
		{"an event without an id", "ce_id", event.Messages, with(publishWire(), "ce_id", "")},
		{"a publish in sessions", "ce_type", event.Sessions, publishWire()},
		{"a subscribe in messages", "ce_type", event.Messages, typed("mqtt.session.subscribed", "c", "ce_filter=t/#", "ce_qos=1")},
		{"a topic with a wildcard", "key", event.Messages, typed("mqtt.message.publish", "t/#")},
		{"a publish without a key", "key", event.Messages, typed("mqtt.message.publish", "")},
		{"a QoS of 3", "ce_qos", event.Messages, with(publishWire(), "ce_qos", "3")},
		{"a QoS in words", "ce_qos", event.Messages, with(publishWire(), "ce_qos", "one")},
		{"a negative expiry", "ce_expiry", event.Messages, with(publishWire(), "ce_expiry", "-1")},
		{"a time beyond int64", "ce_time", event.Messages, with(publishWire(), "ce_time", "99999999999999999999")},
		{"a sender that is not UTF-8", "ce_sender", event.Messages, with(publishWire(), "ce_sender", "\xff")},
		{"properties that are no JSON", "ce_properties", event.Messages, with(publishWire(), "ce_properties", "{")},
		{"a payload format that MQTT has not", "ce_properties", event.Messages, with(publishWire(), "ce_properties", `{"payload_format":2}`)},
		{"an ack without a client", "ce_clientid", event.Messages, typed("mqtt.message.acked", "t/1", "ce_msgid="+id)},
		{"an ack without any id", "ce_msgid", event.Messages, typed("mqtt.message.acked", "t/1", "ce_clientid=c")},
		{"an ack in sessions without a topic", "ce_topic", event.Sessions, typed("mqtt.message.acked", "c", "ce_msgid="+id)},
		{"an alias without the broker's id", "ce_brokerid", event.Sessions, typed("mqtt.message.replayed", "c", "ce_topic=t", "ce_msgid="+id)},
		{"a subscribe without a filter", "ce_filter", event.Sessions, typed("mqtt.session.subscribed", "c")},
		{"an unsubscribe with a bad filter", "ce_filter", event.Sessions, typed("mqtt.session.unsubscribed", "c", "ce_filter=a#")},
		{"a client id with NUL", "key", event.Sessions, typed("mqtt.client.connected", "a\x00")},
		{"a flag that is neither 0 nor 1", "ce_cleanstart", event.Sessions, typed("mqtt.client.connected", "c", "ce_cleanstart=2")},
		{"a slice without its bound", "ce_bound", event.Sessions, typed("restante.replay.continued", "c", "ce_filter=t/#")},
	} {
		e, err := event.Decode(c.kind, c.wire)
		var malformed *event.MalformedError
		if !errors.As(err, &malformed) || e != nil {
			t.Errorf("%s: got %+v, %v, want a MalformedError", c.sentence, e, err)
			continue
		}
		if malformed.Field != c.field {
			t.Errorf("%s: field is %q (%v), want %q", c.sentence, malformed.Field, err, c.field)
		}
	}
}
