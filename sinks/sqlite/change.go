package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// The names in mqtt_gone of the tables that rows are removed from.
const (
	goneMessage  = "mqtt_msg"
	goneAcked    = "acked"
	goneRetained = "mqtt_retain"
	goneSub      = "mqtt_sub"
)

func (t *tx) putMessage(ctx context.Context, o sinks.PutMessage) error {
	m := o.Message
	if expired(m, t.now) {
		return nil
	}
	if !o.History {
		if err := t.index(ctx, m.Topic); err != nil {
			return err
		}
	}
	n, err := t.count(ctx, insertMessage, m.Topic.String(), m.ID.String(), timeText(m.Arrived), payloadValue(m.Payload), m.QoS, flag(m.Retain),
		string(m.Sender), m.ID.Micros())
	if err != nil {
		return err
	}
	if n == 0 {
		return t.mergeMessage(ctx, o)
	}
	return t.putProps(ctx, o, false)
}

// putProps writes what mqtt_msg has no column for; before says that there may be a row.
func (t *tx) putProps(ctx context.Context, o sinks.PutMessage, before bool) error {
	topic, id := o.Topic.String(), o.ID.String()
	if o.Expires.IsZero() && o.Properties.IsZero() && !o.History {
		if before {
			return t.exec(ctx, deleteProps, topic, id)
		}
		return nil
	}
	props, err := propertiesValue(o.Properties)
	if err != nil {
		return err
	}
	return t.exec(ctx, putProps, topic, id, expiresValue(o.Expires), flag(o.History), props)
}

// mergeMessage joins a message with the row that is there; where there is none, it was removed.
func (t *tx) mergeMessage(ctx context.Context, o sinks.PutMessage) error {
	var r messageRow
	ok, err := t.row(ctx, selectMessage, []any{o.Topic.String(), o.ID.String()}, r.dest()...)
	if err != nil || !ok {
		return err
	}
	old, err := r.message()
	if err != nil {
		return err
	}
	have := sinks.PutMessage{Message: old, History: r.history}
	m, ok := sinks.Merge(have, o).(sinks.PutMessage)
	if !ok || sameMessage(m, have) {
		return nil
	}
	err = t.exec(ctx, replaceMessage, m.Topic.String(), m.ID.String(), timeText(m.Arrived), payloadValue(m.Payload), m.QoS, flag(m.Retain), string(m.Sender))
	if err != nil {
		return err
	}
	return t.putProps(ctx, m, true)
}

func sameMessage(a, b sinks.PutMessage) bool {
	return a.ID == b.ID && a.QoS == b.QoS && a.Retain == b.Retain && a.Sender == b.Sender && a.History == b.History &&
		bytes.Equal(a.Payload, b.Payload) && a.Arrived.Equal(b.Arrived) && a.Expires.Equal(b.Expires) && sameProperties(a.Properties, b.Properties)
}

func sameProperties(a, b event.Properties) bool {
	return a.ContentType == b.ContentType && a.ResponseTopic == b.ResponseTopic && a.PayloadFormat == b.PayloadFormat &&
		bytes.Equal(a.CorrelationData, b.CorrelationData) && slices.Equal(a.User, b.User)
}

func (t *tx) deleteMessage(ctx context.Context, o sinks.DeleteMessage) error {
	topic, id := o.Topic.String(), o.ID.String()
	if err := t.gone(ctx, goneMessage, topic, id, o.Stamp); err != nil || o.Stamp < o.ID.Micros() {
		return err
	}
	n, err := t.count(ctx, deleteMessage, topic, id)
	if err != nil || n == 0 {
		return err
	}
	return t.exec(ctx, deleteProps, topic, id)
}

func (t *tx) gone(ctx context.Context, table, part, clust string, stamp int64) error {
	return t.exec(ctx, putGone, table, part, clust, stamp, t.now.UnixMilli())
}

// stampGone returns the stamp of a row's tombstone; false = there is none.
func (t *tx) stampGone(ctx context.Context, table, part, clust string) (stamp int64, ok bool, err error) {
	ok, err = t.row(ctx, selectGone, []any{table, part, clust}, &stamp)
	return stamp, ok, err
}

func (t *tx) changeAcked(ctx context.Context, client event.ClientID, topic string, o sinks.Op) error {
	c := string(client)
	var id string
	var side sql.NullInt64
	live, err := t.row(ctx, selectAcked, []any{c, topic}, &id, &side)
	if err != nil {
		return err
	}
	var have sinks.Op
	if live {
		put := sinks.PutAcked{Client: client, Topic: topic}
		if put.Message, err = event.ParseID(id); err != nil {
			return fmt.Errorf("row of acked %.80q %.80q: %w", c, topic, err)
		}
		put.Stamp = put.Message.Micros()
		if side.Valid {
			put.Stamp = side.Int64
		}
		have = put
	}
	stamp, dead, err := t.stampGone(ctx, goneAcked, c, topic)
	if err != nil {
		return err
	}
	have = join(have, dead, sinks.DeleteAcked{Client: client, Topic: topic, Stamp: stamp})
	merged := merge(have, o)
	put, ok := merged.(sinks.PutAcked)
	switch {
	case ok && merged == have:
		return nil
	case ok:
		if err := t.exec(ctx, putAcked, c, topic, put.Message.String()); err != nil {
			return err
		}
		switch {
		case put.Stamp != put.Message.Micros():
			err = t.exec(ctx, putAckedStamp, c, topic, put.Stamp)
		case side.Valid:
			err = t.exec(ctx, deleteAckedStamp, c, topic)
		}
		if err == nil && dead {
			err = t.exec(ctx, deleteGone, goneAcked, c, topic)
		}
		return err
	}
	if live {
		if err := t.exec(ctx, deleteAcked, c, topic); err != nil {
			return err
		}
		if err := t.exec(ctx, deleteAckedStamp, c, topic); err != nil {
			return err
		}
	}
	return t.gone(ctx, goneAcked, c, topic, sinks.Stamp(merged))
}

// join adds a tombstone, if there is one, to what is known of a row.
func join(have sinks.Op, dead bool, tombstone sinks.Op) sinks.Op {
	if !dead {
		return have
	}
	return merge(have, tombstone)
}

// merge is sinks.Merge where there may be nothing yet.
func merge(have, o sinks.Op) sinks.Op {
	if have == nil {
		return o
	}
	return sinks.Merge(have, o)
}

func (t *tx) changeRetained(ctx context.Context, topic event.Topic, o sinks.Op) error {
	text := topic.String()
	var r messageRow
	live, err := t.row(ctx, selectRetained, []any{text}, r.dest()...)
	if err != nil {
		return err
	}
	var have sinks.Op
	if live {
		m, err := r.message()
		if err != nil {
			return err
		}
		have = sinks.PutRetained{Message: m}
	}
	stamp, dead, err := t.stampGone(ctx, goneRetained, text, "")
	if err != nil {
		return err
	}
	have = join(have, dead, sinks.DeleteRetained{Topic: topic, Stamp: stamp})
	merged := merge(have, o)
	if m, ok := merged.(sinks.PutRetained); ok {
		props, err := propertiesValue(m.Properties)
		if err != nil {
			return err
		}
		err = t.exec(ctx, putRetained, text, m.ID.String(), timeText(m.Arrived), payloadValue(m.Payload), m.QoS, flag(m.Retain), string(m.Sender),
			expiresValue(m.Expires), props)
		if err == nil && dead {
			err = t.exec(ctx, deleteGone, goneRetained, text, "")
		}
		return err
	}
	if live {
		if err := t.exec(ctx, deleteRetained, text); err != nil {
			return err
		}
	}
	return t.gone(ctx, goneRetained, text, "", sinks.Stamp(merged))
}

func (t *tx) changeClient(ctx context.Context, o sinks.PutClient) error {
	c := string(o.Client)
	have := sinks.PutClient{Client: o.Client}
	var online, down string
	live, err := t.row(ctx, selectClient, []any{c}, &have.Up.Node, &online, &have.Up.Stamp, &down, &have.Down.Stamp)
	if err != nil {
		return err
	}
	if have.Up.OnlineAt, err = parseTime(online); err != nil {
		return fmt.Errorf("row of mqtt_client %.80q: %w", c, err)
	}
	if have.Down.OfflineAt, err = parseTime(down); err != nil {
		return fmt.Errorf("row of mqtt_client %.80q: %w", c, err)
	}
	m := o
	if live {
		m = sinks.MergeClient(have, o)
	}
	var state int64
	offline := timeText(m.Down.OfflineAt)
	if m.Up.Stamp > m.Down.Stamp {
		state, offline = 1, ""
	}
	return t.exec(ctx, putClient, c, state, m.Up.Node, timeText(m.Up.OnlineAt), offline, m.Up.Stamp, m.Down.Stamp, timeText(m.Down.OfflineAt))
}

func (t *tx) changeSub(ctx context.Context, client event.ClientID, f event.Filter, o sinks.Op) error {
	c, text := string(client), f.String()
	put := sinks.PutSub{Client: client, Filter: f}
	live, err := t.row(ctx, selectSub, []any{c, text}, &put.QoS, &put.Stamp)
	if err != nil {
		return err
	}
	var have sinks.Op
	if live {
		have = put
	}
	stamp, dead, err := t.stampGone(ctx, goneSub, c, text)
	if err != nil {
		return err
	}
	have = join(have, dead, sinks.DeleteSub{Client: client, Filter: f, Stamp: stamp})
	merged := merge(have, o)
	sub, ok := merged.(sinks.PutSub)
	switch {
	case ok && merged == have:
		return nil
	case ok:
		if err := t.exec(ctx, putSub, c, text, sub.QoS, sub.Stamp); err != nil || !dead {
			return err
		}
		return t.exec(ctx, deleteGone, goneSub, c, text)
	}
	if live {
		if err := t.exec(ctx, deleteSub, c, text); err != nil {
			return err
		}
	}
	return t.gone(ctx, goneSub, c, text, sinks.Stamp(merged))
}
