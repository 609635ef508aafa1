package cassandra

import "sync"

// covered remembers until when rows live that many messages need: index rows, late hours, flags of a topic. What is forgotten
// is written again. Safe for concurrent use.
type covered struct {
	most int // bytes, roughly

	mu         sync.Mutex
	young, old map[string]int64
	size       int // of young
}

const coveredCost = 64

// until reports whether the row is known to live to the time, in µs, or longer.
func (c *covered) until(key string, at int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.young[key]
	if !ok {
		if have, ok = c.old[key]; !ok {
			return false
		}
		c.put(key, have)
	}
	return have >= at
}

// note says that the row is durable and lives to the time.
func (c *covered) note(key string, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(key, max(at, c.young[key], c.old[key]))
}

func (c *covered) put(key string, at int64) {
	if _, ok := c.young[key]; !ok {
		c.size += len(key) + coveredCost
	}
	if c.young == nil || c.size > c.most/2 {
		c.old, c.young, c.size = c.young, map[string]int64{}, len(key)+coveredCost
	}
	c.young[key] = at
}
