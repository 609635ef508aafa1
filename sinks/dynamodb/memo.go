package dynamodb

import "sync"

// memo remembers values by key within a bound, and forgets what was not asked for in a while. Forgetting costs a request,
// nothing else. Safe for concurrent use.
type memo[V any] struct {
	most int // entries, in two halves

	mu         sync.Mutex
	young, old map[string]V
}

func (m *memo[V]) get(key string) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.young[key]
	if !ok {
		if v, ok = m.old[key]; ok {
			m.set(key, v)
		}
	}
	return v, ok
}

func (m *memo[V]) put(key string, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(key, v)
}

func (m *memo[V]) set(key string, v V) {
	if m.young == nil || len(m.young) >= m.most/2 {
		m.old, m.young = m.young, make(map[string]V)
	}
	m.young[key] = v
}
