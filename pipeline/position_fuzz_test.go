package pipeline_test

import (
	"testing"

	"github.com/restante/restante/pipeline"
)

// FuzzPositionKey: whatever text stands in the table of acked messages is left alone, or is the position that would be written so.
func FuzzPositionKey(f *testing.F) {
	for _, text := range []string{"a/b", "a/#", "a/+/#/in/a/#", "a/#/#/open", "+/#/in/b/#/#/own", "#/in/a", "a/#/own/#/open", "$share/g/a/#/in/a", "\x00", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if again, ok := pipeline.Rescoped(text); ok && again != text {
			t.Errorf("%q is read as %q", text, again)
		}
	})
}
