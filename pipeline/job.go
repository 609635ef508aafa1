package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

var (
	errNotAcking    = errors.New("the client does not acknowledge")
	errSliceOver    = errors.New("the slice is over")
	errNoSubscriber = errors.New("nobody is there to take the message")
)

// job is one replay of a client, a filter and a rule. It makes passes over what is pending until a pass over a complete view
// finds nothing new.
type job struct {
	o      *owner
	c      *client
	replay Replay
	event  Record
	slice  int // how many slices went before
	// from is the topic behind which the first pass begins: the slice before has done with those up to it. A pass over all follows.
	from   event.Topic
	cancel context.CancelCauseFunc
	began  time.Time
	delay  time.Duration // before it begins

	mu        sync.Mutex
	over      bool      // takes no further subscribe
	at        time.Time // of the last subscribe
	settled   time.Time // a look that begins then finds what was late
	bound     event.ID
	raised    bool // since the last pass began
	subscribe int64
	offsets   []int64 // the events that end with this job

	sent      map[event.ID]*flight // nil = it had expired
	order     []event.ID           // of sent, un-acked only, eldest first
	others    []otherFlight        // on their way for other replays of the client
	count     int                  // messages sent in this slice
	floor     event.ID             // with a limit: no message up to it is sent; zero = none yet
	uncounted *selection           // what the limit has left out, until it is counted
	started   bool                 // the first message is out
	kept      *Outgo               // the next message to send: whether one follows it is not known yet
	keptAfter event.Topic          // the pass is done with the topics up to this one, but for the kept message
	retries   int
	place     *place // in the line for a place among the active replays; nil = none
	active    bool   // has a place among the active replays
	aborted   bool
	pos       *progress // of pub/sub, else nil
}

// raise takes over a later subscribe to the same filter; false when the job is about to end.
func (j *job) raise(at time.Time, bound event.ID, subscribe, offset int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.over {
		return false
	}
	if bound.Compare(j.bound) > 0 {
		j.bound = bound
	}
	if at.After(j.at) {
		j.at = at
	}
	j.settled = time.Now().Add(j.o.r.Limits.Settle)
	j.raised, j.subscribe = true, subscribe
	j.offsets = append(j.offsets, offset)
	return true
}

// asked is the time of the last subscribe.
func (j *job) asked() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.at
}

// settles is when no event that a look could miss is on its way any more.
func (j *job) settles() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.settled
}

// late notes that an event may be on its way, so that a later look must follow.
func (j *job) late() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.settled = time.Now().Add(j.o.r.Limits.Settle)
}

// report tells the owner that the job's events are finished.
func (j *job) report() {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.pos != nil:
		j.pos.finish(j)
	default:
		for _, offset := range j.offsets {
			j.o.done(offset)
		}
	}
	j.over, j.offsets = true, nil
}

func (j *job) run(ctx context.Context) {
	j.sent = make(map[event.ID]*flight)
	err := j.wait(ctx)
	if err == nil {
		err = j.enter(ctx)
	}
	if err == nil {
		err = j.ready(ctx)
	}
	if err == nil {
		err = j.passes(ctx)
	}
	for (errors.Is(err, errNotAcking) || errors.Is(err, errNoSubscriber)) && !j.last() {
		j.release() // a later subscribe came meanwhile: somebody is there
		j.retries = 0
		err = j.passes(ctx)
	}
	if errors.Is(err, errSliceOver) {
		err = j.handOn(ctx)
	}
	j.end(ctx, err)
	j.leave()
}

// wait lets the delay pass.
func (j *job) wait(ctx context.Context) error {
	if j.delay == 0 {
		return nil
	}
	parked := j.o.r.Metrics.ReplayParked.WithLabelValues(parkedResumed)
	parked.Inc()
	defer parked.Dec()
	return Sleep(ctx, j.delay)
}

// end closes the books of the job.
func (j *job) end(ctx context.Context, err error) {
	r := j.o.r
	j.mu.Lock()
	j.over = true
	j.mu.Unlock()
	unacked := j.release()
	outcome := replayComplete
	switch {
	case errors.Is(err, errHandedOn):
		outcome = replayHandedOn
	case err == nil && j.count == 0:
		outcome = replayEmpty
	case err == nil && unacked == 0:
	case err == nil, errors.Is(err, errNotAcking), errors.Is(err, errNoSubscriber):
		outcome = replayPartial
	case overForClient(err):
		outcome = replayAborted
	default:
		outcome = replayAborted
		j.aborted = true // the partition goes to another owner, who repeats the events: they are not finished
	}
	if outcome != replayAborted { // one that is cancelled has noted it
		j.o.unfinished(j.c.id, j.replay.Filter, outcome == replayPartial)
	}
	if j.pos != nil { // at QoS 0 nobody says that it came
		j.mu.Lock() // a cancel may report the job now
		j.pos.complete = (outcome == replayComplete || outcome == replayEmpty) && !j.repeats()
		j.mu.Unlock()
	}
	r.Metrics.ReplayRequests.WithLabelValues(outcome).Inc()
	if outcome != replayAborted && outcome != replayHandedOn {
		r.Metrics.ReplayBacklog.Observe(float64(j.slice*r.Limits.Slice + j.count)) // the slices before were full
	}
	r.Metrics.ReplayDuration.Observe(time.Since(j.began).Seconds())
	r.Log.DebugContext(ctx, "replay ended", "clientid", string(j.c.id), "filter", j.replay.Filter.String(), "sink", j.replay.Sink,
		"outcome", outcome, "sent", j.count, "unacked", unacked, "err", err)
}

// release stops waiting for what is not acked, so that it can be sent again, and returns how many messages that are.
func (j *job) release() int {
	r := j.o.r
	j.collect()
	unacked := 0
	for _, id := range j.order {
		if j.c.giveUp(id, j.sent[id]) {
			unacked++
			delete(j.sent, id)
			j.leftOver(id)
		}
	}
	r.Metrics.ReplayUnacked.Sub(float64(len(j.order)))
	r.Metrics.ReplayMessages.WithLabelValues(messageUnacked).Add(float64(unacked))
	j.order = nil
	return unacked
}

// passes goes over what is pending until nothing new is found in a complete view, and everything sent is acked.
func (j *job) passes(ctx context.Context) error {
	for {
		began := time.Now()
		j.looks()
		v, bound, err := j.view(ctx)
		if err != nil {
			return err
		}
		before, from := j.count, j.from
		err = j.pass(ctx, v, bound)
		if err == nil {
			err = j.drain(ctx)
		}
		left := false
		if err == nil {
			left, err = j.await(ctx)
		}
		if err == nil {
			err = j.countRest(ctx, v)
		}
		if errors.Is(err, errNotAcking) {
			if err = j.park(ctx); err == nil {
				continue
			}
		}
		if (errors.Is(err, errNotAcking) || errors.Is(err, errNoSubscriber)) && !j.last() {
			j.retries = 0 // the client has subscribed again: it is there
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case j.count > before, left, !from.IsZero():
		case !v.Complete:
			// The writers lag. What is missing comes near by itself.
			if err := Sleep(ctx, j.o.r.Limits.Patience/10); err != nil {
				return err
			}
		case began.Before(j.settles()):
			err := j.aside(ctx, func() error { return Sleep(ctx, time.Until(j.settles())) })
			if err != nil {
				return err
			}
		case j.last():
			return nil
		}
	}
}

// last ends the job unless a later subscribe has raised the bound meanwhile.
func (j *job) last() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.over = !j.raised
	return j.over
}

// view takes part in a round. A view that is not complete is waited for a while: the writers lag.
func (j *job) view(ctx context.Context) (*View, event.ID, error) {
	var bound event.ID
	v, err := j.o.r.view(ctx, j.replay, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		bound = j.bound
		j.raised = false
	})
	return v, bound, err
}

// view takes part in rounds until one was complete, or the patience is over. It calls before ahead of each.
func (r *Replayer) view(ctx context.Context, rp Replay, before func()) (*View, error) {
	began := time.Now()
	for attempt := 1; ; attempt++ {
		before()
		v, err := r.Sinks[rp.Sink].Tail.View(ctx, rp.Filter)
		pause := r.Backoff.Delay(attempt)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			if r.gaveUp(began) {
				return nil, fmt.Errorf("read the log behind sink %s: %w", rp.Sink, err)
			}
			if attempt == 1 {
				r.Log.WarnContext(ctx, "tail not read, will retry", "sink", rp.Sink, "err", err)
			}
		case v.Complete || time.Since(began) >= r.Limits.Patience:
			return v, nil
		default:
			pause = min(pause, r.Limits.Patience/10)
		}
		if err := Sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

func (j *job) retry(ctx context.Context, what string, do func() error) error {
	return j.o.r.retry(ctx, what, j.replay.Sink, do)
}

// retry repeats what is transient until ctx ends. A store that refuses for good is retried too: the writers end the process.
func (r *Replayer) retry(ctx context.Context, what, sink string, do func() error) error {
	began := time.Now()
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if r.gaveUp(began) {
			return fmt.Errorf("%s of sink %s: %w", what, sink, err)
		}
		if attempt == 1 {
			r.Log.WarnContext(ctx, "replay waits, will retry", "what", what, "sink", sink, "err", err)
		}
		if err := Sleep(ctx, r.Backoff.Delay(attempt)); err != nil {
			return err
		}
	}
}

// gaveUp reports whether what began then is not tried again.
func (r *Replayer) gaveUp(began time.Time) bool { return r.GiveUp > 0 && time.Since(began) > r.GiveUp }

// send publishes one message within the window.
func (j *job) send(ctx context.Context, m sinks.Message, remaining int) error {
	r := j.o.r
	if r.Limits.Slice > 0 && j.count >= r.Limits.Slice && j.replay.MaxReturned == 0 && !j.repeats() { // a slice does not know what the newest were, or what was sent
		return errSliceOver
	}
	if err := pace(ctx, j.c.pace, r.pace); err != nil {
		return err
	}
	f, other, err := j.c.place(ctx, j, m.ID, r.Limits.AckTimeout)
	switch {
	case err != nil:
		return err
	case other != nil:
		j.others = append(j.others, otherFlight{m.ID, other})
		j.dealt(m.Topic, m.ID, true)
		select { // what follows in the topic must come later
		case <-other.out:
		case <-other.over:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return nil
	}
	out := Outgo{Message: m, QoS: min(m.QoS, j.replay.QoS), Remaining: remaining, Confirm: j.replay.Once}
	for attempt := 1; ; attempt++ {
		if err := j.o.current(ctx); err != nil {
			j.c.giveUp(m.ID, f)
			return err
		}
		o, err := r.Publisher.Publish(ctx, j.c.id, out)
		switch {
		case err == nil && o.NoSubscriber:
			j.c.giveUp(m.ID, f)
			return errNoSubscriber
		case err == nil:
			close(f.out)
			return j.published(ctx, m, f)
		case ctx.Err() != nil:
			j.c.giveUp(m.ID, f)
			return context.Cause(ctx)
		case errors.Is(err, ErrExpired):
			j.c.giveUp(m.ID, f)
			j.dealt(m.Topic, m.ID, false)
			r.Metrics.ReplayMessages.WithLabelValues(messageExpired).Inc()
			return nil
		case fault.IsPoison(err):
			j.c.giveUp(m.ID, f)
			j.sent[m.ID] = f // not again in this replay
			j.dealt(m.Topic, m.ID, false)
			r.Metrics.ReplayMessages.WithLabelValues(messageError).Inc()
			r.Log.ErrorContext(ctx, "message cannot be delivered, it stays stored", "topic", m.Topic.String(), "msgid", m.ID.String(), "err", err)
			return nil
		}
		if attempt == 1 {
			r.Log.WarnContext(ctx, "publish failed, will retry", "clientid", string(j.c.id), "err", err)
		}
		if err := Sleep(ctx, r.Backoff.Delay(attempt)); err != nil {
			j.c.giveUp(m.ID, f)
			return err
		}
	}
}
