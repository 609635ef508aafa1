package charttest

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// TestTheValuesOfThePageRender: the first block of docs/kubernetes.md stands alone, each other one on top of it.
func TestTheValuesOfThePageRender(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllSubmatch(text, -1)
	if len(blocks) < 5 {
		t.Fatalf("the page has %d blocks of values", len(blocks))
	}
	dir := t.TempDir()
	var args []string
	for i, b := range blocks {
		file := filepath.Join(dir, strconv.Itoa(i)+".yaml")
		if err := os.WriteFile(file, b[1], 0o600); err != nil {
			t.Fatal(err)
		}
		all := append(append([]string{}, args...), "-f", file)
		if _, err := tryRender(t, newest, all...); err != nil {
			t.Errorf("block %d: %v\n%s", i+1, err, b[1])
		}
		if i == 0 {
			args = all
		}
	}
}
