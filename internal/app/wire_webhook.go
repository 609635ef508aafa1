package app

import (
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/webhook"
	"github.com/restante/restante/pipeline"
)

// webhookSource makes a server that brokers post to. It listens from now on.
func (w *Wire) webhookSource(name string, s WebhookSource, secret mqtt.Secret) (pipeline.Source, error) {
	c := w.Process.Config
	tls, err := s.TLS.Config()
	if err != nil {
		return nil, err
	}
	template, err := c.template()
	if err != nil {
		return nil, err
	}
	answers, err := c.answers(secret)
	if err != nil {
		return nil, err
	}
	const least = 4 * MiB
	body := s.MaxBody
	if body == 0 {
		body = max(s.room(c.Ingest.MaxPayload), least)
	}
	server, err := webhook.Open(webhook.Config{
		Listen: s.Listen, TLS: tls, Path: s.Path, Format: webhook.Format(s.Format), PlainPayload: s.Payload == "plain",
		Token: s.Token.Reveal(), HMACKey: s.HMACKey.Reveal(), HMACHeader: s.HMACHeader,
		Source: "restante/" + name, Minter: w.Minter, Own: w.Rules.Own, Secret: secret, Template: template, Answers: answers,
		Budget: s.Budget, MaxBody: int64(body), Drain: c.Shutdown.Drain, Count: w.count, Log: w.Process.Log,
	})
	if err != nil {
		return nil, err
	}
	w.Process.Log.Info("webhook listens", "source", name, "addr", server.Addr().String(), "path", s.Path, "format", s.Format)
	return server, nil
}
