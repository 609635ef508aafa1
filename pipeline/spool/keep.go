package spool

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

const (
	maxWrite    = 4 << 20 // bytes of one write, about
	cursorEvery = 200 * time.Millisecond
	cursorFile  = "cursor"
	segmentExt  = ".seg"
	damagedExt  = ".damaged"
	rejectedExt = ".rejected"
)

// keep writes what is pushed and removes what is drained, until ctx ends: then the place is saved once more.
func (q *queue) keep(ctx context.Context) {
	defer close(q.stopped)
	var buf []byte
	for failed := 0; ctx.Err() == nil; {
		var wait time.Duration
		if batch := q.batch(); len(batch) > 0 {
			var err error
			if buf, err = q.write(buf[:0], batch); err == nil {
				failed = 0
				q.stored(batch, int64(len(buf)))
			} else {
				failed++
				wait = q.backoff.Delay(failed)
				q.failed(err)
			}
		}
		q.sweep()
		q.await(ctx, wait)
	}
	q.retireNow()
	q.sweep()
	q.save(true)
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.segs); n > 0 && q.segs[n-1].file != nil {
		_ = q.segs[n-1].file.Close() // all of it is synced
		q.segs[n-1].file = nil
	}
}

// await returns when there is something to do; backOff > 0 is a pause after a failure, in which only drained records matter.
func (q *queue) await(ctx context.Context, backOff time.Duration) {
	q.mu.Lock()
	busy, behind := len(q.pending) > 0 && backOff == 0, q.done != q.saved
	q.mu.Unlock()
	if busy {
		return
	}
	wait := backOff
	if behind && (wait == 0 || wait > cursorEvery) {
		wait = cursorEvery
	}
	var tick <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		tick = t.C
	}
	wake := q.wake
	if backOff > 0 {
		wake = nil
	}
	select {
	case <-wake:
	case <-tick:
		q.save(false)
	case <-ctx.Done():
	}
}

// batch is the oldest of what is not on the disk.
func (q *queue) batch() []*pending {
	q.mu.Lock()
	defer q.mu.Unlock()
	var size int64
	n := 0
	for n < len(q.pending) && (n == 0 || size+q.pending[n].size <= min(maxWrite, q.segment)) {
		size += q.pending[n].size
		n++
	}
	return append([]*pending(nil), q.pending[:n]...)
}

// write makes a batch durable. buf is memory to be used; what is returned of it are the frames.
func (q *queue) write(buf []byte, batch []*pending) ([]byte, error) {
	s := q.active()
	if s != nil && s.size >= q.segment {
		q.leave(s)
		s = nil
	}
	fresh := s == nil
	if fresh {
		var err error
		if s, err = q.create(batch[0].seq); err != nil {
			return buf, err
		}
		buf = s.header.append(buf)
	}
	seed := s.header.seed()
	for _, p := range batch {
		buf = appendFrame(buf, seed, &p.entry)
	}
	n, err := s.file.Write(buf)
	if err == nil && n < len(buf) {
		err = fmt.Errorf("write %s: %d of %d bytes", s.name, n, len(buf))
	}
	if err == nil {
		err = s.file.Sync()
	}
	if err == nil && fresh {
		err = syncDir(q.disk)
	}
	if err != nil {
		q.abandon(s, fresh)
		return buf, err
	}
	if fresh {
		q.mu.Lock()
		q.segs = append(q.segs, s)
		q.mu.Unlock()
	}
	return buf, nil
}

// active is the segment that is being written; nil = none.
func (q *queue) active() *segment {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.segs); n > 0 && q.segs[n-1].file != nil {
		return q.segs[n-1]
	}
	return nil
}

// create begins a segment. It counts once something in it is durable.
func (q *queue) create(first uint64) (*segment, error) {
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("draw a salt: %w", err)
	}
	for try := uint64(0); ; try++ { // a name may be left from a segment that was abandoned before anything in it was durable
		name := fmt.Sprintf("%016x%s", first<<8|try, segmentExt)
		f, err := q.disk.Open(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY)
		if errors.Is(err, fs.ErrExist) && try < 0xff {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("begin a segment: %w", err)
		}
		h := segmentHeader{version, binary.LittleEndian.Uint64(salt[:]), first}
		return &segment{name: name, header: h, file: f, last: first - 1}, nil
	}
}

// leave ends the writing of a segment.
func (q *queue) leave(s *segment) {
	q.mu.Lock()
	f := s.file
	s.file = nil
	q.mu.Unlock()
	_ = f.Close() // all of it is synced
}

// abandon is the end of a segment whose write failed: nobody knows what of it is on the disk, so its end is cut off where that can be
// done, and it is not written again. What a reader finds behind the cut all the same stands once more in the segment that follows.
func (q *queue) abandon(s *segment, fresh bool) {
	if fresh {
		_ = s.file.Close() // it failed anyhow
		q.strays = append(q.strays, s.name)
		return
	}
	_ = s.file.Truncate(s.size) // see above
	q.leave(s)
}

// stored resolves what is durable now.
func (q *queue) stored(batch []*pending, size int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.segs[len(q.segs)-1]
	s.last = batch[len(batch)-1].seq
	s.size += size
	n := 0
	for n < len(q.pending) && q.pending[n].seq <= s.last {
		s.held += q.pending[n].size
		q.pending[n].receipt.resolve(nil)
		n++
	}
	clear(q.pending[:n])
	if q.pending = q.pending[n:]; len(q.pending) == 0 {
		q.pending = nil
	}
	q.failing = false
	q.tell()
}

func (q *queue) failed(err error) {
	q.metrics.writeErrors.Inc()
	q.mu.Lock()
	n := len(q.pending)
	q.failing = true
	q.tell()
	q.mu.Unlock()
	q.complain("write", func() {
		q.log.Error("spool cannot be written, nothing is acknowledged, will retry", "err", err, "records", n)
	})
}

// sweep removes the segments of which all is in Kafka.
func (q *queue) sweep() {
	q.mu.Lock()
	if n := len(q.segs); n > 0 && q.segs[n-1].file != nil && q.segs[n-1].last <= q.done && len(q.pending) == 0 {
		if s := q.segs[n-1]; q.retire || s.size >= q.segment || q.room.wanted() {
			_ = s.file.Close() // it is removed
			s.file = nil
		}
	}
	n := 0
	var held int64
	for n < len(q.segs) && q.segs[n].last <= q.done && q.segs[n].file == nil {
		q.strays = append(q.strays, q.segs[n].name)
		held += q.segs[n].held
		n++
	}
	q.segs = append(q.segs[:0:0], q.segs[n:]...)
	strays := q.strays
	q.mu.Unlock()
	if n > 0 {
		q.save(true) // before the files go: their records are not delivered again, should the files come back
	}
	var left []string
	for _, name := range strays {
		if err := q.disk.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			left = append(left, name)
			q.complain("remove", func() { q.log.Error("segment of the spool cannot be removed, will retry", "name", name, "err", err) })
		}
	}
	q.mu.Lock()
	q.strays = left
	q.mu.Unlock()
	q.room.give(held)
	q.metrics.bytes.Set(float64(q.room.inUse()))
}

func (q *queue) retireNow() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retire = true
}

// save writes how far the records are in Kafka. That it fails, or is lost with the power, costs no more than repeats.
func (q *queue) save(now bool) {
	q.mu.Lock()
	done := q.done
	due := done != q.saved && (now || time.Since(q.savedAt) >= cursorEvery)
	q.mu.Unlock()
	if !due {
		return
	}
	err := q.replace(cursorFile, appendCursor(nil, done))
	if err != nil {
		q.complain("cursor", func() { q.log.Warn("place in the spool not saved, a restart repeats records", "err", err) })
	}
	q.mu.Lock()
	q.saved, q.savedAt = done, time.Now()
	q.mu.Unlock()
}

// replace puts a file in the place of another. It is not synced.
func (q *queue) replace(name string, b []byte) error {
	const fresh = ".new"
	f, err := q.disk.Open(name+fresh, os.O_CREATE|os.O_TRUNC|os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return q.disk.Rename(name+fresh, name)
}
