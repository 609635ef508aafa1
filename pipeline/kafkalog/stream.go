package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

type stream struct {
	client *Client
	tp     pipeline.TP
	most   int       // bytes of a fetch
	left   recordSet // of the last fetch, what was not given out; its pos is that of the stream
	buf    *buffer   // what left lies in; nil when that is nothing
	usual  int       // records in the last Fetch, a guess for the next
	keeper keeper

	conn   *fetchConn
	leader string

	tries     int       // failures in a row
	notBefore time.Time // of the next try
	trouble   trouble

	records, bytes prometheus.Counter
}

var _ pipeline.Stream = (*stream)(nil)

// buffer is the memory of one fetch.
type buffer struct{ answer, inflated []byte }

// buffers are lent to streams while they hold records that they have not given out.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// Open does not wait for the leader: the first Fetch does.
func (l *log) Open(ctx context.Context, tp pipeline.TP, from int64) (pipeline.Stream, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if n := l.client.cfg.Partitions[tp.Topic]; n == 0 {
		return nil, fault.Fatal(fmt.Errorf("open %v: the topic is not among the configured topics", tp))
	}
	if from < 0 || tp.Part < 0 {
		return nil, fault.Fatal(fmt.Errorf("open %v at offset %d: there is no such place", tp, from))
	}
	return &stream{
		client: l.client, tp: tp, most: l.most, left: recordSet{pos: from},
		trouble: trouble{log: l.client.log.With("topic", tp.Topic, "partition", tp.Part)},
		records: l.client.metrics.consumedRecords.WithLabelValues(l.group, tp.Topic),
		bytes:   l.client.metrics.consumedBytes.WithLabelValues(l.group, tp.Topic),
	}, nil
}

// Position is the offset before which all is given out. It also passes offsets that have no record (markers of transactions,
// what compaction has taken), as soon as they were fetched. It is valid after Close, too.
func (s *stream) Position() int64 { return s.left.pos }

// Fetch returns what is left of the last fetch without a round trip. It returns early, and nothing, when all that came within
// wait are offsets without records: Position tells.
func (s *stream) Fetch(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	begin, end := s.Position(), time.Now().Add(wait)
	for {
		if d := time.Until(s.notBefore); d > 0 && s.buf == nil {
			if err := pipeline.Sleep(ctx, min(d, time.Until(end))); err != nil {
				return nil, err
			}
			if time.Until(s.notBefore) > 0 {
				return nil, nil
			}
		}
		recs, err := s.take(ctx, max(limit, 1), max(time.Until(end), time.Millisecond))
		err = mark(err)
		switch {
		case err == nil:
			s.tries = 0
			s.trouble.over(ctx, "fetch")
		case ctx.Err() != nil:
			s.drop()
			return nil, context.Cause(ctx)
		case errors.Is(err, kafka.OffsetOutOfRange):
			return nil, fmt.Errorf("fetch %v at offset %d: %w", s.tp, s.Position(), pipeline.ErrGap)
		case fault.IsFatal(err):
			s.drop()
			return nil, fmt.Errorf("fetch %v: %w", s.tp, err)
		default:
			s.failed(ctx, err)
		}
		if len(recs) > 0 || s.Position() > begin || !time.Now().Before(end) {
			return recs, nil
		}
	}
}

// failed prepares for the next try. The first one is made at once: a pooled connection may have died of old age.
func (s *stream) failed(ctx context.Context, err error) {
	s.drop()
	s.client.forgetLeaders(s.tp.Topic)
	if s.tries > 0 {
		s.trouble.met(ctx, "fetch", err)
		s.notBefore = time.Now().Add(pause(s.tries))
	}
	s.tries++
}

func (s *stream) drop() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
	s.release()
}

// release gives the buffer of the last fetch back.
func (s *stream) release() {
	if s.buf == nil {
		return
	}
	s.buf.inflated = s.left.end()
	if cap(s.buf.answer)+cap(s.buf.inflated) <= 4*s.most { // what grew for an uncommon batch is not kept
		buffers.Put(s.buf)
	}
	s.buf = nil
}

func (s *stream) connect(ctx context.Context) error {
	leaders, err := s.client.leaders(ctx, s.tp.Topic, []int{s.tp.Part})
	if err != nil {
		return err
	}
	leader := leaders[s.tp.Part]
	s.leader = address(leader)
	if s.conn = s.client.idle.take(s.tp, s.leader); s.conn != nil {
		return nil
	}
	s.conn, err = s.client.dial(ctx, s.tp, leader)
	return err
}

// take returns records of the last fetch, and fetches anew when none is left. What came before an error is returned without it:
// it shows again.
func (s *stream) take(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	if s.buf == nil {
		if err := s.fetch(ctx, wait); err != nil {
			return nil, err
		}
	}
	var (
		out  []pipeline.Record
		raw  rawRecord
		size int
	)
	for len(out) < limit && s.left.next(&raw) {
		if out == nil {
			out = make([]pipeline.Record, 0, min(limit, max(s.left.left+1, s.usual+s.usual/8)))
		}
		out = append(out, pipeline.Record{})
		n, err := s.keeper.record(&out[len(out)-1], s.tp, &raw)
		if err != nil {
			out = out[:len(out)-1]
			s.left.refuse(&raw, err)
			break
		}
		size += n
	}
	s.left.advance() // beyond what holds no records
	if err := s.left.err; err != nil && len(out) == 0 {
		return nil, err
	}
	if s.left.ended() {
		s.release()
	}
	if len(out) > 0 {
		s.usual = len(out)
		s.records.Add(float64(len(out)))
		s.bytes.Add(float64(size))
	}
	return out, nil
}

// fetch makes one round trip. The end of ctx closes the connection and so ends it at once.
func (s *stream) fetch(ctx context.Context, wait time.Duration) error {
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			s.conn = nil
			return err
		}
	}
	conn := s.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	size, err := conn.ask(s.left.pos, s.most, wait)
	var answer fetched
	if err == nil {
		s.buf, _ = buffers.Get().(*buffer)
		answer, err = conn.answer(&s.buf.answer, size, s.most)
	}
	if !stop() {
		s.drop()
		return context.Cause(ctx)
	}
	if err != nil {
		s.release()
		return err
	}
	if answer.throttle > 0 {
		s.notBefore = time.Now().Add(answer.throttle)
	}
	s.left.reset(answer.set, s.buf.inflated)
	return nil
}

// Close hands the connection back for the next stream of the partition.
func (s *stream) Close() error {
	s.release()
	if s.conn != nil {
		s.client.idle.put(s.tp, s.leader, s.conn)
		s.conn = nil
	}
	return nil
}
