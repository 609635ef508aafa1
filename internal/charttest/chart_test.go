package charttest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"
)

const (
	chart = "../../deploy/helm/restante"
	tools = "../../bin/tools"
	// newest is the Kubernetes that is rendered for where none is named.
	newest = "1.37.0"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(unpacked.dir) // "" when nothing was unpacked
		os.Exit(code)
	}))
}

// tool is the path of something that "make chart-tools" makes. Without it the test is skipped, or fails where it is required.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(tools, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("RESTANTE_REQUIRE_HELM") != "" {
			t.Fatalf("%s is missing: run \"make chart-tools\"", path)
		}
		t.Skipf("NOT TESTED: %s is missing: run \"make chart-tools\"", path)
	}
	return path
}

// ciFiles are the files of values that everything is rendered with, by their names without the end.
func ciFiles(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chart, "ci", "*-values.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("found %d files of values: %v", len(files), err)
	}
	out := map[string]string{}
	for _, f := range files {
		out[strings.TrimSuffix(filepath.Base(f), "-values.yaml")] = f
	}
	return out
}

// command runs a program and returns what it printed, or what it complained of.
func command(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), errors.New(err.Error() + ": " + complaint.String() + out.String())
	}
	return out.String(), nil
}

// tryRender renders the chart for a Kubernetes version.
func tryRender(t *testing.T, kube string, args ...string) (string, error) {
	t.Helper()
	return command(t, tool(t, "helm"), append([]string{"template", "r", chart, "--namespace", "iot", "--kube-version", kube}, args...)...)
}

func render(t *testing.T, kube string, args ...string) string {
	t.Helper()
	out, err := tryRender(t, kube, args...)
	if err != nil {
		t.Fatalf("render with %v: %v", args, err)
	}
	return out
}

// object is a rendered object, or a part of one.
type object map[string]any

// at is what stands at the path of keys, nil when there is nothing.
func (o object) at(path ...string) any {
	var v any = o
	for _, key := range path {
		switch m := v.(type) {
		case object:
			v = m[key]
		case map[string]any: // from JSON
			v = m[key]
		default:
			return nil
		}
	}
	return v
}

func (o object) text(path ...string) string {
	s, _ := o.at(path...).(string)
	return s
}

// objects are those that stand in a list at the path.
func (o object) objects(path ...string) []object {
	list, _ := o.at(path...).([]any)
	var out []object
	for _, one := range list {
		if m, ok := one.(object); ok {
			out = append(out, m)
		}
	}
	return out
}

// parse reads rendered documents.
func parse(t *testing.T, text string) []object {
	t.Helper()
	var out []object
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o object
		switch err := dec.Decode(&o); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatalf("parse what was rendered: %v", err)
		case len(o) > 0:
			out = append(out, o)
		}
	}
}

// pods are the pod templates of what was rendered, by kind and name.
func pods(all []object) map[string]object {
	out := map[string]object{}
	for _, o := range all {
		if p, ok := o.at("spec", "template").(object); ok {
			out[o.text("kind")+" "+o.text("metadata", "name")] = p
		}
	}
	return out
}
