package alerttest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/alerttest"
)

var query = regexp.MustCompile("(?s)```promql\n(.*?)\n```")

// TestQueriesOfThePagesAskOnlyForWhatThereIs: those of the runbooks are looked at with their alerts.
func TestQueriesOfThePagesAskOnlyForWhatThereIs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(alerttest.Root(), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	known, exprs := catalogue(t), map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, q := range query.FindAllStringSubmatch(string(text), -1) {
			exprs[fmt.Sprintf("%s/%d", filepath.Base(file), i)] = q[1]
			for _, f := range faults(known, q[1]) {
				t.Errorf("%s: %s: %s", file, q[1], f)
			}
		}
	}
	if len(exprs) == 0 {
		t.Error("no page has a query")
	}
	parses(t, exprs)
}

// TestEachAlertHasItsPage with what it means and does, where to look and what to do; and each page its alert.
func TestEachAlertHasItsPage(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(alerttest.Root(), "docs", "runbooks")
	files, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := catalogue(t)
	known["up"], known["process_start_time_seconds"] = nil, nil
	index, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	groups, _ := alerttest.Rules(t, "")
	severity := map[string]string{}
	for _, g := range groups {
		for _, r := range g.Rules {
			severity[r.Alert] = r.Labels["severity"]
		}
	}
	var pages []string
	exprs := map[string]string{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		if name == "README" {
			continue
		}
		pages = append(pages, name)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		headings := regexp.MustCompile(`(?m)^#+ .*$`).FindAllString(string(text), -1)
		if d := cmp.Diff([]string{"# " + name, "## What it means", "## What it does", "## Look", "## Do"}, headings); d != "" {
			t.Errorf("%s has other headings (-want +got):\n%s", name, d)
		}
		queries := query.FindAllStringSubmatch(string(text), -1)
		if len(queries) == 0 || !strings.Contains(string(text), "\n1. ") {
			t.Errorf("%s has %d queries, or nothing to do", name, len(queries))
		}
		for i, q := range queries {
			exprs[fmt.Sprintf("%s/%d", name, i)] = q[1]
			for _, f := range faults(known, q[1]) {
				t.Errorf("%s: %s: %s", name, q[1], f)
			}
		}
		if line := fmt.Sprintf("| [%s](%s.md) | %s |", name, name, severity[name]); !strings.Contains(string(index), line) {
			t.Errorf("README.md has no line that begins with %s", line)
		}
	}
	var alerts []string
	for name := range severity {
		alerts = append(alerts, name)
	}
	slices.Sort(alerts)
	slices.Sort(pages)
	if d := cmp.Diff(alerts, pages); d != "" {
		t.Errorf("pages (-alerts +pages):\n%s", d)
	}
	parses(t, exprs)
}
