package exhooktest

import (
	"net"
	"strconv"
	"strings"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

func (b *Broker) loadedRequest() *exhookpb.ProviderLoadedRequest {
	r := &exhookpb.ProviderLoadedRequest{
		Broker: &exhookpb.BrokerInfo{Version: []byte(b.version.emqx)}, Meta: &exhookpb.RequestMeta{Node: []byte(b.options.Node)},
	}
	also(r.Broker, text(2, "EMQX"), text(4, time.Now().Format(time.DateTime)))
	also(r.Meta, b.about()...)
	return r
}

// about are the fields of a RequestMeta but the node, meta is a whole one in the field that it has in a request.
func (b *Broker) about() [][]byte {
	return [][]byte{text(2, b.version.emqx), text(3, "EMQX"), text(4, "emqxcl")}
}

func (b *Broker) meta(field protowire.Number) []byte {
	return inner(field, append([][]byte{text(1, b.options.Node)}, b.about()...)...)
}

// client is a ClientInfo. The password is in it: EMQX tells it too.
func (b *Broker) client(cl *mochi.Client, password string) *exhookpb.ClientInfo {
	i := &exhookpb.ClientInfo{Node: []byte(b.options.Node), Clientid: []byte(cl.ID), Username: cl.Properties.Username}
	_, port, _ := net.SplitHostPort(b.addr)
	n, _ := strconv.ParseUint(port, 10, 16)
	also(i, text(4, password), text(5, peer(cl)), number(6, n), text(7, "mqtt"), number(10, 1))
	return i
}

func peer(cl *mochi.Client) string {
	host, _, _ := net.SplitHostPort(cl.Net.Remote)
	return host
}

// mark is what travels with every copy of a message: its id, and of its publisher what the copies do not have.
type mark struct {
	id             event.ID
	username, peer string
}

const idLength = 32

// put writes the mark where mochi copies it with the packet, keeps it in flight and in the retained store, and never sends it: a
// PUBLISH has no client identifier of its own.
func (m mark) put(pk *packets.Packet) {
	pk.Connect.ClientIdentifier = m.id.String() + m.peer + " " + m.username
}

// markOf reads a copy's mark; what the broker itself publishes has none.
func markOf(pk packets.Packet) (m mark, ok bool) {
	s := pk.Connect.ClientIdentifier
	if len(s) < idLength {
		return mark{}, false
	}
	id, err := event.ParseID(s[:idLength])
	if err != nil {
		return mark{}, false
	}
	peer, username, ok := strings.Cut(s[idLength:], " ")
	return mark{id: id, username: username, peer: peer}, ok
}

// message is a Message of a packet with a mark. A retained delivery has its own time, and not that of the publish.
func (b *Broker) message(pk packets.Packet, m mark, retained bool) *exhookpb.Message {
	at := m.id.Time()
	if retained {
		at = time.Now()
	}
	out := &exhookpb.Message{
		Node: []byte(b.options.Node), Id: []byte(m.id.String()), Qos: uint32(pk.FixedHeader.Qos), From: []byte(pk.Origin), Topic: []byte(pk.TopicName),
		Payload: pk.Payload, Timestamp: uint64(at.UnixMilli()),
	}
	header := func(key, value string) {
		if value != "" {
			also(out, inner(8, text(1, key), text(2, value)))
		}
	}
	header("username", m.username)
	header("protocol", "mqtt")
	header("peerhost", m.peer)
	return out
}

func (b *Broker) publishRequest(cl *mochi.Client, pk packets.Packet, m mark) *exhookpb.MessagePublishRequest {
	r := &exhookpb.MessagePublishRequest{Message: b.message(pk, m, false)}
	also(r, b.meta(2))
	if !b.version.properties || cl.Properties.ProtocolVersion < 5 {
		return r
	}
	p := pk.Properties
	put := func(name string, value []byte) {
		r.Props = append(r.Props, &exhookpb.Property{Name: []byte(name), Value: value})
	}
	if p.PayloadFormatFlag {
		put("Payload-Format-Indicator", strconv.AppendUint(nil, uint64(p.PayloadFormat), 10))
	}
	if p.MessageExpiryInterval > 0 {
		put("Message-Expiry-Interval", strconv.AppendUint(nil, uint64(p.MessageExpiryInterval), 10))
	}
	if p.ContentType != "" {
		put("Content-Type", []byte(p.ContentType))
	}
	if p.ResponseTopic != "" {
		put("Response-Topic", []byte(p.ResponseTopic))
	}
	if len(p.CorrelationData) > 0 {
		put("Correlation-Data", p.CorrelationData)
	}
	for _, u := range p.User {
		r.UserProps = append(r.UserProps, &exhookpb.Property{Name: []byte(u.Key), Value: []byte(u.Val)})
	}
	return r
}

// subscription is the filter as this version tells it: with the group of a shared subscription in front, or beside it.
func (b *Broker) subscription(filter string) (topic, group string) {
	if rest, shared := strings.CutPrefix(filter, "$share/"); shared && !b.version.groups {
		group, topic, _ = strings.Cut(rest, "/")
		return topic, group
	}
	return filter, ""
}
