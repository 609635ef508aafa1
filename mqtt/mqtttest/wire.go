package mqtttest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/restante/restante/event"
)

// The packet types of MQTT.
const (
	Connect     byte = 1
	Connack     byte = 2
	Publish     byte = 3
	Puback      byte = 4
	Pubrec      byte = 5
	Pubrel      byte = 6
	Pubcomp     byte = 7
	Subscribe   byte = 8
	Suback      byte = 9
	Unsubscribe byte = 10
	Unsuback    byte = 11
	Pingreq     byte = 12
	Pingresp    byte = 13
	Disconnect  byte = 14
)

// The versions of the protocol, as they stand in CONNECT.
const (
	V311 byte = 4
	V5   byte = 5
)

// Message is an application message, sent or received.
type Message struct {
	Topic   string
	Payload []byte
	QoS     event.QoS
	Retain  bool
	// Dup and ID are those of the packet. An ID that is set is used when the message is sent.
	Dup bool
	ID  uint16
	// Properties and Expiry need MQTT 5.
	Properties event.Properties
	Expiry     time.Duration
	// Props are the properties as they came, without the user properties: identifier to raw value.
	Props map[byte][]byte
}

// User returns the first user property of that name, "" when there is none.
func (m Message) User(name string) string {
	for _, p := range m.Properties.User {
		if p.Key == name {
			return p.Value
		}
	}
	return ""
}

// Packet is a packet as it came.
type Packet struct {
	Type  byte
	Flags byte
	Body  []byte
}

type buffer struct{ b []byte }

func (w *buffer) byte(v byte)     { w.b = append(w.b, v) }
func (w *buffer) u16(v uint16)    { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *buffer) u32(v uint32)    { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *buffer) str(v string)    { w.u16(uint16(len(v))); w.b = append(w.b, v...) } //nolint:gosec // callers keep to 65,535 bytes
func (w *buffer) raw(v []byte)    { w.b = append(w.b, v...) }
func (w *buffer) varint(v int)    { w.b = binary.AppendUvarint(w.b, uint64(v)) } //nolint:gosec // lengths
func (w *buffer) block(p *buffer) { w.varint(len(p.b)); w.raw(p.b) }

// frame puts the fixed header in front of a body.
func frame(typ, flags byte, body []byte) []byte {
	w := buffer{b: make([]byte, 0, len(body)+5)}
	w.byte(typ<<4 | flags)
	w.varint(len(body))
	w.raw(body)
	return w.b
}

// readPacket reads one packet.
func readPacket(r *bufio.Reader) (Packet, error) {
	first, err := r.ReadByte()
	if err != nil {
		return Packet{}, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return Packet{}, err
	}
	if n > 256<<20 {
		return Packet{}, fmt.Errorf("packet of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Packet{}, err
	}
	return Packet{Type: first >> 4, Flags: first & 15, Body: body}, nil
}

var errShort = errors.New("packet is too short")

type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.err = errShort
		return make([]byte, max(n, 0))
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte  { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) str() string { return string(r.take(int(r.u16()))) }

func (r *reader) varint() int {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 4 {
		r.err = errShort
		return 0
	}
	r.b = r.b[n:]
	return int(v) //nolint:gosec // four groups of seven bits
}

// The property identifiers of MQTT 5 (§2.2.2.2) that this client needs by name.
const (
	propPayloadFormat   byte = 1
	propExpiry          byte = 2
	propContentType     byte = 3
	propResponseTopic   byte = 8
	propCorrelation     byte = 9
	propSessionExpiry   byte = 17
	propWillDelay       byte = 24
	propReceiveMaximum  byte = 33
	propUser            byte = 38
	propMaximumPacket   byte = 39
	propTopicAliasMax   byte = 34
	propSubscriptionID  byte = 11
	propReasonString    byte = 31
	propAssignedID      byte = 18
	propServerReference byte = 28
)

// properties reads a property block into raw values, the user properties apart.
func (r *reader) properties() (map[byte][]byte, []event.UserProperty) {
	p := reader{b: r.take(r.varint())}
	props := map[byte][]byte{}
	var user []event.UserProperty
	for len(p.b) > 0 && p.err == nil {
		switch id := p.byte(); id {
		case propPayloadFormat, 23, 25, 36, 37, 40, 41, 42:
			props[id] = p.take(1)
		case 19, propReceiveMaximum, propTopicAliasMax, 35:
			props[id] = p.take(2)
		case propExpiry, propSessionExpiry, propWillDelay, propMaximumPacket:
			props[id] = p.take(4)
		case propSubscriptionID:
			before := p.b
			p.varint()
			props[id] = before[:len(before)-len(p.b)]
		case propContentType, propResponseTopic, propCorrelation, propReasonString, propAssignedID, propServerReference, 21, 22, 26:
			props[id] = p.take(int(p.u16()))
		case propUser:
			user = append(user, event.UserProperty{Key: p.str(), Value: p.str()})
		default:
			p.err = fmt.Errorf("unknown property %d", id)
		}
	}
	if r.err == nil {
		r.err = p.err
	}
	return props, user
}

// encodePublish is the body of PUBLISH and its flags.
func encodePublish(version byte, m Message) (body []byte, flags byte) {
	var w buffer
	w.str(m.Topic)
	if m.QoS > 0 {
		w.u16(m.ID)
	}
	if version == V5 {
		w.block(publishProperties(m))
	}
	w.raw(m.Payload)
	flags = byte(m.QoS) << 1
	if m.Retain {
		flags |= 1
	}
	if m.Dup {
		flags |= 8
	}
	return w.b, flags
}

func publishProperties(m Message) *buffer {
	var w buffer
	if m.Properties.PayloadFormat > 0 {
		w.byte(propPayloadFormat)
		w.byte(m.Properties.PayloadFormat)
	}
	if m.Expiry > 0 {
		w.byte(propExpiry)
		w.u32(uint32(m.Expiry / time.Second)) //nolint:gosec // tests use short times
	}
	if m.Properties.ContentType != "" {
		w.byte(propContentType)
		w.str(m.Properties.ContentType)
	}
	if m.Properties.ResponseTopic != "" {
		w.byte(propResponseTopic)
		w.str(m.Properties.ResponseTopic)
	}
	if len(m.Properties.CorrelationData) > 0 {
		w.byte(propCorrelation)
		w.str(string(m.Properties.CorrelationData))
	}
	for _, u := range m.Properties.User {
		w.byte(propUser)
		w.str(u.Key)
		w.str(u.Value)
	}
	return &w
}

// decodePublish reads a PUBLISH.
func decodePublish(version byte, p Packet) (Message, error) {
	r := reader{b: p.Body}
	m := Message{QoS: event.QoS(p.Flags >> 1 & 3), Retain: p.Flags&1 != 0, Dup: p.Flags&8 != 0, Topic: r.str()}
	if m.QoS > 0 {
		m.ID = r.u16()
	}
	if version == V5 {
		m.Props, m.Properties.User = r.properties()
		m.Properties.ContentType = string(m.Props[propContentType])
		m.Properties.ResponseTopic = string(m.Props[propResponseTopic])
		m.Properties.CorrelationData = m.Props[propCorrelation]
		if v := m.Props[propPayloadFormat]; len(v) == 1 {
			m.Properties.PayloadFormat = v[0]
		}
		if v := m.Props[propExpiry]; len(v) == 4 {
			m.Expiry = time.Duration(binary.BigEndian.Uint32(v)) * time.Second
		}
	}
	m.Payload = r.b
	return m, r.err
}
