package pipeline

import (
	"slices"

	"github.com/restante/restante/event"
)

// Pending are the payloads of the publishes that the view adds to a topic, by id.
func (v *View) Pending(t event.Topic) []string {
	var out []string
	for _, m := range v.topics[t].puts {
		out = append(out, string(m.Payload))
	}
	return out
}

// Gone are the ids that the view takes from a topic, sorted.
func (v *View) Gone(t event.Topic) []event.ID {
	var out []event.ID
	for id := range v.topics[t].gone {
		out = append(out, id)
	}
	slices.SortFunc(out, event.ID.Compare)
	return out
}

// HooksOf says to which hooks each action can be bound.
var HooksOf = hooksOf

// Covers is covers, and Scoped the text of a scope, with what is read of it.
var Covers = covers

// Scoped is the text under which a position of the filter and the rule is kept, and whether it is read as it was written.
func Scoped(filter, rule event.Filter) (text string, same bool) {
	s := scopeOf(filter, rule)
	same = true
	for k := range suffix {
		read, kind, ok := parseKey(s.key() + suffix[k])
		same = same && ok && read == s && int(kind) == k
	}
	return s.key(), same
}

// Rescoped reads a text of the table of acked messages as a position, and writes it again.
func Rescoped(text string) (again string, ok bool) {
	s, k, ok := parseKey(text)
	return s.key() + suffix[k], ok
}
