package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The configurations of the pages on brokers are ones that the check accepts, for each process.
func TestConfigurationsOfTheBrokersPagesAreAccepted(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/brokers/*.md")
	if err != nil || len(pages) < 3 {
		t.Fatalf("pages: %q, %v", pages, err)
	}
	for _, page := range append(pages, "../../docs/webhook.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		blocks := strings.Split(string(text), "```yaml\n")[1:]
		if len(blocks) == 0 {
			t.Errorf("%s holds no configuration", page)
		}
		for _, block := range blocks {
			yaml, _, _ := strings.Cut(block, "```")
			c, err := Parse([]byte(yaml), noEnv)
			if err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			if len(c.Rules) == 0 || len(c.Kafka.Brokers) == 0 {
				continue // a part of one, or for restante up
			}
			for _, process := range []string{ProcessIngest, ProcessWriter, ProcessReplayer} {
				if err := c.For(process); err != nil {
					t.Errorf("%s: %s: %v", page, process, err)
				}
			}
		}
	}
}
