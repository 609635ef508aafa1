package pipeline

import "github.com/restante/restante/event"

// dropped says which positions must not pass a message whose delivery the broker gave up.
func (r *Rules) dropped(e event.Dropped) Plan {
	var p Plan
	for _, c := range r.rules {
		if c.Action == OnMessageAckedForPubsub && c.Topic.Match(e.Topic) && !r.Own(e.Client) && c.addressee.is(e.Topic, e.Client) {
			p.Positions = append(p.Positions, Position{Sink: c.Sink, Client: e.Client, Topic: e.Topic, Message: e.Message, Stamp: e.ID.Micros()})
		}
	}
	return p
}
