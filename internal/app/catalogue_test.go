package app

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

const metricsFile = "../../docs/metrics.md"

// family is a metric with all its series.
type family struct {
	name, kind, help string
	labels           []string
}

// recorder is a registry that knows what was registered with it, with or without series.
type recorder struct {
	*prometheus.Registry
	families []family
}

func (r *recorder) Register(c prometheus.Collector) error {
	if err := r.Registry.Register(c); err != nil {
		return err
	}
	described := make(chan *prometheus.Desc, 10)
	c.Describe(described)
	close(described)
	for d := range described {
		r.families = append(r.families, describe(d, fmt.Sprintf("%T", c)))
	}
	return nil
}

func (r *recorder) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

var description = regexp.MustCompile(`^Desc\{fqName: "(\w+)", help: ("(?:[^"\\]|\\.)*"), unit: "[^"]*", constLabels: \{\}, variableLabels: \{([\w,]*)\}\}$`)

// describe reads what a description tells only as text.
func describe(d *prometheus.Desc, goType string) family {
	m := description.FindStringSubmatch(d.String())
	if m == nil {
		panic("not understood: " + d.String())
	}
	f := family{name: m[1], help: strings.ReplaceAll(strings.Trim(m[2], `"`), `\"`, `"`)}
	if m[3] != "" {
		f.labels = strings.Split(m[3], ",")
	}
	for _, kind := range []string{"counter", "gauge", "histogram"} {
		if strings.Contains(strings.ToLower(goType), kind) {
			f.kind = kind
		}
	}
	return f
}

// everything is a configuration with all that has metrics.
func everything(t *testing.T) Config {
	t.Helper()
	c := example()
	for name := range c.Sinks {
		c.Rules = append(c.Rules, Rule{Sink: name})
	}
	c.Ingest.Spool.Path = t.TempDir()
	if !c.Ingest.Spool.used() {
		t.Fatal("no spool")
	}
	return c
}

// exported are the metrics of a process with that configuration.
func exported(t *testing.T, component string) *recorder {
	t.Helper()
	c := everything(t)
	r := &recorder{Registry: prometheus.NewRegistry()}
	var sinks []string
	if component != ProcessIngest {
		sinks = c.UsedSinks()
	}
	newExports(r, c, component, sinks)
	info, err := NewRegistry(component, NewHealth()).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range info {
		if !strings.HasPrefix(f.GetName(), "restante_") {
			continue
		}
		own := family{name: f.GetName(), kind: "gauge", help: f.GetHelp()}
		for _, l := range f.GetMetric()[0].GetLabel() {
			own.labels = append(own.labels, l.GetName())
		}
		r.families = append(r.families, own)
	}
	return r
}

// sections are the parts of docs/metrics.md, by how the names of their metrics begin.
var sections = []struct{ prefix, title string }{
	{"restante_ingest_", "Ingest"},
	{"restante_mqtt_", "Brokers"},
	{"restante_kafka_", "Kafka, and how far the groups are behind"},
	{"restante_writer_", "Writers"},
	{"restante_sink_", "Stores"},
	{"restante_replay_", "Replays"},
	{"restante_retained_", "Retained messages"},
	{"restante_lookup_", "Lookups of stored subscriptions"},
	{"restante_position_", "Positions of pub/sub"},
	{"restante_dlq_", "Dead letters"},
	{"restante_", "All processes"},
}

const metricsHead = `# Metrics

Each process serves its metrics on ` + "`/metrics` of `admin.listen`" + `, with those of Go's runtime (` + "`go_*`" + `) and of the process (` + "`process_*`" + `).
This page is made from the code: a test holds the two together, and another that a series which can be there is there from the start, at 0:
` + "`increase(x[10m]) > 0`" + ` never sees a counter that begins at 1.

- **Labels** are names of the configuration (` + "`sink`, `group`, `topic`" + ` of Kafka, ` + "`connection`" + `) or values of closed sets. None is a client id, an MQTT topic or the
  text of an error. ` + "`node`" + ` of the brokers' clocks comes from outside, so only the first 64 are told apart.
- **Histograms** have classic buckets and native ones. A Prometheus with native histograms switched on drops the classic ones, and with them every
  rule and dashboard of the chart, unless it is told ` + "`scrape_classic_histograms: true`" + ` (the chart's monitors are).
- **Lag** (` + "`restante_kafka_consumer_lag_*`" + `) is observed every 10 s by processes that are not of the group, so that it is there when all its members are dead:
  by ingest for all groups, if its configuration has the rules, and by each replayer for the writers' groups. They tell the same, so ask for
  ` + "`max by (group, topic, partition)`" + `. The seconds are the age, by its timestamp, of the first record that is not committed; it is read from the log. A writer
  holds records for ` + "`writer.hold`" + ` before it commits, so a lag of about that is none. A replayer commits what it has finished: a client that takes long
  for its replay shows there as lag. An observer's Kafka login must be allowed to describe the groups and to read the topics.
- **Exemplars** are there for a scrape that asks for OpenMetrics and a Prometheus with ` + "`--enable-feature=exemplar-storage`" + `: the slowest message of a
  flush (` + "`msgid`, which `restante trace`" + ` takes) in ` + "`restante_writer_persist_latency_seconds`" + `, the first message in ` + "`restante_replay_first_message_seconds`" + `,
  and in ` + "`restante_sink_request_duration_seconds`" + `, of requests from 10 ms on, DynamoDB's ` + "`request_id` or the Cassandra `server`" + ` that was asked (not of a batch).

What to do when one of them looks bad: [runbooks](runbooks/README.md).
`

// instead is what one may look for and does not find, with what tells it: its metrics must be there.
var instead = [][2]string{
	{"How long an ack takes to remove its message", "`restante_writer_persist_latency_seconds{event=\"ack\"}`: from the ack's event until the removal was in the store"},
	{"Messages that were removed, by reason", "`restante_writer_acks_total{effect=\"deleted\"}` because of an ack, `restante_sink_expired_messages_total` because their time was over (told by SQLite: the other stores do it by themselves)"},
	{"Requests to a store that were throttled", "`restante_sink_unprocessed_items_total` and `restante_sink_request_duration_seconds{outcome=\"error\"}` for requests, `restante_sink_retries_total` for flushes. The reason is in the log"},
	{"Warnings of Cassandra's servers, late hours", "`restante_sink_events_total{event=\"warnings\"}`, of reads and single rows (the driver hands on none of a batch), and `restante_sink_events_total{event=\"late\"}`"},
	{"Events that a source has lost", "`restante_mqtt_events_total` for the kinds `gap`, `broker_dropped`, `lost_ack` and `dropped_qos0`. What a broker loses and does not tell of cannot be counted; [guarantees](guarantees.md) say which does"},
	{"What an audit has compared and missed", "`restante audit` ends, and nobody scrapes what has ended: its report (`-o json`) and exit code tell. For a running system the books: `restante_writer_messages_total` and `restante_writer_acks_total`"},
	{"Replayed messages out of order or twice", "Nothing: only the client sees the order and its repeats, and an id says neither. `restante_replay_messages_total{outcome=\"unacked\"}` counts what will come again"},
	{"Envelopes that were held back", "`restante_mqtt_events_total{kind=\"held_envelope\"}`"},
}

// metricsPage is docs/metrics.md as it must be.
func metricsPage(t *testing.T) []byte {
	t.Helper()
	all := map[string]family{}
	for _, component := range []string{ProcessIngest, ProcessWriter, ProcessReplayer} {
		for _, f := range exported(t, component).families {
			all[f.name] = f
		}
	}
	var b bytes.Buffer
	b.WriteString(metricsHead)
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n", s.title)
		n := 0
		for _, name := range sortedKeys(all) {
			if f := all[name]; strings.HasPrefix(name, s.prefix) {
				labels := ""
				if len(f.labels) > 0 {
					labels = "`" + strings.Join(f.labels, "`, `") + "`"
				}
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, f.kind, labels, strings.ReplaceAll(f.help, "|", "\\|"))
				delete(all, name)
				n++
			}
		}
		if n == 0 {
			t.Errorf("no metric begins with %s", s.prefix)
		}
	}
	b.WriteString("\n## Not exported, and what to look at instead\n\n| what | instead |\n|---|---|\n")
	for _, row := range instead {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	return b.Bytes()
}

// TestWhatToLookAtInsteadIsThere, with the values of labels that the page names.
func TestWhatToLookAtInsteadIsThere(t *testing.T) {
	t.Parallel()
	r := exported(t, ProcessUp)
	gathered, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]bool{}
	for _, f := range gathered {
		series[f.GetName()] = true
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				series[fmt.Sprintf("%s{%s=%q}", f.GetName(), l.GetName(), l.GetValue())] = true
			}
		}
	}
	named := regexp.MustCompile(`restante_\w+(\{\w+="\w+"\})?`)
	n := 0
	for _, row := range instead {
		for _, name := range named.FindAllString(row[1], -1) {
			if n++; !series[name] {
				t.Errorf("%s: there is no %s", row[0], name)
			}
		}
	}
	if n < len(instead) {
		t.Errorf("%d metrics are named", n)
	}
}

func TestThePageOnMetricsHasThemAll(t *testing.T) {
	t.Parallel()
	want := metricsPage(t)
	if *update {
		if err := os.WriteFile(metricsFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(metricsFile)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("docs/metrics.md is not what the code says: go test ./internal/app -run ThePageOnMetrics -update (-want +got):\n%s", d)
	}
}

// from is what begins when there is something to tell, and why.
var from = map[string]string{
	"restante_ingest_broker_clock_offset_seconds":  "the nodes come from outside",
	"restante_kafka_consumer_lag_records":          "0 would be a lie before the first look",
	"restante_kafka_consumer_lag_seconds":          "0 would be a lie before the first look",
	"restante_kafka_topic_partitions":              "0 would be a lie before the first look",
	"restante_dlq_depth_records":                   "0 would be a lie before the first look",
	"restante_dlq_oldest_record_timestamp_seconds": "0 would be a lie before the first look",
}

// ofProcess are in the registry from the process's start.
var ofProcess = []string{"restante_build_info", "restante_shutdown_drain_duration_seconds"}

// byClient are the families whose series begin when the client of Kafka is opened or a group is joined; package kafkalog tests that.
var byClient = []string{"produce", "consumed", "rebalances", "commits", "last_commit", "partition_assigned"}

// uneven are the families that do not have each value of a label with each of another: what a store can tell depends on
// its type, and what a group reads on its process.
var uneven = []string{
	"restante_kafka_receive_delay_seconds", "restante_sink_request_duration_seconds", "restante_sink_events_total", "restante_sink_consumed_capacity_units_total",
}

func TestMetricsBeginWithAllTheirSeries(t *testing.T) {
	t.Parallel()
	for _, component := range []string{ProcessWriter, ProcessReplayer, ProcessUp} {
		r := exported(t, component)
		gathered, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		series := map[string]int{}
		for _, f := range gathered {
			values := map[string]map[string]bool{}
			for _, m := range f.GetMetric() {
				series[f.GetName()]++
				for _, l := range m.GetLabel() {
					if values[l.GetName()] == nil {
						values[l.GetName()] = map[string]bool{}
					}
					values[l.GetName()][l.GetValue()] = true
				}
			}
			product := 1
			for _, v := range values {
				product *= len(v)
			}
			if series[f.GetName()] != product && !slices.Contains(uneven, f.GetName()) {
				t.Errorf("%s: %s has %d of %d series", component, f.GetName(), series[f.GetName()], product)
			}
		}
		for _, f := range r.families {
			later := from[f.name] != "" || strings.Contains(f.name, "connect") && component == ProcessWriter || slices.Contains(ofProcess, f.name) || slices.ContainsFunc(byClient, func(s string) bool {
				return strings.HasPrefix(f.name, "restante_kafka_"+s)
			})
			if later != (series[f.name] == 0) {
				t.Errorf("%s: %s begins with %d series", component, f.name, series[f.name])
			}
		}
		if problems, err := testutil.GatherAndLint(r.Registry); err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
}

// TestLabelsAreOfTheKnownKinds: a new one is thought about, since what it holds can be without a bound, or private.
func TestLabelsAreOfTheKnownKinds(t *testing.T) {
	t.Parallel()
	known := []string{
		"change", "component", "connection", "effect", "event", "fate", "goversion", "group", "kind", "node", "operation", "outcome", "partition", "phase",
		"reason", "revision", "sink", "topic", "trigger", "version",
	}
	var found []string
	for _, component := range []string{ProcessIngest, ProcessWriter, ProcessReplayer} {
		for _, f := range exported(t, component).families {
			found = append(found, f.labels...)
		}
	}
	slices.Sort(found)
	if d := cmp.Diff(known, slices.Compact(found)); d != "" {
		t.Errorf("labels (-known +found):\n%s", d)
	}
}

func TestLagIsObservedByOthers(t *testing.T) {
	t.Parallel()
	c := everything(t)
	all := []string{c.Kafka.ReplayerGroup()}
	for _, s := range c.UsedSinks() {
		all = append(all, c.Kafka.WriterGroup(s))
	}
	slices.Sort(all)
	for component, want := range map[string][]string{ProcessIngest: all, ProcessReplayer: slices.DeleteFunc(slices.Clone(all), func(g string) bool { return g == c.Kafka.ReplayerGroup() })} {
		var got []string
		for _, g := range c.observed(component) {
			got = append(got, g.Name)
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s observes (-want +got):\n%s", component, d)
		}
	}
	if exported(t, ProcessWriter).has("restante_kafka_consumer_lag_records") {
		t.Error("a writer tells of a lag that ends with it")
	}
}

func (r *recorder) has(name string) bool {
	return slices.ContainsFunc(r.families, func(f family) bool { return f.name == name })
}
