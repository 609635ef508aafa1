package lag

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are what an [Observer] tells.
type Metrics struct {
	records    *prometheus.GaugeVec // group, topic, partition
	seconds    *prometheus.GaugeVec // group, topic, partition
	observed   *prometheus.GaugeVec // group
	partitions *prometheus.GaugeVec // topic
	configured *prometheus.GaugeVec // topic
	retention  *prometheus.GaugeVec // topic
	dead       *prometheus.GaugeVec // topic
	eldest     *prometheus.GaugeVec // topic
}

// NewMetrics makes and registers the metrics; a nil Registerer leaves them unregistered. A lag, the dead letters, and the number of
// partitions that a topic has, are there from the first look on: a 0 that nobody has seen would be a lie.
func NewMetrics(reg prometheus.Registerer, groups []Group, partitions map[string]int, retention map[string]time.Duration) *Metrics {
	f := promauto.With(reg)
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Namespace: "restante", Name: name, Help: help}, labels)
	}
	m := &Metrics{
		records:    gauge("kafka_consumer_lag_records", "Records of the partition that the group has not committed, as seen by a process that is not of that group.", "group", "topic", "partition"),
		seconds:    gauge("kafka_consumer_lag_seconds", "Age of the first record that the group has not committed, by its timestamp; 0 when all is committed.", "group", "topic", "partition"),
		observed:   gauge("kafka_lag_observed_timestamp_seconds", "When this process last saw the whole lag of the group; 0 = not yet.", "group"),
		partitions: gauge("kafka_topic_partitions", "Partitions that the topic has.", "topic"),
		configured: gauge("kafka_configured_partitions", "Partitions that the topic has by the configuration: records go to these alone.", "topic"),
		retention:  gauge("kafka_configured_retention_seconds", "How long the topic keeps its records by the configuration: a group that is further behind has lost some.", "topic"),
		dead:       gauge("dlq_depth_records", "Records in the topic of the dead letters, the marks of what was sent again included.", "topic"),
		eldest:     gauge("dlq_oldest_record_timestamp_seconds", "When the eldest record in the topic of the dead letters was written, by its timestamp; 0 = the topic is empty. The topic's retention counts from it.", "topic"),
	}
	for _, g := range groups {
		m.observed.WithLabelValues(g.Name)
	}
	for topic, n := range partitions {
		m.configured.WithLabelValues(topic).Set(float64(n))
	}
	for topic, d := range retention {
		m.retention.WithLabelValues(topic).Set(d.Seconds())
	}
	return m
}
