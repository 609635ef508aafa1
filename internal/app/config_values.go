package app

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
)

// mask stands for a secret wherever one is shown.
const mask = "******"

// Secret is a text that is never shown: every way to print, log or encode it gives a mask. [Secret.Reveal] gives the text.
type Secret string

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// String masks the secret; an empty one is shown as empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// Format masks the secret for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText masks the secret, in JSON too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML masks the secret.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// LogValue masks the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Size is a number of bytes.
type Size int64

// Units of [Size].
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

// String writes the size in the largest unit that divides it.
func (s Size) String() string {
	switch {
	case s == 0:
		return "0"
	case s%GiB == 0:
		return strconv.FormatInt(int64(s/GiB), 10) + "GiB"
	case s%MiB == 0:
		return strconv.FormatInt(int64(s/MiB), 10) + "MiB"
	case s%KiB == 0:
		return strconv.FormatInt(int64(s/KiB), 10) + "KiB"
	}
	return strconv.FormatInt(int64(s), 10)
}

// ParseSize reads a number of bytes: 1024, 256KiB, 8MiB, 1GiB.
func ParseSize(text string) (Size, error) {
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(text[:end], 10, 64)
	if end == 0 || err != nil {
		return 0, fmt.Errorf("%q is no size: write bytes, or a number with KiB, MiB or GiB", text)
	}
	unit := Size(1)
	switch strings.TrimSpace(text[end:]) {
	case "", "B":
	case "KiB":
		unit = KiB
	case "MiB":
		unit = MiB
	case "GiB":
		unit = GiB
	default:
		return 0, fmt.Errorf("%q is no size: the unit must be KiB, MiB or GiB", text)
	}
	if n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("%q is too large", text)
	}
	return Size(n) * unit, nil
}

// ParseDuration reads a duration in Go's syntax, with d for 24 hours in front: 90s, 1h30m, 7d, 1d12h.
func ParseDuration(text string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no duration: write a number with a unit, such as 500ms, 30s, 2h or 7d", text)
	days, rest, ok := strings.Cut(text, "d")
	if !ok {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, bad
		}
		return d, nil
	}
	n, err := strconv.ParseUint(days, 10, 32)
	if err != nil {
		return 0, bad
	}
	var d time.Duration
	if rest != "" {
		if d, err = time.ParseDuration(rest); err != nil || d < 0 || rest[0] == '+' {
			return 0, bad
		}
	}
	const day = 24 * time.Hour
	if n > uint64((math.MaxInt64-d)/day) {
		return 0, fmt.Errorf("%q is too long", text)
	}
	return time.Duration(n)*day + d, nil
}

// formatDuration is Go's own form without the zeros at its end: 168h, not 168h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// List is a list of texts; one text alone is a list of one.
type List []string

// Addresses is a list of addresses; in the file it may also be one text with commas.
type Addresses []string

func splitAddresses(text string) Addresses {
	var out Addresses
	for a := range strings.SplitSeq(text, ",") {
		if a = strings.TrimSpace(a); a != "" {
			out = append(out, a)
		}
	}
	return out
}

var errUnclosed = errors.New(`"${" without its name and "}": write ${NAME}, or $$ for a dollar sign`)

// expand replaces ${NAME} by the environment's value and $$ by one dollar sign. Any other dollar sign stays.
func expand(text string, env func(string) (string, bool)) (string, error) {
	if !strings.Contains(text, "${") && !strings.Contains(text, "$$") {
		return text, nil
	}
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(text, "$")
		b.WriteString(before)
		if !ok {
			return b.String(), nil
		}
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			text = after[1:]
		case strings.HasPrefix(after, "{"):
			name, rest, ok := strings.Cut(after[1:], "}")
			if !ok || !isEnvName(name) {
				return "", errUnclosed
			}
			v, ok := env(name)
			if !ok {
				return "", fmt.Errorf("environment variable %s is not set", name)
			}
			b.WriteString(v)
			text = rest
		default:
			b.WriteByte('$')
			text = after
		}
	}
}

// unexpand writes a text so that expand reads it back.
func unexpand(text string) string {
	if strings.Contains(text, "${") || strings.Contains(text, "$$") {
		return strings.ReplaceAll(text, "$", "$$")
	}
	return text
}

func isEnvName(s string) bool {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}
