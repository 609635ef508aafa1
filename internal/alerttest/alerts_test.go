package alerttest_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/alerttest"
)

// state is what Prometheus has seen: a sample a minute of each series, in promtool's notation, and when it is asked.
type state struct {
	series map[string]string
	at     string
	labels string // of the one alert that fires, beside its name and severity; "" with fires: none has any
}

// cases has, of each alert, when it fires and when it does not.
var cases = map[string]struct{ fires, quiet []state }{
	"RestanteMessagesDropped": {
		fires: []state{
			{series: s("restante_ingest_dropped_total{reason='oversize'}", "0 0 0 1 1 1 1 1"), at: "5m", labels: "reason='oversize'"},
			{series: s("restante_messages_dropped_total{component='writer',reason='unsupported'}", "0 0 0 1 1 1 1 1"), at: "5m", labels: "reason='unsupported'"},
			{series: s("restante_mqtt_events_total{kind='refused_topic'}", "0 0 0 1 1 1 1 1"), at: "5m", labels: "reason='refused_topic'"},
		},
		quiet: []state{{series: s(
			"restante_ingest_dropped_total{reason='qos0'}", "0+5x20", "restante_ingest_dropped_total{reason='no_rule'}", "0+5x20", "restante_ingest_dropped_total{reason='oversize'}", "7x20",
			"restante_messages_dropped_total{component='writer',reason='ignored_client'}", "0+5x20", "restante_mqtt_events_total{kind='replay'}", "0+5x20",
		), at: "15m"}},
	},
	"RestanteSourceGap": {
		fires: []state{{series: s("restante_mqtt_events_total{kind='gap'}", "0 0 0 1 1 1 1 1"), at: "5m", labels: "kind='gap'"}},
		quiet: []state{{series: s("restante_mqtt_events_total{kind='gap'}", "3x20", "restante_mqtt_events_total{kind='unavailable'}", "0+1x20"), at: "15m"}},
	},
	"RestanteDeadLetters": {
		fires: []state{{series: s("restante_dlq_records_total{component='writer',reason='malformed'}", "0 0 0 1 1 1 1 1"), at: "5m", labels: "component='writer',reason='malformed'"}},
		quiet: []state{{series: s("restante_dlq_records_total{component='writer',reason='malformed'}", "9x20"), at: "15m"}},
	},
	"RestanteDeadLettersFailing": {
		fires: []state{{series: s("restante_dlq_publish_errors_total{component='writer'}", "0 0 0 1 1 1 1 1"), at: "5m", labels: "component='writer'"}},
		quiet: []state{{series: s("restante_dlq_publish_errors_total{component='writer'}", "9x20"), at: "15m"}},
	},
	"RestanteNoWriters": {
		fires: []state{
			{series: s("up", "1x20"), at: "6m", labels: writers},
			{series: s("restante_kafka_partition_assigned{"+writers+",topic='m',partition='0'}", "0x20"), at: "6m", labels: writers},
		},
		quiet: []state{
			{series: s("restante_kafka_partition_assigned{"+writers+",topic='m',partition='0'}", "1x20"), at: "15m"},
			{series: s("up", "1x20"), at: "4m"},
		},
	},
	"RestanteNoReplayer": {
		fires: []state{{series: s("up", "1x20"), at: "6m", labels: ""}},
		quiet: []state{{series: s("restante_kafka_partition_assigned{"+replayers+",topic='s',partition='0'}", "1x20"), at: "15m"}},
	},
	"RestanteNoIngest": {
		fires: []state{{series: s("restante_build_info{component='writer'}", "1x20"), at: "6m", labels: "component='ingest'"}},
		quiet: []state{{series: s("restante_build_info{component='ingest'}", "1x20"), at: "15m"}},
	},
	"RestanteConsumerLagHigh": {
		fires: []state{{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "61x20"), at: "6m", labels: writers + ",topic='m'"}},
		quiet: []state{
			{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "59x20", "restante_kafka_consumer_lag_seconds{"+replayers+",topic='s',partition='1'}", "700x20"), at: "15m"},
			{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "61x20"), at: "4m"},
		},
	},
	"RestanteConsumerLagCritical": {
		fires: []state{{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "601x20"), at: "6m", labels: writers + ",topic='m'"}},
		quiet: []state{{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "599x20"), at: "15m"}},
	},
	"RestanteConsumerLagGrowing": {
		fires: []state{{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "0+30x60"), at: "40m", labels: writersGroup + ",topic='m'"}},
		quiet: []state{
			{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "50x60"), at: "40m"},
			{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "900-20x40"), at: "40m"},
		},
	},
	"RestanteReplayerLagHigh": {
		fires: []state{{series: s("restante_kafka_consumer_lag_seconds{"+replayers+",topic='s',partition='1'}", "3601x30"), at: "16m", labels: replayers + ",topic='s'"}},
		quiet: []state{{series: s("restante_kafka_consumer_lag_seconds{"+replayers+",topic='s',partition='1'}", "700x30"), at: "25m"}},
	},
	"RestanteLagNearsRetention": {
		fires: []state{{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "1801x20", "restante_kafka_configured_retention_seconds{topic='m',pod='a'}", "3600x20", "restante_kafka_configured_retention_seconds{topic='m',pod='b'}", "3600x20"), at: "6m", labels: writersGroup + ",topic='m'"}},
		quiet: []state{{series: s("restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "1799x20", "restante_kafka_configured_retention_seconds{topic='m',pod='a'}", "3600x20"), at: "15m"}},
	},
	"RestanteConsumerStuck": {
		fires: []state{{series: s("restante_kafka_last_commit_timestamp_seconds{"+writersGroup+"}", "1x30", "restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "0+60x30"), at: "20m", labels: writersGroup}},
		quiet: []state{
			{series: s("restante_kafka_last_commit_timestamp_seconds{"+writersGroup+"}", "1x30", "restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "0x30"), at: "20m"}, // nothing to do
			{series: s("restante_kafka_last_commit_timestamp_seconds{"+writersGroup+"}", "1+60x30", "restante_kafka_consumer_lag_seconds{"+writers+",topic='m',partition='1'}", "0+60x30"), at: "20m"},
			// A client that does not acknowledge holds its partition up for as long as it is waited for.
			{series: s("restante_kafka_last_commit_timestamp_seconds{"+replayers+"}", "1x30", "restante_kafka_consumer_lag_seconds{"+replayers+",topic='s',partition='1'}", "0+60x30"), at: "20m"},
		},
	},
	"RestantePartitionUnowned": {
		fires: []state{{series: s("restante_kafka_partition_assigned{"+writersGroup+",topic='m',partition='0'}", "1x20", "restante_kafka_partition_assigned{"+writersGroup+",topic='m',partition='1'}", "0x20", "restante_kafka_configured_partitions{topic='m'}", "2x20"), at: "6m", labels: writersGroup + ",topic='m'"}},
		quiet: []state{{series: s("restante_kafka_partition_assigned{"+writersGroup+",topic='m',partition='0'}", "1x20", "restante_kafka_partition_assigned{"+writersGroup+",topic='m',partition='1'}", "1x20", "restante_kafka_configured_partitions{topic='m'}", "2x20"), at: "15m"}},
	},
	"RestanteLagUnobserved": {
		fires: []state{
			{series: s("up", "1x20"), at: "6m", labels: writers},
			{series: s("restante_kafka_lag_observed_timestamp_seconds{"+writersGroup+"}", "0x20"), at: "10m", labels: writers},
		},
		quiet: []state{{series: s("restante_kafka_lag_observed_timestamp_seconds{"+writersGroup+",pod='a'}", "0+60x20", "restante_kafka_lag_observed_timestamp_seconds{"+writersGroup+",pod='b'}", "0x20"), at: "15m"}},
	},
	"RestantePartitionStopped": {
		fires: []state{{series: s("restante_kafka_partition_stopped{"+writersGroup+",reason='schema_major'}", "0 0 1 1 1"), at: "3m", labels: writersGroup + ",reason='schema_major'"}},
		quiet: []state{{series: s("restante_kafka_partition_stopped{"+writersGroup+",reason='schema_major'}", "0x20"), at: "15m"}},
	},
	"RestantePartitionsAdded": {
		fires: []state{{series: s("restante_kafka_topic_partitions{topic='m',pod='a'}", "5x20", "restante_kafka_configured_partitions{topic='m',pod='b'}", "3x20"), at: "6m", labels: "topic='m'"}},
		quiet: []state{{series: s("restante_kafka_topic_partitions{topic='m',pod='a'}", "3x20", "restante_kafka_configured_partitions{topic='m',pod='b'}", "3x20"), at: "15m"}},
	},
	"RestanteRebalanceStorm": {
		fires: []state{{series: s("restante_kafka_rebalances_total{"+writersGroup+",pod='a'}", "0+1x20"), at: "12m", labels: writersGroup}},
		quiet: []state{{series: s("restante_kafka_rebalances_total{"+writersGroup+",pod='a'}", "0 0 1 2 3 3 3 3 3 3 3 3 3", "restante_kafka_rebalances_total{"+writersGroup+",pod='b'}", "0 0 1 2 3 3 3 3 3 3 3 3 3"), at: "11m"}},
	},
	"RestanteSinkStalled": {
		fires: []state{{series: s("restante_sink_stalled{sink='history',pod='a'}", "1x20"), at: "3m", labels: "sink='history'"}},
		quiet: []state{{series: s("restante_sink_stalled{sink='history',pod='a'}", "0 1 0 0 1 0 0 0 1 0"), at: "9m"}},
	},
	"RestanteSinkErrors": {
		fires: []state{{series: requests("0+90x20", "0+10x20"), at: "12m", labels: "sink='history'"}},
		quiet: []state{{series: requests("0+98x20", "0+2x20"), at: "15m"}},
	},
	"RestanteSinkThrottled": {
		fires: []state{{series: s("restante_sink_unprocessed_items_total{sink='history'}", "0+120x30"), at: "17m", labels: "sink='history'"}},
		quiet: []state{{series: s("restante_sink_unprocessed_items_total{sink='history'}", "0+30x30"), at: "25m"}},
	},
	"RestantePersistSLOBurnFast": {
		fires: []state{
			{series: persisted("0+90x120", "0+100x120"), at: "70m", labels: "sink='history'"},
			{series: normal(persisted("0+90x120", "0+100x120")), at: "70m", labels: "sink='history'"},
		},
		quiet: []state{{series: persisted("0+99x120", "0+100x120"), at: "70m"}},
	},
	"RestantePersistSLOBurnSlow": {
		fires: []state{
			{series: persisted("0+99x400", "0+100x400"), at: "390m", labels: "sink='history'"},
			{series: normal(persisted("0+99x400", "0+100x400")), at: "390m", labels: "sink='history'"},
		},
		quiet: []state{{series: persisted("0+199x400", "0+200x400"), at: "390m"}},
	},
	"RestanteAckDeleteSlow": {
		fires: []state{{series: acked("0+90x60", "0+100x60"), at: "40m", labels: "sink='history'"}},
		quiet: []state{{series: acked("0+100x60", "0+100x60"), at: "40m"}},
	},
	"RestanteReplaySlow": {
		fires: []state{
			{series: first("0+80x80", "0+100x80"), at: "70m"},
			{series: normal(first("0+80x80", "0+100x80")), at: "70m"},
		},
		quiet: []state{{series: first("0+90x80", "0+100x80"), at: "70m"}},
	},
	"RestanteReplaysFailing": {
		fires: []state{{series: s("restante_replay_messages_total{outcome='acked'}", "0+90x40", "restante_replay_messages_total{outcome='unacked'}", "0+10x40"), at: "25m"}},
		quiet: []state{{series: s("restante_replay_messages_total{outcome='acked'}", "0+99x40", "restante_replay_messages_total{outcome='unacked'}", "0+1x40", "restante_replay_messages_total{outcome='expired'}", "0+90x40"), at: "25m"}},
	},
	"RestanteBrokerDisconnected": {
		fires: []state{{series: s("restante_mqtt_connected{connection='sources.plant',pod='a'}", "0x20"), at: "2m", labels: "connection='sources.plant'"}},
		quiet: []state{{series: s("restante_mqtt_connected{connection='sources.plant',pod='a'}", "0x20", "restante_mqtt_connected{connection='sources.plant',pod='b'}", "1x20"), at: "9m"}},
	},
	"RestanteIngestUnackedOld": {
		fires: []state{{series: s("restante_ingest_oldest_unacked_timestamp_seconds{pod='a'}", "60x20", "restante_ingest_oldest_unacked_timestamp_seconds{pod='b'}", "0x20"), at: "5m"}},
		quiet: []state{{series: s("restante_ingest_oldest_unacked_timestamp_seconds{pod='a'}", "0x20", "restante_ingest_oldest_unacked_timestamp_seconds{pod='b'}", "0+60x20"), at: "9m"}},
	},
	"RestanteIngestSpooling": {
		fires: []state{{series: s("restante_ingest_spooling{pod='a'}", "1x20"), at: "2m"}},
		quiet: []state{{series: s("restante_ingest_spooling{pod='a'}", "0x20"), at: "9m"}},
	},
	"RestanteSpoolFilling": {
		fires: []state{{series: s("restante_ingest_spool_bytes{pod='a'}", "51x20", "restante_ingest_spool_size_bytes{pod='a'}", "100x20"), at: "6m"}},
		quiet: []state{{series: s("restante_ingest_spool_bytes{pod='a'}", "49x20", "restante_ingest_spool_size_bytes{pod='a'}", "100x20"), at: "15m"}},
	},
	"RestanteSpoolIll": {
		fires: []state{
			{series: s("restante_ingest_spool_write_errors_total{pod='a'}", "0 0 0 1 1 1 1"), at: "5m"},
			{series: s("restante_ingest_spool_damaged_bytes_total{pod='a'}", "0 0 0 512 512 512 512"), at: "5m"},
		},
		quiet: []state{{series: s("restante_ingest_spool_write_errors_total{pod='a'}", "4x20", "restante_ingest_spool_damaged_bytes_total{pod='a'}", "512x20"), at: "15m"}},
	},
	"RestanteBrokerClockAhead": {
		fires: []state{{series: s("restante_ingest_broker_clock_offset_seconds{node='restante/emqx/n1'}", "3x20"), at: "3m", labels: "node='restante/emqx/n1'"}},
		quiet: []state{{series: s("restante_ingest_broker_clock_offset_seconds{node='restante/emqx/n1'}", "1.5x20", "restante_ingest_broker_clock_offset_seconds{node='restante/emqx/n2'}", "-600x20"), at: "9m"}},
	},
	"RestanteBrokerClockFarAhead": {
		fires: []state{{series: s("restante_ingest_broker_clock_offset_seconds{node='restante/emqx/n1'}", "301x20"), at: "3m", labels: "node='restante/emqx/n1'"}},
		quiet: []state{{series: s("restante_ingest_broker_clock_offset_seconds{node='restante/emqx/n1'}", "299x20"), at: "9m"}},
	},
	"RestanteShutdownUndrained": {
		fires: []state{{series: s("restante_shutdown_undrained_messages_total{component='writer'}", "0 0 0 5 5 5 5"), at: "5m", labels: "component='writer'"}},
		quiet: []state{{series: s("restante_shutdown_undrained_messages_total{component='writer'}", "5x20"), at: "15m"}},
	},
}

const (
	writersGroup = "group='restante.writer.history'"
	writers      = writersGroup + ",sink='history'"
	replayers    = "group='restante.replayer'"
)

// s is a map of pairs.
func s(pairs ...string) map[string]string {
	out := map[string]string{}
	for pair := range slices.Chunk(pairs, 2) {
		out[pair[0]] = pair[1]
	}
	return out
}

func requests(ok, failed string) map[string]string {
	return s("restante_sink_request_duration_seconds_count{sink='history',operation='put',outcome='ok'}", ok,
		"restante_sink_request_duration_seconds_count{sink='history',operation='put',outcome='error'}", failed)
}

func persisted(soon, all string) map[string]string {
	return s("restante_writer_persist_latency_seconds_bucket{sink='history',event='publish',le='10'}", soon,
		"restante_writer_persist_latency_seconds_bucket{sink='history',event='publish',le='1800'}", all,
		"restante_writer_persist_latency_seconds_count{sink='history',event='publish'}", all,
		"restante_writer_persist_latency_seconds_count{sink='history',event='ack'}", all)
}

func acked(soon, all string) map[string]string {
	return s("restante_writer_persist_latency_seconds_bucket{sink='history',event='ack',le='30'}", soon,
		"restante_writer_persist_latency_seconds_bucket{sink='history',event='ack',le='60'}", all,
		"restante_writer_persist_latency_seconds_bucket{sink='history',event='ack',le='+Inf'}", all)
}

func first(soon, all string) map[string]string {
	return s("restante_replay_first_message_seconds_bucket{le='1'}", soon, "restante_replay_first_message_seconds_bucket{le='10'}", all, "restante_replay_first_message_seconds_count", all)
}

// normal is what Prometheus 3, or an older one that scrapes by protobuf, makes of the bounds of classic histograms: le="10.0".
func normal(series map[string]string) map[string]string {
	out := make(map[string]string, len(series))
	for name, values := range series {
		out[regexp.MustCompile(`le='(\d+)'`).ReplaceAllString(name, "le='$1.0'")] = values
	}
	return out
}

func TestEachAlertFiresAndDoesNot(t *testing.T) {
	t.Parallel()
	groups, file := alerttest.Rules(t, "")
	rules := map[string]alerttest.Rule{}
	for _, g := range groups {
		for _, r := range g.Rules {
			rules[r.Alert] = r
		}
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(rules)), slices.Sorted(maps.Keys(cases))); d != "" {
		t.Errorf("alerts (-in the chart +with cases):\n%s", d)
	}
	double := func(text string) string { return strings.ReplaceAll(text, "'", `"`) }
	type object = map[string]any
	var tests []object
	add := func(name string, st state, want []object) {
		var input []object
		for _, series := range slices.Sorted(maps.Keys(st.series)) {
			input = append(input, object{"series": double(series), "values": st.series[series]})
		}
		expr := fmt.Sprintf(`ALERTS{alertname=%q,alertstate="firing"}`, strings.Fields(name)[0])
		tests = append(tests, object{
			"name": name, "interval": "1m", "input_series": input,
			"promql_expr_test": []object{{"expr": expr, "eval_time": st.at, "exp_samples": want}},
		})
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		c := cases[name]
		if len(c.fires) == 0 || len(c.quiet) == 0 {
			t.Errorf("%s has no case where it fires, or none where it does not", name)
		}
		for i, st := range c.fires {
			labels := fmt.Sprintf(`ALERTS{alertname=%q, alertstate="firing", severity=%q`, name, rules[name].Labels["severity"])
			if st.labels != "" {
				labels += "," + double(st.labels)
			}
			add(fmt.Sprintf("%s fires (%d)", name, i), st, []object{{"labels": labels + "}", "value": 1}})
			for _, text := range rules[name].Annotations {
				for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
					if !strings.Contains(","+st.labels, ","+m[1]+"=") {
						t.Errorf("%s: %q names label %s, which the alert does not have", name, text, m[1])
					}
				}
			}
		}
		for i, st := range c.quiet {
			add(fmt.Sprintf("%s is quiet (%d)", name, i), st, nil)
		}
	}
	suite := alerttest.Written(t, object{"rule_files": []string{file}, "evaluation_interval": "1m", "tests": tests})
	if out, ok := alerttest.Promtool(t, "test", "rules", suite); !ok {
		t.Errorf("promtool:\n%s", out)
	}
}

func TestRulesAreWellFormedInEveryForm(t *testing.T) {
	t.Parallel()
	for name, values := range map[string]string{
		"as it is":          "",
		"native histograms": "monitoring: {rules: {histograms: native}}",
		"all the rest": `
config: {kafka: {names: {groups: other}}, rules: [{topic: "a/#", sink: a}, {topic: "b/#", sink: b}, {topic: "c/#", sink: a}], sinks: {a: {type: dynamodb, region: r}, b: {type: dynamodb, region: r}}}
monitoring:
  rules:
    labels: {release: x}
    extraLabels: {team: mqtt}
    selector: namespace="mqtt"
    interval: 30s
    runbookURL: https://pages.example/
    grafanaURL: https://grafana.example/
    disabled: [RestanteNoIngest]
    for: {RestanteNoWriters: 10s}
    thresholds: {lagWarningSeconds: 11, lagCriticalSeconds: 12, replayerLagSeconds: 13, clockSkewSeconds: 14}
    sinks: {b: {lagWarningSeconds: 15}}
`,
		"only writers": "{ingest: {enabled: false}, replayer: {enabled: false}}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			groups, file := alerttest.Rules(t, values)
			if out, ok := alerttest.Promtool(t, "check", "rules", "--lint=all", "--lint-fatal", file); !ok {
				t.Errorf("promtool:\n%s", out)
			}
			all := map[string][]alerttest.Rule{}
			for _, g := range groups {
				for _, r := range g.Rules {
					all[r.Alert] = append(all[r.Alert], r)
					if s := r.Labels["severity"]; s != "critical" && s != "warning" {
						t.Errorf("%s has severity %q", r.Alert, s)
					}
					for _, a := range []string{"summary", "description", "runbook_url", "dashboard"} {
						if r.Annotations[a] == "" {
							t.Errorf("%s has no %s", r.Alert, a)
						}
					}
				}
			}
			switch name {
			case "native histograms":
				for _, rules := range all {
					if strings.Contains(rules[0].Expr, "_bucket") || strings.Contains(rules[0].Expr, "_seconds_count") {
						t.Errorf("%s asks for a classic histogram: %s", rules[0].Alert, rules[0].Expr)
					}
				}
			case "only writers":
				if all["RestanteNoIngest"] != nil || all["RestanteNoReplayer"] != nil || all["RestanteNoWriters"] == nil {
					t.Error("there are alerts for what does not run, or none for what does")
				}
			case "all the rest":
				high, none := all["RestanteConsumerLagHigh"], all["RestanteNoWriters"]
				if len(high) != 2 || len(none) != 2 || all["RestanteNoIngest"] != nil {
					t.Fatalf("%d and %d rules for two sinks; %v", len(high), len(none), all["RestanteNoIngest"])
				}
				want := []alerttest.Rule{
					{
						Alert: "RestanteConsumerLagHigh", Expr: `max by (group, topic) (restante_kafka_consumer_lag_seconds{namespace="mqtt",group="other.writer.a"}) > 11`, For: "5m",
						Labels: map[string]string{"severity": "warning", "team": "mqtt", "sink": "a", "group": "other.writer.a"},
					},
					{
						Alert: "RestanteConsumerLagHigh", Expr: `max by (group, topic) (restante_kafka_consumer_lag_seconds{namespace="mqtt",group="other.writer.b"}) > 15`, For: "5m",
						Labels: map[string]string{"severity": "warning", "team": "mqtt", "sink": "b", "group": "other.writer.b"},
					},
				}
				for i := range high {
					if got := high[i].Annotations["runbook_url"]; got != "https://pages.example/RestanteConsumerLagHigh.md" {
						t.Errorf("runbook %s", got)
					}
					if got := high[i].Annotations["dashboard"]; got != "https://grafana.example/d/restante-writer" {
						t.Errorf("dashboard %s", got)
					}
					high[i].Annotations = nil
				}
				if d := cmp.Diff(want, high); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
				if none[0].For != "10s" || groups[0].Interval != "30s" {
					t.Errorf("for %s, interval %s", none[0].For, groups[0].Interval)
				}
				for _, rules := range all {
					for _, metric := range regexp.MustCompile(`restante_\w+(\{[^}]*)?`).FindAllStringSubmatch(rules[0].Expr, -1) {
						if !strings.HasPrefix(metric[1], `{namespace="mqtt",`) {
							t.Errorf("%s: %s is not selected", rules[0].Alert, metric[0])
						}
					}
				}
			}
		})
	}
}
