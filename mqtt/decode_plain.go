package mqtt

import (
	"errors"
	"fmt"
	"time"

	"github.com/restante/restante/event"
)

// Packet is a PUBLISH as a source received it.
type Packet struct {
	Topic      string
	Payload    []byte // never nil
	QoS        event.QoS
	Retain     bool
	Expiry     time.Duration
	Properties event.Properties
	// At is when it arrived.
	At time.Time
}

// Decoder turns a packet into events, none or more. A [*Refusal] says that the packet holds none that can be used: it is
// counted and acknowledged, since it would be the same the next time.
type Decoder interface {
	Decode(p Packet) ([]event.Event, error)
}

// Refusal is why a packet is no event.
type Refusal struct {
	Counter Counter
	Err     error
}

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

// ErrOwn is the refusal of what our own connections did.
var ErrOwn = errors.New("what we did ourselves")

// Plain decodes what any MQTT 5 broker forwards: publishes without ids and senders, and subscribes by the fetch topic.
type Plain struct {
	// Source is the ce_source of the events.
	Source string
	Minter *event.Minter
	Secret Secret
	// Fetch is where a device publishes the filter that it has subscribed; zero = nowhere.
	Fetch Template
	// Answers are how devices say that they have a replay; the zero value = not at all.
	Answers Answers
}

var _ Decoder = Plain{}

// Decode makes one event, or refuses.
func (d Plain) Decode(p Packet) ([]event.Event, error) {
	topic, err := event.ParseTopic(p.Topic)
	if err != nil {
		return nil, &Refusal{CountRefusedTopic, err}
	}
	if _, _, ok := d.Secret.Verify(p.Topic, p.Payload, p.Properties.User); ok {
		return nil, &Refusal{CountReplay, ErrOwn}
	}
	if e, is, err := d.Answers.Event(p.Topic, p.Payload, p.Properties, d.head); err != nil {
		return nil, err
	} else if is {
		return []event.Event{e}, nil
	}
	head := d.head()
	if client, _, ok := d.Fetch.Original(p.Topic); ok {
		f, err := event.ParseFilter(string(p.Payload))
		if err != nil {
			return nil, &Refusal{CountRefusedFilter, fmt.Errorf("fetch by %q: %w", client, err)}
		}
		// It asks by itself, and so at once, as after a new subscription.
		return []event.Event{event.Subscribed{Head: head, Client: client, Filter: f, QoS: 1, New: event.Yes}}, nil
	}
	return []event.Event{event.Published{
		Head: head, Topic: topic, QoS: p.QoS, Retain: p.Retain, Payload: p.Payload, Expiry: p.Expiry, Properties: p.Properties,
	}}, nil
}

func (d Plain) head() event.Head {
	h := event.Head{ID: d.Minter.Mint(), Source: d.Source}
	h.At = h.ID.Time().Truncate(time.Millisecond)
	return h
}
