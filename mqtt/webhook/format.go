package webhook

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// format reads what a broker posts.
type format interface {
	// events are those of one object. What is no event is a [*mqtt.Refusal] each.
	events(h http.Header, item json.RawMessage) ([]event.Event, []error)
	// answer is what the broker is told when all is durable.
	answer(h http.Header) any
}

func (c Config) format() (format, error) {
	switch c.Format {
	case EMQXRule:
		return emqxRule{mqtt.EMQX{Source: c.Source, Minter: c.Minter, Secret: c.Secret, Own: c.Own, Template: c.Template}}, nil
	case EMQXWebhook:
		return emqxHook{maker{c}}, nil
	case VerneMQ:
		return vernemq{maker{c}}, nil
	}
	return nil, fmt.Errorf("webhook: format %q: want %s, %s or %s", c.Format, EMQXRule, EMQXWebhook, VerneMQ)
}

// emqxRule reads the rule engine's JSON, as an MQTT source with decode: emqx does.
type emqxRule struct{ decoder mqtt.EMQX }

func (f emqxRule) events(_ http.Header, item json.RawMessage) ([]event.Event, []error) {
	e, err := f.decoder.Event(item)
	if err != nil {
		return nil, []error{err}
	}
	return []event.Event{e}, nil
}

func (emqxRule) answer(http.Header) any { return map[string]string{"result": "ok"} }

// maker makes events of the texts that a broker tells.
type maker struct{ cfg Config }

// head is that of a new event; at is 0 where the broker tells no time. The id is minted here: no such broker tells one.
func (m maker) head(node string, at int64) event.Head {
	h := event.Head{ID: m.cfg.Minter.Mint(), Source: m.cfg.Source}
	if node != "" {
		h.Source += "/" + node
	}
	if h.At = millis(at); h.At.IsZero() {
		h.At = h.ID.Time().Truncate(time.Millisecond)
	}
	return h
}

// millis is a time in ms since the epoch; zero for one that cannot be.
func millis(ms int64) time.Time {
	const most = 1 << 52
	if ms <= 0 || ms > most {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// client reads the client id of an event that is no publish.
func (m maker) client(text string) (event.ClientID, error) {
	c, err := event.ParseClientID(text)
	switch {
	case err != nil:
		return "", refuse(mqtt.CountRefusedClient, "%w", err)
	case m.cfg.Own != nil && m.cfg.Own(c):
		return "", &mqtt.Refusal{Counter: mqtt.CountOwnEvent, Err: mqtt.ErrOwn}
	}
	return c, nil
}

// message is a publish as a broker without message ids tells it.
type message struct {
	node, sender, topic string
	at                  int64 // ms since the epoch, 0 = not told
	qos                 byte
	retain              bool
	payload             *string
	expiry              time.Duration
	properties          event.Properties
}

func (m maker) published(x message) (event.Event, error) {
	topic, err := event.ParseTopic(x.topic)
	if err != nil {
		return nil, refuse(mqtt.CountRefusedTopic, "%w", err)
	}
	if x.qos > 2 {
		return nil, refuse(mqtt.CountRefusedJSON, "publish to %.80q has qos %d", x.topic, x.qos)
	}
	if x.payload == nil {
		return nil, refuse(mqtt.CountRefusedJSON, "publish to %.80q has no payload", x.topic)
	}
	payload := []byte(*x.payload)
	if !m.cfg.PlainPayload {
		if payload, err = base64.StdEncoding.DecodeString(*x.payload); err != nil {
			return nil, refuse(mqtt.CountRefusedJSON, "publish to %.80q: its payload is not base64: %w", x.topic, err)
		}
	}
	if _, _, ok := m.cfg.Secret.Verify(x.topic, payload, x.properties.User); ok {
		return nil, &mqtt.Refusal{Counter: mqtt.CountReplay, Err: mqtt.ErrOwn}
	}
	head := func() event.Head { return m.head(x.node, x.at) }
	if e, is, err := m.cfg.Answers.Event(x.topic, payload, x.properties, head); is {
		return e, err
	}
	if mqtt.Claims(x.properties.User) {
		m.cfg.Count(mqtt.CountForged)
	}
	e := event.Published{
		Head: head(), Topic: topic, QoS: event.QoS(x.qos), Retain: x.retain, Payload: payload,
		Expiry: x.expiry, Properties: x.properties,
	}
	if c, err := event.ParseClientID(x.sender); err == nil { // else nobody who could be named
		if e.Sender = c; m.cfg.Own != nil && m.cfg.Own(c) {
			return nil, &mqtt.Refusal{Counter: mqtt.CountOwnRefused, Err: mqtt.ErrOwn}
		}
	}
	return e, nil
}

func (m maker) filter(group, text string) (event.Filter, error) {
	if group != "" {
		text = "$share/" + group + "/" + text
	}
	f, err := event.ParseFilter(text)
	if err != nil {
		return f, refuse(mqtt.CountRefusedFilter, "%w", err)
	}
	return f, nil
}

// one makes the answer of a format of what is one event or a refusal.
func one(e event.Event, err error) ([]event.Event, []error) {
	if err != nil {
		return nil, []error{err}
	}
	return []event.Event{e}, nil
}
