package kafkalog

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/restante/restante/pipeline"
)

// Metrics are what a [Client] counts. One set serves all clients of a process.
type Metrics struct {
	producedRecords *prometheus.CounterVec
	producedBytes   *prometheus.CounterVec
	produceErrors   *prometheus.CounterVec
	produceDuration *prometheus.HistogramVec
	consumedRecords *prometheus.CounterVec
	consumedBytes   *prometheus.CounterVec
	rebalances      *prometheus.CounterVec
	commits         *prometheus.CounterVec
	lastCommit      *prometheus.GaugeVec
	assigned        *prometheus.GaugeVec
}

// Outcomes of a commit.
const (
	committed    = "ok"
	commitFenced = "fenced"
	commitFailed = "error"
)

// NewMetrics makes and registers the metrics; a nil Registerer leaves them unregistered.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Namespace: "restante", Subsystem: "kafka", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Namespace: "restante", Subsystem: "kafka", Name: name, Help: help}, labels)
	}
	return &Metrics{
		producedRecords: counter("produced_records_total", "Records that Kafka acknowledged with acks=all.", "topic"),
		producedBytes:   counter("produced_bytes_total", "Bytes of keys, values and headers that Kafka acknowledged.", "topic"),
		produceErrors:   counter("produce_errors_total", "Produce requests that failed; all but refused records are retried.", "topic", "reason"),
		produceDuration: f.NewHistogramVec(pipeline.Histogram(
			"restante_kafka_produce_duration_seconds", "Time from the first sending of a batch until Kafka had it, retries included.", pipeline.FastBuckets,
		), []string{"topic"}),
		consumedRecords: counter("consumed_records_total", "Records fetched.", "group", "topic"),
		consumedBytes:   counter("consumed_bytes_total", "Bytes of keys, values and headers fetched.", "group", "topic"),
		rebalances:      counter("rebalances_total", "Generations that this member has joined.", "group"),
		commits:         counter("commits_total", "Offset commits by their outcome.", "group", "outcome"),
		lastCommit:      gauge("last_commit_timestamp_seconds", "When this member last committed an offset.", "group"),
		assigned:        gauge("partition_assigned", "Whether the partition is assigned to this member.", "group", "topic", "partition"),
	}
}

// A series that is first seen at 1 fires no alert on its increase: all begin at 0.
func (m *Metrics) expectTopics(topics []string) {
	for _, t := range topics {
		m.producedRecords.WithLabelValues(t)
		m.producedBytes.WithLabelValues(t)
		m.produceDuration.WithLabelValues(t)
		for _, r := range reasons {
			m.produceErrors.WithLabelValues(t, r)
		}
	}
}

func (m *Metrics) expectGroup(group string, topics []string, partitions map[string]int) {
	m.rebalances.WithLabelValues(group)
	for _, o := range []string{committed, commitFenced, commitFailed} {
		m.commits.WithLabelValues(group, o)
	}
	m.expectReader(group, topics)
	m.assign(group, topics, partitions, nil)
}

func (m *Metrics) expectReader(group string, topics []string) {
	for _, t := range topics {
		m.consumedRecords.WithLabelValues(group, t)
		m.consumedBytes.WithLabelValues(group, t)
	}
}

func (m *Metrics) assign(group string, topics []string, partitions map[string]int, now map[pipeline.TP]int64) {
	for _, t := range topics {
		for p := range partitions[t] {
			v := 0.0
			if _, ok := now[pipeline.TP{Topic: t, Part: p}]; ok {
				v = 1
			}
			m.assigned.WithLabelValues(group, t, strconv.Itoa(p)).Set(v)
		}
	}
}
