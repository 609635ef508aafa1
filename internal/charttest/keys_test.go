package charttest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// trial is how the effect of a key is shown: with one value the chart renders otherwise than with another.
type trial struct {
	base  string // the file of values; empty = the first of bases where there is a difference
	with  string // further values, as YAML
	value any
	other any // nil = what the base has
}

var bases = []string{"full", "aws", "minimal"}

// trials are those of keys for which another value of the same type is not enough.
var trials = map[string]trial{
	"config":                            {base: "minimal", value: object{"log": object{"level": "debug"}}},
	"secrets":                           {value: object{"more": object{"secretName": "more"}}},
	"writers":                           {value: object{"history": object{"image": object{"tag": "other"}}}},
	"imagePullSecrets":                  {value: []any{object{"name": "other"}}},
	"image.pullPolicy":                  {value: "Never"},
	"ingest.replicas":                   {base: "full", value: 5},
	"ingest.service.type":               {value: "NodePort"},
	"ingest.spool.whenDeleted":          {value: "Retain"},
	"ingest.spool.whenScaled":           {value: "Retain"},
	"ingest.spool.volumeSize":           {value: "16Gi"},
	"ingest.spool.enabled":              {base: "minimal", value: true},
	"ingest.pdb.maxUnavailable":         {base: "aws", value: 2},
	"ingest.pdb.minAvailable":           {base: "full", value: 1},
	"writer.replicas":                   {base: "minimal", value: 3},
	"writer.pdb.maxUnavailable":         {base: "aws", value: "50%"},
	"writer.pdb.minAvailable":           {base: "aws", with: `{writer: {pdb: {maxUnavailable: ""}}}`, value: 1, other: 2},
	"writer.autoscaling.type":           {base: "aws", value: "none"},
	"replayer.replicas":                 {base: "minimal", value: 3},
	"replayer.pdb.enabled":              {base: "aws", value: false},
	"replayer.pdb.maxUnavailable":       {base: "aws", value: 2},
	"replayer.pdb.minAvailable":         {base: "aws", with: `{replayer: {pdb: {maxUnavailable: ""}}}`, value: 1, other: 2},
	"replayer.autoscaling.type":         {base: "aws", value: "none"},
	"migrate.mode":                      {base: "full", value: "job"},
	"migrate.ttlSecondsAfterFinished":   {base: "aws", value: 60},
	"networkPolicy.enabled":             {base: "minimal", value: true},
	"roundtrip.topic":                   {value: "t/other"},
	"monitoring.podMonitor.enabled":     {base: "minimal", value: true},
	"monitoring.serviceMonitor.enabled": {base: "minimal", value: true},
	"monitoring.rules.histograms":       {value: "native"},
	"monitoring.rules.disabled":         {value: []any{"RestanteNoIngest"}},
	"monitoring.rules.for":              {value: object{"RestanteNoIngest": "7m"}},
	"monitoring.rules.sinks":            {value: object{"history": object{"lagCriticalSeconds": 77}}},
	"extraObjects":                      {value: []any{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n"}},
	"pod.terminationGracePeriodSeconds": {base: "minimal", value: 100},
	"serviceAccount.create":             {base: "minimal", value: false},
	"serviceAccount.name":               {base: "minimal", value: "other"},

	"writer.autoscaling.keda.userSecret": {base: "full", value: object{"name": "other", "key": "other"}},
	"replayer.autoscaling.keda.userSecret": {
		base: "full", with: `{replayer: {autoscaling: {type: keda}}}`,
		value: object{"name": "a", "key": "b"}, other: object{"name": "c", "key": "d"},
	},
	"writer.autoscaling.keda.fallback":   {base: "full", value: object{"behavior": "static"}},
	"replayer.autoscaling.keda.fallback": {base: "aws", value: object{"failureThreshold": 1, "replicas": 2}},
}

// ends are trials of all keys that end so.
var ends = map[string]any{
	".digest":        "sha256:" + strings.Repeat("2", 64),
	"image.digest":   "sha256:" + strings.Repeat("3", 64),
	".interval":      "45s",
	".scrapeTimeout": "5s",
	".policies":      []any{object{"type": "Pods", "value": 7, "periodSeconds": 33}},
	".drop":          []any{"NET_RAW"},

	"pod.tolerations":               []any{object{"key": "other", "operator": "Exists"}},
	"pod.topologySpreadConstraints": []any{object{"maxSkew": 9, "topologyKey": "other", "whenUnsatisfiable": "ScheduleAnyway"}},
	"pod.extraEnv": []any{
		object{"name": "KAFKA_HOST", "value": "other"}, object{"name": "CASSANDRA_PASSWORD", "value": "other"},
	},
	"pod.extraEnvFrom":      []any{object{"secretRef": object{"name": "other"}}},
	"pod.extraVolumes":      []any{object{"name": "scratch", "emptyDir": object{}}},
	"pod.extraVolumeMounts": []any{object{"name": "scratch", "mountPath": "/other"}},
	"pod.extraContainers":   []any{object{"name": "other", "image": "other:1"}},
	"pod.initContainers":    []any{object{"name": "other", "image": "other:1"}},

	"service.loadBalancerSourceRanges": []any{"10.9.0.0/16"},
	"From":                             []any{object{"podSelector": object{"matchLabels": object{"a": "b"}}}},
	"To":                               []any{object{"podSelector": object{"matchLabels": object{"a": "b"}}}},
	".extraIngress":                    []any{object{"ports": []any{object{"port": 7001}}}},
	".extraEgress":                     []any{object{"ports": []any{object{"port": 7001}}}},
	"elabelings":                       []any{object{"action": "labeldrop", "regex": "other"}},
	".pod":                             object{"priorityClassName": "other"},
	".affinity":                        object{"podAffinity": object{}},
	"requests.cpu":                     "1700m",
	"requests.memory":                  "300Mi",
	"limits.memory":                    "700Mi",
	"ephemeral-storage":                "99Mi",
	".minReplicas":                     3,
	".maxReplicas":                     5,
	".securityContext":                 object{"runAsNonRoot": false},
	".repository":                      "other",
	"seccompProfile.type":              "Localhost",
}

// valueFor is another value for a key, by its default.
func valueFor(key string, def any) (any, error) {
	best := ""
	for end := range ends {
		if strings.HasSuffix(key, end) && len(end) > len(best) {
			best = end
		}
	}
	if best != "" {
		return ends[best], nil
	}
	switch v := def.(type) {
	case bool:
		return !v, nil
	case int:
		return v + 3, nil
	case string:
		return "other", nil
	case object:
		return object{"example.com/other": "other"}, nil
	}
	return nil, fmt.Errorf("no other value is known for %s with default %v: add it to trials or ends", key, def)
}

// switches are keys whose value is not itself rendered: it chooses among things.
var switches = []string{
	"migrate.mode", "writer.autoscaling.type", "replayer.autoscaling.type", "monitoring.rules.histograms", "monitoring.rules.disabled",
}

// notSaid is a text or number within value that is not rendered, nil when there is none: one that stands alone must be in a line that
// was not there before.
func notSaid(value any, before, after string) any {
	old := map[string]int{}
	for line := range strings.Lines(before) {
		old[line]++
	}
	var changed strings.Builder
	for line := range strings.Lines(after) {
		if old[line]--; old[line] < 0 {
			changed.WriteString(line)
		}
	}
	in, lost := changed.String(), any(nil)
	var look func(v any)
	look = func(v any) {
		switch v := v.(type) {
		case object:
			in = after
			for _, one := range v {
				look(one)
			}
		case []any:
			in = after
			for _, one := range v {
				look(one)
			}
		case string, int:
			for line := range strings.Lines(fmt.Sprint(v)) {
				if !strings.Contains(in, strings.TrimSpace(line)) {
					lost = v
				}
			}
		}
	}
	look(value)
	return lost
}

// leaves are the keys of values that hold no further keys.
func leaves(prefix string, v object, into map[string]any) {
	for key, value := range v {
		at := strings.TrimPrefix(prefix+"."+key, ".")
		if m, ok := value.(object); ok && len(m) > 0 {
			leaves(at, m, into)
			continue
		}
		into[at] = value
	}
}

// nest puts a value at its key.
func nest(key string, value any) object {
	parts := strings.Split(key, ".")
	for _, p := range slices.Backward(parts) {
		value = object{p: value}
	}
	return value.(object)
}

// TestEveryKeyOfTheValuesHasAnEffect changes each key of values.yaml and wants another rendering: a key that never worked fails here.
func TestEveryKeyOfTheValuesHasAnEffect(t *testing.T) {
	t.Parallel()
	tool(t, "helm")
	data, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values object
	if err := yaml.Unmarshal(data, &values); err != nil {
		t.Fatal(err)
	}
	keys := map[string]any{}
	leaves("", values, keys)
	if len(keys) < 150 {
		t.Fatalf("values.yaml has only %d keys", len(keys))
	}
	for key := range trials {
		if _, ok := keys[key]; !ok {
			t.Errorf("trials has %s, which is no key of values.yaml", key)
		}
	}
	files := ciFiles(t)
	plain := map[string]string{}
	for _, base := range bases {
		plain[base] = render(t, newest, "-f", files[base])
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			hasEffect(t, files, plain, key, keys[key])
		})
	}
}

func hasEffect(t *testing.T, files, plain map[string]string, key string, def any) {
	t.Helper()
	try, ok := trials[key]
	if !ok {
		v, err := valueFor(key, def)
		if err != nil {
			t.Fatal(err)
		}
		try = trial{value: v}
	}
	try.with = strings.TrimSpace(try.with)
	in := bases
	if try.base != "" {
		in = []string{try.base}
	}
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	overlay := func(name string, value any) string {
		data, err := json.Marshal(nest(key, value))
		if err != nil {
			t.Fatal(err)
		}
		return file(name, string(data))
	}
	for _, base := range in {
		args := []string{"-f", files[base]}
		if try.with != "" {
			args = append(args, "-f", file("with.yaml", try.with))
		}
		var before string
		switch {
		case try.other != nil:
			before = render(t, newest, append(slices.Clone(args), "-f", overlay("other.json", try.other))...)
		case try.with != "":
			before = render(t, newest, args...)
		default:
			before = plain[base]
		}
		after := render(t, newest, append(slices.Clone(args), "-f", overlay("value.json", try.value))...)
		if before == after {
			continue
		}
		if lost := notSaid(try.value, before, after); lost != nil && !slices.Contains(switches, key) {
			t.Errorf("%s = %v changes %s, but what has changed does not say %v", key, try.value, base, lost)
		}
		return
	}
	t.Errorf("%s = %v changes nothing in %v", key, try.value, in)
}
