package embedded

import (
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
)

// OnPublish comes before the PUBACK, the routing and the retained store: all of them wait until the event is durable. For a
// will the client is a stand-in without a connection.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (_ packets.Packet, rejected error) {
	w := wireOf(cl)
	if w != nil {
		if !h.busy.enter() {
			h.notTaken("publish", cl, errStopping)
			return pk, packets.ErrRejectPacket
		}
		w.publishing = true
		if pk.FixedHeader.Qos > 0 {
			w.reserve(cl)
			defer func() {
				if pk.FixedHeader.Qos == 2 && rejected == nil {
					w.received()
				}
			}()
		}
	}
	topic, err := event.ParseTopic(pk.TopicName)
	if err != nil {
		return h.refuse(cl, pk, packets.ErrTopicNameInvalid, mqtt.CountRefusedTopic)
	}
	user := userProperties(pk.Properties.User)
	if id, client, ok := h.cfg.Secret.Verify(pk.TopicName, pk.Payload, user); ok {
		h.cfg.Count(mqtt.CountReplay)
		pk.FixedHeader.Retain = false // a copy of a replay must not become the retained message
		setMark(&pk, mark{id: id, replayed: true, topic: h.original(client, topic)})
		return pk, nil
	}
	if mqtt.Claims(user) {
		h.cfg.Count(mqtt.CountForged)
	}
	if h.isOwn(cl.ID) {
		return h.refuse(cl, pk, packets.ErrNotAuthorized, mqtt.CountOwnRefused)
	}
	head := h.head()
	e := event.Published{
		Head: head, Topic: topic, Sender: event.ClientID(cl.ID), QoS: event.QoS(pk.FixedHeader.Qos), Retain: pk.FixedHeader.Retain,
		Payload: payload(pk.Payload), Expiry: time.Duration(pk.Properties.MessageExpiryInterval) * time.Second,
		Properties: event.Properties{
			User: user, ContentType: pk.Properties.ContentType, ResponseTopic: pk.Properties.ResponseTopic,
			CorrelationData: pk.Properties.CorrelationData, PayloadFormat: pk.Properties.PayloadFormat,
		},
	}
	switch pk.FixedHeader.Qos {
	case 0:
		// Nobody waits for an answer. Its copies go out as well when the log does not take it: QoS 0 promises nothing.
		err = h.note(e)
		if err != nil {
			h.log.Warn("qos 0 publish was not taken", "client", cl.ID, "err", err)
			err = nil
		}
	default:
		err = h.take(e)
	}
	switch {
	case fault.IsPoison(err):
		h.log.Warn("publish refused: the log can never take it", "client", cl.ID, "topic", pk.TopicName, "err", err)
		return h.refuse(cl, pk, packets.ErrImplementationSpecificError, mqtt.CountRefusedPoison)
	case err != nil:
		h.notTaken("publish", cl, err)
		return pk, packets.ErrRejectPacket // without an answer, and the connection is closed
	}
	if h.cfg.NoRetain {
		pk.FixedHeader.Retain = false
	}
	setMark(&pk, mark{id: head.ID})
	return pk, nil
}

// refuse says no for good. MQTT 5 has a reason code for that; in 3.1.1 an answer would be a yes, so the connection is closed.
func (h *hook) refuse(cl *mochi.Client, pk packets.Packet, code packets.Code, c mqtt.Counter) (packets.Packet, error) {
	h.cfg.Count(c)
	h.log.Warn("publish refused", "client", cl.ID, "topic", pk.TopicName, "reason", string(c))
	switch {
	case pk.FixedHeader.Qos == 0 || cl.Net.Inline:
	case cl.Properties.ProtocolVersion == 5:
		answer := packets.Puback
		if pk.FixedHeader.Qos == 2 {
			answer = packets.Pubrec // mochi would send a PUBACK
		}
		_ = cl.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: answer}, PacketID: pk.PacketID, ReasonCode: code.Code,
			Properties: packets.Properties{ReasonString: code.Reason},
		})
	default:
		cl.Stop(code)
	}
	return pk, packets.ErrRejectPacket // nothing more happens with the packet
}

// original is the topic under which the message is stored: a replay by prefix comes on another.
func (h *hook) original(client event.ClientID, topic event.Topic) event.Topic {
	if c, s, ok := h.cfg.Template.Original(topic.String()); ok && c == client {
		if t, err := event.ParseTopic(s); err == nil {
			return t
		}
	}
	return topic
}

func userProperties(in []packets.UserProperty) []event.UserProperty {
	if len(in) == 0 {
		return nil
	}
	out := make([]event.UserProperty, len(in))
	for i, p := range in {
		out[i] = event.UserProperty{Key: p.Key, Value: p.Val}
	}
	return out
}

func payload(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// mark is the message id that travels with every copy of a publish, to be found when a client acknowledges it.
type mark struct {
	id       event.ID
	replayed bool
	topic    event.Topic // the original one when it is not the packet's
}

const idLength = 32

// setMark puts the mark where mochi copies it with the packet, keeps it in flight and in the retained store, and never
// encodes it: a PUBLISH has no client identifier of its own.
func setMark(pk *packets.Packet, m mark) {
	kind := "L"
	if m.replayed {
		kind = "R"
	}
	s := m.id.String() + kind
	if t := m.topic.String(); t != pk.TopicName {
		s += t
	}
	pk.Connect.ClientIdentifier = s
}

// markOf reads a copy's mark; the zero mark when it has none, as the broker's own $SYS messages.
func markOf(pk packets.Packet) mark {
	s := pk.Connect.ClientIdentifier
	if pk.FixedHeader.Type != packets.Publish || len(s) <= idLength {
		return mark{}
	}
	id, err := event.ParseID(s[:idLength])
	if err != nil {
		return mark{}
	}
	topic := s[idLength+1:]
	if topic == "" {
		topic = pk.TopicName
	}
	t, err := event.ParseTopic(topic)
	if err != nil {
		return mark{}
	}
	return mark{id: id, replayed: s[idLength] == 'R', topic: t}
}
