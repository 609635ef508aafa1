// Package event holds the words of Restante: MQTT events, topics, filters and message ids, and their encoding in Kafka
// (CloudEvents 1.0, Kafka protocol binding, binary mode). It needs the standard library only.
package event

import "time"

// Event is one thing that a broker told us. It is sealed: a type switch over it can be complete.
//
//sumtype:decl
type Event interface {
	// Meta returns the attributes that every event has.
	Meta() Head
	// Routes says where in Kafka the event belongs: one or two of the two topics, each with its key.
	// Where there are two, the second must not be appended before the first is durable.
	Routes() []Route
	event()
}

// Head is what every event has.
type Head struct {
	// ID is the message id of a publish. For any other event ingest minted it; its µs is the write timestamp of the rows
	// that the event changes.
	ID ID
	// Source is "restante/<source name>[/<node>]".
	Source string
	// At is the event time, by the broker's clock, in ms precision.
	At time.Time
}

// Meta returns itself, for the types that embed it.
func (h Head) Meta() Head { return h }

// Kind names one of the Kafka topics by its role; the full name is prefix + "." + Kind.
type Kind string

// The topics of the pipeline.
const (
	Messages Kind = "messages" // keyed by MQTT topic
	Sessions Kind = "sessions" // keyed by client id
	Dead     Kind = "dead"     // what can never be processed
)

// Route is one place of an event: a Kafka topic and the key in it.
type Route struct {
	Kind Kind
	Key  string
}

// QoS is MQTT's quality of service: 0, 1 or 2.
type QoS byte

// Properties are the MQTT 5 properties of a message that a replay restores.
type Properties struct {
	// User are the user properties, in order, duplicates kept.
	User []UserProperty
	// ContentType, ResponseTopic and CorrelationData are absent when empty.
	ContentType     string
	ResponseTopic   string
	CorrelationData []byte
	// PayloadFormat is 0 (bytes) or 1 (UTF-8).
	PayloadFormat byte
}

// UserProperty is one MQTT 5 user property.
type UserProperty struct{ Key, Value string }

// IsZero reports whether nothing is set.
func (p Properties) IsZero() bool {
	return len(p.User) == 0 && p.ContentType == "" && p.ResponseTopic == "" && len(p.CorrelationData) == 0 && p.PayloadFormat == 0
}

// Published is mqtt.message.publish: a client published a message. Head.ID is the message id.
type Published struct {
	Head
	Topic  Topic
	Sender ClientID // "" when the source does not tell
	QoS    QoS
	Retain bool
	// Payload is never nil.
	Payload []byte
	// Expiry is MQTT 5's Message Expiry Interval, 0 = none.
	Expiry     time.Duration
	Properties Properties
}

// Acked is mqtt.message.acked: a client acknowledged a message (PUBACK at QoS 1, PUBREC at QoS 2).
type Acked struct {
	Head
	Topic  Topic
	Client ClientID
	// Message is the original message id. It is zero when only BrokerID is known.
	Message ID
	// Replayed says that the client acknowledged a replay of ours.
	Replayed bool
	// BrokerID is set where a replay is known only by the id that the broker gave it; the alias before it in sessions resolves it.
	BrokerID ID
	// Watched says that the replayer must see the ack, so that it goes to both topics: acks of replays and of pub/sub.
	Watched bool
}

// Replayed is mqtt.message.replayed: the alias of a replay, BrokerID ↔ Message. Client is whom the replay is for.
type Replayed struct {
	Head
	Topic    Topic
	Client   ClientID
	Message  ID
	BrokerID ID
}

// Dropped is mqtt.message.dropped: the broker dropped a delivery to the client.
type Dropped struct {
	Head
	Topic   Topic
	Client  ClientID
	Message ID
	Reason  string
}

// Subscribed is mqtt.session.subscribed.
type Subscribed struct {
	Head
	Client ClientID
	Filter Filter
	QoS    QoS
	// Options are MQTT 5's subscription options, nil where the source does not know them.
	Options *SubOptions
	// New tells whether the subscription is new in its session.
	New Known
}

// SubOptions are MQTT 5's subscription options (§3.8.3.1).
type SubOptions struct {
	RetainHandling    byte
	RetainAsPublished bool
	NoLocal           bool
}

// Known is a flag that a source may not know.
type Known byte

// The values of Known.
const (
	Unknown Known = iota
	No
	Yes
)

// KnownBool is Yes or No.
func KnownBool(b bool) Known {
	if b {
		return Yes
	}
	return No
}

// Unsubscribed is mqtt.session.unsubscribed.
type Unsubscribed struct {
	Head
	Client ClientID
	Filter Filter
}

// Connected is mqtt.client.connected.
type Connected struct {
	Head
	Client ClientID
	// ConnectedAt is zero where the source does not know it.
	ConnectedAt    time.Time
	CleanStart     Known
	SessionPresent Known
	// ExpiryInterval is the session's, negative = unknown.
	ExpiryInterval time.Duration
	// ReceiveMaximum is 0 where unknown.
	ReceiveMaximum uint16
	Node           string
	Username       string
}

// Disconnected is mqtt.client.disconnected.
type Disconnected struct {
	Head
	Client ClientID
	Reason string
	// ConnectedAt is the time of the connection that ended, zero where unknown.
	ConnectedAt    time.Time
	DisconnectedAt time.Time
}

// ReplayContinued is restante.replay.continued: what is left of a long replay, handed on by the replayer to itself.
type ReplayContinued struct {
	Head
	Client ClientID
	Filter Filter
	QoS    QoS
	// Bound is the largest message id that belongs to the replay.
	Bound ID
	// Subscribe is the offset of the subscribe that began it, in the same partition.
	Subscribe int64
	// Slice counts the slices before, from 1.
	Slice int
	// Rule is the name of the rule that replays: its place among the others can change between two slices.
	Rule string
	// After is the last topic, by its bytes, of which the slice had nothing left to send; zero = there is none.
	After Topic
}

func (Published) event()       {}
func (Acked) event()           {}
func (Replayed) event()        {}
func (Dropped) event()         {}
func (Subscribed) event()      {}
func (Unsubscribed) event()    {}
func (Connected) event()       {}
func (Disconnected) event()    {}
func (ReplayContinued) event() {}

// Routes sends a publish to messages by its topic.
func (e Published) Routes() []Route { return []Route{{Messages, e.Topic.String()}} }

// Routes sends an ack to messages behind its publish and, when the replayer must see it, to sessions. One of which only the broker's
// id is known goes to sessions alone: there stands its alias, and who resolves it sends it on.
func (e Acked) Routes() []Route {
	toClient := Route{Sessions, string(e.Client)}
	switch byTopic := (Route{Messages, e.Topic.String()}); {
	case e.Message.IsZero():
		return []Route{toClient}
	case e.Watched, e.Replayed:
		return []Route{byTopic, toClient}
	default:
		return []Route{byTopic}
	}
}

// Routes sends an alias to sessions.
func (e Replayed) Routes() []Route { return []Route{{Sessions, string(e.Client)}} }

// Routes sends a dropped delivery to sessions.
func (e Dropped) Routes() []Route { return []Route{{Sessions, string(e.Client)}} }

// Routes sends a subscribe to sessions.
func (e Subscribed) Routes() []Route { return []Route{{Sessions, string(e.Client)}} }

// Routes sends an unsubscribe to sessions.
func (e Unsubscribed) Routes() []Route { return []Route{{Sessions, string(e.Client)}} }

// Routes sends a connect to sessions.
func (e Connected) Routes() []Route { return []Route{{Sessions, string(e.Client)}} }

// Routes sends a disconnect to sessions.
func (e Disconnected) Routes() []Route { return []Route{{Sessions, string(e.Client)}} }

// Routes sends a slice to sessions.
func (e ReplayContinued) Routes() []Route { return []Route{{Sessions, string(e.Client)}} }
