package pipeline

import (
	"slices"
	"sync"
)

// admission lets so many replays work at once, in the order in which they asked for it.
type admission struct {
	mu   sync.Mutex
	free int // below 0: so many must leave before one may come
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
	a.line = append(a.line, p)
	a.admit()
	return p
}

// waits reports whether somebody waits for a place.
func (a *admission) waits() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.line, func(p *place) bool { return !p.gone })
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
	a.free++
	a.admit()
}

// widen lets n more work at once, or n fewer when it is negative: then those that work go on.
func (a *admission) widen(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free += n
	a.admit()
}

// admit gives what is free to the first in the line. The caller holds mu.
func (a *admission) admit() {
	for a.free > 0 && len(a.line) > 0 {
		next := a.line[0]
		a.line = a.line[1:]
		if !next.gone {
			a.free--
			close(next.come)
		}
	}
}
