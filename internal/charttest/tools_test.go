package charttest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheChartPassesHelmsOwnLint(t *testing.T) {
	t.Parallel()
	for name, file := range ciFiles(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if out, err := command(t, tool(t, "helm"), "lint", "--strict", "--kube-version", newest, chart, "-f", file); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestTheUnitTestsOfTheTemplatesPass(t *testing.T) {
	t.Parallel()
	out, err := command(t, tool(t, "helm-unittest"), "--strict", "--file", "tests/*_test.yaml", chart)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Tests: +[1-9]`).MatchString(out) {
		t.Errorf("nothing was tested:\n%s", out)
	}
}

func TestTheChartsReadmeIsThatOfTheValues(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "restante"), os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, tool(t, "helm-docs"), "--chart-search-root", dir, "--sort-values-order", "file"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(filepath.Join(dir, "restante", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(have)); d != "" {
		t.Errorf("README.md is not that of values.yaml; run \"make chart-docs\" (-file +values):\n%s", d)
	}
}

// ignored are the checks of kube-score that the chart does not follow.
var ignored = []string{
	"container-image-pull-policy",          // a release's tag is never moved, and a node without the registry can start a pod again
	"deployment-has-host-podantiaffinity",  // topology spread constraints do it, for zones too
	"statefulset-has-host-podantiaffinity", // the same
}

func TestKubeScoreFindsNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"exhook", "aws"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := filepath.Join(t.TempDir(), "all.yaml")
			text := render(t, "1.34.0", "-f", ciFiles(t)[name], "--set", "networkPolicy.enabled=true")
			if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			// A CPU limit only throttles: what a pod may use is its node's business.
			args := []string{"score", "--kubernetes-version", "v1.34", "--output-format", "ci", "--exit-one-on-warning", "--ignore-container-cpu-limit"}
			for _, test := range ignored {
				args = append(args, "--ignore-test", test)
			}
			out, err := command(t, tool(t, "kube-score"), append(args, in)...)
			if err != nil {
				t.Errorf("%v", err)
			}
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "[CRITICAL]") || strings.HasPrefix(line, "[WARNING]") {
					t.Error(line)
				}
			}
			if !strings.Contains(out, "[OK]") {
				t.Errorf("nothing was scored:\n%s", out)
			}
		})
	}
}
