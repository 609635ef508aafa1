package event_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
)

// Ids as EMQX's releases wrote them. Both seed ids must lie in the second of the arrived column beside them.
func TestIDsOfEMQXDecodeToTheirTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		origin, hex, base62, at string
		arrived                 int64 // seconds
	}{
		{
			"DynamoDB backend", "00058CE94E63BEADF44300000A530001", "Mjg4MTk1MDYwNTk0NjYwNzYzMTg4MDk3OTQ2MDU2Nzg1OTD",
			"2019-07-05T06:35:53.981613Z", 1562308553,
		},
		{
			"DynamoDB backend, retained", "00058CEA228A3D79F440000008D40001", "Mjg4MTk1NzE3MTY4MjYxMjA5MDExMDg0NTk5ODgzMjAyNTH",
			"2019-07-05T07:35:13.274233Z", 1562312113,
		},
		{
			"rule action up to 4.2, without leading zeros", "5AC1C6D8D81FAF442000009880001", "",
			"2020-08-05T07:36:20.605434Z", 1596612980,
		},
		{"2.x Cassandra backend", "00054879E3CEEBBAF4400000058E0001", "", "2017-02-14T09:07:13.784762Z", 0},
		{"2.x MongoDB backend", "000544C26D256B846E7E000005E20001", "", "2016-12-29T01:58:49.066372Z", 0},
		{
			"4.4.19", "000660E2BFC3B3B2F49E000001AD0001", "MzMxMTg4NTczODYxMTM3NjUzMjEzNDM2NDg5Mjg2OTQyNzD",
			"2026-11-22T19:47:36.413106Z", 1795376856,
		},
	} {
		id := eventtest.ID(t, c.hex)
		if got := id.Time().UTC().Format(time.RFC3339Nano); got != c.at {
			t.Errorf("%s: time is %s, want %s", c.origin, got, c.at)
		}
		if want := strings.Repeat("0", 32-len(c.hex)) + c.hex; id.String() != want {
			t.Errorf("%s: text is %s, want %s", c.origin, id, want)
		}
		if c.arrived != 0 && id.Time().Unix() != c.arrived {
			t.Errorf("%s: second is %d, arrived says %d", c.origin, id.Time().Unix(), c.arrived)
		}
		if c.base62 == "" {
			continue
		}
		if got := id.Base62(); got != c.base62 {
			t.Errorf("%s: base62 is %s, want %s", c.origin, got, c.base62)
		}
		if got, err := event.ParseBase62(c.base62); err != nil || got != id {
			t.Errorf("%s: ParseBase62 = %v, %v, want %v", c.origin, got, err, id)
		}
	}
}

func TestParseIDRefuses(t *testing.T) {
	t.Parallel()
	for sentence, text := range map[string]string{
		"nothing":                       "",
		"zero":                          "0",
		"32 zeros":                      strings.Repeat("0", 32),
		"33 digits":                     strings.Repeat("1", 33),
		"a letter beyond F":             "000660E2BFC3B3B2F49E000001AD000G",
		"a sign":                        "+5AC1C6D8D81FAF442000009880001",
		"spaces":                        " 00660E2BFC3B3B2F49E000001AD0001",
		"a time part over 63 bits":      "8000000000000000F49E000001AD0001",
		"positional base62 (EMQX 2.x)":  "2PguFrHsrzEvIIBdctmb",
		"base64 (EMQX 2.x)":             "AAVEwm0la4RufgAABeIAAQ==",
		"the base62 of EMQX's backends": "Mjg4MTk1MDYwNTk0NjYwNzYzMTg4MDk3OTQ2MDU2Nzg1OTD",
	} {
		if id, err := event.ParseID(text); err == nil || !id.IsZero() {
			t.Errorf("%s: ParseID(%q) = %v, %v", sentence, text, id, err)
		}
	}
}

func TestParseBase62Refuses(t *testing.T) {
	t.Parallel()
	for sentence, text := range map[string]string{
		"nothing":                                "",
		"hex":                                    "00058CE94E63BEADF44300000A530001",
		"positional base62 (EMQX 2.x)":           "2PguFrHsrzEvIIBdctmb",
		"a character outside the alphabet":       "Mjg4-",
		"a 9 with nothing behind it":             "Mjg9",
		"a 9 with a letter that means nothing":   "Mjg9D",
		"one group left over":                    "Mjg4M",
		"text that is no number":                 "YWJj", // abc
		"a signed number":                        "KzEy", // +12
		"a number with leading zeros":            "MDAx", // 001
		"zero":                                   "MA",   // 0, the short group not shifted
		"a short last group that was shifted":    "Mjg4MQ==",
		"more than 127 bits":                     strings.Repeat("OTk5", 14),
		"more than any id can have":              strings.Repeat("A", 129),
		"a last group with bits beyond its byte": "M9A",
	} {
		if id, err := event.ParseBase62(text); err == nil || !id.IsZero() {
			t.Errorf("%s: ParseBase62(%q) = %v, %v", sentence, text, id, err)
		}
	}
}

func TestWithTimeKeepsNodeAndSequence(t *testing.T) {
	t.Parallel()
	id := eventtest.ID(t, "000660E2BFC3B3B2F49E000001AD0001")
	at := time.UnixMicro(1_562_308_553_981_613)
	if got, want := id.WithTime(at).String(), "00058CE94E63BEADF49E000001AD0001"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func drawID(t *rapid.T, label string) event.ID {
	micros := rapid.OneOf(rapid.Int64Range(1, 1<<63-1), rapid.Int64Range(1_700_000_000_000_000, 1_700_000_000_000_009)).Draw(t, label)
	return event.IDOf(micros, rapid.Uint64Range(0, 1<<48-1).Draw(t, label+" node"), rapid.Uint16().Draw(t, label+" seq"))
}

func TestTextOrderIsTimeOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawID(t, "a"), drawID(t, "b")
		if got, want := strings.Compare(a.String(), b.String()), a.Compare(b); got != want {
			t.Fatalf("%s and %s compare %d as text and %d as ids", a, b, got, want)
		}
		if a.Time().Before(b.Time()) && a.Compare(b) >= 0 {
			t.Fatalf("%s is earlier than %s but not less", a, b)
		}
		if got, err := event.ParseID(a.String()); err != nil || got != a {
			t.Fatalf("%s comes back as %v, %v", a, got, err)
		}
		if got, err := event.ParseID(strings.ToLower(strings.TrimLeft(a.String(), "0"))); err != nil || got != a {
			t.Fatalf("%s without zeros, in lower case, comes back as %v, %v", a, got, err)
		}
	})
}

func TestFirstAndLastIDBoundTheirMicrosecond(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := drawID(t, "id")
		first, last := event.FirstIDAt(id.Time()), event.LastIDAt(id.Time())
		if id.Compare(first) < 0 || id.Compare(last) > 0 {
			t.Fatalf("%s is outside %s to %s", id, first, last)
		}
		if before := event.LastIDAt(id.Time().Add(-time.Microsecond)); id.Micros() > 1 && before.Compare(first) >= 0 {
			t.Fatalf("%s, the end of the microsecond before, is not below %s", before, first)
		}
	})
}

func TestBeforeIsTheNextSmallerID(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"00000000000000010000000000000000": "0000000000000000FFFFFFFFFFFFFFFF",
		"000660E2BFC3B3B2F49E000001AD0001": "000660E2BFC3B3B2F49E000001AD0000",
		"00000000000000000000000000000001": "00000000000000000000000000000000",
	} {
		if got := eventtest.ID(t, text).Before().String(); got != want {
			t.Errorf("before %s is %s, want %s", text, got, want)
		}
	}
	if got := (event.ID{}).Before(); !got.IsZero() {
		t.Errorf("before no id is %s: a lower bound that shuts out everything", got)
	}
}

func TestBase62ComesBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		// The decimal text of small ids has other lengths modulo three.
		id := event.IDOf(rapid.Int64Range(0, 1<<rapid.IntRange(0, 62).Draw(t, "bits")).Draw(t, "micros"),
			rapid.Uint64Range(0, 1<<48-1).Draw(t, "node"), rapid.Uint16Min(1).Draw(t, "seq"))
		if got, err := event.ParseBase62(id.Base62()); err != nil || got != id {
			t.Fatalf("%s as %q comes back as %v, %v", id, id.Base62(), got, err)
		}
	})
}

func TestMintStrictlyIncreasesWhateverTheClockDoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := time.UnixMicro(1_700_000_000_000_000)
		m := event.Minter{Node: rapid.Uint64().Draw(t, "node"), Now: func() time.Time { return now }}
		last := int64(0)
		for _, step := range rapid.SliceOf(rapid.Int64Range(-3_600_000_000, 1_000)).Draw(t, "steps") {
			now = now.Add(time.Duration(step) * time.Microsecond)
			id := m.Mint()
			if id.Micros() <= last {
				t.Fatalf("minted %d µs after %d µs", id.Micros(), last)
			}
			if id.Micros() != max(now.UnixMicro(), last+1) {
				t.Fatalf("minted %d µs at %d µs, the last was %d µs", id.Micros(), now.UnixMicro(), last)
			}
			last = id.Micros()
		}
	})
}

func TestMintIsUniqueAcrossGoroutines(t *testing.T) {
	t.Parallel()
	const workers, each = 8, 500
	at := time.UnixMicro(1_700_000_000_000_000)
	m := event.Minter{Node: 7, Now: func() time.Time { return at }}
	var wg sync.WaitGroup
	minted := make([][]event.ID, workers)
	for w := range workers {
		wg.Go(func() {
			for range each {
				minted[w] = append(minted[w], m.Mint())
			}
		})
	}
	wg.Wait()
	for w, ids := range minted {
		if !slices.IsSortedFunc(ids, event.ID.Compare) {
			t.Errorf("worker %d got ids out of order", w)
		}
	}
	all := slices.Concat(minted...)
	slices.SortFunc(all, event.ID.Compare)
	for i, id := range all {
		if want := at.UnixMicro() + int64(i); id.Micros() != want {
			t.Fatalf("id %d has %d µs, want %d: each microsecond once", i, id.Micros(), want)
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"000660E2BFC3B3B2F49E000001AD0001", "5AC1C6D8D81FAF442000009880001", "0", "fF", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := event.ParseID(s)
		if err != nil {
			return
		}
		if id.IsZero() || id.Micros() < 0 {
			t.Fatalf("%q is taken as %s", s, id)
		}
		if want := strings.Repeat("0", 32-len(s)) + strings.ToUpper(s); id.String() != want {
			t.Fatalf("%q comes back as %s", s, id)
		}
	})
}

func FuzzParseBase62(f *testing.F) {
	for _, s := range []string{
		"Mjg4MTk1MDYwNTk0NjYwNzYzMTg4MDk3OTQ2MDU2Nzg1OTD", "MzMxMTg4NTczODYxMTM3NjUzMjEzNDM2NDg5Mjg2OTQyNzD",
		"MB", "MTC", "Mjgz", "9A9B9C", "MDAx", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := event.ParseBase62(s)
		if err != nil {
			return
		}
		if id.IsZero() || id.Micros() < 0 || id.Base62() != s {
			t.Fatalf("%q is taken as %s, which is %q", s, id, id.Base62())
		}
	})
}
