package event

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxText is the longest UTF-8 string that MQTT can carry, in bytes (MQTT 5.0 §1.5.4).
const maxText = 65535

// Topic is a valid topic name: not empty, at most 65,535 bytes of UTF-8, no NUL, no wildcard (MQTT 5.0 §4.7).
// The zero Topic is no topic; only [ParseTopic] makes others.
type Topic struct{ s string }

// ParseTopic checks a topic name by the rules of MQTT 3.1.1 and 5.0 §4.7.
func ParseTopic(s string) (Topic, error) {
	if err := checkText(s); err != nil {
		return Topic{}, fmt.Errorf("topic %q: %w", clip(s), err)
	}
	if i := strings.IndexAny(s, "+#"); i >= 0 {
		return Topic{}, fmt.Errorf("topic %q: wildcard %q at byte %d: a topic name holds none", clip(s), s[i], i)
	}
	return Topic{s}, nil
}

// String is the topic's text.
func (t Topic) String() string { return t.s }

// IsZero reports whether t is no topic.
func (t Topic) IsZero() bool { return t.s == "" }

// Filter is a valid topic filter, with the group of a shared subscription when it has one.
// The zero Filter is no filter; only [ParseFilter] makes others.
type Filter struct {
	s     string // without the $share/group/ prefix
	group string
}

// ParseFilter checks a topic filter by the rules of MQTT 3.1.1 and 5.0 §4.7 and §4.8.2 ($share/{name}/{filter}).
func ParseFilter(s string) (Filter, error) {
	if err := checkText(s); err != nil {
		return Filter{}, fmt.Errorf("filter %q: %w", clip(s), err)
	}
	f := Filter{s: s}
	if rest, ok := strings.CutPrefix(s, "$share/"); ok {
		group, inner, ok := strings.Cut(rest, "/")
		switch {
		case group == "" || strings.ContainsAny(group, "+#"):
			return Filter{}, fmt.Errorf("filter %q: the share name must hold at least one character and no wildcard", clip(s))
		case !ok || inner == "":
			return Filter{}, fmt.Errorf("filter %q: no filter behind the share name", clip(s))
		}
		f = Filter{s: inner, group: group}
	}
	at := 0
	for level := range strings.SplitSeq(f.s, "/") {
		last := at+len(level) == len(f.s)
		switch {
		case level == "#" && !last:
			return Filter{}, fmt.Errorf("filter %q: '#' must be the last level", clip(s))
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return Filter{}, fmt.Errorf("filter %q: a wildcard must stand alone in its level, not in %q", clip(s), clip(level))
		}
		at += len(level) + 1
	}
	return f, nil
}

// String is the filter's text, with $share/{group}/ when it is shared.
func (f Filter) String() string {
	if f.group != "" {
		return "$share/" + f.group + "/" + f.s
	}
	return f.s
}

// IsZero reports whether f is no filter.
func (f Filter) IsZero() bool { return f.s == "" }

// Group is the name of the share, "" for an ordinary filter.
func (f Filter) Group() string { return f.group }

// Levels are the filter's levels, without the share.
func (f Filter) Levels() []string { return strings.Split(f.s, "/") }

// Exact returns the one topic that the filter names, and false when it has a wildcard.
func (f Filter) Exact() (Topic, bool) {
	if f.s == "" || strings.ContainsAny(f.s, "+#") {
		return Topic{}, false
	}
	return Topic{f.s}, true
}

// Match reports whether the topic matches the filter. A leading wildcard does not match topics that begin with '$'
// (MQTT 5.0 §4.7.2); "a/#" matches "a" too.
func (f Filter) Match(t Topic) bool {
	if f.s == "" || t.s == "" {
		return false
	}
	if t.s[0] == '$' && (f.s[0] == '+' || f.s[0] == '#') {
		return false
	}
	filter, topic := f.s, t.s
	for {
		fl, frest, fmore := strings.Cut(filter, "/")
		if fl == "#" {
			return true
		}
		tl, trest, tmore := strings.Cut(topic, "/")
		if fl != "+" && fl != tl {
			return false
		}
		switch {
		case fmore && tmore:
			filter, topic = frest, trest
		case fmore: // the topic ends here: only "…/#" still matches
			return frest == "#"
		default:
			return !tmore
		}
	}
}

// Overlaps reports whether some topic matches both filters.
func (f Filter) Overlaps(g Filter) bool {
	if f.s == "" || g.s == "" {
		return false
	}
	wild := func(s string) bool { return s[0] == '+' || s[0] == '#' }
	if f.s[0] == '$' && wild(g.s) || g.s[0] == '$' && wild(f.s) {
		return false
	}
	a, b := f.Levels(), g.Levels()
	for i := 0; ; i++ {
		switch {
		case i == len(a) && i == len(b):
			return true
		case i == len(a): // "/#" takes its parent too, but that one is empty and no topic
			return b[i] == "#" && (i > 1 || b[0] != "")
		case i == len(b):
			return a[i] == "#" && (i > 1 || a[0] != "")
		case a[i] == "#" || b[i] == "#":
			return true
		case a[i] != "+" && b[i] != "+" && a[i] != b[i]:
			return false
		}
	}
}

// ClientID is an MQTT client identifier: not empty, at most 65,535 bytes of UTF-8, no NUL. Any other character is allowed.
type ClientID string

// ParseClientID checks a client id by the rules for MQTT strings (MQTT 5.0 §1.5.4).
func ParseClientID(s string) (ClientID, error) {
	if err := checkText(s); err != nil {
		return "", fmt.Errorf("client id %q: %w", clip(s), err)
	}
	return ClientID(s), nil
}

func checkText(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case len(s) > maxText:
		return fmt.Errorf("is %d bytes long, MQTT allows %d", len(s), maxText)
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	case strings.IndexByte(s, 0) >= 0:
		return errors.New("holds NUL")
	}
	return nil
}
