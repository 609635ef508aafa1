package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/restante/restante/fault"
)

func TestMarksClassifyAnErrorAndAllThatWrapsIt(t *testing.T) {
	t.Parallel()
	poison, fatal := fault.Poison(io.EOF), fault.Fatal(io.EOF)
	for _, c := range []struct {
		sentence      string
		err           error
		poison, fatal bool
	}{
		{"nil is nothing", nil, false, false},
		{"an unmarked error is transient", io.EOF, false, false},
		{"a poison mark", poison, true, false},
		{"a fatal mark", fatal, false, true},
		{"a wrapped poison mark", fmt.Errorf("store row: %w", poison), true, false},
		{"a wrapped fatal mark", fmt.Errorf("store row: %w", fatal), false, true},
		{"a joined poison mark", errors.Join(io.ErrUnexpectedEOF, poison), true, false},
		{"fatal wins over the poison within", fault.Fatal(poison), false, true},
		{"fatal wins over the poison around", fault.Poison(fatal), false, true},
		{"fatal wins over the poison beside", errors.Join(poison, fatal), false, true},
	} {
		if got := fault.IsPoison(c.err); got != c.poison {
			t.Errorf("%s: IsPoison = %v", c.sentence, got)
		}
		if got := fault.IsFatal(c.err); got != c.fatal {
			t.Errorf("%s: IsFatal = %v", c.sentence, got)
		}
	}
}

func TestMarksKeepTheErrorAndItsText(t *testing.T) {
	t.Parallel()
	for name, mark := range map[string]func(error) error{"Poison": fault.Poison, "Fatal": fault.Fatal} {
		if err := mark(nil); err != nil {
			t.Errorf("%s(nil) = %v", name, err)
		}
		err := mark(fmt.Errorf("read row 7: %w", io.EOF))
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s hides the cause", name)
		}
		if got, want := err.Error(), "read row 7: EOF"; got != want {
			t.Errorf("%s: text is %q, want %q", name, got, want)
		}
	}
}
