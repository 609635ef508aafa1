package mqtt

import (
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/restante/restante/event"
)

// The user properties of a replay that asks for an answer: what the message itself had where the replay has its own. A client that
// is to answer the message's sender finds there how.
const (
	PropResponseTopic   = "offline-response-topic"
	PropCorrelationData = "offline-correlation-data" // in base64
)

// DefaultAnswerTopic is where a client says that it has a replay.
const DefaultAnswerTopic = "offline/ack/{clientid}"

// maxCorrelation is the most that MQTT 5 carries as correlation data, in bytes.
const maxCorrelation = 65535

// Answers are the evidence "app": each replay names a response topic of its client and, as correlation data, a token that only we can
// make. The client has the message when it publishes that token there. The zero value asks for none.
type Answers struct {
	// Topic is the response topic, with a level for the client id.
	Topic Template
	// Secret makes the tokens. It must not be zero when Topic is not.
	Secret Secret
}

// IsZero reports whether no answers are asked for.
func (a Answers) IsZero() bool { return a.Topic.IsZero() }

// answerField keeps a token's MAC apart from that of a replay.
const answerField = "answer to "

// Token is what a client publishes back: the message's id, a MAC over id, client and topic, and the topic, parted by dots. It is text, so
// that clients which set no correlation data can send it as payload.
func (a Answers) Token(client event.ClientID, topic event.Topic, id event.ID) []byte {
	sum := answerMAC(a.Secret.keys[0], client, topic.String(), id.String())
	return []byte(id.String() + "." + string(sum) + "." + topic.String())
}

// answerMAC is the MAC as text: of each there is one only.
func answerMAC(key []byte, client event.ClientID, topic, id string) []byte {
	return base64.RawURLEncoding.AppendEncode(nil, mac(key, answerField+id, string(client), topic, nil))
}

// read finds what a token of the client stands for.
func (a Answers) read(client event.ClientID, token []byte) (event.Topic, event.ID, error) {
	if id, err := event.ParseID(string(token)); err == nil {
		return event.Topic{}, id, errors.New("a message id alone proves nothing: publish the whole correlation data")
	}
	id, rest, _ := strings.Cut(string(token), ".")
	sum, topic, ok := strings.Cut(rest, ".")
	if !ok || len(sum) != base64.RawURLEncoding.EncodedLen(macSize) {
		return event.Topic{}, event.ID{}, errors.New("no correlation data of ours, in the property or as payload")
	}
	for _, key := range a.Secret.keys {
		if !hmac.Equal([]byte(sum), answerMAC(key, client, topic, id)) {
			continue
		}
		parsed, err := event.ParseID(id)
		if err != nil {
			return event.Topic{}, event.ID{}, err
		}
		t, err := event.ParseTopic(topic)
		return t, parsed, err
	}
	return event.Topic{}, event.ID{}, errors.New("correlation data that is not ours, or of another client")
}

// Event is the ack that a publish stands for; no for a publish to any other topic. What is published to a response topic and proves
// nothing is a [*Refusal]. The correlation data counts, and without any the payload.
func (a Answers) Event(topic string, payload []byte, p event.Properties, head func() event.Head) (e event.Event, is bool, err error) {
	client, _, is := a.Topic.Original(topic)
	if !is {
		return nil, false, nil
	}
	token := p.CorrelationData
	if len(token) == 0 {
		token = payload
	}
	t, id, err := a.read(client, token)
	if err != nil {
		return nil, true, &Refusal{CountRefusedAnswer, fmt.Errorf("answer of %.80q: %w", string(client), err)}
	}
	return event.Acked{Head: head(), Topic: t, Client: client, Message: id, Replayed: true, Watched: true}, true, nil
}

// ask puts the question into the properties of a replay, and what the message had in its place behind ours.
func (a Answers) ask(to event.ClientID, topic event.Topic, id event.ID, p event.Properties) (event.Properties, error) {
	response, err := a.Topic.For(to, "")
	if err != nil {
		return p, err
	}
	token := a.Token(to, topic, id)
	if len(token) > maxCorrelation {
		return p, fmt.Errorf("topic of %d bytes: it does not fit into the correlation data of an answer", len(topic.String()))
	}
	var had []event.UserProperty
	if p.ResponseTopic != "" {
		had = append(had, event.UserProperty{Key: PropResponseTopic, Value: p.ResponseTopic})
	}
	if len(p.CorrelationData) > 0 {
		had = append(had, event.UserProperty{Key: PropCorrelationData, Value: base64.StdEncoding.EncodeToString(p.CorrelationData)})
	}
	p.User = append(had, p.User...)
	p.ResponseTopic, p.CorrelationData = response.String(), token
	return p, nil
}
