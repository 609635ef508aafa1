package exhook

import (
	"sync"
	"time"
)

// rarely lets one line a minute through and counts the others.
type rarely struct {
	mu     sync.Mutex
	said   time.Time
	unsaid int
}

// say calls line with how many were not said before, or counts this one.
func (r *rarely) say(line func(unsaid int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.said.IsZero() && time.Since(r.said) < time.Minute {
		r.unsaid++
		return
	}
	line(r.unsaid)
	r.said, r.unsaid = time.Now(), 0
}
