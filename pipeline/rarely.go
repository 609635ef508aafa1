package pipeline

import (
	"sync"
	"time"
)

// Rarely lets one line a minute through and counts the others. The zero value is ready; it is safe for concurrent use.
type Rarely struct {
	mu     sync.Mutex
	said   time.Time
	unsaid int
}

// Say calls line with how many were not said before, or counts this one.
func (r *Rarely) Say(line func(unsaid int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.said.IsZero() && time.Since(r.said) < time.Minute {
		r.unsaid++
		return
	}
	line(r.unsaid)
	r.said, r.unsaid = time.Now(), 0
}
