package app

import (
	"regexp"
	"strings"
	"testing"
)

// A test that a page names as the evidence of a claim exists.
func TestTestsThatPagesNameExist(t *testing.T) {
	t.Parallel()
	code, named := goSources(t, true), 0
	for path, text := range pages(t) {
		if !strings.HasPrefix(path, "docs/") && path != "SECURITY.md" {
			continue // CONTRIBUTING.md names some as examples
		}
		for _, m := range regexp.MustCompile("`(Test[A-Z]\\w+)`").FindAllStringSubmatch(text, -1) {
			named++
			if !strings.Contains(code, "\nfunc "+m[1]+"(t *testing.T)") {
				t.Errorf("%s names %s: there is no such test", path, m[1])
			}
		}
	}
	if named < 40 {
		t.Errorf("only %d tests are named", named)
	}
}
