package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/restante/restante/pipeline"
)

// reader is the place up to which records were fetched.
type reader struct {
	last   uint64 // its seq
	name   string // of the segment under way
	off    int64  // in that segment
	parser parser
}

// fetched is a record on its way out. One without a topic stands for what could not be read.
type fetched struct{ entry }

func (f fetched) gone() bool { return f.out.Topic == "" }

// fetch returns the records that follow, in their order, each once; it waits until there are some or ctx ends. The records' bytes
// belong to the caller.
func (q *queue) fetch(ctx context.Context) ([]fetched, error) {
	for failed := 0; ; {
		q.mu.Lock()
		s, upTo := q.following()
		memory := q.unwritten(s)
		news := q.news
		q.mu.Unlock()
		switch {
		case s != nil:
			out, err := q.readSegment(s, upTo)
			if err == nil && len(out) > 0 {
				return out, nil
			}
			if err == nil {
				continue
			}
			failed++
			q.complain("read", func() { q.log.ErrorContext(ctx, "spool cannot be read, will retry", "err", err) })
			if err := pipeline.Sleep(ctx, q.backoff.Delay(failed)); err != nil {
				return nil, err
			}
		case len(memory) > 0:
			q.reader.last = memory[len(memory)-1].seq
			return memory, nil
		default:
			select {
			case <-news:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
}

// place is a place in a segment: behind the record of that seq.
type place struct {
	seq uint64
	off int64
}

// following is the segment that the next record is in, and how far it is durable. The lock is held.
func (q *queue) following() (*segment, place) {
	for _, s := range q.segs {
		if s.last > q.reader.last {
			return s, place{s.last, s.size}
		}
	}
	return nil, place{}
}

// unwritten is what is next while nothing can be written: Kafka may be there when the disk is not. The lock is held.
func (q *queue) unwritten(s *segment) []fetched {
	if s != nil || !q.failing {
		return nil
	}
	var out []fetched
	for _, p := range q.pending {
		if p.seq > q.reader.last {
			out = append(out, fetched{p.entry})
		}
	}
	return out
}

// readSegment returns the records of the segment from the reader's place up to the one given.
func (q *queue) readSegment(s *segment, upTo place) ([]fetched, error) {
	r := &q.reader
	if r.name != s.name {
		r.name, r.off = s.name, headerSize
		r.parser = parser{seed: s.header.seed(), last: s.header.first - 1, topics: r.parser.topics}
	}
	b, err := read(q.disk, s.name, r.off, upTo.off)
	if errors.Is(err, fs.ErrNotExist) {
		q.log.Error("segment of the spool is gone: somebody has removed it", "name", s.name, "bytes", upTo.off-r.off)
		q.metrics.damaged.Add(float64(upTo.off - r.off))
		r.last, r.off = upTo.seq, upTo.off
		return []fetched{{entry{seq: upTo.seq}}}, nil
	}
	if err != nil {
		return nil, err
	}
	p := &r.parser
	p.b, p.base, p.off, p.bad = b, r.off, 0, nil
	var out []fetched
	for {
		e, ok := p.next()
		if !ok {
			break
		}
		if e.seq > r.last {
			out = append(out, fetched{e})
			r.last = e.seq
		}
	}
	if err := q.setAside(s.name, b, p.base, p.bad); err != nil {
		q.complain("aside", func() { q.log.Error("damaged piece of the spool not moved aside", "name", s.name, "err", err) })
	}
	p.b, r.off = nil, upTo.off
	if r.last < upTo.seq { // its last records are damaged
		r.last = upTo.seq
		out = append(out, fetched{entry{seq: upTo.seq}})
	}
	return out, nil
}

// setAside keeps what could not be read in files of its own.
func (q *queue) setAside(name string, b []byte, base int64, bad []span) error {
	var errs []error
	for _, s := range bad {
		aside := fmt.Sprintf("%s-%08x%s", name, s.from, damagedExt)
		q.metrics.damaged.Add(float64(s.to - s.from))
		errs = append(errs, write(q.disk, aside, b[s.from-base:s.to-base]))
		q.log.Error("piece of the spool is damaged, it is kept aside and the rest goes on",
			"name", name, "offset", s.from, "bytes", s.to-s.from, "kept", aside)
	}
	if len(bad) > 0 {
		errs = append(errs, syncDir(q.disk))
	}
	return errors.Join(errs...)
}

// reject keeps a record that nobody takes, in a file of its own: a segment with this one record.
func (q *queue) reject(e entry) (name string, err error) {
	h := segmentHeader{version: version, first: e.seq}
	name = fmt.Sprintf("%016x%s", e.seq, rejectedExt)
	err = write(q.disk, name, appendFrame(h.append(nil), h.seed(), &e))
	if err == nil {
		err = syncDir(q.disk)
	}
	return name, err
}

// remains is how the log looks when it is opened.
type remains struct {
	segs  []*segment
	last  uint64 // no seq is higher
	final uint64 // that of the last record
	count int    // records behind the cursor
	bytes int64
	torn  int64 // bytes
}

// scan reads all segments. What is damaged is moved aside; what is behind the last whole record of a segment is cut off.
func (q *queue) scan(names []string, done uint64, check func(topic string) error) (r remains, err error) {
	seen := done
	for _, name := range names {
		b, err := read(q.disk, name, 0, -1)
		if err != nil {
			return r, fmt.Errorf("read %s: %w", name, err)
		}
		h, err := parseHeader(b)
		if err != nil {
			r.torn += int64(len(b))
			if err := q.setAsideWhole(name, b); err != nil {
				return r, err
			}
			continue
		}
		if h.version != version {
			return r, fmt.Errorf("%s is of version %d, which this program does not know: start the version that wrote it, or move the file away", name, h.version)
		}
		s := &segment{name: name, header: h, last: h.first - 1, size: int64(len(b))}
		p := parser{seed: h.seed(), last: h.first - 1, b: b, off: headerSize}
		for {
			e, ok := p.next()
			if !ok {
				break
			}
			if e.seq > seen {
				if err := check(e.out.Topic); err != nil {
					return r, err
				}
				r.count++
				seen = e.seq
			}
			s.last = e.seq
		}
		if n := len(p.bad); n > 0 && p.bad[n-1].to == s.size {
			torn := p.bad[n-1]
			r.torn += torn.to - torn.from
			if err := q.setAside(name, b, 0, p.bad[n-1:]); err != nil {
				return r, fmt.Errorf("move the torn end of %s aside: %w", name, err)
			}
			if err := q.cut(name, torn.from); err != nil {
				return r, fmt.Errorf("cut the torn end of %s off: %w", name, err)
			}
			s.size = torn.from
		}
		r.last, r.final = max(r.last, s.last), seen
		s.held = s.size
		r.segs = append(r.segs, s)
		r.bytes += s.size
	}
	return r, nil
}

func (q *queue) setAsideWhole(name string, b []byte) error {
	if len(b) == 0 { // made, and not written any more
		return q.disk.Remove(name)
	}
	q.metrics.damaged.Add(float64(len(b)))
	q.log.Error("segment of the spool is damaged from its beginning, it is kept aside and the rest goes on",
		"name", name, "bytes", len(b), "kept", name+damagedExt)
	if err := q.disk.Rename(name, name+damagedExt); err != nil {
		return fmt.Errorf("move %s aside: %w", name, err)
	}
	return nil
}

func (q *queue) cut(name string, size int64) error {
	f, err := q.disk.Open(name, os.O_WRONLY)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
