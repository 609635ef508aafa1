// Package sourcetest has what tests of sources of events need: a log that does as the test says, a tally of what was counted and
// logged, and certificates.
package sourcetest

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// Patience is how long something may take that must happen, on a machine that is busy with other tests.
const Patience = time.Minute

// Eventually waits until ok, and ends the test when it never is.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", Patience, what)
		}
	}
}

// Receipt is a [pipeline.Receipt] that a test completes.
type Receipt struct {
	done chan struct{}
	err  error
}

// Held is a receipt that is not complete yet.
func Held() *Receipt { return &Receipt{done: make(chan struct{})} }

// Durable is a complete receipt: of an event that is in the log, or with an error of one that will never be.
func Durable(err error) *Receipt {
	r := &Receipt{done: make(chan struct{}), err: err}
	close(r.done)
	return r
}

// Complete says that the event is in the log. It is called once.
func (r *Receipt) Complete() { close(r.done) }

// Done is closed once it is complete.
func (r *Receipt) Done() <-chan struct{} { return r.done }

// Err is why the event will never be in the log, nil when it is.
func (r *Receipt) Err() error { return r.err }

// Journal stands for the log: it takes events. It is safe for concurrent use.
type Journal struct {
	// Judge says what becomes of an event, n of which were taken before; nil = each is durable at once.
	Judge func(ctx context.Context, n int, e event.Event) (pipeline.Receipt, error)

	mu     sync.Mutex
	events []event.Event
}

// Accept is a [pipeline.Accept].
func (j *Journal) Accept(ctx context.Context, e event.Event) (pipeline.Receipt, error) {
	var r pipeline.Receipt = Durable(nil)
	if j.Judge != nil {
		var err error
		if r, err = j.Judge(ctx, j.Count(), e); err != nil {
			return nil, err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
	return r, nil
}

// Events are those that were taken, in their order.
func (j *Journal) Events() []event.Event { return j.Since(0) }

// Since are the events that were taken after the first n.
func (j *Journal) Since(n int) []event.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.events[n:])
}

// Count is how many events were taken.
func (j *Journal) Count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.events)
}

// Tally counts what a source counts and keeps what is written to it, such as a log. It is safe for concurrent use; the zero value is
// ready.
type Tally struct {
	mu     sync.Mutex
	counts map[mqtt.Counter]int
	logs   bytes.Buffer
}

// Count counts one.
func (t *Tally) Count(c mqtt.Counter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[mqtt.Counter]int{}
	}
	t.counts[c]++
}

// Counts are what was counted, without zeros.
func (t *Tally) Counts() map[mqtt.Counter]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[mqtt.Counter]int{}
	maps.Copy(out, t.counts)
	return out
}

// Write keeps what is logged.
func (t *Tally) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.logs.Write(p)
}

// Log is what was written.
func (t *Tally) Log() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.logs.String()
}
