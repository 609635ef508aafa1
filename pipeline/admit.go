package pipeline

import "sync"

// admission lets so many replays work at once, in the order in which they asked for it.
type admission struct {
	mu   sync.Mutex
	free int
	line []*place
}

// place is a replay's place in the line, and then among those that work.
type place struct {
	come chan struct{} // closed when it may work
	gone bool          // it has left the line
}

// ask takes a place in the line.
func (a *admission) ask() *place {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := &place{come: make(chan struct{})}
	if a.free > 0 {
		a.free--
		close(p.come)
	} else {
		a.line = append(a.line, p)
	}
	return p
}

// leave gives the place to the next in the line.
func (a *admission) leave(p *place) {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-p.come:
	default:
		p.gone = true
		return
	}
	for len(a.line) > 0 {
		next := a.line[0]
		a.line = a.line[1:]
		if !next.gone {
			close(next.come)
			return
		}
	}
	a.free++
}
