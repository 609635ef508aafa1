package e2e

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/alerttest"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
)

// alarm is a real Prometheus that scrapes the processes each second and has the chart's alerts.
type alarm struct {
	t    *testing.T
	addr string
}

// soonAlerts are the chart's values for alerts that do not take their time.
const soonAlerts = `
config: {kafka: {names: {topics: mqtt, groups: restante}}}
monitoring:
  rules:
    interval: 1s
    histograms: %s
    for: {RestanteNoWriters: 3s, RestanteSinkStalled: 1s, RestanteNoIngest: 3s, RestanteNoReplayer: 3s, RestanteLagUnobserved: 3s}
`

// watch starts a Prometheus over the processes that have begun. histograms is classic, or native for one that keeps nothing else.
func (s *setup) watch(histograms string) alarm {
	s.t.Helper()
	program := alerttest.Program(s.t, "prometheus")
	_, rules := alerttest.Rules(s.t, fmt.Sprintf(soonAlerts, histograms))
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [" + strconv.Quote(rules) + "]\nscrape_configs:\n  - job_name: restante\n    static_configs:\n"
	for _, name := range []string{"ingest", "replayer", "writer"} {
		config += fmt.Sprintf("      - {targets: [%q], labels: {process: %s}}\n", s.admin[name], name)
	}
	dir := s.t.TempDir()
	file := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	p := alarm{s.t, ports.Addr(s.t)}
	args := []string{"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + p.addr, "--log.level=warn"}
	if histograms == "native" {
		args = append(args, "--enable-feature=native-histograms")
	}
	e2etest.StartFile(s.t, program, args...)
	e2etest.Await(s.t, "prometheus sees all three processes", func() bool { return len(p.query(`up{job="restante"} == 1`)) == 3 })
	return p
}

// ask gives the data of an answer of its HTTP API.
func (p alarm) ask(path string, into any) bool {
	p.t.Helper()
	status, body := e2etest.Get(p.t, p.addr, path)
	answer := struct {
		Status string `json:"status"`
		Data   any    `json:"data"`
	}{Data: into}
	return status == 200 && json.Unmarshal([]byte(body), &answer) == nil && answer.Status == "success"
}

type sample struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
}

func (p alarm) query(expr string) []sample {
	p.t.Helper()
	var found struct {
		Result []sample `json:"result"`
	}
	p.ask("/api/v1/query?query="+url.QueryEscape(expr), &found)
	return found.Result
}

// firing are the alerts that fire, with their sink or reason.
func (p alarm) firing() []string {
	p.t.Helper()
	var found struct {
		Alerts []struct {
			State       string            `json:"state"`
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"alerts"`
	}
	if !p.ask("/api/v1/alerts", &found) {
		return []string{"no answer"}
	}
	var out []string
	for _, a := range found.Alerts {
		if a.State == "firing" {
			out = append(out, strings.TrimSpace(a.Labels["alertname"]+" "+a.Labels["sink"]+a.Labels["reason"]))
		}
		for _, text := range a.Annotations {
			if strings.Contains(text, "<no value>") || strings.Contains(text, "error expanding") {
				p.t.Errorf("%s says %q", a.Labels["alertname"], text)
			}
		}
	}
	slices.Sort(out)
	return out
}

// awaitFiring waits until the alert fires, or does no more.
func (p alarm) awaitFiring(alert string, fires bool) {
	p.t.Helper()
	e2etest.Await(p.t, fmt.Sprintf("%s fires: %v", alert, fires), func() bool { return slices.Contains(p.firing(), alert) == fires })
}

// healthy checks that all rules could be evaluated.
func (p alarm) healthy() {
	p.t.Helper()
	var found struct {
		Groups []struct {
			Rules []struct {
				Name, Health, LastError string
			}
		}
	}
	n := 0
	if !p.ask("/api/v1/rules", &found) {
		p.t.Error("no answer to which rules there are")
	}
	for _, g := range found.Groups {
		for _, r := range g.Rules {
			if n++; r.Health != "ok" {
				p.t.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
			}
		}
	}
	if n < 30 {
		p.t.Errorf("prometheus has %d rules", n)
	}
}

// counters are the series of counters that a process exports.
func (s *setup) counters(process string) []string {
	s.t.Helper()
	_, body := e2etest.Get(s.t, s.admin[process], "/metrics")
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^(restante_\w+_total(?:\{.*\})?) `).FindAllStringSubmatch(body, -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return out
}

// The three processes, a real Prometheus with the alerts as the chart renders them, and what goes wrong. It waits less than in life: for 3 s
// where the chart says 5 min, and asks each second.
func TestAlertsFireWhenThingsGoWrong(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.configure = func(admin string) string {
		return fmt.Sprintf(processes, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin) + "ingest: {max_payload: 1KiB}\n"
	}
	all := s.startAll("ingest", "writer", "replayer")
	began := map[string][]string{}
	for name := range all {
		began[name] = s.counters(name)
	}
	classic, native := s.watch("classic"), s.watch("native")
	both := []alarm{classic, native}

	// All is well.
	e2etest.Publish(t, s.broker, "t/1", "one", "two")
	e2etest.AwaitRows(t, s.database, 2)
	c := e2etest.Subscribe(t, s.broker, "device", "t/1")
	e2etest.Receive(t, c, 2)
	for _, p := range both {
		e2etest.Await(t, "no alert fires", func() bool {
			return len(p.firing()) == 0 && len(p.query(`max by (group) (restante_kafka_consumer_lag_seconds)`)) == 2
		})
	}
	s.knowsItsMetrics(classic)

	// The first message that is dropped, of a counter that has been 0 until then.
	e2etest.Publish(t, s.broker, "t/1", strings.Repeat("x", 2000))
	for _, p := range both {
		p.awaitFiring("RestanteMessagesDropped oversize", true)
	}

	// The store takes nothing: somebody else writes to it, and does not end.
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: s.database}).EscapedPath()+"?_pragma=busy_timeout(10000)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	e2etest.Publish(t, s.broker, "t/away", "three")
	for _, p := range both {
		p.awaitFiring("RestanteSinkStalled history", true)
	}
	e2etest.Await(t, "the lag is seen by others", func() bool {
		return len(classic.query(`restante_kafka_consumer_lag_records{group="restante.writer.history",topic="mqtt.messages"} >= 1`)) > 0
	})
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for _, p := range both {
		p.awaitFiring("RestanteSinkStalled history", false)
	}

	// All writers are dead. What they told of themselves is gone with them; how far they are behind is told by the others.
	counted := s.counters("writer")
	all["writer"].Kill()
	for _, p := range both {
		p.awaitFiring("RestanteNoWriters history", true)
	}
	e2etest.Publish(t, s.broker, "t/away", "four")
	e2etest.Await(t, "the lag is seen by others", func() bool {
		return len(classic.query(`max(restante_kafka_consumer_lag_records{group="restante.writer.history"}) >= 1`)) > 0
	})
	s.start("writer")
	for _, p := range both {
		p.awaitFiring("RestanteNoWriters history", false)
		p.healthy()
	}

	// What a native histogram says of the same.
	const soon = `histogram_fraction(0, 10, sum(rate(restante_writer_persist_latency_seconds{event="publish"}[5m])))`
	e2etest.Await(t, "the native histograms say how much came soon", func() bool { return len(native.query(soon)) == 1 })
	if len(native.query(`restante_writer_persist_latency_seconds_bucket`)) > 0 {
		t.Error("there are histograms that are not native")
	}

	// A counter that is first seen at 1 has no increase: all were there from the start.
	for name, now := range map[string][]string{"ingest": s.counters("ingest"), "replayer": s.counters("replayer"), "writer": counted} {
		if d := cmp.Diff(began[name], now); d != "" {
			t.Errorf("counters of %s (-at the start +at the end):\n%s", name, d)
		}
	}
}

// knowsItsMetrics checks that what Prometheus has seen is what docs/metrics.md lists.
func (s *setup) knowsItsMetrics(p alarm) {
	s.t.Helper()
	page, err := os.ReadFile(filepath.Join(alerttest.Root(), "docs", "metrics.md"))
	if err != nil {
		s.t.Fatal(err)
	}
	listed := map[string]bool{} // and seen
	for _, m := range regexp.MustCompile("(?m)^\\| `(restante_\\w+)` \\| (\\w+) \\|").FindAllStringSubmatch(string(page), -1) {
		if m[2] == "histogram" {
			m[1] += "_bucket"
		}
		listed[m[1]] = false
	}
	// There is no spool, and SQLite tells of no requests.
	elsewhere := regexp.MustCompile(`^restante_(ingest_spool|sink_(request|events|unprocessed|consumed|inflight))`)
	parts := regexp.MustCompile(`_(count|sum)$`)
	var wrong []string
	defer func() {
		for _, w := range wrong {
			s.t.Error(w)
		}
	}()
	e2etest.Await(s.t, "prometheus has the metrics of docs/metrics.md", func() bool {
		var seen []string
		if !p.ask("/api/v1/label/__name__/values", &seen) {
			return false
		}
		wrong = nil
		for _, name := range seen {
			if _, ok := listed[name]; ok {
				listed[name] = true
			} else if strings.HasPrefix(name, "restante_") && !parts.MatchString(name) {
				wrong = append(wrong, name+" is not listed")
			}
		}
		for name, is := range listed {
			if is == elsewhere.MatchString(name) {
				wrong = append(wrong, fmt.Sprintf("%s is exported: %v", name, is))
			}
		}
		return len(wrong) == 0
	})
}
