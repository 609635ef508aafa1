package app

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/pipeline"
)

// goSources are the Go files of the repository, those of tests or the others, as one text.
func goSources(t *testing.T, tests bool) string {
	t.Helper()
	var all strings.Builder
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".go" && strings.HasSuffix(path, "_test.go") == tests {
			text, err := fs.ReadFile(root, path)
			all.Write(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// headers are the beginnings of what looks like a metric and is none: the headers of dead letters, and names of EMQX's connectors.
var headers = []string{"restante_dead_", "restante_publish", "restante_acked", "restante_sessions"}

var metric = regexp.MustCompile(`\brestante_[a-z0-9_]+\b`)

// A metric that a page tells people to watch exists, with the values of its labels.
func TestMetricsThatPagesNameExist(t *testing.T) {
	t.Parallel()
	code, named := goSources(t, false), 0
	var known []string
	for _, component := range []string{ProcessIngest, ProcessWriter, ProcessReplayer} {
		for _, f := range exported(t, component).families {
			known = append(known, f.name)
			if f.kind == "histogram" {
				known = append(known, f.name+"_bucket", f.name+"_count", f.name+"_sum")
			}
		}
	}
	for path, text := range pages(t) {
		if strings.HasPrefix(path, "docs/adr/") {
			continue
		}
		for _, name := range metric.FindAllString(text, -1) {
			named++
			exists := slices.Contains(known, name) || slices.ContainsFunc(headers, func(h string) bool { return strings.HasPrefix(name, h) })
			if !exists && !strings.HasSuffix(name, "_") { // the beginning of several
				t.Errorf("%s names %s: there is no such metric", path, name)
			}
		}
		for _, m := range regexp.MustCompile(`restante_\w+\{\w+="(\w+)"\}`).FindAllStringSubmatch(text, -1) {
			if !strings.Contains(code, `"`+m[1]+`"`) {
				t.Errorf("%s names %s: there is no such value", path, m[0])
			}
		}
	}
	if named < 20 {
		t.Errorf("only %d metrics are named", named)
	}
}

var actionRow = regexp.MustCompile("(?m)^\\| \\[`(on_\\w+)`\\]\\(#\\w+\\) \\| (.*?) \\| \\w+ \\| (.*?) ?\\|$")

// The page on actions gives each the options that mean something to it.
func TestThePageOnActionsGivesEachItsOptions(t *testing.T) {
	t.Parallel()
	options := fullRule().set()
	got, want := map[string]string{}, map[string]string{}
	for _, m := range actionRow.FindAllStringSubmatch(pages(t)["docs/actions.md"], -1) {
		action := pipeline.Action(m[1])
		var means []string
		for _, o := range options {
			if slices.ContainsFunc(strings.Split(m[2], ", "), func(hook string) bool {
				return takes(o, bound{pipeline.Hook(strings.Trim(hook, "`")), action})
			}) {
				means = append(means, strings.Replace("`"+o+"`", "`ack`", "`ack.ignore_clients`", 1))
			}
		}
		slices.Sort(means)
		shown := slices.DeleteFunc(strings.Split(m[3], ", "), func(s string) bool { return s == "" })
		slices.Sort(shown)
		got[m[1]], want[m[1]] = strings.Join(shown, ", "), strings.Join(means, ", ")
	}
	if d := cmp.Diff(want, got); d != "" || len(got) < 10 {
		t.Errorf("docs/actions.md (-true +shown):\n%s", d)
	}
}

// fullRule has a value for every option.
func fullRule() Rule {
	var r Rule
	fill(reflect.ValueOf(&r).Elem())
	return r
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range v.Fields() {
			fill(f)
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(time.Minute))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	default:
		panic("no value for " + v.Type().String()) // a new kind of option: give it one
	}
}
