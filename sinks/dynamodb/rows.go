package dynamodb

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// item is an item, a key, or the values of an expression.
type item = map[string]types.AttributeValue

// Attributes. The first group is that of EMQX's tables, the second our own.
const (
	aMsgID   = "msgid"
	aTopic   = "topic"
	aClient  = "clientid"
	aArrived = "arrived"
	aPayload = "payload"
	aQoS     = "qos"
	aRetain  = "retain"
	aSender  = "sender"
	aMsgIDs  = "MsgId" // set of ids, in mqtt_topic_msg_map
	aNode    = "node"
	aState   = "connect_state"
	aOnline  = "online_at"
	aOffline = "offline_at"

	aProps   = "props"      // JSON of the MQTT 5 properties
	aExpires = "expires_at" // s; the tables' TTL attribute
	aExpiry  = "expiry"     // s, where the item outlives its message
	aID      = "id"         // the id in time order, where msgid is not
	aGone    = "gone"
	aStamp   = "stamp" // µs
	aUp      = "up_stamp"
	aDown    = "down_stamp"
	aBuckets = "buckets" // set of buckets, in a topic's item
	aParent  = "parent"
	aLevel   = "level"
	aLeaf    = "leaf"
	aInner   = "inner"
)

// The service's limits, in bytes.
const (
	maxItem  = 400 << 10
	maxHash  = 2048
	maxRange = 1024
)

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func num(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func set(s []string) types.AttributeValue { return &types.AttributeValueMemberSS{Value: s} }

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// text is the attribute's text, "" where there is none.
func text(it item, name string) string {
	if s, ok := it[name].(*types.AttributeValueMemberS); ok {
		return s.Value
	}
	return ""
}

// integer is the attribute's number, 0 where there is none.
func integer(it item, name string) int64 {
	if n, ok := it[name].(*types.AttributeValueMemberN); ok {
		v, err := strconv.ParseInt(n.Value, 10, 64)
		if err == nil {
			return v
		}
		f, err := strconv.ParseFloat(n.Value, 64) // what others wrote
		if err == nil && math.Abs(f) < 1<<62 {
			return int64(f)
		}
	}
	return 0
}

// texts is the attribute's set, nil where there is none.
func texts(it item, name string) []string {
	if s, ok := it[name].(*types.AttributeValueMemberSS); ok {
		return s.Value
	}
	return nil
}

// size is what the service counts an item as.
func size(it item) int {
	n := 0
	for name, v := range it {
		n += len(name)
		switch v := v.(type) {
		case *types.AttributeValueMemberS:
			n += len(v.Value)
		case *types.AttributeValueMemberB:
			n += len(v.Value)
		case *types.AttributeValueMemberN:
			n += len(strings.Trim(v.Value, "-0"))/2 + 2
		case *types.AttributeValueMemberSS:
			for _, s := range v.Value {
				n += len(s) + 1
			}
		}
	}
	return n
}

func (s *Store) id(id event.ID) string {
	if s.cfg.IDFormat == Base62 {
		return id.Base62()
	}
	return id.String()
}

// parseID reads an id in the configured form.
func (s *Store) parseID(text string) (event.ID, error) {
	if s.cfg.IDFormat == Base62 {
		return event.ParseBase62(text)
	}
	id, err := event.ParseID(text)
	if err == nil && id.String() != text {
		return event.ID{}, fmt.Errorf("message id %.40q: not in canonical form", text)
	}
	return id, err
}

// ordered names the attribute that is in the order of ids: msgid where its form is.
func (s *Store) ordered() string {
	if s.cfg.IDFormat == Base62 {
		return aID
	}
	return aMsgID
}

func (s *Store) time(t time.Time) types.AttributeValue {
	switch {
	case t.IsZero():
		return num(0)
	case s.cfg.TimeUnit == time.Millisecond:
		return num(t.UnixMilli())
	}
	return num(t.Unix())
}

func (s *Store) timeOf(n int64) time.Time {
	switch {
	case n == 0:
		return time.Time{}
	case s.cfg.TimeUnit == time.Millisecond:
		return time.UnixMilli(n)
	}
	return time.Unix(n, 0)
}

// expirySeconds is the second at which it has expired: a message lives out its last second.
func expirySeconds(t time.Time) int64 {
	s := t.Unix()
	if t.Nanosecond() > 0 {
		s++
	}
	return s
}

func expired(m sinks.Message, now time.Time) bool {
	return !m.Expires.IsZero() && !now.Before(m.Expires)
}

// forgotten is when a late write can meet a removal no more.
func (s *Store) forgotten(now time.Time) int64 { return now.Add(s.keep).Unix() + 1 }

// payload is text where it is UTF-8, as in EMQX's tables.
func payload(p []byte) types.AttributeValue {
	if utf8.Valid(p) {
		return str(string(p))
	}
	return &types.AttributeValueMemberB{Value: p}
}

func payloadOf(v types.AttributeValue) []byte {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return []byte(v.Value)
	case *types.AttributeValueMemberB:
		if v.Value != nil {
			return v.Value
		}
	}
	return []byte{}
}

// row is a message as an item of mqtt_msg and of mqtt_retain.
func (s *Store) row(m sinks.Message) (item, error) {
	it := item{
		aMsgID: str(s.id(m.ID)), aTopic: str(m.Topic.String()), aArrived: s.time(m.Arrived), aPayload: payload(m.Payload),
		aQoS: num(int64(m.QoS)), aRetain: num(flag(m.Retain)), aSender: str(string(m.Sender)),
	}
	if !m.Expires.IsZero() {
		it[aExpires] = num(expirySeconds(m.Expires))
	}
	if !m.Properties.IsZero() {
		props, err := sinks.PropertiesText(m.Properties)
		if err != nil {
			return nil, fmt.Errorf("write the properties of message %s: %w", m.ID, err)
		}
		it[aProps] = str(props)
	}
	return it, nil
}

// expires is when the message of an item is gone; zero = never.
func expires(it item) time.Time {
	for _, name := range []string{aExpiry, aExpires} {
		if n := integer(it, name); n != 0 {
			return time.Unix(n, 0)
		}
	}
	return time.Time{}
}

// message reads an item of mqtt_msg or mqtt_retain. It is not alive when it is gone or has expired.
func (s *Store) message(it item, now time.Time) (m sinks.Message, alive bool, err error) {
	m.Expires = expires(it)
	if _, gone := it[aGone]; gone || expired(m, now) {
		return sinks.Message{}, false, nil
	}
	fail := func(err error) (sinks.Message, bool, error) {
		return sinks.Message{}, false, fmt.Errorf("item %.80q %.60q: %w", text(it, aTopic), text(it, aMsgID), err)
	}
	if m.ID, err = s.parseID(text(it, aMsgID)); err != nil {
		return fail(err)
	}
	if m.Topic, err = event.ParseTopic(text(it, aTopic)); err != nil {
		return fail(err)
	}
	if m.Properties, err = sinks.ParseProperties(text(it, aProps)); err != nil {
		return fail(err)
	}
	m.Sender, m.QoS, m.Retain = event.ClientID(text(it, aSender)), event.QoS(integer(it, aQoS)&3), integer(it, aRetain) != 0
	m.Arrived, m.Payload = s.timeOf(integer(it, aArrived)), payloadOf(it[aPayload])
	return m, true, nil
}

// storable refuses what the service could never take, by its limits on keys. Sizes are checked where the item is made.
func (s *Store) storable(o sinks.Op) error {
	var hash, sort, where string
	switch o := o.(type) {
	case sinks.PutMessage:
		if !o.History {
			return storableTopic(topicindex.Messages, o.Topic, len(topicKey(o.Topic))+maxCellName)
		}
		return nil
	case sinks.DeleteMessage:
		return nil
	case sinks.PutRetained:
		return storableTopic(topicindex.Retained, o.Topic, len(o.Topic.String()))
	case sinks.DeleteRetained:
		hash, where = o.Topic.String(), tRetain
	case sinks.PutAcked:
		return s.storablePosition(o.Client, o.Topic)
	case sinks.DeleteAcked:
		return s.storablePosition(o.Client, o.Topic)
	case sinks.PutClient:
		hash, where = string(o.Client), tClient
		if n := len(hash) + len(o.Up.Node); n > maxItem-1024 {
			return fmt.Errorf("store into %s: a node's name and client id of %d bytes: the item holds %d", where, n, maxItem-1024)
		}
	case sinks.PutSub:
		hash, sort, where = string(o.Client), o.Filter.String(), tSub
	case sinks.DeleteSub:
		hash, sort, where = string(o.Client), o.Filter.String(), tSub
	}
	return storableKey(where, hash, sort)
}

func (s *Store) storablePosition(c event.ClientID, topic string) error {
	if s.cfg.ByClient {
		if err := storableKey(tOfClient, string(c), topic); err != nil {
			return err
		}
	}
	return storableKey(tAcked, topic, string(c))
}

func storableKey(where, hash, sort string) error {
	switch {
	case len(hash) > maxHash:
		return fmt.Errorf("store into %s: key %.40q… of %d bytes: DynamoDB takes %d", where, hash, len(hash), maxHash)
	case len(sort) > maxRange:
		return fmt.Errorf("store into %s: range key %.40q… of %d bytes: DynamoDB takes %d", where, sort, len(sort), maxRange)
	}
	return nil
}

// storableTopic checks the keys of a topic's own item, with the room that it needs, and of its rows in the index.
func storableTopic(root topicindex.Root, t event.Topic, length int) error {
	if length > maxHash {
		return fmt.Errorf("store topic %.40q… of %d bytes: its keys would have %d, DynamoDB takes %d", t, len(t.String()), length, maxHash)
	}
	if len(t.String()) < maxRange-1 {
		return nil // no level can be too long
	}
	for _, r := range topicindex.Rows(root, t) {
		if err := storableKey(tNode, r.Parent, levelKey(r.Level)); err != nil {
			return err
		}
	}
	return nil
}
