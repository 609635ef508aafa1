package dynamodb

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
)

// TestCellsOfABucketFollowEachOther: each id has one cell at each level, in time order, and cells end where the next begins.
func TestCellsOfABucketFollowEachOther(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		micros := rapid.Int64Range(0, 1<<52).Draw(rt, "µs")
		step := rapid.Int64Range(1, 24*60).Draw(rt, "minutes") * 60
		life := time.Duration(rapid.Int64Range(0, 1<<40).Draw(rt, "life, µs")) * time.Microsecond
		id := event.IDOf(micros, 1, 1)
		var expires time.Time
		if life > 0 {
			expires = id.Time().Add(life)
		}
		b := bucketOf(id, expires, step).at(rapid.IntRange(0, maxLevel).Draw(rt, "level"))
		if !b.holds(micros) {
			rt.Fatalf("%s does not hold %d", b, micros)
		}
		if back, ok := parseBucket(b.String()); !ok || back != b {
			rt.Fatalf("%s reads back as %s (%v)", b, back, ok)
		}
		i := b.cell(micros)
		if i < 0 || i >= b.cells() || micros < b.begins(i) || micros >= b.begins(i+1) {
			rt.Fatalf("%d is in cell %d of %s, which lasts from %d to %d", micros, i, b, b.begins(i), b.begins(i+1))
		}
		if b.begins(0) != b.start*1e6 || b.begins(b.cells()) != b.end().UnixMicro() {
			rt.Fatalf("the cells of %s do not fill it", b)
		}
		dies := b.dies(leastKeep)
		if !dies.IsZero() && (expires.IsZero() || dies.Before(expires) || dies.Before(b.end().Add(leastKeep))) {
			rt.Fatalf("%s dies at %s, its id expires at %s", b, dies, expires)
		}
		if n := len(cellKey("", b, b.cells()-1)); n > maxCellName {
			rt.Fatalf("the name of a cell of %s has %d bytes", b, n)
		}
	})
}

func TestKeysOfTopicsAndCellsAreApart(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		topic := rapid.Custom(func(rt *rapid.T) event.Topic {
			return parsed(rt, rapid.StringOfN(rapid.SampledFrom([]rune("a1-\x1f")), 1, 12, -1).Draw(rt, "topic"))
		})
		b := bucketOf(event.IDOf(rapid.Int64Range(0, 3e6).Draw(rt, "µs"), 1, 1), time.Time{}, 1)
		x, y := topic.Draw(rt, "x"), topic.Draw(rt, "y")
		switch rapid.IntRange(0, 2).Draw(rt, "made for it") {
		case 1:
			y = parsed(rt, cellKey(topicKey(x), b, 0))
		case 2:
			y = parsed(rt, cellKey(x.String(), b, 0))
		}
		if cellKey(topicKey(x), b, 0) == topicKey(y) {
			rt.Fatalf("a cell of %q is the item of %q", x, y)
		}
		if x != y && (topicKey(x) == topicKey(y) || cellKey(topicKey(x), b, 0) == cellKey(topicKey(y), b, 0)) {
			rt.Fatalf("%q and %q share a key", x, y)
		}
	})
}

func parsed(rt *rapid.T, s string) event.Topic {
	t, err := event.ParseTopic(s)
	if err != nil {
		rt.Fatal(err)
	}
	return t
}

func FuzzParseBucket(f *testing.F) {
	f.Add("1763859600-600-3-1")
	f.Add("9223372036854775807-1-16-12")
	f.Add("-1--1-0-0")
	f.Fuzz(func(t *testing.T, s string) {
		b, ok := parseBucket(s)
		if !ok {
			return
		}
		if b.String() != s || b.begins(b.cells()) != b.end().UnixMicro() || b.cell(b.end().UnixMicro()-1) != b.cells()-1 {
			t.Errorf("%q is no bucket: %+v", s, b)
		}
	})
}

func TestErrorsAreClassifiedByTheirNames(t *testing.T) {
	t.Parallel()
	api := func(code, message string) error { return &smithy.GenericAPIError{Code: code, Message: message} }
	for sentence, c := range map[string]struct {
		err           error
		poison, fatal bool
	}{
		"throttling passes":                       {api("ProvisionedThroughputExceededException", ""), false, false},
		"a statement's throttling passes":         {&statementError{"ThrottlingError", ""}, false, false},
		"the service's own faults pass":           {api("InternalServerError", ""), false, false},
		"a name that nobody knows passes":         {api("NewException", ""), false, false},
		"what is left unprocessed passes":         {errUnprocessed, false, false},
		"an item that is refused is poison":       {api("ValidationException", "Item size has exceeded the maximum allowed size"), true, false},
		"a statement that is refused is poison":   {&statementError{"ValidationError", "Item size to update has exceeded"}, true, false},
		"a table with another key is fatal":       {api("ValidationException", "The provided key element does not match the schema"), false, true},
		"a missing table is fatal":                {api("ResourceNotFoundException", ""), false, true},
		"a missing right is fatal":                {api("AccessDeniedException", ""), false, true},
		"an unknown key is fatal":                 {api("UnrecognizedClientException", ""), false, true},
		"an expired login is fatal":               {api("ExpiredTokenException", ""), false, true},
		"a statement's missing table is fatal":    {&statementError{"ResourceNotFound", ""}, false, true},
		"an error within an explained one passes": {fmt.Errorf("x: %w", api("RequestLimitExceeded", "")), false, false},
	} {
		err := explain("write into", "t", c.err)
		if fault.IsPoison(err) != c.poison || fault.IsFatal(err) != c.fatal {
			t.Errorf("%s: poison %v, fatal %v: %v", sentence, fault.IsPoison(err), fault.IsFatal(err), err)
		}
	}
	if explain("write into", "t", nil) != nil {
		t.Error("no error became one")
	}
}
