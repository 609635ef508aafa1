package exhooktest

import (
	"cmp"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

// hook is where mochi calls us: in the goroutine of the client's connection, so that a call of ours holds up that client alone.
type hook struct {
	mochi.HookBase
	*Broker
	sessions sync.Map // what mochi does not keep of a connection, by *mochi.Client
	nobody   sync.Map // publishes that reached nobody, by ackOf
	stashed  sync.Map // deliveries that a publish of the same packet id would push out, by ackOf
}

// session is what is kept of a connection while it lasts.
type session struct {
	password  string
	takenOver atomic.Bool
}

// ackOf is a packet id of a client.
type ackOf struct {
	cl *mochi.Client
	id uint16
}

// ID names the hook.
func (h *hook) ID() string { return "exhook" }

// Provides tells mochi which hooks there are.
func (h *hook) Provides(b byte) bool {
	switch b {
	case mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnSessionEstablish, mochi.OnPacketRead, mochi.OnPacketEncode,
		mochi.OnPacketProcessed, mochi.OnPublish, mochi.OnWill, mochi.OnSubscribed, mochi.OnUnsubscribed, mochi.OnDisconnect:
		return true
	}
	return false
}

// OnConnectAuthenticate lets everybody in.
func (h *hook) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }

// OnACLCheck allows everything.
func (h *hook) OnACLCheck(*mochi.Client, string, bool) bool { return true }

// OnConnect keeps what mochi forgets. It would lose the packet ids of what it holds back for a receive maximum.
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	h.sessions.Store(cl, &session{password: string(pk.Connect.Password)})
	cl.Properties.Props.ReceiveMaximum, cl.Properties.Props.TopicAliasMaximum = 0, 0
	cl.State.Inflight.ResetSendQuota(0)
	return nil
}

// session is nil for a connection that has ended.
func (h *hook) session(cl *mochi.Client) *session {
	v, _ := h.sessions.Load(cl)
	s, _ := v.(*session)
	return s
}

// OnSessionEstablish comes before the connection of that client id, when there is one, is closed.
func (h *hook) OnSessionEstablish(cl *mochi.Client, _ packets.Packet) {
	if other, ok := h.mqtt.Clients.Get(cl.ID); ok {
		if s := h.session(other); s != nil {
			s.takenOver.Store(true)
		}
	}
}

func (h *hook) info(cl *mochi.Client) *exhookpb.ClientInfo {
	if s := h.session(cl); s != nil {
		return h.client(cl, s.password)
	}
	return h.client(cl, "")
}

// OnPacketEncode tells of a client that is connected before it hears of it, and says in an ack that a publish reached nobody. With
// a reason text, since mochi leaves out the code of an ack that has nothing else.
func (h *hook) OnPacketEncode(cl *mochi.Client, pk packets.Packet) packets.Packet {
	switch pk.FixedHeader.Type {
	case packets.Connack:
		if pk.ReasonCode == packets.CodeSuccess.Code {
			r := &exhookpb.ClientConnectedRequest{Clientinfo: h.info(cl)}
			also(r, h.meta(2))
			h.tell(cl.ID, "client.connected", "", r)
		}
	case packets.Puback, packets.Pubrec:
		if _, nobody := h.nobody.LoadAndDelete(ackOf{cl, pk.PacketID}); nobody && cl.Properties.ProtocolVersion == 5 {
			pk.ReasonCode, pk.Properties.ReasonString = packets.CodeNoMatchingSubscribers.Code, packets.CodeNoMatchingSubscribers.Reason
		}
	}
	return pk
}

// OnDisconnect tells of the end of a connection, unless another one has taken it over: EMQX does not tell that.
func (h *hook) OnDisconnect(cl *mochi.Client, err error, _ bool) {
	defer h.sessions.Delete(cl)
	if s := h.session(cl); s == nil || s.takenOver.Load() {
		return
	}
	r := &exhookpb.ClientDisconnectedRequest{Clientinfo: h.info(cl), Reason: []byte(reason(cl, err))}
	also(r, h.meta(3))
	h.tell(cl.ID, "client.disconnected", "", r)
}

func reason(cl *mochi.Client, err error) string {
	cause := cmp.Or(cl.StopCause(), err)
	var timeout net.Error
	switch {
	case cause == nil, errors.Is(cause, packets.CodeDisconnect):
		return "normal"
	case errors.Is(cause, io.EOF), errors.Is(cause, net.ErrClosed), errors.Is(cause, io.ErrUnexpectedEOF):
		return "tcp_closed"
	case errors.As(cause, &timeout) && timeout.Timeout():
		return "keepalive_timeout"
	}
	return strings.ReplaceAll(cause.Error(), " ", "_")
}

// OnSubscribed comes when the subscriptions exist and before the SUBACK.
func (h *hook) OnSubscribed(cl *mochi.Client, pk packets.Packet, codes []byte) {
	for i, s := range pk.Filters {
		if codes[i] >= packets.ErrUnspecifiedError.Code {
			continue
		}
		topic, group := h.subscription(s.Filter)
		r := &exhookpb.SessionSubscribedRequest{Clientinfo: h.info(cl), Topic: []byte(topic), Subopts: &exhookpb.SubOpts{
			Qos: uint32(codes[i]), Share: []byte(group), Rh: uint32(s.RetainHandling), Rap: bit(s.RetainAsPublished), Nl: bit(s.NoLocal),
		}}
		also(r, h.meta(4))
		h.tell(cl.ID, "session.subscribed", "", r)
	}
}

func bit(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// OnUnsubscribed comes before the UNSUBACK. Without a packet id it is the end of a session, which EMQX tells by another hook.
func (h *hook) OnUnsubscribed(cl *mochi.Client, pk packets.Packet) {
	if pk.PacketID == 0 {
		return
	}
	for _, s := range pk.Filters {
		topic, _ := h.subscription(s.Filter)
		r := &exhookpb.SessionUnsubscribedRequest{Clientinfo: h.info(cl), Topic: []byte(topic)}
		also(r, h.meta(3))
		h.tell(cl.ID, "session.unsubscribed", "", r)
	}
}

// OnPublish comes before PUBACK and routing. The message is routed here, as what the answers have made of it, and the publisher
// gets its ack by what it has sent, when this returns.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline { // that is the routing
		return pk, nil
	}
	if pk.FixedHeader.Qos > 0 {
		// mochi has one map for both directions: while this waits no delivery may get the packet id.
		cl.State.Inflight.Set(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
	}
	if reached := h.publish(cl, pk); !reached && pk.FixedHeader.Qos > 0 {
		h.nobody.Store(ackOf{cl, pk.PacketID}, true)
	}
	return pk, packets.CodeSuccessIgnore
}

// OnWill publishes a will as any message, and leaves mochi nothing to publish.
func (h *hook) OnWill(cl *mochi.Client, will mochi.Will) (mochi.Will, error) {
	h.publish(cl, packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: will.Qos, Retain: will.Retain}, TopicName: will.TopicName,
		Payload: will.Payload, Properties: packets.Properties{User: will.User}, Origin: cl.ID,
	})
	return mochi.Will{}, nil
}

// publish asks the servers and routes what they leave. It reports whether anybody subscribes to that.
func (h *hook) publish(cl *mochi.Client, pk packets.Packet) (reached bool) {
	m := mark{id: h.minter.Mint(), username: string(cl.Properties.Username), peer: peer(cl)}
	m.put(&pk)
	routed, allowed := h.ask(h.publishRequest(cl, pk, m))
	if !allowed {
		return false
	}
	pk.FixedHeader.Qos, pk.TopicName, pk.Payload = routed.qos, routed.topic, routed.payload
	pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = 0, false
	pk.PacketID = uint16(routed.qos) // what the rules of the protocol ask for
	subs := h.mqtt.Topics.Subscribers(pk.TopicName)
	if reached = len(subs.Subscriptions)+len(subs.Shared) > 0; !reached {
		r := &exhookpb.MessageDroppedRequest{Message: h.message(pk, m, false), Reason: []byte("no_subscribers")}
		also(r, h.meta(3))
		h.tell(cl.ID, "message.dropped", pk.TopicName, r)
		if !pk.FixedHeader.Retain {
			return false
		}
	}
	if err := h.mqtt.InjectPacket(h.mqtt.NewClient(nil, "tcp", cl.ID, true), pk); err != nil {
		h.tb.Errorf("route a message of %s to %q: %v", cl.ID, pk.TopicName, err)
	}
	return reached
}

// OnPacketRead tells of the ack of a delivery: the PUBACK, or the PUBREC of QoS 2.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	sent, held := cl.State.Inflight.Get(pk.PacketID)
	if !held || sent.FixedHeader.Type != packets.Publish {
		return pk, nil
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if pk.FixedHeader.Qos == 1 {
			h.stashed.Store(ackOf{cl, pk.PacketID}, sent)
		}
	case packets.Puback, packets.Pubrec:
		m, ok := markOf(sent)
		if !ok {
			break
		}
		r := &exhookpb.MessageAckedRequest{Clientinfo: h.info(cl), Message: h.message(sent, m, sent.FixedHeader.Retain)}
		also(r, h.meta(3))
		h.tell(cl.ID, "message.acked", sent.TopicName, r)
	}
	return pk, nil
}

// OnPacketProcessed puts back a delivery that the publish has pushed out.
func (h *hook) OnPacketProcessed(cl *mochi.Client, pk packets.Packet, _ error) {
	if pk.FixedHeader.Type != packets.Publish || cl.Net.Inline {
		return
	}
	if sent, ok := h.stashed.LoadAndDelete(ackOf{cl, pk.PacketID}); ok {
		cl.State.Inflight.Set(sent.(packets.Packet))
	}
}
