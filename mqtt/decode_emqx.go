package mqtt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
)

// EMQX decodes the JSON events of EMQX's rule engine, 4.3 to 6: what a rule republishes, and what 4.x publishes by itself under
// $events/ and, by the presence module, under $SYS/brokers/<node>/clients/. The fields are those of "Events" in the manual of EMQX's
// rule engine.
//
// A message's payload is read from payload_b64 where the rule selects base64_encode(payload) under that name: in payload EMQX
// replaces what is not UTF-8.
type EMQX struct {
	// Source is the ce_source of the events, without the node.
	Source string
	Minter *event.Minter
	Secret Secret
	// Own says which clients are our own connections; nil = none.
	Own func(event.ClientID) bool
	// Template is where replays are published to; zero = to their own topic.
	Template Template
	// Events are the filters by which the events come. What is published there is an event and no message, also where a rule of
	// EMQX covers its own output and tells of that.
	Events []event.Filter
}

var _ Decoder = EMQX{}

// ruleEvent is the JSON of all events.
type ruleEvent struct {
	Event     string `json:"event"`
	Node      string `json:"node"`
	Timestamp millis `json:"timestamp"`
	ClientID  string `json:"clientid"` // the publisher's in message.publish, the receiver's in message.acked
	Username  string `json:"username"`

	ID         string    `json:"id"`
	From       string    `json:"from_clientid"`
	Topic      string    `json:"topic"` // or the filter
	QoS        event.QoS `json:"qos"`
	Payload    *string   `json:"payload"`
	Base64     *string   `json:"payload_b64"`
	PubProps   ruleProps `json:"pub_props"`
	ReceivedAt millis    `json:"publish_received_at"`
	Reason     string    `json:"reason"`
	Flags      struct {
		Retain bool `json:"retain"`
	} `json:"flags"`

	CleanStart     *bool  `json:"clean_start"`
	ExpiryInterval *int64 `json:"expiry_interval"` // s
	ReceiveMaximum uint16 `json:"receive_maximum"`
	ConnectedAt    millis `json:"connected_at"`
	DisconnectedAt millis `json:"disconnected_at"`
	TS             millis `json:"ts"` // the presence module's timestamp
}

// millis are ms since the epoch, 0 = not told.
type millis int64

func (m millis) time() time.Time {
	if m <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(m))
}

// ruleProps are MQTT 5 properties in the rule engine's JSON. Anything but an object is none.
type ruleProps struct{ values map[string]json.RawMessage }

func (p *ruleProps) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		return json.Unmarshal(b, &p.values)
	}
	return nil
}

func (p ruleProps) text(name string) string {
	var s string
	if err := json.Unmarshal(p.values[name], &s); err != nil {
		return "" // absent, or no text
	}
	return s
}

func (p ruleProps) number(name string, most int64) int64 {
	var n int64
	if err := json.Unmarshal(p.values[name], &n); err != nil || n < 0 || n > most {
		return 0
	}
	return n
}

// user are the user properties: in order from the pairs, else from the object, which has each name once.
func (p ruleProps) user() []event.UserProperty {
	var pairs []struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	var out []event.UserProperty
	if err := json.Unmarshal(p.values["User-Property-Pairs"], &pairs); err == nil {
		for _, u := range pairs {
			out = append(out, event.UserProperty{Key: u.Key, Value: u.Value})
		}
		return out
	}
	var object map[string]string
	if err := json.Unmarshal(p.values["User-Property"], &object); err != nil {
		return nil // absent
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		out = append(out, event.UserProperty{Key: name, Value: object[name]})
	}
	return out
}

func (p ruleProps) properties() event.Properties {
	out := event.Properties{
		User: p.user(), ContentType: p.text("Content-Type"), ResponseTopic: p.text("Response-Topic"),
		PayloadFormat: byte(p.number("Payload-Format-Indicator", 1)), //nolint:gosec // 0 or 1
	}
	if c := p.text("Correlation-Data"); c != "" {
		out.CorrelationData = []byte(c)
	}
	return out
}

// errIgnored is the refusal of events that nothing here needs.
var errIgnored = errors.New("an event that is not needed")

// Decode makes one event, or refuses.
func (d EMQX) Decode(p Packet) ([]event.Event, error) {
	var r ruleEvent
	if err := json.Unmarshal(p.Payload, &r); err != nil {
		return nil, &Refusal{CountRefusedJSON, fmt.Errorf("read an event on %q: %w", p.Topic, err)}
	}
	if r.Event == "" {
		r.presence(p.Topic)
	}
	e, err := d.event(r)
	if err != nil {
		return nil, err
	}
	return []event.Event{e}, nil
}

// Event makes the event of the JSON of one rule event, however it came, or refuses with a [*Refusal].
func (d EMQX) Event(text []byte) (event.Event, error) {
	var r ruleEvent
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, &Refusal{CountRefusedJSON, fmt.Errorf("read an event: %w", err)}
	}
	return d.event(r)
}

// presence completes an event of the presence module, which says in its topic what it is.
func (r *ruleEvent) presence(topic string) {
	rest, ok := strings.CutPrefix(topic, "$SYS/brokers/")
	if !ok {
		return
	}
	node, rest, _ := strings.Cut(rest, "/")
	if !strings.HasPrefix(rest, "clients/") {
		return
	}
	for _, what := range []string{"connected", "disconnected"} {
		if strings.HasSuffix(rest, "/"+what) {
			r.Event, r.Node, r.Timestamp = "client."+what, node, r.TS
		}
	}
}

func (d EMQX) isOwn(client string) bool {
	return d.Own != nil && d.Own(event.ClientID(client))
}

// head is that of an event which is no publish.
func (d EMQX) head(r ruleEvent) event.Head {
	h := event.Head{ID: d.Minter.Mint(), Source: d.Source, At: r.Timestamp.time()}
	if r.Node != "" {
		h.Source += "/" + r.Node
	}
	if h.At.IsZero() {
		h.At = h.ID.Time().Truncate(time.Millisecond)
	}
	return h
}

// event makes the event of the JSON, or refuses.
func (d EMQX) event(r ruleEvent) (event.Event, error) {
	if r.Username == "undefined" { // so EMQX writes that there is none
		r.Username = ""
	}
	switch r.Event {
	case "message.publish":
		return d.published(r)
	case "message.acked", "delivery.dropped", "session.subscribed", "session.unsubscribed", "client.connected", "client.disconnected":
	case "":
		return nil, &Refusal{CountRefusedJSON, errors.New("the JSON has no field event: select it in the rule")}
	default:
		return nil, &Refusal{CountIgnored, fmt.Errorf("%.80q: %w", r.Event, errIgnored)}
	}
	switch {
	case r.ClientID == "":
		return nil, &Refusal{CountRefusedJSON, fmt.Errorf("%s has no clientid: select it in the rule", r.Event)}
	case d.isOwn(r.ClientID) && r.Event == "delivery.dropped" && r.Reason != "no_local":
		return nil, &Refusal{CountGap, fmt.Errorf("%.80q was not given an event of topic %.80q, which is gone (%.80q): raise mqtt.max_mqueue_len and max_inflight for our user", r.ClientID, r.Topic, r.Reason)}
	case d.isOwn(r.ClientID):
		return nil, &Refusal{CountOwnEvent, ErrOwn}
	}
	if _, err := event.ParseClientID(r.ClientID); err != nil {
		return nil, &Refusal{CountRefusedClient, fmt.Errorf("%s: %w", r.Event, err)}
	}
	switch r.Event {
	case "message.acked", "delivery.dropped":
		return d.delivery(r)
	case "session.subscribed", "session.unsubscribed":
		return d.session(r)
	}
	return d.connection(r), nil
}

func (d EMQX) published(r ruleEvent) (event.Event, error) {
	topic, err := event.ParseTopic(r.Topic)
	if err != nil {
		return nil, &Refusal{CountRefusedTopic, err}
	}
	if slices.ContainsFunc(d.Events, func(f event.Filter) bool { return f.Match(topic) }) {
		return nil, &Refusal{CountOwnEvent, ErrOwn}
	}
	payload, err := r.payload()
	if err != nil {
		return nil, &Refusal{CountRefusedJSON, err}
	}
	sender, err := event.ParseClientID(r.ClientID)
	if err != nil {
		sender = "" // nobody who could be named
	}
	e := event.Published{
		Head: d.head(r), Topic: topic, Sender: sender, QoS: r.QoS, Retain: r.Flags.Retain, Payload: payload,
		Expiry:     time.Duration(r.PubProps.number("Message-Expiry-Interval", 1<<32-1)) * time.Second,
		Properties: r.PubProps.properties(),
	}
	if _, _, ok := d.Secret.Verify(r.Topic, payload, e.Properties.User); ok {
		return nil, &Refusal{CountReplay, ErrOwn}
	}
	if d.isOwn(r.ClientID) {
		return nil, &Refusal{CountOwnRefused, ErrOwn}
	}
	if r.QoS > 2 {
		return nil, &Refusal{CountRefusedJSON, fmt.Errorf("message.publish has qos %d", r.QoS)}
	}
	if at := r.ReceivedAt.time(); !at.IsZero() {
		e.At = at
	}
	if id, err := event.ParseID(r.ID); err == nil {
		e.ID = id
	}
	return e, nil
}

// payload prefers what no conversion has changed.
func (r ruleEvent) payload() ([]byte, error) {
	switch {
	case r.Base64 != nil:
		b, err := base64.StdEncoding.DecodeString(*r.Base64)
		if err != nil {
			return nil, fmt.Errorf("read payload_b64: %w", err)
		}
		return b, nil
	case r.Payload != nil:
		return []byte(*r.Payload), nil
	}
	return nil, errors.New("message.publish has neither payload_b64 nor payload: select base64_encode(payload) as payload_b64 in the rule")
}

// delivery is an ack, or a delivery that the broker dropped. A message of our own publisher is a replay: its properties name the
// message, and nobody but we can have sent it.
func (d EMQX) delivery(r ruleEvent) (event.Event, error) {
	topic, err := event.ParseTopic(r.Topic)
	if err != nil {
		return nil, &Refusal{CountRefusedTopic, err}
	}
	text, replayed := r.ID, d.isOwn(r.From)
	if replayed {
		text = first(r.PubProps.user(), PropMessageID)
		if _, original, ok := d.Template.Original(r.Topic); ok {
			if topic, err = event.ParseTopic(original); err != nil {
				return nil, &Refusal{CountRefusedTopic, err}
			}
		}
	}
	id, err := event.ParseID(text)
	if err != nil {
		return nil, &Refusal{CountUnmappedAck, fmt.Errorf("%s by %.80q: %w: select id and pub_props in the rule", r.Event, r.ClientID, err)}
	}
	h, client := d.head(r), event.ClientID(r.ClientID)
	if r.Event == "delivery.dropped" {
		return event.Dropped{Head: h, Topic: topic, Client: client, Message: id, Reason: r.Reason}, nil
	}
	return event.Acked{Head: h, Topic: topic, Client: client, Message: id, Replayed: replayed, Watched: replayed}, nil
}

func (d EMQX) session(r ruleEvent) (event.Event, error) {
	f, err := event.ParseFilter(r.Topic)
	if err != nil {
		return nil, &Refusal{CountRefusedFilter, fmt.Errorf("%s of %.80q: %w", r.Event, r.ClientID, err)}
	}
	if r.Event == "session.unsubscribed" {
		return event.Unsubscribed{Head: d.head(r), Client: event.ClientID(r.ClientID), Filter: f}, nil
	}
	if r.QoS > 2 {
		return nil, &Refusal{CountRefusedJSON, fmt.Errorf("session.subscribed has qos %d", r.QoS)}
	}
	return event.Subscribed{Head: d.head(r), Client: event.ClientID(r.ClientID), Filter: f, QoS: r.QoS}, nil
}

func (d EMQX) connection(r ruleEvent) event.Event {
	client := event.ClientID(r.ClientID)
	if r.Event == "client.disconnected" {
		return event.Disconnected{
			Head: d.head(r), Client: client, Reason: r.Reason, ConnectedAt: r.ConnectedAt.time(), DisconnectedAt: r.DisconnectedAt.time(),
		}
	}
	e := event.Connected{
		Head: d.head(r), Client: client, ConnectedAt: r.ConnectedAt.time(), ExpiryInterval: -1, ReceiveMaximum: r.ReceiveMaximum,
		Node: r.Node, Username: r.Username,
	}
	if r.CleanStart != nil {
		e.CleanStart = event.KnownBool(*r.CleanStart)
	}
	if s := r.ExpiryInterval; s != nil && *s >= 0 && *s < 1<<32 {
		e.ExpiryInterval = time.Duration(*s) * time.Second
	}
	return e
}
