// Package sinks is the contract between the pipeline and the stores: idempotent operations in, stored messages out.
//
// Each operation is a change of one row and carries the write timestamp that decides between two changes of that row.
// The timestamp is a function of the event, never of the writer's clock, so operations commute and repeat harmlessly.
package sinks

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
)

// Op is an idempotent change of one row. It is sealed.
//
//sumtype:decl
type Op interface {
	// Row names the row that is changed: table and key. A batch holds at most one op a row (see [Coalesce]).
	Row() string
	op()
}

// Message is one stored message.
type Message struct {
	ID      event.ID
	Topic   event.Topic
	Sender  event.ClientID
	QoS     event.QoS
	Retain  bool
	Payload []byte // never nil
	// Arrived is the event time of the publish, in ms.
	Arrived    time.Time
	Properties event.Properties
	// Expires is when the message is gone: id time + ttl, or the publisher's own expiry when that is earlier. Zero = never.
	// An expired message is not written and never read back.
	Expires time.Time
}

// PutMessage stores a message (mqtt_msg), at the µs of its id.
type PutMessage struct {
	Message
	// History says that the message is stored for the record only: it is not listed as pending (DynamoDB's topic map).
	History bool
}

// DeleteMessage removes a message, at max(T+1, µs of the ack), T = the µs of the message id.
type DeleteMessage struct {
	Topic event.Topic
	ID    event.ID
	Stamp int64 // µs
}

// PutAcked notes the newest acked message of a client and a topic (or, in pub/sub, a filter's text). In queue mode Stamp is
// the µs of the message id, so that the largest id wins; in pub/sub it is the µs of the event that moved the position.
type PutAcked struct {
	Client  event.ClientID
	Topic   string
	Message event.ID
	Stamp   int64 // µs
}

// DeleteAcked forgets a position, at the µs of the event that says so.
type DeleteAcked struct {
	Client event.ClientID
	Topic  string
	Stamp  int64 // µs
}

// PutRetained stores the retained message of a topic, at the µs of its id.
type PutRetained struct{ Message }

// DeleteRetained removes it, at the µs of the id of the (empty) retained message that says so.
type DeleteRetained struct {
	Topic event.Topic
	Stamp int64 // µs
}

// PutClient changes the state of a client. It is two registers, each the latest by its stamp: Up holds what a connect says,
// Down what a disconnect says. The client is online when Up.Stamp > Down.Stamp; a late disconnect of an older connection
// changes nothing that is seen.
type PutClient struct {
	Client event.ClientID
	Up     ClientUp
	Down   ClientDown
}

// ClientUp is what a connect says. Stamp = µs of the connection's time; 0 = nothing.
type ClientUp struct {
	Node     string
	OnlineAt time.Time
	Stamp    int64
}

// ClientDown is what a disconnect says. Stamp = µs of the connection's time + 1; 0 = nothing.
type ClientDown struct {
	OfflineAt time.Time
	Stamp     int64
}

// PutSub stores a subscription (mqtt_sub), at the µs of the event's id.
type PutSub struct {
	Client event.ClientID
	Filter event.Filter
	QoS    event.QoS
	Stamp  int64 // µs
}

// DeleteSub removes a subscription, at the µs of the event's id.
type DeleteSub struct {
	Client event.ClientID
	Filter event.Filter
	Stamp  int64 // µs
}

func (PutMessage) op()     {}
func (DeleteMessage) op()  {}
func (PutAcked) op()       {}
func (DeleteAcked) op()    {}
func (PutRetained) op()    {}
func (DeleteRetained) op() {}
func (PutClient) op()      {}
func (PutSub) op()         {}
func (DeleteSub) op()      {}

// Row is mqtt_msg and the message's topic and id. NUL cannot stand in a topic, a filter or a client id.
func (o PutMessage) Row() string { return messageRow(o.Topic, o.ID) }

// Row is mqtt_msg and the message's topic and id.
func (o DeleteMessage) Row() string { return messageRow(o.Topic, o.ID) }

// Row is acked and the client and topic.
func (o PutAcked) Row() string { return "acked\x00" + string(o.Client) + "\x00" + o.Topic }

// Row is acked and the client and topic.
func (o DeleteAcked) Row() string { return "acked\x00" + string(o.Client) + "\x00" + o.Topic }

// Row is mqtt_retain and the topic.
func (o PutRetained) Row() string { return "mqtt_retain\x00" + o.Topic.String() }

// Row is mqtt_retain and the topic.
func (o DeleteRetained) Row() string { return "mqtt_retain\x00" + o.Topic.String() }

// Row is mqtt_client and the client.
func (o PutClient) Row() string { return "mqtt_client\x00" + string(o.Client) }

// Row is mqtt_sub and the client and filter.
func (o PutSub) Row() string { return "mqtt_sub\x00" + string(o.Client) + "\x00" + o.Filter.String() }

// Row is mqtt_sub and the client and filter.
func (o DeleteSub) Row() string {
	return "mqtt_sub\x00" + string(o.Client) + "\x00" + o.Filter.String()
}

func messageRow(t event.Topic, id event.ID) string {
	return "mqtt_msg\x00" + t.String() + "\x00" + id.String()
}

// Writer applies operations.
type Writer interface {
	// Apply returns nil only when every op is durable at the consistency asked. An *ApplyError names the ops that are not;
	// any other error says that none may be taken as durable. Errors are marked by package fault: unmarked = try again.
	// A batch holds at most one op a row. Apply is safe for concurrent use; concurrent calls may touch the same row.
	// A message that has expired is not written; that is no error.
	Apply(ctx context.Context, ops []Op) error
}

// ApplyError names the ops of a batch that are not durable; all the others are.
type ApplyError struct {
	// Failed maps the index of an op to the cause. It is not empty.
	Failed map[int]error
}

func (e *ApplyError) Error() string {
	keys := slices.Sorted(maps.Keys(e.Failed))
	var b strings.Builder
	fmt.Fprintf(&b, "%d ops are not stored", len(keys))
	const most = 3
	for i, k := range keys {
		if i == most {
			b.WriteString("; …")
			break
		}
		fmt.Fprintf(&b, "; op %d: %v", k, e.Failed[k])
	}
	return b.String()
}

// Unwrap returns the causes, in the order of their ops.
func (e *ApplyError) Unwrap() []error {
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(e.Failed)) {
		errs = append(errs, e.Failed[k])
	}
	return errs
}

// Query asks for the stored messages of one topic.
type Query struct {
	Topic event.Topic
	// After and Until bound the ids: After < id ≤ Until. Until must be set.
	After, Until event.ID
	// Limit is the most messages in one page; at least 1.
	Limit int
	// Newest asks for the newest Limit messages of the range instead of the oldest. They still come in ascending order.
	Newest bool
}

// Reader reads what is stored. What Apply made durable before the call begins is seen by it (at the consistency asked).
// Expired messages are not returned. All methods are safe for concurrent use.
type Reader interface {
	// Messages returns one page in ascending order of id; fewer than Limit = nothing is left in the range.
	Messages(ctx context.Context, q Query) ([]Message, error)
	// Topics returns, in ascending order of their text, up to limit topics after the given one that match the filter and may
	// have stored messages. A topic without any may be among them; none with a message is missing.
	Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error)
	// Retained returns, in ascending order of topic, up to limit retained messages after the given topic that match the filter.
	Retained(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]Message, error)
	// Acked returns the newest acked message of the client and topic (or filter text), and false when there is none.
	Acked(ctx context.Context, client event.ClientID, topic string) (event.ID, bool, error)
	// Positions returns all rows that [Reader.Acked] would find of the client, in ascending order of topic, each as the op that
	// wrote it, or (where a store keeps less) as one with the same effect. A row that somebody else wrote may be missing.
	Positions(ctx context.Context, client event.ClientID) ([]PutAcked, error)
	// Client returns the client's state, and false when nothing is known of it.
	Client(ctx context.Context, client event.ClientID) (Client, bool, error)
	// Subs returns the client's stored subscriptions, in ascending order of filter. A row whose topic is no filter, which
	// somebody else wrote, stands there as the zero Sub.
	Subs(ctx context.Context, client event.ClientID) ([]Sub, error)
}

// Client is the state of a client as it is read.
type Client struct {
	ID        event.ClientID
	Online    bool
	Node      string
	OnlineAt  time.Time // zero when no connect is known
	OfflineAt time.Time // zero while online
}

// Sub is a stored subscription.
type Sub struct {
	Filter event.Filter
	QoS    event.QoS
}

// Store is a sink: it writes, reads, and can be checked.
type Store interface {
	Writer
	Reader
	// Check reaches the store, logs in, and verifies the schema; its error says what to do.
	Check(ctx context.Context) error
	// Close releases the connections. No other call may run or follow.
	Close() error
}
