package app

import (
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/pipeline"
)

// exhookSource makes a server that EMQX calls. It listens from now on.
func (w *Wire) exhookSource(name string, s ExhookSource, secret mqtt.Secret) (pipeline.Source, error) {
	c := w.Process.Config
	tls, err := s.TLS.Config()
	if err != nil {
		return nil, err
	}
	template, err := c.template()
	if err != nil {
		return nil, err
	}
	const slack, least = Size(128 << 10), 4 * MiB // for what surrounds a payload, and so that what is too large still gets to the dead letters
	server, err := exhook.Open(exhook.Config{
		Listen: s.Listen, TLS: tls, Source: "restante/" + name, Node: s.Node, Hooks: exhook.Needs(c.PipelineRules()), Own: w.Rules.Own,
		Secret: secret, Envelope: c.envelopes(), Template: template, Budget: s.Budget, MaxMessage: int(max(c.Ingest.MaxPayload+slack, least)), Drain: c.Shutdown.Drain,
		Count: w.count, Log: w.Process.Log,
	})
	if err != nil {
		return nil, err
	}
	w.Process.Log.Info("exhook listens", "source", name, "addr", server.Addr().String())
	return server, nil
}
