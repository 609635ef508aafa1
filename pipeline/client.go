package pipeline

import (
	"context"
	"errors"
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
)

type jobKey struct {
	filter string
	rule   int
}

// client is what an owner knows of one client: its replays and what they have sent. connectedAt, joined, gone, seen and
// touched belong to the owner's goroutine.
type client struct {
	id     event.ClientID
	window chan struct{} // a place for each un-acked message
	pace   *rate.Limiter // nil = no limit

	connectedAt time.Time        // of the newest connection
	joined      moment           // the last connect
	gone        moment           // the last disconnect
	seen        map[string]int64 // by filter: offset of the last subscribe or unsubscribe
	touched     time.Time

	mu     sync.Mutex
	jobs   map[jobKey]*job
	flight map[event.ID]*flight // sent and not acked
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
	acked chan struct{}
}

func (c *client) running(k jobKey) *job {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jobs[k]
}

func (c *client) add(k jobKey, j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs[k] = j
}

func (c *client) remove(k jobKey, j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jobs[k] == j {
		delete(c.jobs, k)
	}
}

// cancel ends the replays that match. They are forgotten and their events are finished at once, so that a new subscribe begins
// a new one.
func (c *client) cancel(match func(*job) bool, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, j := range c.jobs {
		if match(j) {
			j.cancel(why)
			j.report()
			delete(c.jobs, k)
		}
	}
}

// idleSince is how long nothing was heard of the client; 0 while a replay runs.
func (c *client) idleSince(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.jobs) > 0 || len(c.flight) > 0 {
		return 0
	}
	return now.Sub(c.touched)
}

// ack notes that the client has acknowledged a message.
func (c *client) ack(id event.ID) {
	c.mu.Lock()
	f := c.flight[id]
	delete(c.flight, id)
	c.mu.Unlock()
	if f != nil {
		close(f.acked)
		<-c.window
	}
}

// place waits for room in the window and takes it for a message. It returns false when the message is on its way already, for
// another filter of the client.
func (c *client) place(ctx context.Context, j *job, id event.ID, patience time.Duration) (*flight, bool, error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case c.window <- struct{}{}:
	default:
		select {
		case c.window <- struct{}{}:
		case <-t.C:
			return nil, false, errNotAcking
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
	f := &flight{job: j, at: time.Now(), acked: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.flight[id]; taken {
		<-c.window
		return nil, false, nil
	}
	c.flight[id] = f
	return f, true, nil
}

// giveUp takes back the place of a message whose ack is not waited for any more. It returns false when the ack came first.
func (c *client) giveUp(id event.ID, f *flight) bool {
	c.mu.Lock()
	mine := c.flight[id] == f
	if mine {
		delete(c.flight, id)
	}
	c.mu.Unlock()
	if mine {
		<-c.window
	}
	return mine
}
