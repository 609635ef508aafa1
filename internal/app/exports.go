package app

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/kafkalog"
	"github.com/restante/restante/pipeline/lag"
	"github.com/restante/restante/pipeline/spool"
)

// exports are all metrics of a process.
type exports struct {
	pipeline    *pipeline.Metrics
	kafka       *kafkalog.Metrics
	stores      *SinkMetrics
	edge        *prometheus.CounterVec // kind
	connections *prometheus.GaugeVec   // connection
	disconnects *prometheus.CounterVec // connection, reason
	spool       *spool.Metrics         // nil where there is none
	lag         *lag.Metrics           // nil where it is not observed
	observed    []lag.Group
}

// newExports makes the metrics of a process and registers them.
func newExports(reg prometheus.Registerer, c Config, component string, sinkNames []string) *exports {
	groups := []string{c.Kafka.ReplayerGroup()}
	for _, s := range sinkNames {
		groups = append(groups, c.Kafka.WriterGroup(s))
	}
	e := &exports{
		pipeline: pipeline.NewMetrics(reg, groups, sinkNames),
		kafka:    kafkalog.NewMetrics(reg),
		stores:   NewSinkMetrics(reg, c, sinkNames),
		edge: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restante_mqtt_events_total", Help: "What the broker edge recognised, refused or dropped, by kind.",
		}, []string{"kind"}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "restante_mqtt_connected", Help: "Whether all connections to a broker are up, those of a source subscribed, by what in the configuration asks for them.",
		}, []string{"connection"}),
		disconnects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restante_mqtt_disconnects_total", Help: "Connections to a broker that ended by themselves, by what asks for them and by reason: the broker closed it, another client has taken its id over, or it was broken.",
		}, []string{"connection", "reason"}),
	}
	messages, sessions := c.Kafka.Topic(event.Messages).Name, c.Kafka.Topic(event.Sessions).Name
	e.pipeline.Receives(c.Kafka.ReplayerGroup(), sessions)
	for _, s := range sinkNames {
		e.pipeline.Receives(c.Kafka.WriterGroup(s), messages, sessions)
	}
	reg.MustRegister(e.edge, e.connections, e.disconnects)
	for _, k := range mqtt.Counters() {
		e.edge.WithLabelValues(string(k))
	}
	if component != ProcessReplayer && component != ProcessWriter {
		for _, name := range sortedKeys(c.Sources) {
			if c.Sources[name].MQTT != nil {
				e.expect(connectionSource(name))
			}
		}
		if c.Ingest.Spool.used() {
			e.spool = spool.NewMetrics(reg)
		}
	}
	if component != ProcessIngest && component != ProcessWriter && c.Delivery.To != "direct" {
		e.expect(connectionDelivery)
	}
	if component != ProcessWriter {
		e.observed = c.observed(component)
		retention := make(map[string]time.Duration)
		for _, kind := range []event.Kind{event.Messages, event.Sessions, event.Dead} {
			t := c.Kafka.Topic(kind)
			retention[t.Name] = t.Retention
		}
		e.lag = lag.NewMetrics(reg, e.observed, c.partitions(), retention)
	}
	return e
}

// What holds connections to a broker, as it stands in the configuration.
const connectionDelivery = "delivery"

func connectionSource(name string) string { return "sources." + name }

// expect makes the series of connections that are not up yet.
func (e *exports) expect(connection string) {
	e.connected(connection, false)
	for _, l := range mqtt.Losses() {
		e.disconnects.WithLabelValues(connection, string(l))
	}
}

// lost counts the ends of connections.
func (e *exports) lost(connection string) func(mqtt.Loss) {
	return func(l mqtt.Loss) { e.disconnects.WithLabelValues(connection, string(l)).Inc() }
}

// connected says whether all connections are up.
func (e *exports) connected(connection string, up bool) {
	v := 0.0
	if up {
		v = 1
	}
	e.connections.WithLabelValues(connection).Set(v)
}

// observed are the consumer groups whose lag a process observes: all that the configuration knows, but not its own. Ingest has none, so
// that it tells of all of them; replayers tell of the writers, too, so that a stop of ingest alone hides nothing of these. What is told
// twice is the same.
func (c Config) observed(component string) []lag.Group {
	messages, sessions := c.Kafka.Topic(event.Messages).Name, c.Kafka.Topic(event.Sessions).Name
	var groups []lag.Group
	for _, s := range c.UsedSinks() {
		groups = append(groups, lag.Group{Name: c.Kafka.WriterGroup(s), Topics: []string{messages, sessions}})
	}
	if component != ProcessReplayer && len(groups) > 0 { // an ingest may have a configuration of its own, without sinks
		groups = append(groups, lag.Group{Name: c.Kafka.ReplayerGroup(), Topics: []string{sessions}})
	}
	return groups
}

// observeLag looks at the lag of the groups until ctx ends.
func (w *Wire) observeLag(ctx context.Context) error {
	const every = 10 * time.Second
	c := w.Process.Config
	return lag.New(&lag.Observer{
		Reader: w.Kafka.Peek(c.Kafka.Names.Groups + ".lag"), Topics: w.Kafka, Groups: w.exports.observed, Partitions: c.partitions(),
		Dead: c.Kafka.Topic(event.Dead).Name, Every: every, Metrics: w.exports.lag, Log: w.Process.Log, Now: time.Now,
	}).Run(ctx)
}
