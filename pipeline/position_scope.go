package pipeline

import (
	"slices"
	"strings"

	"github.com/restante/restante/event"
)

// scope is what one subscription and one rule have in common: the topics that a position is about. A single topic is one too.
type scope struct {
	filter event.Filter
	rule   event.Filter // zero = the rule selects all that the filter does
}

// A position stands in the table of acked messages by the text of its scope. What must not be taken for a topic or a filter has a
// '#' that is not its last level, which neither can have.
const (
	keyWithin = "/#/in/" // filter, then the rule's
	keyOpen   = "/#/open"
	keyOwn    = "/#/own"
)

// suffix tells the rows of one scope apart.
var suffix = [...]string{kindFloor: "", kindMark: keyOpen, kindOwn: keyOwn}

func scopeOf(filter, rule event.Filter) scope {
	if rule.IsZero() || covers(rule, filter) {
		return scope{filter: filter}
	}
	return scope{filter, rule}
}

func topicScope(t event.Topic) scope {
	f, _ := event.ParseFilter(t.String()) // a topic is a filter
	return scope{filter: f}
}

// key is the scope's text.
func (s scope) key() string {
	if s.rule.IsZero() {
		return s.filter.String()
	}
	return s.filter.String() + keyWithin + s.rule.String()
}

// parseKey reads a text of the table; ok is false for one that is none of ours.
func parseKey(text string) (s scope, k kind, ok bool) {
	for _, is := range []kind{kindMark, kindOwn} {
		if rest, found := strings.CutSuffix(text, suffix[is]); found {
			text, k = rest, is
			break
		}
	}
	filter, rule, within := strings.Cut(text, keyWithin)
	var err error
	if s.filter, err = event.ParseFilter(filter); err != nil {
		return scope{}, 0, false
	}
	if within {
		if s.rule, err = event.ParseFilter(rule); err != nil {
			return scope{}, 0, false
		}
	}
	return s, k, true
}

func (s scope) match(t event.Topic) bool {
	return s.filter.Match(t) && (s.rule.IsZero() || s.rule.Match(t))
}

// exact reports whether the scope is one topic.
func (s scope) exact() bool {
	_, ok := s.filter.Exact()
	return ok
}

// covers reports whether s has all topics of o. It may be false where it has: then one more message is repeated.
func (s scope) covers(o scope) bool {
	has := func(f event.Filter) bool { return covers(f, o.filter) || !o.rule.IsZero() && covers(f, o.rule) }
	return has(s.filter) && (s.rule.IsZero() || has(s.rule))
}

// covers reports whether every topic that g matches is matched by f.
func covers(f, g event.Filter) bool {
	if f == g {
		return true
	}
	a, b := f.Levels(), g.Levels()
	if strings.HasPrefix(b[0], "$") && (a[0] == "+" || a[0] == "#") {
		return false
	}
	for i, level := range a {
		switch {
		case level == "#":
			return true // "x/#" takes "x" too
		case i >= len(b), b[i] == "#", level != "+" && level != b[i]:
			return false
		}
	}
	// a ends here, without "#". b may only end here too; "x/#" has more topics than "x".
	return len(a) == len(b) && !slices.Contains(b, "#")
}
