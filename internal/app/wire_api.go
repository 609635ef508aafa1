package app

import (
	"fmt"

	"github.com/restante/restante/mqtt/emqxapi"
	"github.com/restante/restante/pipeline"
)

// resubscriber is what restores subscriptions, with a function that ends it: the broker's API, or the embedded broker, which is the
// publisher of direct delivery; nil when there is neither.
func (w *Wire) resubscriber(pub pipeline.Publisher) (pipeline.Resubscriber, func(), error) {
	a := w.Process.Config.Delivery.API
	if a.Type == "" {
		r, _ := pub.(pipeline.Resubscriber)
		return r, func() {}, nil
	}
	tls, err := a.TLS.Config(false)
	if err != nil {
		return nil, nil, fmt.Errorf("delivery.api.tls: %w", err)
	}
	c, err := emqxapi.New(emqxapi.Config{
		URL: a.URL, Version: a.Version, Key: a.Key, Secret: string(a.Secret), TLS: tls, Timeout: a.Timeout, Log: w.Process.Log,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("delivery.api: %w", err)
	}
	return c, c.Close, nil
}
