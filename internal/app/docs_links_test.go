package app

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// pages are the texts of the repository, by their path from its root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			text, err := fs.ReadFile(root, path)
			out[path] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"README.md", "docs/config.md", "docs/brokers/emqx-4.md", "docs/brokers/emqx-5.md", "docs/brokers/embedded.md"} {
		if out[must] == "" {
			t.Errorf("there is no %s", must)
		}
	}
	return out
}

var (
	codeBlock = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```")
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

// anchors are the names by which the headings of a page can be reached.
func anchors(page string) []string {
	var out []string
	for _, m := range heading.FindAllStringSubmatch(codeBlock.ReplaceAllString(page, ""), -1) {
		out = append(out, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return out
}

func TestLinksOfThePagesLeadSomewhere(t *testing.T) {
	t.Parallel()
	all := pages(t)
	checked := 0
	for path, text := range all {
		for _, m := range link.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			checked++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(filepath.Join("../..", target)); err != nil {
				t.Errorf("%s: link %s: %v", path, m[1], err)
			} else if anchor != "" && !slices.Contains(anchors(all[target]), anchor) {
				t.Errorf("%s: link %s: %s has no such heading", path, m[1], target)
			}
		}
	}
	if checked < 12 {
		t.Errorf("only %d links were found", checked)
	}
}

// Whoever pastes a configuration of a page is not refused.
func TestConfigurationsOfThePagesAreAccepted(t *testing.T) {
	t.Parallel()
	checked := 0
	for path, text := range pages(t) {
		if strings.HasPrefix(path, "docs/adr/") || path == "docs/kubernetes.md" { // its blocks are values of the chart, rendered in internal/charttest
			continue
		}
		for _, m := range codeBlock.FindAllStringSubmatch(text, -1) {
			if m[1] != "yaml" {
				continue
			}
			checked++
			block := m[2]
			c, err := Parse([]byte(block), noEnv)
			if err != nil && strings.HasPrefix(block, "rules:") { // an example of rules alone
				c, err = Parse([]byte(block+"\nsinks: {history: {type: memory}, pool1: {type: memory}}\n"), noEnv)
			}
			if err != nil {
				t.Errorf("%s: %v:\n%s", path, err, block)
			}
			if !strings.HasPrefix(path, "docs/brokers/") && path != "docs/webhook.md" || len(c.Rules) == 0 { // or a part of one
				continue
			}
			processes := []string{ProcessIngest, ProcessWriter, ProcessReplayer}
			if len(c.Kafka.Brokers) == 0 {
				processes = []string{ProcessUp}
			}
			for _, p := range processes {
				if err := c.For(p); err != nil {
					t.Errorf("%s: %s: %v:\n%s", path, p, err, block)
				}
			}
		}
	}
	if checked < 8 {
		t.Errorf("only %d configurations were found", checked)
	}
}
