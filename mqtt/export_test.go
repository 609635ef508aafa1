package mqtt

import (
	"io"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Acks is the session of a source's connection.
type Acks = acks

// NewAcks makes one.
var NewAcks = newAcks

// Connected tells that paho's connect has returned.
func (a *acks) Connected() { a.connected() }

// Size is how many bytes a replay has on the wire.
func (p *Publisher) Size(to event.ClientID, m pipeline.Outgo) (int64, error) {
	out, _, err := p.packet(to, m)
	if err != nil {
		return 0, err
	}
	return out.Packet().WriteTo(io.Discard)
}
