package charttest

import (
	"os"
	"path/filepath"
	"testing"
)

// TestNamesThatLookLikeNumbersStayTexts: a label's value must be a text, and YAML takes 2024 and true for something else.
func TestNamesThatLookLikeNumbersStayTexts(t *testing.T) {
	t.Parallel()
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte(`
config:
  sinks: {"2024": {type: cassandra, hosts: [c]}, "true": {type: cassandra, hosts: [c]}}
  rules:
    - {topic: "t/#", action: save_offline_messages, sink: "2024"}
    - {topic: "u/#", action: save_offline_messages, sink: "true"}
networkPolicy: {enabled: true}
monitoring: {podMonitor: {enabled: true}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := command(t, tool(t, "helm"), "template", "123", chart, "--kube-version", newest, "-f", ciFiles(t)["minimal"], "-f", values)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	var look func(path string, v any)
	look = func(path string, v any) {
		switch v := v.(type) {
		case object:
			for key, value := range v {
				if key == "labels" || key == "matchLabels" {
					for label, value := range value.(object) { //nolint:forcetypeassert // else the test panics, which it may
						seen++
						if _, ok := value.(string); !ok {
							t.Errorf("%s.%s.%s is %v, a %T", path, key, label, value, value)
						}
					}
					continue
				}
				look(path+"."+key, value)
			}
		case []any:
			for _, one := range v {
				look(path, one)
			}
		}
	}
	for _, o := range parse(t, out) {
		look(o.text("kind")+" "+o.text("metadata", "name"), o)
	}
	if seen < 50 {
		t.Errorf("only %d labels were seen", seen)
	}
}

// TestLargeNumbersAreWrittenOut: helm reads numbers of a file as floating-point ones, whose text is 1e+06 from a million on. Neither KEDA nor
// the API server takes that.
func TestLargeNumbersAreWrittenOut(t *testing.T) {
	t.Parallel()
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte(`
writer: {autoscaling: {type: keda, lagThreshold: 1000000, keda: {activationLagThreshold: 2000000, cooldownPeriod: 1209600}}}
replayer: {autoscaling: {type: hpa, lagThreshold: 3000000, activeReplays: 4000000}}
migrate: {mode: job, ttlSecondsAfterFinished: 1209600, activeDeadlineSeconds: 1000000}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	have := map[string]object{}
	for _, o := range parse(t, render(t, newest, "-f", ciFiles(t)["minimal"], "-f", values)) {
		if o.text("metadata", "annotations", "helm.sh/hook") == "" {
			have[o.text("kind")] = o
		}
	}
	want := func(v, want any) {
		t.Helper()
		if v != want {
			t.Errorf("%v (%T), want %v", v, v, want)
		}
	}
	scaled, hpa, job := have["ScaledObject"], have["HorizontalPodAutoscaler"], have["Job"]
	trigger := scaled.objects("spec", "triggers")[0]
	want(trigger.at("metadata", "lagThreshold"), "1000000")
	want(trigger.at("metadata", "activationLagThreshold"), "2000000")
	want(scaled.at("spec", "cooldownPeriod"), 1209600)
	metrics := hpa.objects("spec", "metrics")
	want(metrics[0].at("external", "target", "averageValue"), "3000000")
	want(metrics[1].at("pods", "target", "averageValue"), "4000000")
	want(job.at("spec", "ttlSecondsAfterFinished"), 1209600)
	want(job.at("spec", "activeDeadlineSeconds"), 1000000)
}
