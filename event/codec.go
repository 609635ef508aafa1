package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Header is one Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// Wire is an event as one Kafka record, without topic and partition. It is CloudEvents 1.0 in binary mode: the value is
// the raw MQTT payload of a publish and empty for any other event; all else is headers.
type Wire struct {
	Key     []byte
	Value   []byte // never nil when made by Encode; kafka-go reads an empty one back as nil
	Headers []Header
	Time    time.Time
}

// ErrUnknownMajor is what Decode returns for an event of a newer schema major. It is not poison: a consumer that was rolled
// back must stop there, not flood the dead letters.
var ErrUnknownMajor = errors.New("event of an unknown schema major: upgrade this consumer, then it goes on by itself")

// MalformedError says why a record is no event of ours. It never turns into anything else by waiting.
type MalformedError struct {
	Field string // the header or part at fault
	Err   error
}

func (e *MalformedError) Error() string {
	return fmt.Sprintf("malformed event: %s: %v", e.Field, e.Err)
}
func (e *MalformedError) Unwrap() error { return e.Err }

const (
	specVersion  = "1.0"
	schemaPrefix = "urn:restante:event:"
	// maxSkew is how far an event time may lie from ingest's clock and still be the record's timestamp.
	maxSkew = 5 * time.Minute
	// maxMillis keeps times within what int64 µs can hold.
	maxMillis = 1 << 52

	typePublish      = "mqtt.message.publish"
	typeAcked        = "mqtt.message.acked"
	typeReplayed     = "mqtt.message.replayed"
	typeDropped      = "mqtt.message.dropped"
	typeSubscribed   = "mqtt.session.subscribed"
	typeUnsubscribed = "mqtt.session.unsubscribed"
	typeConnected    = "mqtt.client.connected"
	typeDisconnected = "mqtt.client.disconnected"
	typeContinued    = "restante.replay.continued"
)

// TypeOf is the event's ce_type.
func TypeOf(e Event) string {
	switch e.(type) {
	case Published:
		return typePublish
	case Acked:
		return typeAcked
	case Replayed:
		return typeReplayed
	case Dropped:
		return typeDropped
	case Subscribed:
		return typeSubscribed
	case Unsubscribed:
		return typeUnsubscribed
	case Connected:
		return typeConnected
	case Disconnected:
		return typeDisconnected
	case ReplayContinued:
		return typeContinued
	}
	panic(fmt.Sprintf("event: no type for %T", e)) // unreachable: Event is sealed
}

// encoder collects headers. Their values lie behind one another in text: one piece of memory for an event, not one for each.
type encoder struct {
	h    []Header
	text []byte
}

// since is what was appended to text from n on. What lies behind it is out of its reach.
func (w *encoder) since(n int) []byte { return w.text[n:len(w.text):len(w.text)] }

func (w *encoder) bytes(v string) []byte {
	n := len(w.text)
	w.text = append(w.text, v...)
	return w.since(n)
}

func (w *encoder) str(key, v string) {
	if v != "" {
		w.h = append(w.h, Header{key, w.bytes(v)})
	}
}

func (w *encoder) num(key string, v int64) {
	n := len(w.text)
	w.text = strconv.AppendInt(w.text, v, 10)
	w.h = append(w.h, Header{key, w.since(n)})
}

func (w *encoder) id(key string, v ID) {
	if !v.IsZero() {
		w.hex(key, v)
	}
}

func (w *encoder) hex(key string, v ID) {
	n := len(w.text)
	w.text = v.appendTo(w.text)
	w.h = append(w.h, Header{key, w.since(n)})
}

// time leaves out what Decode would refuse: a clock that shows such a time says nothing.
func (w *encoder) time(key string, v time.Time) {
	if ms := v.UnixMilli(); ms >= 0 && ms <= maxMillis {
		w.num(key, ms)
	}
}

func (w *encoder) known(key string, v Known) {
	if v != Unknown {
		w.num(key, int64(v-No))
	}
}

// Encode writes the event as a record for one of its routes. now is ingest's clock: an event time more than 5 minutes from
// it goes into ce_time and the record is stamped with now, so that retention neither deletes it early nor Kafka refuses it.
func Encode(e Event, r Route, now time.Time) Wire {
	head := e.Meta()
	const headers, text = 6, 144 // of most events
	w := encoder{h: make([]Header, 0, headers), text: make([]byte, 0, text)}
	wire := Wire{Key: w.bytes(r.Key), Value: []byte{}, Time: head.At}
	w.str("ce_specversion", specVersion)
	w.str("ce_type", TypeOf(e))
	w.hex("ce_id", head.ID)
	w.str("ce_source", head.Source)
	if d := head.At.Sub(now); d > maxSkew || d < -maxSkew {
		wire.Time = now
		w.time("ce_time", head.At)
	}
	switch e := e.(type) {
	case Published:
		if len(e.Payload) > 0 {
			wire.Value = e.Payload
		}
		w.num("ce_qos", int64(e.QoS))
		w.str("ce_sender", string(e.Sender))
		if e.Retain {
			w.num("ce_retain", 1)
		}
		if e.Expiry > 0 {
			w.num("ce_expiry", e.Expiry.Milliseconds())
		}
		w.str("content-type", e.Properties.ContentType)
		w.properties(e.Properties)
	case Acked:
		w.str("ce_clientid", string(e.Client))
		w.id("ce_msgid", e.Message)
		w.id("ce_brokerid", e.BrokerID)
		if e.Replayed {
			w.num("ce_replayed", 1)
		}
		if r.Kind == Sessions {
			w.str("ce_topic", e.Topic.String())
		}
	case Replayed:
		w.str("ce_clientid", string(e.Client))
		w.id("ce_msgid", e.Message)
		w.id("ce_brokerid", e.BrokerID)
		if r.Kind == Sessions {
			w.str("ce_topic", e.Topic.String())
		}
	case Dropped:
		w.id("ce_msgid", e.Message)
		w.str("ce_topic", e.Topic.String())
		w.str("ce_reason", e.Reason)
	case Subscribed:
		w.str("ce_filter", e.Filter.String())
		w.num("ce_qos", int64(e.QoS))
		if o := e.Options; o != nil {
			w.num("ce_rh", int64(o.RetainHandling))
			w.num("ce_rap", flag(o.RetainAsPublished))
			w.num("ce_nl", flag(o.NoLocal))
		}
		w.known("ce_new", e.New)
	case Unsubscribed:
		w.str("ce_filter", e.Filter.String())
	case Connected:
		w.time("ce_connectedat", e.ConnectedAt)
		w.known("ce_cleanstart", e.CleanStart)
		w.known("ce_sessionpresent", e.SessionPresent)
		if e.ExpiryInterval >= 0 {
			w.num("ce_expiryinterval", int64(e.ExpiryInterval/time.Second))
		}
		if e.ReceiveMaximum > 0 {
			w.num("ce_receivemaximum", int64(e.ReceiveMaximum))
		}
		w.str("ce_node", e.Node)
		w.str("ce_username", e.Username)
	case Disconnected:
		w.str("ce_reason", e.Reason)
		w.time("ce_connectedat", e.ConnectedAt)
		w.time("ce_disconnectedat", e.DisconnectedAt)
	case ReplayContinued:
		w.str("ce_filter", e.Filter.String())
		w.num("ce_qos", int64(e.QoS))
		w.id("ce_bound", e.Bound)
		w.num("ce_subscribe", e.Subscribe)
		w.num("ce_slice", int64(e.Slice))
		w.str("ce_rule", e.Rule)
		w.str("ce_after", e.After.String())
	}
	wire.Headers = w.h
	return wire
}

// IsAlias reports whether the record is a [Replayed] event: the one kind that is worth something only while it is in the log
// before the ack that it explains.
func (w Wire) IsAlias() bool {
	for _, h := range w.Headers {
		if h.Key == "ce_type" {
			return string(h.Value) == typeReplayed
		}
	}
	return false
}

// Restamp is the record as Encode would write it at now: one that has waited for more than 5 minutes is stamped with now, and its
// event time goes into ce_time. The record given stays as it is.
func Restamp(w Wire, now time.Time) Wire {
	if d := w.Time.Sub(now); w.Time.IsZero() || d <= maxSkew && d >= -maxSkew {
		return w
	}
	known := func(h Header) bool { return h.Key == "ce_time" }
	if ms := w.Time.UnixMilli(); ms >= 0 && ms <= maxMillis && !slices.ContainsFunc(w.Headers, known) {
		w.Headers = append(slices.Clip(w.Headers), Header{"ce_time", strconv.AppendInt(nil, ms, 10)})
	}
	w.Time = now
	return w
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// jsonProperties is the form of ce_properties. The content type stands in a header of its own.
type jsonProperties struct {
	User            [][2]string `json:"user,omitempty"`
	ResponseTopic   string      `json:"response_topic,omitempty"`
	CorrelationData []byte      `json:"correlation_data,omitempty"` // base64
	PayloadFormat   byte        `json:"payload_format,omitempty"`
}

func (w *encoder) properties(p Properties) {
	p.ContentType = ""
	if p.IsZero() {
		return
	}
	j := jsonProperties{ResponseTopic: p.ResponseTopic, CorrelationData: p.CorrelationData, PayloadFormat: p.PayloadFormat}
	for _, u := range p.User {
		j.User = append(j.User, [2]string{u.Key, u.Value})
	}
	b, err := json.Marshal(j)
	if err != nil {
		panic(fmt.Sprintf("event: properties: %v", err)) // unreachable: strings and bytes always marshal
	}
	w.h = append(w.h, Header{"ce_properties", b})
}
