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
