package spool

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are what a spool counts.
type Metrics struct {
	bytes       prometheus.Gauge
	records     prometheus.Gauge
	size        prometheus.Gauge
	spooling    prometheus.Gauge
	spooled     prometheus.Counter
	drained     prometheus.Counter
	damaged     prometheus.Counter
	writeErrors prometheus.Counter
	rejected    prometheus.Counter
}

// NewMetrics makes and registers the metrics; a nil Registerer leaves them unregistered.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Namespace: "restante", Subsystem: "ingest", Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Namespace: "restante", Subsystem: "ingest", Name: name, Help: help})
	}
	return &Metrics{
		bytes:       gauge("spool_bytes", "Bytes that the spool takes."),
		records:     gauge("spool_records", "Records in the spool that are not in Kafka yet."),
		size:        gauge("spool_size_bytes", "Bytes that the spool may take; when it is full, sources are not acknowledged."),
		spooling:    gauge("spooling", "1 while events go into the spool: those of the spool are in no replay yet."),
		spooled:     counter("spool_spooled_records_total", "Records that were put into the spool."),
		drained:     counter("spool_drained_records_total", "Records of the spool that are in Kafka now."),
		damaged:     counter("spool_damaged_bytes_total", "Bytes of the spool that could not be read and were moved aside."),
		writeErrors: counter("spool_write_errors_total", "Writes to the spool's disk that failed; they are repeated."),
		rejected:    counter("spool_rejected_records_total", "Records of the spool that Kafka can never take: they go to the dead letters or into a file."),
	}
}
