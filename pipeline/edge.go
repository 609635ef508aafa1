package pipeline

import (
	"context"
	"errors"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// ErrExpired is what Publish returns for a message whose time is over: it is not sent.
var ErrExpired = errors.New("message has expired")

// Outgo is one stored message on its way to a client.
type Outgo struct {
	sinks.Message
	// QoS is what the replay is sent with: min(stored, subscribed). It shadows the stored one.
	QoS event.QoS
	// Remaining is how many messages wait behind this one in the replay, 0 = caught up, as far as is known.
	Remaining int
	// Confirm says that the broker must tell that it has taken the message, although the client gets it at QoS 0.
	Confirm bool
	// Retained says that it is the topic's retained message, and QoS may be 0. Where a message goes to one session alone it carries
	// the RETAIN flag; a publish with the flag would set the broker's own retained message, for everybody.
	Retained bool
}

// Outcome is what the broker said to a publish.
type Outcome struct {
	// NoSubscriber: the broker had nobody to give it to (MQTT 5 reason code 0x10, or no such session). The message stays stored.
	NoSubscriber bool
}

// Publisher hands a stored message to the broker for one client. Safe for concurrent use.
type Publisher interface {
	// Publish returns nil when the broker has taken the message (PUBACK or PUBCOMP), not when the client has it. Messages of
	// one topic reach the broker in the order of their calls when each call begins after the one before returned.
	Publish(ctx context.Context, to event.ClientID, m Outgo) (Outcome, error)
}

// Resubscribed is what became of subscriptions that were to be restored.
type Resubscribed struct {
	// Gone: no such client is connected, and nothing was done.
	Gone bool
	// Refused is how many of them the broker will never take; the others are made.
	Refused int
}

// Resubscriber makes subscriptions at the broker for a client that is connected to it. Safe for concurrent use.
type Resubscriber interface {
	// Resubscribe returns nil when the broker has taken the subscriptions, but for those that it counts as refused, or when the
	// client is gone. It can be repeated. Errors are transient and say nothing about what was done.
	Resubscribe(ctx context.Context, client event.ClientID, subs []sinks.Sub) (Resubscribed, error)
}

// Accept is how a source hands over an event. The receipt is done when the event is durable in all its topics; only then may
// the source acknowledge its broker. A nil receipt with a nil error: the event is not wanted (counted), acknowledge it.
// Accept blocks while too much is on its way. An error means that the event was not taken.
type Accept func(ctx context.Context, e event.Event) (Receipt, error)

// Source receives events from a broker and acknowledges them in order, each after its receipt is done.
type Source interface {
	// Run works until ctx ends; then it takes no more, finishes what it holds, and returns. Errors other than the end of ctx
	// are fatal.
	Run(ctx context.Context, accept Accept) error
}
