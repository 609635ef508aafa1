// Package archtest holds the directions of the imports: event, fault ← sinks ← pipeline ← kafkalog, mqtt ← internal/app ← cmd.
package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/restante/restante"

// pkg is a package of ours as go list shows it. Its path and what it imports of ours are relative to the module.
type pkg struct {
	ImportPath   string
	Imports      []string // without its tests
	TestImports  []string
	XTestImports []string
	Deps         []string // all that Imports needs
}

// A pattern is a package, or a folder and all below it when it ends in "/...".
func matches(pattern, pkgPath string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkgPath == dir || strings.HasPrefix(pkgPath, dir+"/")
	}
	return pkgPath == pattern
}

func matchesAny(patterns []string, pkgPath string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkgPath) })
}

type layer struct {
	pattern string
	ours    []string
	others  []string
	free    bool // the other modules are not limited here
}

// layers says what each package may import of ours, and which modules of others; the first pattern that matches decides.
// A package that none matches needs a line here.
var layers = []layer{
	{pattern: "event"},
	{pattern: "event/eventtest", ours: []string{"event"}},
	{pattern: "fault"},
	{pattern: "sinks", ours: []string{"event", "fault"}},
	{pattern: "sinks/...", ours: []string{"event", "fault", "sinks/..."}, free: true},
	{
		pattern: "pipeline", ours: []string{"event", "fault", "sinks"},
		others: []string{"github.com/prometheus/client_golang/...", "golang.org/x/sync/...", "golang.org/x/time/..."},
	},
	{pattern: "internal/dirlock"},
	{pattern: "internal/certtest"},
	{pattern: "internal/alerttest", others: []string{"go.yaml.in/yaml/v3"}},
	{pattern: "pipeline/spool", ours: []string{"event", "fault", "pipeline", "internal/dirlock"}, free: true},
	{pattern: "pipeline/...", ours: []string{"event", "fault", "sinks", "pipeline/..."}, free: true},
	{pattern: "mqtt/...", ours: []string{"event", "fault", "sinks", "pipeline", "mqtt/..."}, free: true},
	{pattern: "internal/archtest"},
	{pattern: "internal/app/...", ours: broad, free: true},
	{pattern: "internal/stack/...", ours: broad, free: true},
	{pattern: "internal/sim/...", ours: broad, free: true},
	{pattern: "internal/e2e/...", ours: append([]string{"internal/e2e/..."}, broad...), free: true},
	{pattern: "internal/charttest"},
	{pattern: "bench/...", ours: append([]string{"bench/..."}, broad...), free: true},
	{pattern: "cmd/...", ours: append([]string{"cmd/..."}, broad...), free: true},
}

var broad = []string{
	"event", "fault", "sinks/...", "pipeline/...", "mqtt/...", "internal/app/...", "internal/stack/...", "internal/sim/...", "internal/dirlock", "internal/certtest",
}

// homes says where the drivers of other systems may be imported; tests may use what they need.
var homes = []struct {
	module string
	in     []string
}{
	{"github.com/segmentio/kafka-go", []string{"pipeline/kafkalog/...", "internal/stack/...", "bench/..."}},
	{"github.com/eclipse/paho.golang", []string{"mqtt/...", "bench/..."}},
	{"github.com/mochi-mqtt/server/v2", []string{"mqtt/embedded/...", "mqtt/exhook/exhooktest", "mqtt/mochitest", "internal/e2e/...", "bench/..."}},
	{"github.com/gocql/gocql", []string{"sinks/cassandra/...", "bench/..."}},
	{"github.com/aws/aws-sdk-go-v2", []string{"sinks/dynamodb/...", "pipeline/kafkalog", "internal/app/...", "bench/..."}},
	{"google.golang.org/grpc", []string{"mqtt/exhook/...", "bench/..."}},
}

// faults checks the packages against layers and homes.
func faults(pkgs []pkg) []string {
	var found []string
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	for _, p := range pkgs {
		i := slices.IndexFunc(layers, func(l layer) bool { return matches(l.pattern, p.ImportPath) })
		if i < 0 {
			say("%s has no place among the layers: give it one", p.ImportPath)
			continue
		}
		l := layers[i]
		for _, imported := range p.Imports {
			switch own, isOurs := ours(imported); {
			case isOurs && !matchesAny(l.ours, own):
				say("%s imports %s: the layers allow it %q", p.ImportPath, own, l.ours)
			case !isOurs && !standard(imported) && !l.free && !matchesAny(l.others, imported):
				say("%s imports %s: the layers allow it %q", p.ImportPath, imported, l.others)
			}
			for _, h := range homes {
				if matches(h.module+"/...", imported) && !matchesAny(h.in, p.ImportPath) {
					say("%s imports %s, which belongs in %q", p.ImportPath, imported, h.in)
				}
			}
		}
		if p.ImportPath != "pipeline" {
			continue
		}
		// Not by a detour either, and not in its tests: the whole of it must run on fakes, in one bubble.
		for _, dep := range slices.Concat(p.Deps, p.TestImports, p.XTestImports) {
			for _, h := range homes {
				if matches(h.module+"/...", dep) {
					say("pipeline needs %s", dep)
				}
			}
		}
	}
	for _, h := range homes {
		// A driver whose first home is there, and imports something else, has another path by now: the rule holds nothing.
		home := func(p pkg) bool { return matches(h.in[0], p.ImportPath) }
		uses := func(p pkg) bool {
			return home(p) && slices.ContainsFunc(p.Imports, func(s string) bool { return matches(h.module+"/...", s) })
		}
		if slices.ContainsFunc(pkgs, home) && !slices.ContainsFunc(pkgs, uses) {
			say("nothing in %s imports %s: the rule for it holds nothing", h.in[0], h.module)
		}
	}
	return found
}

func ours(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

func standard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

const root = "../.."

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("read what go list says: %v", err)
		}
		own, ok := ours(p.ImportPath)
		if !ok {
			t.Fatalf("go list shows %s, which is not ours", p.ImportPath)
		}
		p.ImportPath = own
		pkgs = append(pkgs, p)
	}
}

// folders are the folders of the module that hold Go code.
func folders(t *testing.T) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && file != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "tools") {
			return filepath.SkipDir
		}
		if !d.IsDir() && path.Ext(name) == ".go" {
			rel, err := filepath.Rel(root, filepath.Dir(file))
			if err != nil {
				return err
			}
			dirs = append(dirs, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

func TestImportsPointOneWay(t *testing.T) {
	t.Parallel()
	pkgs := list(t)
	for _, must := range []string{"event", "fault", "sinks", "pipeline"} {
		if !slices.ContainsFunc(pkgs, func(p pkg) bool { return p.ImportPath == must }) {
			t.Errorf("package %s is gone", must)
		}
	}
	for _, dir := range folders(t) {
		if !slices.ContainsFunc(pkgs, func(p pkg) bool { return p.ImportPath == dir }) {
			t.Errorf("folder %s holds Go code, but go list does not show it", dir)
		}
	}
	for _, f := range faults(pkgs) {
		t.Error(f)
	}
}

// Each rule must be able to fail.
func TestEveryRuleFindsItsFault(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sentence string
		pkg      pkg
		want     string
	}{
		{"event imports ours", pkg{ImportPath: "event", Imports: []string{module + "/fault"}}, "event imports fault"},
		{"event imports another's", pkg{ImportPath: "event", Imports: []string{"github.com/google/uuid"}}, "event imports github.com/google/uuid"},
		{"fault imports ours", pkg{ImportPath: "fault", Imports: []string{module + "/event"}}, "fault imports event"},
		{"the contract imports a store", pkg{ImportPath: "sinks", Imports: []string{module + "/sinks/memory"}}, "sinks imports sinks/memory"},
		{"a store imports the pipeline", pkg{ImportPath: "sinks/memory", Imports: []string{module + "/pipeline"}}, "sinks/memory imports pipeline"},
		{"pipeline imports a store", pkg{ImportPath: "pipeline", Imports: []string{module + "/sinks/memory"}}, "pipeline imports sinks/memory"},
		{"pipeline imports what stands on it", pkg{ImportPath: "pipeline", Imports: []string{module + "/pipeline/kafkalog"}}, "pipeline imports pipeline/kafkalog"},
		{"pipeline imports another's", pkg{ImportPath: "pipeline", Imports: []string{"go.yaml.in/yaml/v3"}}, "pipeline imports go.yaml.in/yaml/v3"},
		{"pipeline needs a driver by a detour", pkg{ImportPath: "pipeline", Deps: []string{"github.com/gocql/gocql"}}, "pipeline needs github.com/gocql/gocql"},
		{"pipeline is tested on a driver", pkg{ImportPath: "pipeline", XTestImports: []string{"github.com/segmentio/kafka-go"}}, "pipeline needs github.com/segmentio/kafka-go"},
		{"the wiring imports kafka-go", pkg{ImportPath: "internal/app", Imports: []string{"github.com/segmentio/kafka-go/sasl"}}, "which belongs in"},
		{"kafkalog imports paho", pkg{ImportPath: "pipeline/kafkalog", Imports: []string{"github.com/eclipse/paho.golang/paho"}}, "which belongs in"},
		{"mqtt imports the embedded broker's server", pkg{ImportPath: "mqtt", Imports: []string{"github.com/mochi-mqtt/server/v2"}}, "which belongs in"},
		{"mqtt imports kafkalog", pkg{ImportPath: "mqtt", Imports: []string{module + "/pipeline/kafkalog"}}, "mqtt imports pipeline/kafkalog"},
		{"the wiring imports a command", pkg{ImportPath: "internal/app", Imports: []string{module + "/cmd/restante"}}, "internal/app imports cmd/restante"},
		{"a new package", pkg{ImportPath: "internal/helpers"}, "internal/helpers has no place"},
		{"a driver under another path", pkg{ImportPath: "pipeline/kafkalog", Imports: []string{"github.com/other/kafka"}}, "holds nothing"},
	} {
		if got := faults([]pkg{c.pkg}); !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, c.want) }) {
			t.Errorf("%s: got %q, want one with %q", c.sentence, got, c.want)
		}
	}
}
