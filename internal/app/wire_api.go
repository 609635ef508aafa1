package app

import (
	"context"
	"fmt"
	"log/slog"

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
	c, err := w.Process.Config.openAPI(w.Process.Log)
	if err != nil {
		return nil, nil, err
	}
	return c, c.Close, nil
}

// openAPI is a client of the broker's API.
func (c Config) openAPI(log *slog.Logger) (*emqxapi.Client, error) {
	a := c.Delivery.API
	tls, err := a.TLS.Config(false)
	if err != nil {
		return nil, fmt.Errorf("delivery.api.tls: %w", err)
	}
	client, err := emqxapi.New(emqxapi.Config{
		URL: a.URL, Version: a.Version, Key: a.Key, Secret: string(a.Secret), TLS: tls, Timeout: a.Timeout, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("delivery.api: %w", err)
	}
	return client, nil
}

// CheckAPI asks the broker's API once, without a change there. The config must have a delivery.api, and its secrets.
func CheckAPI(ctx context.Context, c Config) error {
	client, err := c.openAPI(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Probe(ctx)
}
