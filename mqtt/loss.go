package mqtt

import "github.com/eclipse/paho.golang/paho"

// Loss names why a connection to a broker was lost. The set is closed, so that a metric can have all of them at zero from the start.
type Loss string

// Why connections are lost.
const (
	LossClosed    Loss = "closed"     // the broker ended it, and said so
	LossTakenOver Loss = "taken_over" // somebody else has connected with the same client id
	LossBroken    Loss = "broken"     // it was cut, or gave no answer in time
)

// Losses are all of them.
func Losses() []Loss { return []Loss{LossClosed, LossTakenOver, LossBroken} }

// lossOf is what a broker's DISCONNECT says (reason codes: MQTT 5.0 §3.14.2.1).
func lossOf(d *paho.Disconnect) Loss {
	const takenOver = 0x8e
	if d.ReasonCode == takenOver {
		return LossTakenOver
	}
	return LossClosed
}
