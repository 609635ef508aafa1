package pipeline

// window is the room for the un-acked messages of a client. Who wants to send takes a place by a send on places; everything else
// is guarded by the client's mu.
type window struct {
	places   chan struct{} // full = no room
	withheld int           // places that nobody has and nobody gets
	owed     int           // places that will be withheld once they are free
}

func newWindow(size int) window { return window{places: make(chan struct{}, size)} }

// free gives a place back.
func (w *window) free() {
	if w.owed > 0 {
		w.owed--
		w.withheld++
		return
	}
	<-w.places
}

// narrow makes the window so wide from now on, or as wide as it can be. Messages that are beyond it stay on their way.
func (w *window) narrow(size int) {
	withhold := cap(w.places) - min(max(size, 1), cap(w.places))
	for w.withheld+w.owed > withhold {
		if w.owed > 0 {
			w.owed--
			continue
		}
		<-w.places
		w.withheld--
	}
	for w.withheld+w.owed < withhold {
		select {
		case w.places <- struct{}{}:
			w.withheld++
		default:
			w.owed++
		}
	}
}

// narrow goes by the receive maximum that the client's connection told, 0 = it told none. Half of it is for live messages.
func (c *client) narrow(receiveMaximum uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := cap(c.window.places)
	if receiveMaximum > 0 {
		size = int(receiveMaximum) / 2
	}
	c.window.narrow(size)
}
