package pipeline

import (
	"sync"
	"time"
)

// Recent remembers what was put into it lately, in two halves: when the younger one is full or old, the elder one goes. An entry
// lives for Age at least, unless Limit others come in that time. It is not safe for concurrent use.
type Recent[K comparable, V any] struct {
	Limit int           // most entries of one half
	Age   time.Duration // longest life of one half

	since time.Time
	young map[K]V
	old   map[K]V
}

// Get returns the zero value for what was never put, or is forgotten.
func (r *Recent[K, V]) Get(k K) V {
	if v, ok := r.young[k]; ok {
		return v
	}
	return r.old[k]
}

// Put remembers v for k from now on.
func (r *Recent[K, V]) Put(k K, v V) {
	if r.young == nil || len(r.young) >= r.Limit {
		r.turn(time.Now())
	}
	r.young[k] = v
}

// Tick lets time go on: nothing grows old without it.
func (r *Recent[K, V]) Tick(now time.Time) {
	if len(r.young)+len(r.old) > 0 && now.Sub(r.since) >= r.Age {
		r.turn(now)
	}
}

func (r *Recent[K, V]) turn(now time.Time) {
	r.old, r.young, r.since = r.young, make(map[K]V), now
}

// SafeRecent is a [Recent] that is safe for concurrent use, and whose time goes on with each Put.
type SafeRecent[K comparable, V any] struct {
	mu     sync.Mutex
	recent Recent[K, V]
}

// NewSafeRecent has the limit and the age of [Recent].
func NewSafeRecent[K comparable, V any](limit int, age time.Duration) *SafeRecent[K, V] {
	return &SafeRecent[K, V]{recent: Recent[K, V]{Limit: limit, Age: age}}
}

// Get returns the zero value for what was never put, or is forgotten.
func (r *SafeRecent[K, V]) Get(k K) V {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recent.Get(k)
}

// Put remembers v for k from now on.
func (r *SafeRecent[K, V]) Put(k K, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recent.Tick(time.Now())
	r.recent.Put(k, v)
}
