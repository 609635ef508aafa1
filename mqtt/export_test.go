package mqtt

// Acks is the session of a source's connection.
type Acks = acks

// NewAcks makes one.
var NewAcks = newAcks

// Connected tells that paho's connect has returned.
func (a *acks) Connected() { a.connected() }
