package mqtt

import (
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/restante/restante/event"
)

// EnvelopePrefix begins the topics of envelopes. No filter that begins with a wildcard matches them (MQTT 5.0 §4.7.2).
const EnvelopePrefix = "$offline/"

// Envelope is a replay on its way to an ExHook server, which learns from it which message the broker has given a new id:
//
//	$offline/<mac>/<message id>/<client id>/<topic>
//
// The server answers the broker with the topic alone, so nobody who subscribes sees the envelope.
type Envelope struct {
	Message event.ID
	Client  event.ClientID // whom the replay is for
	Topic   event.Topic    // where it is delivered
}

var errNotOurs = errors.New("no key of delivery.secret made this envelope")

// Seal makes the topic that an envelope with the payload is published to. It fails when that gets too long for MQTT.
func (s Secret) Seal(e Envelope, payload []byte) (event.Topic, error) {
	if s.IsZero() {
		return event.Topic{}, errors.New("an envelope needs a replay secret")
	}
	sum := base64.RawURLEncoding.EncodeToString(sealOf(s.keys[0], e, payload))
	return event.ParseTopic(EnvelopePrefix + sum + "/" + e.Message.String() + "/" + escape.Replace(string(e.Client)) + "/" + e.Topic.String())
}

// sealOf has a label, so that it is never the MAC that a device has seen in a replay's properties.
func sealOf(key []byte, e Envelope, payload []byte) []byte {
	return mac(key, "envelope "+e.Message.String(), string(e.Client), e.Topic.String(), payload)
}

// IsEnvelope reports whether a topic is one of envelopes, true ones or not.
func IsEnvelope(topic string) bool { return strings.HasPrefix(topic, EnvelopePrefix) }

// Open reads the topic of an envelope. The error says what is wrong with it, a wrong MAC included.
func (s Secret) Open(topic string, payload []byte) (Envelope, error) {
	const parts = 4
	p := strings.SplitN(strings.TrimPrefix(topic, EnvelopePrefix), "/", parts)
	if !IsEnvelope(topic) || len(p) != parts {
		return Envelope{}, fmt.Errorf("topic %.100q is no envelope", topic)
	}
	sum, err := base64.RawURLEncoding.Strict().DecodeString(p[0])
	if err != nil || len(sum) != macSize {
		return Envelope{}, errNotOurs
	}
	var e Envelope
	client, err := url.PathUnescape(p[2])
	if err != nil || escape.Replace(client) != p[2] {
		return Envelope{}, fmt.Errorf("client id %.100q of an envelope is not escaped as ours", p[2])
	}
	if e.Message, err = event.ParseID(p[1]); err != nil || e.Message.String() != p[1] {
		return Envelope{}, fmt.Errorf("message id %.100q of an envelope is not written as ours", p[1])
	}
	if e.Client, err = event.ParseClientID(client); err != nil {
		return Envelope{}, err
	}
	if e.Topic, err = event.ParseTopic(p[3]); err != nil {
		return Envelope{}, err
	}
	for _, key := range s.keys {
		if hmac.Equal(sum, sealOf(key, e, payload)) {
			return e, nil
		}
	}
	return Envelope{}, errNotOurs
}
