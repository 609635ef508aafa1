package exhook

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

// Services are the names under which brokers call us: EMQX 4.3 and 4.4, 5.0 to 5.8, and from 5.9 on.
var Services = []string{"emqx.exhook.v1.HookProvider", "emqx.exhook.v2.HookProvider", "emqx.exhook.v3.HookProvider"}

// service is the description of one of them. The calls stand in it as streams of one message, which is the same on the wire: a
// handler then sees what could not be read, and can count it.
func (s *Server) service(name string) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			{StreamName: "OnProviderLoaded", Handler: s.onLoaded},
			{StreamName: "OnProviderUnloaded", Handler: s.onUnloaded},
			on(s, "OnClientConnected", s.connected, done),
			on(s, "OnClientDisconnected", s.disconnected, done),
			on(s, "OnSessionSubscribed", s.subscribed, done),
			on(s, "OnSessionUnsubscribed", s.unsubscribed, done),
			s.onPublish(),
			on(s, "OnMessageAcked", s.acked, done),
			on(s, "OnMessageDropped", s.dropped, done),
		},
	}
}

// The answers to events. To a publish it must be said in words that the broker shall go on: an empty answer makes it complain.
var (
	done   = &exhookpb.EmptySuccess{}
	ignore = &exhookpb.ValuedResponse{Type: exhookpb.ValuedResponse_IGNORE}
)

// request is a pointer to a request's type.
type request[T any] interface {
	*T
	proto.Message
}

// on is a call that tells of an event.
func on[T any, P request[T]](s *Server, name string, translate func(P) (event.Event, error), with proto.Message) grpc.StreamDesc {
	return grpc.StreamDesc{StreamName: name, Handler: func(_ any, stream grpc.ServerStream) error {
		r := P(new(T))
		if err := stream.RecvMsg(r); err != nil {
			return s.unread(name, err)
		}
		return answer(s, stream, name, r, translate, with)
	}}
}

// answer tells the broker to go on, once the event is durable or is known to be none.
func answer[P proto.Message](s *Server, stream grpc.ServerStream, name string, r P, translate func(P) (event.Event, error), with proto.Message) error {
	e, err := translate(r)
	if err != nil {
		s.refused(name, err)
	} else if err := s.take(stream.Context(), name, e); err != nil {
		return s.missed(name, err)
	}
	return stream.SendMsg(with)
}

// take returns nil once the event is durable, or is of no use to anybody.
func (s *Server) take(ctx context.Context, name string, e event.Event) error {
	ctx, cancel := mqtt.Within(ctx, s.work, s.cfg.Budget)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return mqtt.Durable(ctx, s.accept, func(err error) {
		s.refused(name, &mqtt.Refusal{Counter: mqtt.CountRefusedPoison, Err: err})
	}, e)
}

// missed is what becomes of an event that is not durable in time: the broker is told so, and goes on without us.
func (s *Server) missed(name string, err error) error {
	s.cfg.Count(mqtt.CountGap)
	s.gaps.Say(func(before int) {
		s.cfg.Log.Error("event was not durable in time, the broker goes on without it", "call", name, "err", err, "unsaid", before)
	})
	return status.Error(codes.Unavailable, "the event is not durable")
}

// refused is what becomes of an event that can never be one: it is counted and answered, since it would be the same the next time.
func (s *Server) refused(name string, err error) {
	why := &mqtt.Refusal{Counter: mqtt.CountRefusedRequest}
	errors.As(err, &why)
	s.cfg.Count(why.Counter)
	if errors.Is(err, mqtt.ErrOwn) {
		return
	}
	s.refusals.Say(func(before int) {
		s.cfg.Log.Warn("event refused", "call", name, "err", err, "unsaid", before)
	})
}

// unread is what becomes of a call whose request did not come whole, or cannot be read. gRPC has sent the error by then; its text
// quotes nothing of the request.
func (s *Server) unread(name string, err error) error {
	switch status.Code(err) { //nolint:exhaustive // the others are one
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		return s.missed(name, err)
	case codes.ResourceExhausted:
		s.refused(name, &mqtt.Refusal{Counter: mqtt.CountRefusedSize, Err: err})
	default:
		s.refused(name, &mqtt.Refusal{Counter: mqtt.CountRefusedRequest, Err: err})
	}
	return err
}

func (s *Server) onLoaded(_ any, stream grpc.ServerStream) error {
	var r exhookpb.ProviderLoadedRequest
	if err := stream.RecvMsg(&r); err != nil {
		return s.unread("OnProviderLoaded", err)
	}
	s.cfg.Log.InfoContext(stream.Context(), "broker has connected", "node", text(r.GetMeta().GetNode()), "version", text(r.GetBroker().GetVersion()),
		"hooks", len(s.cfg.Hooks))
	return stream.SendMsg(loaded(s.cfg.Hooks))
}

func (s *Server) onUnloaded(_ any, stream grpc.ServerStream) error {
	var r exhookpb.ProviderUnloadedRequest
	if err := stream.RecvMsg(&r); err != nil {
		return s.unread("OnProviderUnloaded", err)
	}
	s.cfg.Log.WarnContext(stream.Context(), "broker has disconnected: it tells nothing more", "node", text(r.GetMeta().GetNode()))
	return stream.SendMsg(done)
}
