package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks/cassandra"
	"github.com/restante/restante/sinks/dynamodb"
)

// SinkMetrics are what the stores tell of their requests.
type SinkMetrics struct {
	duration    *prometheus.HistogramVec // sink, operation, outcome
	events      *prometheus.CounterVec   // sink, event
	unprocessed *prometheus.CounterVec   // sink
	capacity    *prometheus.CounterVec   // sink, table
	expired     *prometheus.CounterVec   // sink
	inFlight    *prometheus.GaugeVec     // sink
}

// NewSinkMetrics makes and registers them, with a series at zero for each sink and what it can tell.
func NewSinkMetrics(reg prometheus.Registerer, c Config, names []string) *SinkMetrics {
	m := &SinkMetrics{
		duration: prometheus.NewHistogramVec(pipeline.Histogram("restante_sink_request_duration_seconds", "How long a request to a store took.", pipeline.FastBuckets), []string{"sink", "operation", "outcome"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restante_sink_events_total", Help: "What a store met, by kind: retries, time-outs, tombstones and the like.",
		}, []string{"sink", "event"}),
		unprocessed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restante_sink_unprocessed_items_total", Help: "Items of a batch that DynamoDB did not take and that were sent again.",
		}, []string{"sink"}),
		capacity: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restante_sink_consumed_capacity_units_total", Help: "Capacity units that requests to DynamoDB consumed, by operation.",
		}, []string{"sink", "operation"}),
		expired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restante_sink_expired_messages_total", Help: "Messages that waited in a store and were removed when their time was over. Told by SQLite only: the others do it by themselves.",
		}, []string{"sink"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "restante_sink_inflight_requests", Help: "Requests to the store that are under way. Their number is bounded by the sink's in_flight (Cassandra) or pool_size (DynamoDB).",
		}, []string{"sink"}),
	}
	reg.MustRegister(m.duration, m.events, m.unprocessed, m.capacity, m.expired, m.inFlight)
	for _, name := range names {
		switch s := c.Sinks[name]; {
		case s.SQLite != nil:
			m.expired.WithLabelValues(name)
		case s.Cassandra != nil:
			m.inFlight.WithLabelValues(name)
			for _, k := range cassandra.Counters() {
				m.events.WithLabelValues(name, string(k))
			}
			for _, r := range cassandra.Requests() {
				m.requests(name, string(r))
			}
		case s.DynamoDB != nil:
			m.inFlight.WithLabelValues(name)
			m.unprocessed.WithLabelValues(name)
			for _, o := range dynamodb.Operations() {
				m.requests(name, o)
				m.capacity.WithLabelValues(name, o)
			}
		}
	}
	return m
}

func (m *SinkMetrics) requests(sink, operation string) {
	m.duration.WithLabelValues(sink, operation, "ok")
	m.duration.WithLabelValues(sink, operation, "error")
}

// observe notes a request. One that took long leaves what it can be found by: name says what of is.
func (m *SinkMetrics) observe(sink, operation string, took time.Duration, ok bool, name, of string) {
	const long = 10 * time.Millisecond
	outcome := "ok"
	if !ok {
		outcome = "error"
	}
	if took < long {
		of = ""
	}
	pipeline.ObserveExample(m.duration.WithLabelValues(sink, operation, outcome), took.Seconds(), name, of)
}

func (m *SinkMetrics) dynamodb(sink string, r dynamodb.Request) {
	m.observe(sink, r.Operation, r.Took, r.Err == nil, "request_id", r.ID)
	m.unprocessed.WithLabelValues(sink).Add(float64(r.Unprocessed))
	m.capacity.WithLabelValues(sink, r.Operation).Add(r.Capacity)
}

// cassandraMetrics tells of one sink.
type cassandraMetrics struct {
	m    *SinkMetrics
	sink string
}

func (c cassandraMetrics) Count(k cassandra.Counter, n int) {
	c.m.events.WithLabelValues(c.sink, string(k)).Add(float64(n))
}

func (c cassandraMetrics) InFlight(change int) {
	c.m.inFlight.WithLabelValues(c.sink).Add(float64(change))
}

func (c cassandraMetrics) Observe(r cassandra.Request, _ int, took time.Duration, ok bool, server string) {
	c.m.observe(c.sink, string(r), took, ok, "server", server)
}
