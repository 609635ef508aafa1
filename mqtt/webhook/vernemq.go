package webhook

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// vernemq reads what the plugin vmq_webhooks posts. A header names the hook; those of MQTT 5 end in _m5.
type vernemq struct{ maker }

const hookHeader = "vernemq-hook"

// verneEvent is the JSON of all hooks.
type verneEvent struct {
	ClientID   string  `json:"client_id"`
	Username   *string `json:"username"`
	Mountpoint string  `json:"mountpoint"`

	Topic      string     `json:"topic"`
	QoS        byte       `json:"qos"`
	Payload    *string    `json:"payload"`
	Retain     bool       `json:"retain"`
	Properties verneProps `json:"properties"`

	Topics []json.RawMessage `json:"topics"`
}

type verneProps struct {
	User []struct {
		Key   string `json:"key"`
		Value string `json:"val"`
	} `json:"p_user_property"`
	ContentType     string `json:"p_content_type"`
	ResponseTopic   string `json:"p_response_topic"`
	CorrelationData string `json:"p_correlation_data"`
	Expiry          uint32 `json:"p_message_expiry_interval"` // s
	PayloadFormat   string `json:"p_payload_format_indicator"`
}

// UnmarshalJSON reads an object. Where a client set nothing the plugin may write an empty list.
func (p *verneProps) UnmarshalJSON(b []byte) error {
	type plain verneProps
	if strings.HasPrefix(string(b), "{") {
		return json.Unmarshal(b, (*plain)(p))
	}
	return nil
}

func (p verneProps) properties() event.Properties {
	out := event.Properties{ContentType: p.ContentType, ResponseTopic: p.ResponseTopic}
	for _, u := range p.User {
		out.User = append(out.User, userProperty(u.Key, u.Value))
	}
	if p.CorrelationData != "" {
		out.CorrelationData = []byte(p.CorrelationData)
	}
	if p.PayloadFormat == "utf8" {
		out.PayloadFormat = 1
	}
	return out
}

// userProperty reads a user property, which the plugin writes in base64 unless it is told not to.
func userProperty(key, value string) event.UserProperty {
	k, err1 := base64.StdEncoding.DecodeString(key)
	v, err2 := base64.StdEncoding.DecodeString(value)
	if errors.Join(err1, err2) != nil {
		return event.UserProperty{Key: key, Value: value}
	}
	return event.UserProperty{Key: strings.ToValidUTF8(string(k), "\uFFFD"), Value: strings.ToValidUTF8(string(v), "\uFFFD")}
}

// answer leaves every decision that a hook may take to the broker and its other plugins.
func (vernemq) answer(h http.Header) any {
	hook := h.Get(hookHeader)
	if strings.HasPrefix(hook, "auth_on_") || strings.HasPrefix(hook, "on_unsubscribe") || strings.HasPrefix(hook, "on_deliver") || strings.HasPrefix(hook, "on_auth") {
		return map[string]string{"result": "next"}
	}
	return map[string]string{"result": "ok"}
}

func (f vernemq) events(h http.Header, item json.RawMessage) ([]event.Event, []error) {
	var r verneEvent
	hook := strings.TrimSuffix(h.Get(hookHeader), "_m5")
	switch hook {
	case "on_publish", "on_subscribe", "on_unsubscribe", "on_register", "on_client_offline", "on_client_gone":
	case "":
		return nil, []error{refuse(mqtt.CountRefusedRequest, "the request has no header %s", hookHeader)}
	default:
		return nil, []error{refuse(mqtt.CountIgnored, "%.80q is not needed", hook)}
	}
	if err := json.Unmarshal(item, &r); err != nil {
		return nil, []error{refuse(mqtt.CountRefusedJSON, "read %s: %w", hook, err)}
	}
	if r.Mountpoint != "" {
		return nil, []error{refuse(mqtt.CountRefusedRequest, "%s has the mountpoint %.80q: equal topics of two mountpoints could not be told apart", hook, r.Mountpoint)}
	}
	if hook == "on_publish" {
		return one(f.published(message{
			sender: r.ClientID, topic: r.Topic, qos: r.QoS, retain: r.Retain, payload: r.Payload,
			expiry: time.Duration(r.Properties.Expiry) * time.Second, properties: r.Properties.properties(),
		}))
	}
	c, err := f.client(r.ClientID)
	if err != nil {
		return nil, []error{err}
	}
	switch hook {
	case "on_register":
		e := event.Connected{Head: f.head("", 0), Client: c, ExpiryInterval: -1}
		if r.Username != nil {
			e.Username = *r.Username
		}
		return []event.Event{e}, nil
	case "on_client_offline", "on_client_gone":
		head := f.head("", 0)
		return []event.Event{event.Disconnected{Head: head, Client: c, Reason: strings.TrimPrefix(hook, "on_client_"), DisconnectedAt: head.At}}, nil
	}
	return f.topics(hook, c, r.Topics)
}

// topics makes an event of each topic of a subscribe or unsubscribe.
func (f vernemq) topics(hook string, c event.ClientID, topics []json.RawMessage) (events []event.Event, errs []error) {
	if len(topics) == 0 {
		return nil, []error{refuse(mqtt.CountRefusedJSON, "%s of %.80q names no topics", hook, c)}
	}
	for _, raw := range topics {
		e, err := f.topic(hook, c, raw)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		events = append(events, e)
	}
	return events, errs
}

func (f vernemq) topic(hook string, c event.ClientID, raw json.RawMessage) (event.Event, error) {
	if hook == "on_unsubscribe" {
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, refuse(mqtt.CountRefusedJSON, "read a topic of %s: %w", hook, err)
		}
		filter, err := f.filter("", text)
		if err != nil {
			return nil, err
		}
		return event.Unsubscribed{Head: f.head("", 0), Client: c, Filter: filter}, nil
	}
	s, err := readTopic(raw)
	if err != nil {
		return nil, refuse(mqtt.CountRefusedJSON, "read a topic of %s: %w", hook, err)
	}
	if s.QoS == refusedQoS {
		return nil, refuse(mqtt.CountIgnored, "a subscribe that the broker refused")
	}
	rh, known := map[string]byte{"": 0, "send_retain": 0, "send_if_new_sub": 1, "dont_send": 2}[s.Handling]
	if s.QoS > 2 || !known {
		return nil, refuse(mqtt.CountRefusedJSON, "%s of %.80q: its options cannot be", hook, c)
	}
	filter, err := f.filter("", s.Topic)
	if err != nil {
		return nil, err
	}
	e := event.Subscribed{Head: f.head("", 0), Client: c, Filter: filter, QoS: event.QoS(s.QoS)}
	if s.Handling != "" {
		e.Options = &event.SubOptions{RetainHandling: rh, RetainAsPublished: s.RAP, NoLocal: s.NoLocal}
	}
	return e, nil
}

// refusedQoS is the QoS of a subscribe that the broker did not allow.
const refusedQoS = 128

type verneTopic struct {
	Topic    string `json:"topic"`
	QoS      byte   `json:"qos"`
	NoLocal  bool   `json:"no_local"`
	RAP      bool   `json:"rap"`
	Handling string `json:"retain_handling"`
}

// readTopic reads a topic of a subscribe: an object, or [filter, qos] as older versions write it.
func readTopic(raw json.RawMessage) (verneTopic, error) {
	var t verneTopic
	if !strings.HasPrefix(string(raw), "[") {
		err := json.Unmarshal(raw, &t)
		return t, err
	}
	var pair []json.RawMessage
	if err := json.Unmarshal(raw, &pair); err != nil {
		return t, err
	}
	if len(pair) != 2 {
		return t, fmt.Errorf("want a filter and its qos, have %d values", len(pair))
	}
	return t, errors.Join(json.Unmarshal(pair[0], &t.Topic), json.Unmarshal(pair[1], &t.QoS))
}
