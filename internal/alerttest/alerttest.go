// Package alerttest tests the chart's alerts and dashboards: as they are rendered, with Prometheus's own programs.
package alerttest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Root is the folder of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Template is what helm makes of one template of the chart, with the values of this package's testdata and those given, as YAML.
func Template(t *testing.T, template, values string) []byte {
	t.Helper()
	own := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(own, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), helm(t), "template", "restante", filepath.Join(Root(), "deploy", "helm", "restante"), //nolint:gosec // what we build
		"--kube-version", "1.34.0", "-f", filepath.Join(Root(), "internal", "alerttest", "testdata", "values.yaml"), "-f", own, "-s", "templates/"+template)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, stderr.String())
	}
	return out
}

// helm is what "make chart-tools" makes. Without it the test is skipped, and fails when RESTANTE_REQUIRE_HELM is set.
func helm(t *testing.T) string {
	t.Helper()
	file := filepath.Join(Root(), "bin", "tools", "helm")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	if os.Getenv("RESTANTE_REQUIRE_HELM") != "" {
		t.Fatalf(`%s is missing: run "make chart-tools"`, file)
	}
	t.Skipf(`NOT TESTED: %s is missing: run "make chart-tools"`, file)
	return ""
}

// Rule is an alert as Prometheus reads it.
type Rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for,omitempty"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// Group is a group of rules as Prometheus reads it.
type Group struct {
	Name     string `yaml:"name"`
	Interval string `yaml:"interval,omitempty"`
	Rules    []Rule `yaml:"rules"`
}

// Rules renders the chart's PrometheusRule and writes its groups into a file as Prometheus loads them.
func Rules(t *testing.T, values string) (groups []Group, file string) {
	t.Helper()
	var object struct {
		Kind string `yaml:"kind"`
		Spec struct {
			Groups []Group `yaml:"groups"`
		} `yaml:"spec"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(Template(t, "prometheusrule.yaml", values)))
	if err := dec.Decode(&object); err != nil || object.Kind != "PrometheusRule" || len(object.Spec.Groups) == 0 {
		t.Fatalf("%v: a %s with %d groups", err, object.Kind, len(object.Spec.Groups))
	}
	text, err := yaml.Marshal(map[string]any{"groups": object.Spec.Groups})
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return object.Spec.Groups, file
}

// Program finds a program of Prometheus. Without it the test is skipped, and fails when RESTANTE_REQUIRE_PROMETHEUS is set.
func Program(t *testing.T, name string) string {
	t.Helper()
	file, err := exec.LookPath(name)
	if err == nil {
		return file
	}
	if os.Getenv("RESTANTE_REQUIRE_PROMETHEUS") != "" {
		t.Fatalf("%s is required and not there: install Debian's package prometheus", name)
	}
	t.Skipf("NOT TESTED: %s is not there: install Debian's package prometheus", name)
	return ""
}

// Promtool runs promtool and gives what it says.
func Promtool(t *testing.T, args ...string) (out string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Program(t, "promtool"), args...) //nolint:gosec // a program of the machine's package
	text, err := cmd.CombinedOutput()
	return string(text), err == nil
}

// Written is a file of the test's own with the value as YAML.
func Written(t *testing.T, value any) string {
	t.Helper()
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "written.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
