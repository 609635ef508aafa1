package charttest

import (
	"archive/zip"
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"
)

// kubes are the versions of Kubernetes that the chart must fit.
var kubes = []string{"1.29.0", "1.31.0", "1.34.0", newest}

// TestWhatIsRenderedFitsEachKubernetes validates strictly, with KEDA's and the Prometheus operator's kinds among it.
func TestWhatIsRenderedFitsEachKubernetes(t *testing.T) {
	t.Parallel()
	kubeconform := tool(t, "kubeconform")
	schemas := schemaDir(t)
	for _, kube := range kubes {
		for name, file := range ciFiles(t) {
			t.Run(kube+" "+name, func(t *testing.T) {
				t.Parallel()
				text := render(t, kube, "-f", file)
				in := filepath.Join(t.TempDir(), "all.yaml")
				if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				valid, _, err := conform(t, kubeconform, schemas, kube, in)
				if want := len(parse(t, text)); err != nil || valid != want || want < 8 {
					t.Errorf("%d of %d documents were found valid: %v", valid, want, err)
				}
			})
		}
	}
}

// TestTheSchemasFindFaults plants a fault in each kind of object that matters, so that the test above says something.
func TestTheSchemasFindFaults(t *testing.T) {
	t.Parallel()
	kubeconform := tool(t, "kubeconform")
	schemas := schemaDir(t)
	text := render(t, newest, "-f", ciFiles(t)["aws"]) + "\n---\n" + render(t, newest, "-f", ciFiles(t)["full"])
	for what, fault := range map[string][2]string{
		"an unknown key of a container":        {"imagePullPolicy:", "imagePullPolice:"},
		"a text for a number":                  {"terminationGracePeriodSeconds: 45", "terminationGracePeriodSeconds: long"},
		"an unknown key of a ScaledObject":     {"maxReplicaCount:", "mostReplicas:"},
		"a number for a text of KEDA":          {`lagThreshold: "10000"`, "lagThreshold: 10000"},
		"an unknown key of a PodMonitor":       {"podMetricsEndpoints:", "podEndpoints:"},
		"an unknown key of an HPA":             {"averageValue:", "average:"},
		"an unknown key of a NetworkPolicy":    {"podSelector:", "podSelect:"},
		"an interval that is none":             {"interval: 30s", "interval: often"},
		"an unknown key of a disruption limit": {"unhealthyPodEvictionPolicy:", "unhealthyPods:"},
		"an unknown kind":                      {"kind: ScaledObject", "kind: Scaled"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			bad := strings.ReplaceAll(text, fault[0], fault[1])
			if bad == text {
				t.Fatalf("%q is not rendered", fault[0])
			}
			in := filepath.Join(t.TempDir(), "all.yaml")
			if err := os.WriteFile(in, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, bad, err := conform(t, kubeconform, schemas, newest, in); bad == 0 {
				t.Errorf("%q passes: %v", fault[1], err)
			}
		})
	}
}

// conform counts the documents that fit the schemas and those that do not; the error is what is wrong with these.
func conform(t *testing.T, kubeconform, schemas, kube, file string) (valid, invalid int, err error) {
	t.Helper()
	out, err := command(t, kubeconform, "-strict", "-summary", "-output", "json", "-kubernetes-version", kube,
		"-schema-location", schemas+"/{{.NormalizedKubernetesVersion}}/{{.ResourceKind}}{{.KindSuffix}}.json",
		"-schema-location", schemas+"/crds/{{.ResourceKind}}{{.KindSuffix}}.json", file)
	var got struct {
		Summary struct{ Valid, Invalid, Errors, Skipped int }
	}
	if e := json.Unmarshal([]byte(out), &got); e != nil {
		t.Fatalf("read kubeconform's answer: %v: %v", e, err)
	}
	return got.Summary.Valid, got.Summary.Invalid + got.Summary.Errors, err
}

var unpacked struct {
	once sync.Once
	dir  string
	err  error
}

// schemaDir has the schemas as kubeconform wants them: a directory for each version, and one for the kinds of others.
func schemaDir(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(tools, "schemas-unreachable")); err == nil {
		t.Skip("NOT CHECKED: make chart-tools could not fetch the schemas of Kubernetes")
	}
	archive, crds := tool(t, "kubernetes-schemas.zip"), tool(t, "crds")
	unpacked.once.Do(func() {
		if unpacked.dir, unpacked.err = os.MkdirTemp("", "restante-schemas-"); unpacked.err == nil { //nolint:usetesting // for all tests; TestMain removes it
			unpacked.err = unpack(archive, crds, unpacked.dir)
		}
	})
	if unpacked.err != nil {
		t.Fatal(unpacked.err)
	}
	return unpacked.dir
}

func unpack(archive, crds, dir string) error {
	if err := unpackKinds(archive, dir); err != nil {
		return err
	}
	return convertCRDs(crds, filepath.Join(dir, "crds"))
}

// unpackKinds writes the strict schemas of the versions, each with the definitions that it needs in it: the references name a path of
// a server that there is none of.
func unpackKinds(archive, dir string) error {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer z.Close()                       //nolint:errcheck // nothing was written
	all := map[string]map[string]object{} // version → file → schema
	for _, f := range z.File {
		version, strict := strings.CutSuffix(path.Base(path.Dir(f.Name)), "-local-strict")
		if !strict || !wanted(version, path.Base(f.Name)) {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		var schema object
		if err := json.NewDecoder(r).Decode(&schema); err != nil {
			return err
		}
		if all[version] == nil {
			all[version] = map[string]object{}
		}
		all[version][path.Base(f.Name)] = schema
	}
	for version, schemas := range all {
		known := schemas[definitions].at("$defs").(map[string]any)
		delete(schemas, definitions)
		for name, schema := range schemas {
			used := map[string]any{}
			localRefs(map[string]any(schema), known, used)
			delete(schema, "$id")
			schema["$defs"] = used
			text, err := json.Marshal(schema)
			if err != nil {
				return err
			}
			if err := write(filepath.Join(dir, version, name), string(text)); err != nil {
				return err
			}
		}
	}
	return nil
}

const definitions = "_definitions.json"

// localRefs makes the references of a schema local, and takes over what they need.
func localRefs(v any, known, used map[string]any) {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			_, name, _ := strings.Cut(ref, "#/$defs/")
			v["$ref"] = "#/$defs/" + name
			if _, done := used[name]; !done {
				used[name] = known[name]
				localRefs(known[name], known, used)
			}
		}
		for _, one := range v {
			localRefs(one, known, used)
		}
	case []any:
		for _, one := range v {
			localRefs(one, known, used)
		}
	}
}

// wanted reports whether the file is of a version and of a kind that the chart renders.
func wanted(version, name string) bool {
	for _, kube := range kubes {
		if version != "v"+kube {
			continue
		}
		if name == definitions {
			return true
		}
		for _, kind := range []string{
			"configmap-v1", "service-v1", "serviceaccount-v1", "deployment-apps-v1", "statefulset-apps-v1", "job-batch-v1",
			"poddisruptionbudget-policy-v1", "horizontalpodautoscaler-autoscaling-v2", "networkpolicy-networking-v1",
		} {
			if name == kind+".json" {
				return true
			}
		}
	}
	return false
}

// convertCRDs writes the schema of each version of each kind, strict as the others.
func convertCRDs(from, dir string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var crd object
		if err := yaml.Unmarshal(data, &crd); err != nil {
			return err
		}
		group, _, _ := strings.Cut(crd.text("spec", "group"), ".")
		for _, v := range crd.objects("spec", "versions") {
			schema, ok := v.at("schema", "openAPIV3Schema").(object)
			if !ok {
				continue
			}
			refuseUnknown(schema)
			if m, ok := schema.at("properties").(object); ok {
				m["metadata"] = object{"type": "object"}
			}
			text, err := json.Marshal(schema)
			if err != nil {
				return err
			}
			name := strings.ToLower(crd.text("spec", "names", "kind")) + "-" + group + "-" + v.text("name") + ".json"
			if err := write(filepath.Join(dir, name), string(text)); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuseUnknown makes what has properties have no others, as a server that prunes would drop them unseen.
func refuseUnknown(v any) {
	switch v := v.(type) {
	case object:
		_, has := v["properties"].(object)
		_, more := v["additionalProperties"]
		if open, _ := v["x-kubernetes-preserve-unknown-fields"].(bool); has && !more && !open {
			v["additionalProperties"] = false
		}
		if isInt, _ := v["x-kubernetes-int-or-string"].(bool); isInt {
			delete(v, "type")
		}
		for _, one := range v {
			refuseUnknown(one)
		}
	case []any:
		for _, one := range v {
			refuseUnknown(one)
		}
	}
}

func write(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o600)
}
