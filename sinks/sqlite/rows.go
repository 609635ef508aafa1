package sqlite

import (
	"bytes"
	"database/sql"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

const (
	timeLayout = "2006-01-02 15:04:05.000-0700"
	lastYear   = 9999
	// maxValue is a little under SQLite's bound for one value.
	maxValue = 999_000_000
)

// storable refuses what could be written but not be read back.
func storable(o sinks.Op) error {
	switch o := o.(type) {
	case sinks.PutMessage:
		return storableMessage(o.Message)
	case sinks.PutRetained:
		return storableMessage(o.Message)
	case sinks.PutClient:
		if err := storableTime("online_at", o.Up.OnlineAt); err != nil {
			return err
		}
		return storableTime("offline_at", o.Down.OfflineAt)
	case sinks.DeleteMessage, sinks.PutAcked, sinks.DeleteAcked, sinks.DeleteRetained, sinks.PutSub, sinks.DeleteSub:
	}
	return nil
}

func storableMessage(m sinks.Message) error {
	if len(m.Payload) > maxValue {
		return fmt.Errorf("store message %s: payload of %d bytes is over the %d that SQLite can hold", m.ID, len(m.Payload), maxValue)
	}
	return storableTime("arrived", m.Arrived)
}

func storableTime(column string, t time.Time) error {
	if y := t.UTC().Year(); y < 0 || y > lastYear {
		return fmt.Errorf("store %s: year %d cannot be written: years 0 to %d can", column, y, lastYear)
	}
	return nil
}

// asStored is the message with its times as exact as the tables keep them, so that it compares equal with its own row.
func asStored(m sinks.Message) sinks.Message {
	m.Arrived, m.Expires = m.Arrived.Truncate(time.Millisecond), m.Expires.Truncate(time.Microsecond)
	return m
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(timeLayout, s)
	return t.UTC(), err
}

// payloadValue is text where the shell can show it whole: UTF-8 without NUL.
func payloadValue(p []byte) any {
	if len(p) == 0 || utf8.Valid(p) && bytes.IndexByte(p, 0) < 0 {
		return string(p)
	}
	return p
}

func propertiesValue(p event.Properties) (sql.NullString, error) {
	text, err := sinks.PropertiesText(p)
	return sql.NullString{String: text, Valid: text != ""}, err
}

func expiresValue(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// messageRow is a row of mqtt_msg with its properties, or of mqtt_retain, as it is scanned.
type messageRow struct {
	msgid, topic, arrived, sender string
	payload                       []byte
	qos                           event.QoS
	retain, history               bool
	expires                       sql.NullInt64
	props                         sql.NullString
}

func (r *messageRow) dest() []any {
	return []any{&r.msgid, &r.topic, &r.arrived, &r.payload, &r.qos, &r.retain, &r.sender, &r.expires, &r.props, &r.history}
}

func (r *messageRow) message() (sinks.Message, error) {
	fail := func(err error) (sinks.Message, error) {
		return sinks.Message{}, fmt.Errorf("row %.80q %.40q: %w", r.topic, r.msgid, err)
	}
	m := sinks.Message{Sender: event.ClientID(r.sender), QoS: r.qos, Retain: r.retain, Payload: r.payload}
	if m.Payload == nil {
		m.Payload = []byte{}
	}
	var err error
	if m.ID, err = event.ParseID(r.msgid); err != nil {
		return fail(err)
	}
	if m.Topic, err = event.ParseTopic(r.topic); err != nil {
		return fail(err)
	}
	if m.Arrived, err = parseTime(r.arrived); err != nil {
		return fail(err)
	}
	if m.Properties, err = sinks.ParseProperties(r.props.String); err != nil {
		return fail(err)
	}
	if r.expires.Valid {
		m.Expires = time.UnixMicro(r.expires.Int64)
	}
	return m, nil
}
