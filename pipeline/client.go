package pipeline

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/restante/restante/event"
)

// Why a replay was cancelled.
var (
	errGenerationOver = errors.New("the partition goes to another owner")
	errReconnected    = errors.New("the client has a new connection")
	errDisconnected   = errors.New("the client has disconnected")
	errUnsubscribed   = errors.New("the client has unsubscribed")
	errOtherQoS       = errors.New("the client has subscribed at another QoS")
)

type jobKey struct {
	filter string
	rule   string
}

// client is what an owner knows of one client: its replays and what they have sent. connectedAt, joined, gone, seen and
// touched belong to the owner's goroutine.
type client struct {
	id   event.ClientID
	pace *rate.Limiter // nil = no limit

	connectedAt time.Time        // of the newest connection
	fresh       bool             // its session is new
	joined      moment           // the last connect
	gone        moment           // the last disconnect
	seen        map[string]int64 // by filter: offset of the last subscribe or unsubscribe
	touched     time.Time

	mu     sync.Mutex
	window window
	jobs   map[jobKey]*job
	flight map[event.ID]*flight // sent and not acked
	landed map[event.ID]*flight // acked while a replay ran that may have looked before

	errands map[*errand]struct{} // that run
	lookups map[string]*lookup   // that run, by sink
	owed    map[string]*lookup   // that were cut short in this session, by sink

	ledgers map[string]*ledger // pub/sub positions, by sink; the owner's goroutine's
}

// limiter is a token bucket that holds a tenth of a second.
func limiter(perSecond int) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(perSecond/10, 1))
}

// moment is when something was said: its place in the log, and the latest time that any of its kind told.
type moment struct {
	offset int64
	at     time.Time
}

func (m *moment) move(offset int64, at time.Time) {
	m.offset = offset
	if at.After(m.at) {
		m.at = at
	}
}

// flight is one message that was sent and waits for its ack.
type flight struct {
	job   *job
	at    time.Time
	acked chan struct{} // closed by the ack
	out   chan struct{} // closed when the broker has it
	over  chan struct{} // closed when its job waits for the ack no more
	wait  []*job        // other replays that wait for that; guarded by the client's mu
}

// otherFlight is a message that another replay of the client has sent.
type otherFlight struct {
	id event.ID
	*flight
}

// claim makes j the replay of its key, unless another than stale is: then it returns that one. Once wait has ended it does nothing, and
// returns false.
func (c *client) claim(wait context.Context, k jobKey, j, stale *job) (old *job, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wait.Err() != nil { // whoever cancels wait holds mu, and then looks for replays
		return nil, false
	}
	if old := c.jobs[k]; old != nil && old != stale {
		return old, true
	}
	c.jobs[k] = j
	return nil, true
}

func (c *client) remove(k jobKey, j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jobs[k] == j {
		delete(c.jobs, k)
	}
	c.rest()
}

// cancel ends the replays that match. They are forgotten at once, with what they have in flight, and their events are finished:
// a new subscribe begins a new replay, which must not take for delivered what an earlier connection was sent.
func (c *client) cancel(match func(*job) bool, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	over := make(map[*job]bool)
	for k, j := range c.jobs {
		if match(j) {
			j.cancel(why)
			if !errors.Is(why, errUnsubscribed) {
				j.o.unfinished(c.id, j.replay.Filter, true)
			}
			j.report()
			delete(c.jobs, k)
			over[j] = true
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(c.flight), event.ID.Compare) { // all are cancelled: none sends what another had
		if f := c.flight[id]; over[f.job] {
			c.land(id, f)
		}
	}
	c.rest()
}

// lookAgain has the replays of a topic look once more, after what may be late now.
func (c *client) lookAgain(t event.Topic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range c.jobs {
		if j.replay.Selects(t) {
			j.late()
		}
	}
}

// rest forgets what only running replays need. The caller holds mu.
func (c *client) rest() {
	if len(c.jobs) == 0 {
		clear(c.landed)
	}
}

// idleSince is how long nothing was heard of the client; 0 while a replay runs.
func (c *client) idleSince(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.jobs) > 0 || len(c.flight) > 0 || len(c.lookups) > 0 || len(c.errands) > 0 {
		return 0
	}
	return now.Sub(c.touched)
}

// ack notes that the client has acknowledged a message.
func (c *client) ack(id event.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flight[id]; f != nil {
		close(f.acked)
		c.land(id, f)
		if len(c.jobs) > 0 {
			c.landed[id] = f
		}
	}
}

// land takes a message out of flight and frees its place. Who waits for that asks for admission again, eldest first. The caller
// holds mu.
func (c *client) land(id event.ID, f *flight) {
	slices.SortFunc(f.wait, func(a, b *job) int {
		return cmp.Or(cmp.Compare(a.event.Offset, b.event.Offset), cmp.Compare(a.replay.Rule, b.replay.Rule))
	})
	for _, j := range f.wait {
		j.place = j.o.r.admit.ask()
	}
	f.wait = nil
	delete(c.flight, id)
	close(f.over)
	c.window.free()
}

// wait adds a replay to those that wait for a flight's end, and gives its place to others; false when the end has come.
func (c *client) wait(j *job, f *flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.isOver() {
		return false
	}
	j.leave()
	f.wait = append(f.wait, j)
	return true
}

// leaveWait takes a replay back from those; false when the end has come.
func (c *client) leaveWait(j *job, f *flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.wait = slices.DeleteFunc(f.wait, func(w *job) bool { return w == j })
	return !f.isOver()
}

// place waits for room in the window and takes it for a message. When the message is on its way already for another replay of the
// client, or was acked a moment ago, it returns that flight as other.
func (c *client) place(ctx context.Context, j *job, id event.ID, patience time.Duration) (mine, other *flight, err error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case c.window.places <- struct{}{}:
	default:
		select {
		case c.window.places <- struct{}{}:
		case <-t.C:
			return nil, nil, errNotAcking
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other = c.flight[id]; other == nil {
		other = c.landed[id]
	}
	if ctx.Err() != nil || other != nil { // cancel holds mu: it sees this flight, or this sees the cancel
		c.window.free()
		return nil, other, context.Cause(ctx)
	}
	mine = &flight{job: j, at: time.Now(), acked: make(chan struct{}), out: make(chan struct{}), over: make(chan struct{})}
	c.flight[id] = mine
	return mine, nil, nil
}

// giveUp takes back the place of a message whose ack is not waited for any more. It returns false when the ack came first.
func (c *client) giveUp(id event.ID, f *flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight[id] == f {
		c.land(id, f)
	}
	return !f.isAcked()
}

func (f *flight) isOver() bool {
	select {
	case <-f.over:
		return true
	default:
		return false
	}
}

func (f *flight) isAcked() bool {
	select {
	case <-f.acked:
		return true
	default:
		return false
	}
}
