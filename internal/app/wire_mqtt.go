package app

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// Publisher makes the connections that replays are published on. Its Run must be running.
func (w *Wire) Publisher() (*mqtt.Publisher, error) {
	c := w.Process.Config
	node, err := randomNode()
	if err != nil {
		return nil, err
	}
	secret, err := c.ReplaySecret()
	if err != nil {
		return nil, err
	}
	d := c.Delivery.MQTT
	tls, err := d.TLS.Config(true)
	if err != nil {
		return nil, fmt.Errorf("delivery.mqtt.tls: %w", err)
	}
	template, err := c.template()
	if err != nil {
		return nil, err
	}
	answers, err := c.answers(secret)
	if err != nil {
		return nil, err
	}
	w.Process.Health.Set(conditionDelivery, false, "no connection to the broker yet")
	return mqtt.NewPublisher(mqtt.PublisherConfig{
		Server: mqtt.Server{URLs: d.URL, TLS: tls, User: d.User, Password: string(d.Password)},
		Prefix: d.ClientPrefix, Instance: strconv.FormatUint(node, 36), Connections: d.Connections,
		Template: template, Secret: secret, Envelope: c.envelopes(), Answers: answers, Now: time.Now, Log: w.Process.Log,
		Lost: w.exports.lost(connectionDelivery),
		Up: func(up bool) {
			detail := ""
			if !up {
				detail = "no connection to the broker, or not all"
			}
			w.Process.Health.Set(conditionDelivery, up, detail)
			w.exports.connected(connectionDelivery, up)
		},
	})
}

// mqttSource makes a source over MQTT 5 subscriptions.
func (w *Wire) mqttSource(name string, s MQTTSource, secret mqtt.Secret) (pipeline.Source, error) {
	tls, err := s.TLS.Config(true)
	if err != nil {
		return nil, err
	}
	var filters []event.Filter
	for _, text := range w.Process.Config.SourceFilters(name) {
		f, err := event.ParseFilter(text)
		if err != nil {
			return nil, err
		}
		filters = append(filters, f)
	}
	var decoder mqtt.Decoder
	if s.Decode == decodeEMQX {
		template, err := w.Process.Config.template()
		if err != nil {
			return nil, err
		}
		decoder = mqtt.EMQX{Source: "restante/" + name, Minter: w.Minter, Secret: secret, Own: w.Rules.Own, Template: template, Events: filters}
	} else {
		plain := mqtt.Plain{Source: "restante/" + name, Minter: w.Minter, Secret: secret}
		if s.FetchTopic != "" {
			if plain.Fetch, err = mqtt.ParseFetchTopic(s.FetchTopic); err != nil {
				return nil, err
			}
			filters = append(filters, plain.Fetch.Filter())
		}
		if plain.Answers, err = w.Process.Config.answers(secret); err != nil {
			return nil, err
		}
		if !plain.Answers.IsZero() {
			filters = append(filters, plain.Answers.Topic.Filter())
		}
		decoder = plain
		if s.Decode == decodeLog {
			decoder = mqtt.NewMosquitto(plain, w.Rules.Own)
		}
	}
	var drops []string
	if s.BrokerDrops {
		drops = map[string][]string{decodeEMQX: mqtt.EMQXDropFilters, decodeLog: mqtt.MosquittoDropFilters, decodePlain: mqtt.AnyDropFilters}[s.Decode]
	}
	group := ""
	if s.connections() > 1 {
		group = "restante-" + name
	}
	return mqtt.NewSource(mqtt.SourceConfig{
		Server: mqtt.Server{URLs: s.URL, TLS: tls, User: s.User, Password: string(s.Password)},
		Prefix: s.ClientPrefix, Ordinal: s.Ordinal, Connections: s.connections(), Filters: filters, Group: group,
		QoS: event.QoS(s.QoS), SessionExpiry: s.SessionExpiry, //nolint:gosec // 1 or 2
		ReceiveMaximum: uint16(s.ReceiveMaximum), Drain: w.Process.Config.Shutdown.Drain, //nolint:gosec // up to 65,535
		Up: func(up bool) { w.exports.connected(connectionSource(name), up) }, Lost: w.exports.lost(connectionSource(name)),
		Decoder: decoder, Count: w.count, Log: w.Process.Log, Drops: drops,
		Dropped: func(n uint64) { w.exports.edge.WithLabelValues(string(mqtt.CountBrokerDropped)).Add(float64(n)) },
	})
}

// CheckDelivery connects to the broker that replays are published to, as the replayer would.
func CheckDelivery(ctx context.Context, c Config) error {
	d := c.Delivery.MQTT
	tls, err := d.TLS.Config(true)
	if err != nil {
		return fmt.Errorf("delivery.mqtt.tls: %w", err)
	}
	return mqtt.Probe(ctx, mqtt.Server{URLs: d.URL, TLS: tls, User: d.User, Password: string(d.Password)}, d.ClientPrefix+"check")
}
