package pipeline

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the pipeline's metrics. No label holds a client id, an MQTT topic or an error's text; every combination of
// labels stands at 0 from the start.
type Metrics struct {
	Received         *prometheus.CounterVec // event
	IngestDropped    *prometheus.CounterVec // reason
	ReceivedBytes    prometheus.Counter
	IngestLatency    prometheus.Histogram
	IngestUnacked    prometheus.Gauge
	IngestOldest     prometheus.Gauge
	Backpressure     *pressureCounter
	ReplacedIDs      *prometheus.CounterVec // reason
	BrokerClock      *prometheus.GaugeVec   // node
	Flushes          *prometheus.CounterVec // sink, trigger, outcome
	BatchRecords     *prometheus.HistogramVec
	BatchBytes       *prometheus.HistogramVec
	FlushSeconds     *prometheus.HistogramVec
	PersistLatency   *prometheus.HistogramVec // sink, event
	Persisted        *prometheus.CounterVec   // sink
	Messages         *prometheus.CounterVec   // sink, fate
	Acks             *prometheus.CounterVec   // sink, effect
	Elided           *prometheus.CounterVec   // sink
	Duplicates       *prometheus.CounterVec   // sink
	Expired          *prometheus.CounterVec   // sink
	Buffered         *prometheus.GaugeVec     // sink
	BufferedBytes    *prometheus.GaugeVec     // sink
	Retries          *prometheus.CounterVec   // sink
	Stalled          *prometheus.GaugeVec     // sink
	Skipped          *prometheus.CounterVec   // component, reason
	DeadLetters      *prometheus.CounterVec   // component, reason
	DeadErrors       *prometheus.CounterVec   // component
	Stopped          *prometheus.GaugeVec     // group, reason
	ReceiveDelay     *prometheus.HistogramVec // group, topic, phase
	Undrained        *prometheus.CounterVec   // component
	ReplayRequests   *prometheus.CounterVec   // outcome
	ReplayMessages   *prometheus.CounterVec   // outcome
	ReplayActive     prometheus.Gauge
	ReplayParked     *prometheus.GaugeVec // reason
	ReplayUnacked    prometheus.Gauge
	ReadLimit        *prometheus.GaugeVec     // sink
	ReadsAtOnce      *prometheus.HistogramVec // sink
	ReplayFirst      prometheus.Histogram
	ReplayDuration   prometheus.Histogram
	ReplayBacklog    prometheus.Histogram
	Lookups          *prometheus.CounterVec // outcome
	LookupSubs       *prometheus.CounterVec // outcome
	LookupActive     prometheus.Gauge
	LookupEarly      prometheus.Counter
	Retained         *prometheus.CounterVec // outcome
	RetainedSent     *prometheus.CounterVec // outcome
	RetainedActive   prometheus.Gauge
	Positions        *prometheus.CounterVec // outcome
	PositionMarks    *prometheus.CounterVec // change
	PositionsWaiting prometheus.Gauge
	RoundSeconds     prometheus.Histogram
	TailRecords      prometheus.Histogram
	TailOverBudget   prometheus.Counter
}

// The values of closed label sets.
const (
	dropUnwanted = "no_rule"
	dropOversize = "oversize"
	dropOwn      = "own_client"
	dropInvalid  = "invalid"

	idAhead  = "ahead"
	idBehind = "behind"

	eventPublish = "publish"
	eventAck     = "ack"

	deadMalformed = "malformed"
	deadRejected  = "sink_rejected"

	stopMajor = "schema_major"
	stopGap   = "gap"

	triggerHold  = "hold"
	triggerBytes = "bytes"
	triggerEnd   = "end"

	outcomeOK     = "ok"
	outcomeError  = "error"
	outcomeFenced = "fenced"

	replayComplete = "complete"
	replayPartial  = "partial"
	replayEmpty    = "empty"
	replayAborted  = "aborted"
	replayHandedOn = "continued"

	messageAcked   = "acked"
	messageUnacked = "unacked"
	messageExpired = "expired"
	messageError   = "error"
	messageQoS0    = "qos0"
	messageLeftOut = "left_out"

	positionStored  = "stored"
	positionRefused = "refused"

	markSet     = "set"
	markCleared = "cleared"

	phaseStarting = "starting"
	phaseRunning  = "running"

	parkedAdmission = "admission"
	parkedNotAcking = "not_acking"
	parkedResumed   = "resumed"
)

var eventTypes = []string{
	"mqtt.message.publish", "mqtt.message.acked", "mqtt.message.replayed", "mqtt.message.dropped", "mqtt.session.subscribed",
	"mqtt.session.unsubscribed", "mqtt.client.connected", "mqtt.client.disconnected", "restante.replay.continued",
}

// NewMetrics makes the metrics and registers them. groups are the consumer groups of this process, sinks the names of its sinks.
func NewMetrics(reg prometheus.Registerer, groups, sinks []string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	single := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(Histogram(name, help, buckets))
	}
	histograms := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(Histogram(name, help, buckets), labels)
	}
	m := &Metrics{
		Backpressure:     newPressureCounter("restante_ingest_backpressure_seconds_total", "How long calls of sources have waited until their event was taken, because too much was on its way; of all together, and up to now for those that wait. What took less than 1 ms is not in it."),
		Received:         counter("restante_ingest_events_total", "Events taken from sources, by type.", "event"),
		IngestDropped:    counter("restante_ingest_dropped_total", "Events that were not taken into the log, by reason.", "reason"),
		ReceivedBytes:    prometheus.NewCounter(prometheus.CounterOpts{Name: "restante_mqtt_received_bytes_total", Help: "Bytes of the payloads of messages that sources handed over, those that no rule wants included."}),
		IngestLatency:    histogram("restante_ingest_latency_seconds", "Time from the receipt of an event to its durability, in Kafka or in the spool.", FastBuckets),
		IngestUnacked:    single("restante_ingest_unacked_messages", "Events that are taken but not durable yet."),
		IngestOldest:     single("restante_ingest_oldest_unacked_timestamp_seconds", "When the eldest event was taken that is not durable yet; 0 while there is none."),
		ReplacedIDs:      counter("restante_ingest_id_replaced_total", "Message ids whose time was not that of their publish, and was replaced by it: the id was ahead or behind.", "reason"),
		BrokerClock:      gauge("restante_ingest_broker_clock_offset_seconds", "How far the time of the last publish was ahead of this process's clock, by source and broker node: the first 64, then other.", "node"),
		Flushes:          counter("restante_writer_flushes_total", "Flushes to a sink, by what caused them and how they ended.", "sink", "trigger", "outcome"),
		BatchRecords:     histograms("restante_writer_batch_records", "Records in one flush.", countBuckets, "sink"),
		BatchBytes:       histograms("restante_writer_batch_bytes", "Bytes of keys and payloads of the records in one flush.", sizeBuckets, "sink"),
		FlushSeconds:     histograms("restante_writer_flush_duration_seconds", "Duration of a flush, retries included.", FastBuckets, "sink"),
		PersistLatency:   histograms("restante_writer_persist_latency_seconds", "Time from an event until what it leads to was in the sink: of publishes that were stored, and of acks that removed a message.", persistBuckets, "sink", "event"),
		Persisted:        counter("restante_writer_persisted_records_total", "Operations that are durable in the sink.", "sink"),
		Messages:         counter("restante_writer_messages_total", "Publishes that are done with at a sink, by what became of them. The fates of one sink add up to what was published.", "sink", "fate"),
		Acks:             counter("restante_writer_acks_total", "Acks of messages that are done with at a sink, by what they did. Deleted and elided add up to what was delivered.", "sink", "effect"),
		Elided:           counter("restante_writer_elided_total", "Messages that were acknowledged before they were written, so that neither is.", "sink"),
		Duplicates:       counter("restante_writer_duplicate_records_total", "Publishes that came again after their message was acknowledged.", "sink"),
		Expired:          counter("restante_writer_expired_total", "Messages that had expired before they were written.", "sink"),
		Buffered:         gauge("restante_writer_buffered_records", "Records held before they are written.", "sink"),
		BufferedBytes:    gauge("restante_writer_buffered_bytes", "Bytes of the records held before they are written.", "sink"),
		Retries:          counter("restante_sink_retries_total", "Flushes that were tried again.", "sink"),
		Stalled:          gauge("restante_sink_stalled", "Partitions whose flush is being retried now.", "sink"),
		Skipped:          counter("restante_messages_dropped_total", "Events that a rule selects but that lead to nothing, by reason.", "component", "reason"),
		DeadLetters:      counter("restante_dlq_records_total", "Records written to the dead-letter topic, by reason.", "component", "reason"),
		DeadErrors:       counter("restante_dlq_publish_errors_total", "Failed attempts to write a dead letter.", "component"),
		Stopped:          gauge("restante_kafka_partition_stopped", "Partitions that stand still uncommitted until somebody acts, by reason.", "group", "reason"),
		ReceiveDelay:     histograms("restante_kafka_receive_delay_seconds", "Age of records, by their timestamps, when the group's member fetched them: of up to 64 in a fetch. Starting until the first that came after the partition was assigned, then running.", persistBuckets, "group", "topic", "phase"),
		Undrained:        counter("restante_shutdown_undrained_messages_total", "Records that were held and not committed when time ran out; they are read again.", "component"),
		ReplayRequests:   counter("restante_replay_requests_total", "Replays, by how they ended.", "outcome"),
		ReplayMessages:   counter("restante_replay_messages_total", "Messages of replays, by what became of them.", "outcome"),
		ReplayActive:     single("restante_replay_active", "Replays under way."),
		ReplayParked:     gauge("restante_replay_parked", "Replays that wait, by reason.", "reason"),
		ReplayUnacked:    single("restante_replay_unacked_messages", "Messages of replays that are sent and not acknowledged."),
		ReadLimit:        gauge("restante_replay_read_limit", "Reads of the sink that may run at once; it falls while they are slow.", "sink"),
		ReadsAtOnce:      histograms("restante_replay_reads_at_once", "Reads of the sink that ran, as another one began, that one included.", readBuckets, "sink"),
		ReplayFirst:      histogram("restante_replay_first_message_seconds", "Time from a subscribe event to its first replayed message, without a delay that is configured.", replayBuckets),
		ReplayDuration:   histogram("restante_replay_duration_seconds", "Duration of a replay.", replayBuckets),
		ReplayBacklog:    histogram("restante_replay_backlog_messages", "Messages that a replay sent until its end, repeats included; of one that was broken off nothing is told.", backlogBuckets),
		Lookups:          counter("restante_lookup_requests_total", "Lookups of a client's stored subscriptions, by how they ended.", "outcome"),
		LookupSubs:       counter("restante_lookup_subscriptions_total", "Stored subscriptions that a lookup found, by what became of them.", "outcome"),
		LookupActive:     single("restante_lookup_active", "Lookups of stored subscriptions that are under way or wait."),
		LookupEarly:      prometheus.NewCounter(prometheus.CounterOpts{Name: "restante_lookup_early_total", Help: "Lookups that went by what was stored although the writers had not come as far as the connect."}),
		Retained:         counter("restante_retained_requests_total", "Lookups of retained messages because of a subscribe, by how they ended.", "outcome"),
		RetainedSent:     counter("restante_retained_messages_total", "Stored retained messages that a subscribe asked for, by what became of them.", "outcome"),
		RetainedActive:   single("restante_retained_active", "Lookups of retained messages under way."),
		Positions:        counter("restante_position_writes_total", "Rows of pub/sub positions, by what became of them.", "outcome"),
		PositionMarks:    counter("restante_position_marks_total", "Marks of clients that still need older messages, by what was done to them.", "change"),
		PositionsWaiting: single("restante_position_waiting", "Clients whose pub/sub positions have moved and are not stored yet."),
		RoundSeconds:     histogram("restante_replay_round_seconds", "Duration of one reading of offsets and tail.", replayBuckets),
		TailRecords:      histogram("restante_replay_tail_records", "Records of the tail that a round looked at.", countBuckets),
		TailOverBudget:   prometheus.NewCounter(prometheus.CounterOpts{Name: "restante_replay_tail_over_budget_total", Help: "Rounds whose tail was over the budget, because the writers lag."}),
	}
	fill := func(v *prometheus.CounterVec, values ...[]string) {
		for _, labels := range product(values) {
			v.WithLabelValues(labels...)
		}
	}
	fill(m.Received, eventTypes)
	fill(m.IngestDropped, []string{dropUnwanted, SkipQoS0, dropOversize, dropOwn, dropInvalid})
	fill(m.ReplacedIDs, []string{idAhead, idBehind})
	fill(m.Flushes, sinks, []string{triggerHold, triggerBytes, triggerEnd}, []string{outcomeOK, outcomeError, outcomeFenced})
	for _, v := range []*prometheus.CounterVec{m.Persisted, m.Elided, m.Duplicates, m.Expired, m.Retries} {
		fill(v, sinks)
	}
	fill(m.Messages, sinks, slices.Sorted(maps.Values(fateNames)))
	fill(m.Acks, sinks, slices.Sorted(maps.Values(effectNames)))
	components := []string{"writer", "replayer"}
	fill(m.Skipped, components, Skips)
	fill(m.DeadLetters, components, []string{deadMalformed, deadRejected})
	fill(m.DeadErrors, components)
	fill(m.Undrained, components)
	fill(m.ReplayRequests, []string{replayComplete, replayPartial, replayEmpty, replayAborted, replayHandedOn})
	fill(m.ReplayMessages, []string{messageAcked, messageUnacked, messageExpired, messageError, messageQoS0, messageLeftOut})
	fill(m.Lookups, []string{lookupRestored, lookupEmpty, lookupGone, lookupCancelled})
	fill(m.LookupSubs, []string{subRestored, subRefused, subNewer, subUnreadable})
	fill(m.Retained, []string{retainedComplete, retainedEmpty, retainedPartial, retainedAborted})
	fill(m.RetainedSent, []string{retainedSent, retainedExpired, retainedError, retainedLive})
	fill(m.Positions, []string{positionStored, positionRefused})
	fill(m.PositionMarks, []string{markSet, markCleared})
	for _, s := range sinks {
		m.Buffered.WithLabelValues(s)
		m.BufferedBytes.WithLabelValues(s)
		m.Stalled.WithLabelValues(s)
		m.ReadLimit.WithLabelValues(s)
		m.ReadsAtOnce.WithLabelValues(s)
		m.BatchRecords.WithLabelValues(s)
		m.BatchBytes.WithLabelValues(s)
		m.PersistLatency.WithLabelValues(s, eventPublish)
		m.PersistLatency.WithLabelValues(s, eventAck)
		m.FlushSeconds.WithLabelValues(s)
	}
	for _, l := range product([][]string{groups, {stopMajor, stopGap}}) {
		m.Stopped.WithLabelValues(l...)
	}
	m.ReplayParked.WithLabelValues(parkedAdmission)
	m.ReplayParked.WithLabelValues(parkedNotAcking)
	m.ReplayParked.WithLabelValues(parkedResumed)
	reg.MustRegister(m.Received, m.IngestDropped, m.ReceivedBytes, m.IngestLatency, m.IngestUnacked, m.IngestOldest, m.Backpressure, m.ReplacedIDs, m.BrokerClock, m.Flushes, m.BatchRecords, m.BatchBytes, m.FlushSeconds,
		m.PersistLatency,
		m.Persisted, m.Messages, m.Acks, m.Elided, m.Duplicates, m.Expired, m.Buffered, m.BufferedBytes, m.Retries, m.Stalled, m.Skipped, m.DeadLetters,
		m.DeadErrors, m.Stopped, m.ReceiveDelay, m.Undrained, m.ReplayRequests, m.ReplayMessages, m.ReplayActive, m.ReplayParked, m.ReplayUnacked, m.ReadLimit, m.ReadsAtOnce,
		m.ReplayFirst, m.ReplayDuration, m.ReplayBacklog, m.Lookups, m.LookupSubs, m.LookupActive, m.LookupEarly, m.Retained, m.RetainedSent, m.RetainedActive,
		m.Positions, m.PositionMarks, m.PositionsWaiting, m.RoundSeconds, m.TailRecords, m.TailOverBudget)
	return m
}

// product lists all combinations of the values.
func product(values [][]string) [][]string {
	out := [][]string{nil}
	for _, vs := range values {
		var next [][]string
		for _, head := range out {
			for _, v := range vs {
				next = append(next, append(append([]string(nil), head...), v))
			}
		}
		out = next
	}
	return out
}
