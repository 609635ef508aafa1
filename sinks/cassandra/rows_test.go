package cassandra

import (
	"bytes"
	"math"
	"testing"
	"time"
	"unicode/utf8"
)

func TestPayloadIsTextWhereItCanBe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ payload, text string }{
		"empty":                            {"", ""},
		"text":                             {"22.5 °C", "22.5 °C"},
		"the last of Unicode":              {"\U0010FFFF\x00", "\U0010FFFF\x00"},
		"no UTF-8":                         {"\xff\x00", "\u0001b64:/wA="},
		"half a surrogate":                 {"\xed\xa0\x80", "\u0001b64:7aCA"},
		"text that begins with the mark":   {"\u0001b64:/wA=", "\u0001b64:AWI2NDovd0E9"},
		"the mark alone":                   {"\u0001b64:", "\u0001b64:AWI2NDo="},
		"text that begins as the mark":     {"\u0001b64", "\u0001b64"},
		"text with the mark further in it": {"x\u0001b64:AA==", "x\u0001b64:AA=="},
	} {
		if got := string(payloadText([]byte(c.payload))); got != c.text {
			t.Errorf("%s: %q is stored as %q, want %q", name, c.payload, got, c.text)
		}
		if got := payloadOf([]byte(c.text)); string(got) != c.payload {
			t.Errorf("%s: %q is read as %q, want %q", name, c.text, got, c.payload)
		}
	}
	if payloadText(nil) == nil || payloadOf(nil) == nil {
		t.Error("nil is no payload: it would be a null")
	}
	if foreign := "\u0001b64:not base64"; string(payloadOf([]byte(foreign))) != foreign {
		t.Error("a text of somebody else does not come back")
	}
}

func FuzzPayload(f *testing.F) {
	for _, s := range []string{"", "a", "\xff", marker, marker + "AA==", "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		text := payloadText(p)
		if !utf8.Valid(text) {
			t.Fatalf("%q is stored as %q, which is no text", p, text)
		}
		if got := payloadOf(text); !bytes.Equal(got, p) {
			t.Fatalf("%q is stored as %q and comes back as %q", p, text, got)
		}
	})
}

func TestTTLIsWhatIsLeft(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		expires time.Time
		seconds int
		lives   bool
	}{
		"never":             {time.Time{}, never, true},
		"a week":            {now.Add(7 * 24 * time.Hour), 604800, true},
		"a bit more":        {now.Add(time.Second + time.Microsecond), 2, true},
		"a µs":              {now.Add(time.Microsecond), 1, true},
		"now":               {now, 0, false},
		"over":              {now.Add(-time.Hour), 0, false},
		"over twenty years": {now.Add(maxTTL*time.Second + time.Second), never, true},
		"as far as it can":  {now.Add(math.MaxInt64), never, true},
	} {
		if seconds, lives := ttl(c.expires, now); seconds != c.seconds || lives != c.lives {
			t.Errorf("%s: %d s, lives = %v, want %d, %v", name, seconds, lives, c.seconds, c.lives)
		}
	}
}
