package exhook

import (
	"log/slog"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// Translate reads a request as a server would that runs nowhere.
func Translate(hook string, request []byte, count func(mqtt.Counter)) (event.Event, error) {
	s := &Server{
		cfg:     Config{Source: "restante/emqx", Count: count, Log: slog.New(slog.DiscardHandler)},
		aliases: pipeline.NewSafeRecent[event.ID, known](mostAlias, aliasLife),
	}
	switch hook {
	case "OnClientConnected":
		return translate(request, s.connected)
	case "OnClientDisconnected":
		return translate(request, s.disconnected)
	case "OnSessionSubscribed":
		return translate(request, s.subscribed)
	case "OnSessionUnsubscribed":
		return translate(request, s.unsubscribed)
	case "OnMessagePublish":
		return translate(request, s.published)
	case "OnMessageAcked":
		return translate(request, s.acked)
	case "OnMessageDropped":
		return translate(request, s.dropped)
	}
	panic("no hook is called " + hook)
}

func translate[T any, P request[T]](request []byte, fn func(P) (event.Event, error)) (event.Event, error) {
	r := P(new(T))
	if err := (codec{}).Unmarshal(request, r); err != nil {
		return nil, &mqtt.Refusal{Counter: mqtt.CountRefusedRequest, Err: err}
	}
	return fn(r)
}
