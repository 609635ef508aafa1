package pipeline_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Whatever a record's own headers are, those of a dead letter too, they come back as they were.
func TestADeadLetterGivesItsRecordsHeadersBack(t *testing.T) {
	t.Parallel()
	names := []string{
		"ce_id", "x", "ce_time", pipeline.HeaderDeadReason, pipeline.HeaderDeadError, pipeline.HeaderDeadTopic, pipeline.HeaderDeadPartition,
		pipeline.HeaderDeadOffset, pipeline.HeaderDeadTime, pipeline.HeaderDeadBy,
	}
	rapid.Check(t, func(rt *rapid.T) {
		header := rapid.Custom(func(rt *rapid.T) event.Header {
			return event.Header{Key: rapid.SampledFrom(names).Draw(rt, "key"), Value: []byte(rapid.String().Draw(rt, "value"))}
		})
		headers := rapid.SliceOfN(header, 0, 8).Draw(rt, "headers")
		o := pipeline.Obituary{
			Reason: rapid.SampledFrom(pipeline.Reasons).Draw(rt, "reason"), Cause: rapid.String().Draw(rt, "cause"),
			Topic: rapid.String().Draw(rt, "topic"), Offset: pipeline.NoOffset, By: rapid.String().Draw(rt, "by"),
		}
		if rapid.Bool().Draw(rt, "was in its topic") {
			o.Part, o.Offset = rapid.IntRange(0, 100).Draw(rt, "part"), rapid.Int64Range(0, 1<<40).Draw(rt, "offset")
		}
		if rapid.Bool().Draw(rt, "has a time") {
			o.Time = time.UnixMilli(rapid.Int64Range(-1<<40, 1<<42).Draw(rt, "time")).UTC()
		}
		before := slices.Clone(headers)
		dead := o.Append(headers)
		got, rest, ok := pipeline.ReadObituary(dead)
		if !ok || !cmp.Equal(got, o) || len(rest) != len(headers) || len(rest) > 0 && !cmp.Equal(rest, headers) {
			rt.Errorf("%v: got %+v and headers %q, want %+v and %q", ok, got, rest, o, headers)
		}
		if !cmp.Equal(headers, before) {
			rt.Error("the record's headers have changed")
		}
		// A letter that waited in a spool for long has one more header, which is its record's.
		late := event.Restamp(event.Wire{Headers: dead, Time: time.UnixMilli(1_000)}, time.UnixMilli(1_000_000_000))
		want := event.Restamp(event.Wire{Headers: headers, Time: time.UnixMilli(1_000)}, time.UnixMilli(1_000_000_000))
		if got, rest, ok = pipeline.ReadObituary(late.Headers); !ok || !cmp.Equal(got, o) || !cmp.Equal(rest, want.Headers) {
			rt.Errorf("after a spool %v: got %+v and headers %q, want %+v and %q", ok, got, rest, o, want.Headers)
		}
	})
}

func TestALongCauseIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	o, _, _ := pipeline.ReadObituary(pipeline.Obituary{Cause: strings.Repeat("ä", 3000), Offset: pipeline.NoOffset}.Append(nil))
	if len(o.Cause) > 2000 || len(o.Cause) < 1990 || strings.Trim(o.Cause, "ä") != "" {
		t.Errorf("%d bytes, ends in %q", len(o.Cause), o.Cause[len(o.Cause)-5:])
	}
}

// Whoever writes a dead letter gives one of the reasons, and the page on dead letters explains each.
func TestTheReasonsAreAClosedSet(t *testing.T) {
	t.Parallel()
	named := map[string]bool{}
	headers := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		reason := func(e ast.Expr) {
			name := ""
			switch e := e.(type) {
			case *ast.Ident:
				name = e.Name
			case *ast.SelectorExpr:
				name = e.Sel.Name
			}
			if name == "reason" { // handed on
				return
			}
			if !strings.HasPrefix(name, "Reason") {
				t.Errorf("%s: a dead letter for %q, which is none of the reasons", path, name)
			}
			named[name] = true
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Bury" && len(n.Args) == 4 {
					reason(n.Args[2])
				}
			case *ast.AssignStmt: // reason := ReasonMalformed
				for i, l := range n.Lhs {
					if id, ok := l.(*ast.Ident); ok && id.Name == "reason" && i < len(n.Rhs) && filepath.Base(path) == "flush.go" {
						reason(n.Rhs[i])
					}
				}
			case *ast.CompositeLit:
				for _, e := range n.Elts {
					kv, ok := e.(*ast.KeyValueExpr)
					if !ok {
						continue
					}
					typ, _ := n.Type.(*ast.Ident)
					sel, _ := n.Type.(*ast.SelectorExpr)
					field, _ := kv.Key.(*ast.Ident)
					if field != nil && field.Name == "Reason" && (typ != nil && typ.Name == "Obituary" || sel != nil && sel.Sel.Name == "Obituary") && filepath.Base(path) != "obituary.go" {
						reason(kv.Value)
					}
					if v, _ := kv.Value.(*ast.Ident); v != nil && v.Name == "HeaderDeadReason" {
						headers++
					}
					if v, _ := kv.Value.(*ast.SelectorExpr); v != nil && v.Sel.Name == "HeaderDeadReason" {
						headers++
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(named) != len(pipeline.Reasons) {
		t.Errorf("dead letters are written for %v, and the reasons are %q", named, pipeline.Reasons)
	}
	if headers != 1 {
		t.Errorf("the header of the reason is written at %d places, want at one: by Obituary.Append", headers)
	}
	page, err := os.ReadFile("../docs/deadletters.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range pipeline.Reasons {
		if got, err := pipeline.ParseReason(string(r)); err != nil || got != r {
			t.Errorf("%s is read as %q: %v", r, got, err)
		}
		if !strings.Contains(string(page), "| `"+string(r)+"` |") {
			t.Errorf("docs/deadletters.md does not explain %s", r)
		}
	}
	if r, err := pipeline.ParseReason("because"); err == nil {
		t.Errorf("because is read as %q", r)
	}
}
