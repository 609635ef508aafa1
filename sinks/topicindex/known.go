package topicindex

import (
	"sync"
	"time"

	"github.com/restante/restante/event"
)

// Known remembers for which topics the rows were written, and when, so that they are not written again for each message.
// It forgets what was not asked for in a while; forgetting costs a write, nothing else. Safe for concurrent use.
type Known struct {
	// TTL is how long a row lives when nobody writes it again. A topic is known for a quarter of it.
	TTL time.Duration
	// Bytes bounds the memory, roughly; 0 = 16 MiB.
	Bytes int

	mu         sync.Mutex
	young, old map[event.Topic]int64 // when written, µs
	size       int                   // of young
}

// cost is what an entry takes beside its text.
const cost = 64

// Fresh reports whether the rows of the topic were written less than TTL/4 ago.
func (k *Known) Fresh(t event.Topic, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.young[t]
	if !ok {
		if at, ok = k.old[t]; !ok {
			return false
		}
		k.put(t, at)
	}
	age := now.UnixMicro() - at
	return age >= 0 && age < k.TTL.Microseconds()/4
}

// Note says that the rows of the topics are durable, as of now.
func (k *Known) Note(now time.Time, topics ...event.Topic) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range topics {
		k.put(t, now.UnixMicro())
	}
}

func (k *Known) put(t event.Topic, at int64) {
	most := k.Bytes
	if most <= 0 {
		most = 16 << 20
	}
	if _, ok := k.young[t]; !ok {
		k.size += len(t.String()) + cost
	}
	if k.young == nil || k.size > most/2 {
		k.old, k.young, k.size = k.young, map[event.Topic]int64{}, len(t.String())+cost
	}
	k.young[t] = at
}
