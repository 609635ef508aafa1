package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/pipeline"
)

// openQueue opens the log in a directory, or begins one. check refuses records that could not go anywhere.
func openQueue(d Disk, size int64, b pipeline.Backoff, log *slog.Logger, m *Metrics, check func(topic string) error) (*queue, error) {
	const largest, share = 16 << 20, 4 // so that room comes back long before everything is drained
	q := &queue{
		disk: d, room: room{limit: size}, segment: min(largest, size/share), backoff: b, log: log, metrics: m,
		closing: make(chan struct{}), stopped: make(chan struct{}), wake: make(chan struct{}, 1), news: make(chan struct{}),
		said: make(map[string]time.Time),
	}
	names, err := d.List()
	if err != nil {
		return nil, fmt.Errorf("list the spool: %w", err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, segmentExt) })
	slices.Sort(names)
	done, err := q.loadCursor()
	if err != nil {
		log.Warn("place in the spool is not readable, records are repeated from its beginning", "err", err)
	}
	found, err := q.scan(names, done, check)
	if err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	q.segs, q.count = found.segs, found.count
	q.next = max(done, found.last) + 1
	q.done, q.saved, q.final = done, done, max(done, found.final)
	if q.count == 0 {
		q.done = q.next - 1
	}
	q.reader.last = q.done
	q.retire = true
	q.room.force(found.bytes)
	m.size.Set(float64(size))
	m.bytes.Set(float64(found.bytes))
	m.records.Set(float64(q.count))
	if q.count > 0 || found.torn > 0 {
		log.Info("spool is opened", "records", q.count, "bytes", found.bytes, "torn", found.torn)
	}
	ctx, stop := context.WithCancel(context.Background())
	q.stop = stop
	go q.keep(ctx) // ended, and waited for, by close
	return q, nil
}

// loadCursor is 0 when there is none.
func (q *queue) loadCursor() (uint64, error) {
	b, err := read(q.disk, cursorFile, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return parseCursor(b)
}
