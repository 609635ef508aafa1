package spool

import (
	"context"
	"sync"
)

// room hands out the bytes that may be used, first come first served. It is safe for concurrent use.
type room struct {
	limit int64
	mu    sync.Mutex
	used  int64
	queue []*waiting
}

type waiting struct {
	n       int64
	granted chan struct{}
}

// take waits for n bytes; full is called before it waits. What is larger than all there is waits until nothing is used.
func (r *room) take(ctx context.Context, n int64, closing <-chan struct{}, full func()) error {
	r.mu.Lock()
	if len(r.queue) == 0 && r.fits(n) {
		r.used += n
		r.mu.Unlock()
		return nil
	}
	w := &waiting{n, make(chan struct{})}
	r.queue = append(r.queue, w)
	r.mu.Unlock()
	full()
	var err error
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-closing:
		err = errClosed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, q := range r.queue {
		if q == w {
			r.queue = append(r.queue[:i], r.queue[i+1:]...)
			r.grant() // those behind may fit
			return err
		}
	}
	return nil // it was granted meanwhile
}

func (r *room) fits(n int64) bool { return r.used+n <= r.limit || r.used == 0 }

func (r *room) grant() {
	for len(r.queue) > 0 && r.fits(r.queue[0].n) {
		r.used += r.queue[0].n
		close(r.queue[0].granted)
		r.queue = r.queue[1:]
	}
}

// force takes n bytes whether they are there or not.
func (r *room) force(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used += n
}

// give gives n bytes back.
func (r *room) give(n int64) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used -= n
	r.grant()
}

// wanted reports whether somebody waits.
func (r *room) wanted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue) > 0
}

func (r *room) inUse() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used
}
