package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

type decoder struct {
	h   []Header
	err error
}

func (d *decoder) fail(field string, err error) {
	if d.err == nil {
		d.err = &MalformedError{field, err}
	}
}

// raw is the header's value as it lies in the record.
func (d *decoder) raw(key string) []byte {
	for i := range d.h {
		if d.h[i].Key == key {
			return d.h[i].Value
		}
	}
	return nil
}

func (d *decoder) str(key string) string { return string(d.raw(key)) }

func (d *decoder) num(key string, lo, hi, absent int64) int64 {
	b := d.raw(key)
	if len(b) == 0 {
		return absent
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || n < lo || n > hi {
		d.fail(key, fmt.Errorf("%q is no number from %d to %d", clip(string(b)), lo, hi))
		return absent
	}
	return n
}

func (d *decoder) id(key string, required bool) ID {
	b := d.raw(key)
	if len(b) == 0 && !required {
		return ID{}
	}
	id, err := parseID(b)
	if err != nil {
		d.fail(key, err)
	}
	return id
}

func (d *decoder) time(key string) time.Time {
	ms := d.num(key, 0, maxMillis, -1)
	if ms < 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func (d *decoder) known(key string) Known {
	switch d.num(key, 0, 1, -1) {
	case 0:
		return No
	case 1:
		return Yes
	}
	return Unknown
}

func (d *decoder) sender() ClientID {
	if s := d.str("ce_sender"); s != "" {
		return d.client("ce_sender", s)
	}
	return ""
}

func (d *decoder) client(key, text string) ClientID {
	c, err := ParseClientID(text)
	if err != nil {
		d.fail(key, err)
	}
	return c
}

func (d *decoder) topic(key, text string) Topic {
	t, err := ParseTopic(text)
	if err != nil {
		d.fail(key, err)
	}
	return t
}

func (d *decoder) filter() Filter {
	f, err := ParseFilter(d.str("ce_filter"))
	if err != nil {
		d.fail("ce_filter", err)
	}
	return f
}

func (d *decoder) qos() QoS {
	return QoS(d.num("ce_qos", 0, 2, 0)) //nolint:gosec // 0 to 2
}

// Decode reads a record of the topic of the given kind. It returns [ErrUnknownMajor], or a [*MalformedError] for anything
// that is not an event of ours, or not in this topic.
func Decode(kind Kind, w Wire) (Event, error) {
	d := &decoder{h: w.Headers}
	if s := d.str("ce_dataschema"); s != "" {
		if major, ok := strings.CutPrefix(s, schemaPrefix); ok && major != "1" {
			if _, err := strconv.ParseUint(major, 10, 32); err == nil {
				return nil, fmt.Errorf("%w (have 1, met %s)", ErrUnknownMajor, major)
			}
		}
	}
	if v := d.raw("ce_specversion"); string(v) != specVersion {
		d.fail("ce_specversion", fmt.Errorf("%q, want %q", clip(string(v)), specVersion))
		return nil, d.err
	}
	head := Head{ID: d.id("ce_id", true), Source: d.str("ce_source"), At: w.Time}
	if at := d.time("ce_time"); !at.IsZero() {
		head.At = at
	}
	e := d.body(kind, head, w)
	if d.err != nil {
		return nil, d.err
	}
	return e, nil
}

// types are the types of events by themselves: the text of a type that is known is not made anew for each record.
var types = func() map[string]string {
	m := make(map[string]string)
	for _, t := range []string{
		typePublish, typeAcked, typeReplayed, typeDropped, typeSubscribed, typeUnsubscribed, typeConnected, typeDisconnected, typeContinued,
	} {
		m[t] = t
	}
	return m
}()

func (d *decoder) typ() string {
	b := d.raw("ce_type")
	if t, ok := types[string(b)]; ok {
		return t
	}
	return string(b)
}

func (d *decoder) body(kind Kind, head Head, w Wire) Event {
	key, typ := string(w.Key), d.typ()
	byTopic := typ == typePublish || typ == typeAcked
	bySession := typ != typePublish
	if kind == Messages && !byTopic || kind == Sessions && !bySession {
		d.fail("ce_type", fmt.Errorf("%q does not belong to the %s topic", clip(typ), kind))
		return nil
	}
	// In messages the key is the MQTT topic and the client an attribute; in sessions it is the other way round.
	topic := func() Topic {
		if kind == Messages {
			return d.topic("key", key)
		}
		return d.topic("ce_topic", d.str("ce_topic"))
	}
	client := func() ClientID {
		if kind == Sessions {
			return d.client("key", key)
		}
		return d.client("ce_clientid", d.str("ce_clientid"))
	}
	switch typ {
	case typePublish:
		e := Published{
			Head: head, Topic: topic(), Sender: d.sender(), QoS: d.qos(),
			Retain:  d.num("ce_retain", 0, 1, 0) == 1,
			Payload: w.Value, Expiry: time.Duration(d.num("ce_expiry", 0, maxMillis/1000, 0)) * time.Millisecond,
			Properties: d.properties(),
		}
		if e.Payload == nil {
			e.Payload = []byte{}
		}
		return e
	case typeAcked:
		e := Acked{
			Head: head, Topic: topic(), Client: client(), Message: d.id("ce_msgid", kind == Messages),
			Replayed: d.num("ce_replayed", 0, 1, 0) == 1, BrokerID: d.id("ce_brokerid", false), Watched: kind == Sessions,
		}
		if e.Message.IsZero() && e.BrokerID.IsZero() {
			d.fail("ce_msgid", errors.New("neither ce_msgid nor ce_brokerid"))
		}
		return e
	case typeReplayed:
		return Replayed{Head: head, Topic: topic(), Client: client(), Message: d.id("ce_msgid", true), BrokerID: d.id("ce_brokerid", true)}
	case typeDropped:
		return Dropped{Head: head, Topic: topic(), Client: client(), Message: d.id("ce_msgid", false), Reason: d.str("ce_reason")}
	case typeSubscribed:
		e := Subscribed{Head: head, Client: client(), Filter: d.filter(), QoS: d.qos(), New: d.known("ce_new")}
		if rh := d.num("ce_rh", 0, 2, -1); rh >= 0 {
			e.Options = &SubOptions{
				RetainHandling:    byte(rh), //nolint:gosec // 0 to 2
				RetainAsPublished: d.num("ce_rap", 0, 1, 0) == 1,
				NoLocal:           d.num("ce_nl", 0, 1, 0) == 1,
			}
		}
		return e
	case typeUnsubscribed:
		return Unsubscribed{Head: head, Client: client(), Filter: d.filter()}
	case typeConnected:
		e := Connected{
			Head: head, Client: client(), ConnectedAt: d.time("ce_connectedat"), CleanStart: d.known("ce_cleanstart"),
			SessionPresent: d.known("ce_sessionpresent"), ExpiryInterval: -1,
			ReceiveMaximum: uint16(d.num("ce_receivemaximum", 0, 65535, 0)), //nolint:gosec // up to 65535
			Node:           d.str("ce_node"), Username: d.str("ce_username"),
		}
		if s := d.num("ce_expiryinterval", 0, 1<<32-1, -1); s >= 0 {
			e.ExpiryInterval = time.Duration(s) * time.Second
		}
		return e
	case typeDisconnected:
		return Disconnected{
			Head: head, Client: client(), Reason: d.str("ce_reason"), ConnectedAt: d.time("ce_connectedat"),
			DisconnectedAt: d.time("ce_disconnectedat"),
		}
	case typeContinued:
		e := ReplayContinued{
			Head: head, Client: client(), Filter: d.filter(), QoS: d.qos(), Bound: d.id("ce_bound", true),
			Subscribe: d.num("ce_subscribe", 0, 1<<62, 0), Slice: int(d.num("ce_slice", 0, 1<<31, 0)),
			Rule: d.str("ce_rule"),
		}
		if after := d.str("ce_after"); after != "" {
			e.After = d.topic("ce_after", after)
		}
		return e
	}
	d.fail("ce_type", fmt.Errorf("unknown type %q", clip(typ)))
	return nil
}

func (d *decoder) properties() Properties {
	p := Properties{ContentType: d.str("content-type")}
	s := d.str("ce_properties")
	if s == "" {
		return p
	}
	var j jsonProperties
	if err := json.Unmarshal([]byte(s), &j); err != nil {
		d.fail("ce_properties", err)
		return p
	}
	if j.PayloadFormat > 1 {
		d.fail("ce_properties", fmt.Errorf("payload_format %d", j.PayloadFormat))
	}
	for _, u := range j.User {
		p.User = append(p.User, UserProperty{u[0], u[1]})
	}
	p.ResponseTopic, p.CorrelationData, p.PayloadFormat = j.ResponseTopic, j.CorrelationData, j.PayloadFormat
	if len(p.CorrelationData) == 0 {
		p.CorrelationData = nil
	}
	return p
}
