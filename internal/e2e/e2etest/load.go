package e2etest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/mqtt/mqtttest"
)

// Load publishes at QoS 1 until it is stopped, through all outages, and keeps the books of what was acknowledged.
type Load struct {
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	acked map[string]time.Time // the PUBACK, by payload
}

// StartLoad starts publishers, each to a topic of its own: the format with its number. Each rests for a pause after each PUBACK.
func StartLoad(t *testing.T, addr, format string, n int, pause time.Duration) *Load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &Load{stop: stop, acked: map[string]time.Time{}}
	for i := range n {
		l.wg.Go(func() { l.publish(ctx, addr, fmt.Sprintf(format, i), i, pause) }) // ends with ctx; Stop waits
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

// publish publishes one message after another. What gets no PUBACK is not promised, and not sent again.
func (l *Load) publish(ctx context.Context, addr, topic string, who int, pause time.Duration) {
	var c *mqtttest.Client
	for n := 0; ctx.Err() == nil; n++ {
		if c == nil {
			dial, cancel := context.WithTimeout(ctx, 2*time.Second)
			var err error
			c, err = mqtttest.Dial(dial, addr, mqtttest.Options{ID: fmt.Sprintf("load-%d", who), Version: mqtttest.V5})
			cancel()
			if err != nil {
				c = nil
				time.Sleep(50 * time.Millisecond)
				continue
			}
		}
		payload := fmt.Sprintf("%s #%05d", topic, n)
		if err := c.Publish(ctx, Message(topic, payload)); err != nil {
			c.Cut()
			c = nil
			continue
		}
		l.mu.Lock()
		l.acked[payload] = time.Now()
		l.mu.Unlock()
		time.Sleep(pause)
	}
	if c != nil {
		c.Cut()
	}
}

// Acked is how many PUBACKs have come.
func (l *Load) Acked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// Stop ends the publishers and returns the payloads that were acknowledged.
func (l *Load) Stop() map[string]bool {
	l.stop()
	l.wg.Wait()
	all := make(map[string]bool, len(l.acked))
	for p := range l.acked {
		all[p] = true
	}
	return all
}

// Stall is the longest time between two PUBACKs of all publishers.
func (l *Load) Stall() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.SortedFunc(maps.Values(l.acked), time.Time.Compare)
	var most time.Duration
	for i := 1; i < len(at); i++ {
		most = max(most, at[i].Sub(at[i-1]))
	}
	return most
}

// Lag is how long ago the first of the messages that are not in the set had its PUBACK; 0 = all are.
func (l *Load) Lag(stored map[string]bool, now time.Time) time.Duration {
	return l.LagOf("", stored, now)
}

// LagOf is Lag for the topics that begin so.
func (l *Load) LagOf(topics string, stored map[string]bool, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var most time.Duration
	for p, at := range l.acked {
		if !stored[p] && strings.HasPrefix(p, topics) {
			most = max(most, now.Sub(at))
		}
	}
	return most
}

// AwaitAll subscribes a client, once, and waits until it has every payload of the set. The replayed messages of a topic must
// come in order, each for the first time. The client stays, and takes what nobody was promised too.
func AwaitAll(t *testing.T, addr, id, filter string, want map[string]bool) {
	t.Helper()
	c := Subscribe(t, addr, id, filter)
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
	defer cancel()
	missing := make(map[string]bool, len(want))
	for p := range want {
		missing[p] = true
	}
	last := map[string]string{}
	seen := map[string]bool{}
	for len(missing) > 0 {
		m, err := c.Receive(ctx)
		if err != nil {
			var some []string
			for p := range missing {
				some = append(some, p)
			}
			slices.Sort(some)
			t.Fatalf("%d of %d messages that had their PUBACK never came: %v: %q", len(missing), len(want), err, some[:min(len(some), 20)])
		}
		p := string(m.Payload)
		if m.User("offline-msgid") != "" && !seen[p] { // a live message may overtake stored ones
			if p < last[m.Topic] {
				t.Errorf("%q came after %q (offline-msgid %q, offline-remaining %q)", p, last[m.Topic], m.User("offline-msgid"), m.User("offline-remaining"))
			}
			last[m.Topic] = p
		}
		seen[p] = true
		delete(missing, p)
	}
}

// Visitor is a device that comes and goes: it subscribes, takes messages for a while, leaves, and comes again, through all
// outages.
type Visitor struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	had  map[string]bool // by payload; Stop gives it away
}

// StartVisitor starts a visitor.
func StartVisitor(t *testing.T, addr, id, filter string) *Visitor {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	v := &Visitor{stop: stop, had: map[string]bool{}}
	v.wg.Go(func() { // ends with ctx; Stop waits
		for ctx.Err() == nil {
			v.visit(ctx, addr, id, filter)
			time.Sleep(300 * time.Millisecond)
		}
	})
	t.Cleanup(func() { v.Stop() })
	return v
}

func (v *Visitor) visit(ctx context.Context, addr, id, filter string) {
	const stay = 1500 * time.Millisecond
	dial, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := mqtttest.Dial(dial, addr, mqtttest.Options{ID: id, Version: mqtttest.V5})
	if err != nil {
		return
	}
	if _, err := c.Subscribe(dial, 1, filter); err == nil {
		for _, m := range c.Quiet(stay) { //nolint:contextcheck // it ends by itself, soon
			v.had[string(m.Payload)] = true
		}
	}
	c.Cut()
	for _, m := range c.Quiet(10 * time.Millisecond) { //nolint:contextcheck // see above: what it acked since
		v.had[string(m.Payload)] = true
	}
}

// Stop ends the visits and returns the payloads that it had.
func (v *Visitor) Stop() map[string]bool {
	v.stop()
	v.wg.Wait()
	return v.had
}
