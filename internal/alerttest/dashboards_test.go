package alerttest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/restante/restante/internal/alerttest"
)

// catalogue are the labels of each metric by its name, as docs/metrics.md lists them, which another test holds to the code. A histogram is there
// under the names of its series.
func catalogue(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(alerttest.Root(), "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(restante_\\w+)` \\| (\\w+) \\| (.*?) ?\\| ")
	label := regexp.MustCompile(`\w+`)
	out := map[string][]string{
		"process_resident_memory_bytes": nil, "process_cpu_seconds_total": nil, // of client_golang
	}
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		labels := label.FindAllString(m[3], -1)
		if m[2] == "histogram" {
			out[m[1]+"_bucket"], out[m[1]+"_count"], out[m[1]+"_sum"] = append(slices.Clone(labels), "le"), labels, labels
		} else {
			out[m[1]] = labels
		}
	}
	if len(out) < 80 {
		t.Fatalf("only %d metrics are known", len(out))
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\b((?:restante|process|go)_\w+)(?:\{([^}]*)\})?`)
	matcher    = regexp.MustCompile(`(\w+) *(?:=~|!~|!=|=)`)
	grouping   = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right) ?\(([^)]*)\)`)
	texts      = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	// ofTarget are the labels that the scrape gives.
	ofTarget = []string{"instance", "pod", "job", "namespace"}
)

// faults says what in an expression does not exist: a metric, or a label that none of its metrics has.
func faults(known map[string][]string, expr string) []string {
	var out []string
	plain := texts.ReplaceAllString(expr, `""`)
	all := slices.Clone(ofTarget)
	for _, m := range metricName.FindAllStringSubmatch(plain, -1) {
		labels, ok := known[m[1]]
		if !ok {
			out = append(out, "there is no metric "+m[1])
			continue
		}
		all = append(all, labels...)
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(labels, l[1]) && !slices.Contains(ofTarget, l[1]) {
				out = append(out, fmt.Sprintf("%s has no label %s", m[1], l[1]))
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(plain, -1) {
		for l := range strings.SplitSeq(g[1], ",") {
			if l = strings.TrimSpace(l); l != "" && !slices.Contains(all, l) {
				out = append(out, fmt.Sprintf("nothing in it has the label %s", l))
			}
		}
	}
	return out
}

// parses has promtool read all the expressions, by names that say where they are from.
func parses(t *testing.T, exprs map[string]string) {
	t.Helper()
	type rule struct {
		Record string            `yaml:"record"`
		Expr   string            `yaml:"expr"`
		Labels map[string]string `yaml:"labels"`
	}
	var rules []rule
	for i, from := range slices.Sorted(maps.Keys(exprs)) {
		rules = append(rules, rule{fmt.Sprintf("test:expression:%d", i), exprs[from], map[string]string{"from": from}})
	}
	file := alerttest.Written(t, map[string]any{"groups": []any{map[string]any{"name": "expressions", "rules": rules}}})
	if out, ok := alerttest.Promtool(t, "check", "rules", file); !ok {
		t.Errorf("promtool:\n%s", out)
	}
}

type panel struct {
	ID      int     `json:"id"`
	Type    string  `json:"type"`
	Title   string  `json:"title"`
	Panels  []panel `json:"panels"`
	Targets []struct {
		Expr   string `json:"expr"`
		Legend string `json:"legendFormat"`
	} `json:"targets"`
}

type dashboard struct {
	UID        string  `json:"uid"`
	Title      string  `json:"title"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name  string `json:"name"`
			Type  string `json:"type"`
			Query any    `json:"query"`
		} `json:"list"`
	} `json:"templating"`
}

// dashboards are those of deploy/grafana by the names of their files.
func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(alerttest.Root(), "deploy", "grafana", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]dashboard{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out[filepath.Base(file)] = d
	}
	return out
}

func TestDashboardsAskOnlyForWhatThereIs(t *testing.T) {
	t.Parallel()
	known := catalogue(t)
	all := dashboards(t)
	exprs, asked := map[string]string{}, ""
	for _, name := range []string{"overview", "writer", "replayer", "ingest"} {
		d, ok := all["restante-"+name+".json"]
		if !ok || d.UID != "restante-"+name {
			t.Fatalf("no dashboard %s, or with the uid %s", name, d.UID)
		}
		var variables []string
		for _, v := range d.Templating.List {
			variables = append(variables, v.Name)
			if v.Type == "query" {
				text, err := json.Marshal(v.Query)
				if err != nil {
					t.Fatal(err)
				}
				m := regexp.MustCompile(`label_values\((\w+), (\w+)\)`).FindStringSubmatch(string(text))
				if m == nil || !slices.Contains(known[m[1]], m[2]) {
					t.Errorf("%s: variable %s asks %s, which there is not", d.UID, v.Name, text)
				}
			}
		}
		ids := map[int]bool{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" || len(p.Panels) > 0 || (p.Type == "row") != (len(p.Targets) == 0) {
				t.Errorf("%s: panel %d (%s) is odd", d.UID, p.ID, p.Title)
			}
			ids[p.ID] = true
			for i, target := range p.Targets {
				where := fmt.Sprintf("%s/%s/%d", d.UID, p.Title, i)
				expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
				for _, v := range variables {
					expr = strings.ReplaceAll(expr, "$"+v, "x")
				}
				if strings.Contains(expr, "$") {
					t.Errorf("%s: %s has an unknown variable", where, expr)
				}
				for _, f := range faults(known, expr) {
					t.Errorf("%s: %s: %s", where, expr, f)
				}
				for _, l := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.Legend, -1) {
					if grouping.MatchString(expr) && !strings.Contains(expr, l[1]) {
						t.Errorf("%s: the legend shows %s, which the outcome does not have", where, l[1])
					}
				}
				exprs[where] = expr
				asked += expr
			}
		}
	}
	// What is measured is shown somewhere, but for what is only a part of something else.
	for name := range known {
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
		if !strings.Contains(asked, base) && !slices.Contains(unshown, base) {
			t.Errorf("no dashboard shows %s", base)
		}
	}
	parses(t, exprs)
}

// unshown are the metrics that stand on no dashboard.
var unshown = []string{
	"restante_dlq_publish_errors_total", "restante_kafka_configured_retention_seconds", "restante_kafka_consumed_bytes_total",
	"restante_kafka_consumed_records_total", "restante_kafka_lag_observed_timestamp_seconds", "restante_kafka_last_commit_timestamp_seconds",
	"restante_kafka_topic_partitions", "restante_lookup_active", "restante_lookup_early_total",
	"restante_position_marks_total", "restante_retained_active", "restante_shutdown_undrained_messages_total", "restante_sink_expired_messages_total",
	"restante_writer_buffered_records", "restante_writer_duplicate_records_total", "restante_writer_elided_total", "restante_writer_expired_total",
	"restante_writer_persisted_records_total",
}

func TestAlertsAskOnlyForWhatThereIs(t *testing.T) {
	t.Parallel()
	known, boards := catalogue(t), dashboards(t)
	for _, values := range []string{"", "monitoring: {rules: {histograms: native}}"} {
		if values != "" { // there a histogram has its own name
			for name, labels := range known {
				if base, ok := strings.CutSuffix(name, "_count"); ok {
					known[base] = labels
				}
			}
		}
		groups, _ := alerttest.Rules(t, values)
		for _, g := range groups {
			for _, r := range g.Rules {
				for _, f := range faults(known, r.Expr) {
					t.Errorf("%s: %s", r.Alert, f)
				}
				if _, ok := boards[r.Annotations["dashboard"]+".json"]; !ok {
					t.Errorf("%s: there is no dashboard %s", r.Alert, r.Annotations["dashboard"])
				}
			}
		}
	}
}

// TestFaultsAreFound, or the tests above could not fail.
func TestFaultsAreFound(t *testing.T) {
	t.Parallel()
	known := map[string][]string{"restante_a": {"sink"}, "restante_b_bucket": {"sink", "le"}}
	for expr, want := range map[string]int{
		`sum by (sink) (restante_a{sink="x",pod="y"})`:           0,
		`sum by (sink, le) (rate(restante_b_bucket[5m]))`:        0,
		`sum by (topic) (restante_a)`:                            1,
		`restante_a{topic="x"}`:                                  1,
		`restante_c{sink="x"} + restante_a`:                      1,
		`restante_b`:                                             1,
		`restante_a{sink="restante_c{x=}"} unless on (le) up{}`:  1,
		`label_replace(restante_a, "reason", "$1", "kind", ".")`: 0,
	} {
		if got := faults(known, expr); len(got) != want {
			t.Errorf("%s: %v, want %d", expr, got, want)
		}
	}
}

func TestDashboardsAreConfigMaps(t *testing.T) {
	t.Parallel()
	dec := yaml.NewDecoder(strings.NewReader(string(alerttest.Template(t, "dashboards.yaml", "monitoring: {dashboards: {annotations: {folder: Restante}}}"))))
	got := map[string]string{}
	for {
		var object struct {
			Kind     string `yaml:"kind"`
			Metadata struct {
				Name        string            `yaml:"name"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"metadata"`
			Data map[string]string `yaml:"data"`
		}
		if dec.Decode(&object) != nil {
			break
		}
		if object.Kind != "ConfigMap" || object.Metadata.Labels["grafana_dashboard"] != "1" || object.Metadata.Annotations["folder"] != "Restante" {
			t.Errorf("%+v", object)
		}
		maps.Copy(got, object.Data)
	}
	for name, d := range dashboards(t) {
		var in dashboard
		if err := json.Unmarshal([]byte(got[name]), &in); err != nil || in.UID != d.UID || len(in.Panels) != len(d.Panels) {
			t.Errorf("%s is not rendered as it is: %v", name, err)
		}
	}
}
