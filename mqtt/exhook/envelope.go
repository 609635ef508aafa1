package exhook

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

const (
	aliasLife = 10 * time.Minute
	mostAlias = 100_000 // in each half of that
)

// onPublish is the call for a publish: an envelope is opened, everything else is an event.
func (s *Server) onPublish() grpc.StreamDesc {
	const name = "OnMessagePublish"
	return grpc.StreamDesc{StreamName: name, Handler: func(_ any, stream grpc.ServerStream) error {
		r := &exhookpb.MessagePublishRequest{}
		if err := stream.RecvMsg(r); err != nil {
			return s.unread(name, err)
		}
		if m := r.GetMessage(); s.cfg.Envelope && mqtt.IsEnvelope(string(m.GetTopic())) {
			return stream.SendMsg(s.open(stream.Context(), name, m))
		}
		return answer(s, stream, name, r, s.published, ignore)
	}}
}

// open answers the publish of an envelope with the replay in it, once its alias stands in the log: so it stands there before the
// ack, whichever server gets that. Otherwise the broker is told to publish nothing; the replayer, which gets no ack, sends it again.
func (s *Server) open(ctx context.Context, name string, m *exhookpb.Message) *exhookpb.ValuedResponse {
	nothing := instead(m, string(m.GetTopic()), map[string]string{"allow_publish": "false"})
	refused := func(c mqtt.Counter, format string, args ...any) *exhookpb.ValuedResponse {
		s.refused(name, refuse(c, format, args...))
		return nothing
	}
	if !s.isOwn(m.GetFrom()) {
		return refused(mqtt.CountForged, "an envelope from client %.100q, which is not a replayer: only replayers may publish to %s#", text(m.GetFrom()), mqtt.EnvelopePrefix)
	}
	e, err := s.cfg.Secret.Open(string(m.GetTopic()), m.GetPayload())
	if err != nil {
		return refused(mqtt.CountForged, "envelope: %w", err)
	}
	broker, err := event.ParseID(string(m.GetId()))
	if err != nil {
		return refused(mqtt.CountRefusedID, "envelope: %w", err)
	}
	alias := event.Replayed{Head: s.head(m.GetNode()), Topic: s.original(e), Client: e.Client, Message: e.Message, BrokerID: broker}
	if err := s.take(ctx, name, alias); err != nil {
		s.cfg.Count(mqtt.CountHeld)
		s.held.Say(func(before int) {
			s.cfg.Log.WarnContext(ctx, "replay held back, its alias is not in the log; it is sent again later", "err", err, "unsaid", before)
		})
		return nothing
	}
	s.aliases.Put(broker, known{e.Message, alias.Topic})
	return instead(m, e.Topic.String(), nil)
}

// original is the topic that the message of an envelope is stored under.
func (s *Server) original(e mqtt.Envelope) event.Topic {
	if _, text, ok := s.cfg.Template.Original(e.Topic.String()); ok {
		if t, err := event.ParseTopic(text); err == nil {
			return t
		}
	}
	return e.Topic
}

// instead has the broker publish the message on another topic. It takes topic, payload and QoS, and the header that may forbid it.
func instead(m *exhookpb.Message, topic string, headers map[string]string) *exhookpb.ValuedResponse {
	return &exhookpb.ValuedResponse{
		Type: exhookpb.ValuedResponse_STOP_AND_RETURN,
		Value: &exhookpb.ValuedResponse_Message{Message: &exhookpb.Answer{
			Node: m.GetNode(), Id: m.GetId(), Qos: m.GetQos(), From: m.GetFrom(), Topic: []byte(topic), Payload: m.GetPayload(),
			Timestamp: m.GetTimestamp(), Headers: headers,
		}},
	}
}

// known is the message that a replay was of.
type known struct {
	message event.ID
	topic   event.Topic
}
