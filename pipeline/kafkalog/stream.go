package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// answerGrace is how long after the wait it asked for a stream gives its broker to answer.
const answerGrace = 5 * time.Second

type stream struct {
	client *Client
	tp     pipeline.TP
	next   int64 // of the next fetch; what is in buf lies below it
	buf    []pipeline.Record
	last   int            // records in the last fetch, a guess for the next
	room   []event.Header // for the headers of the records to come

	conn   *kafka.Conn
	leader string

	tries     int       // failures in a row
	notBefore time.Time // of the next try
	trouble   trouble

	records, bytes prometheus.Counter
}

var _ pipeline.Stream = (*stream)(nil)

// empty is the value of a record without bytes: kafka-go reads it back as nil, which would mean no value.
var empty = []byte{}

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
		client: l.client, tp: tp, next: from,
		trouble: trouble{log: l.client.log.With("topic", tp.Topic, "partition", tp.Part)},
		records: l.client.metrics.consumedRecords.WithLabelValues(l.group, tp.Topic),
		bytes:   l.client.metrics.consumedBytes.WithLabelValues(l.group, tp.Topic),
	}, nil
}

// Fetch returns what is left of the last fetch without a round trip.
func (s *stream) Fetch(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if len(s.buf) == 0 {
		if err := s.fill(ctx, wait); err != nil {
			return nil, err
		}
	}
	n := min(max(limit, 1), len(s.buf))
	if n == 0 {
		return nil, nil
	}
	out := s.buf[:n:n]
	s.buf = s.buf[n:]
	return out, nil
}

// fill fetches until there is a record or wait is over. Errors of brokers and connections are waited out.
func (s *stream) fill(ctx context.Context, wait time.Duration) error {
	end := time.Now().Add(wait)
	for {
		if d := time.Until(s.notBefore); d > 0 {
			if err := sleep(ctx, min(d, time.Until(end))); err != nil {
				return err
			}
			if time.Until(s.notBefore) > 0 {
				return nil
			}
		}
		err := mark(s.fetch(ctx, max(time.Until(end), time.Millisecond)))
		switch {
		case err == nil:
			s.tries = 0
			s.trouble.over(ctx, "fetch")
		case ctx.Err() != nil:
			s.drop()
			return context.Cause(ctx)
		case errors.Is(err, kafka.OffsetOutOfRange):
			return fmt.Errorf("fetch %v at offset %d: %w", s.tp, s.next, pipeline.ErrGap)
		case fault.IsFatal(err):
			s.drop()
			return fmt.Errorf("fetch %v: %w", s.tp, err)
		default:
			s.failed(ctx, err)
		}
		if len(s.buf) > 0 || !time.Now().Before(end) {
			return nil
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

// fetch makes one round trip. The end of ctx closes the connection and so ends it at once.
func (s *stream) fetch(ctx context.Context, wait time.Duration) error {
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			s.conn = nil
			return err
		}
	}
	conn := s.conn
	if err := conn.SetDeadline(time.Now().Add(wait + answerGrace)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err := s.read(conn, wait)
	if !stop() {
		s.drop()
	}
	return err
}

func (s *stream) read(conn *kafka.Conn, wait time.Duration) error {
	if _, err := conn.Seek(s.next, kafka.SeekAbsolute|kafka.SeekDontCheck); err != nil {
		return err
	}
	batch := conn.ReadBatchWith(kafka.ReadBatchConfig{
		MinBytes: 1, MaxBytes: s.client.cfg.FetchBytes, MaxWait: wait,
	})
	var (
		buf  []pipeline.Record
		size int
		err  = batch.Err()
	)
	for err == nil {
		var m kafka.Message
		if m, err = batch.ReadMessage(); err != nil {
			break
		}
		if m.Offset < s.next {
			continue
		}
		if buf == nil {
			buf = make([]pipeline.Record, 0, max(s.last+s.last/8, 16))
		}
		size += len(m.Key) + len(m.Value)
		buf = append(buf, pipeline.Record{})
		s.fillIn(&buf[len(buf)-1], &m, &size)
		s.next = m.Offset + 1
	}
	s.next = max(s.next, batch.Offset()) // beyond what compaction took
	_ = batch.Close()                    // err is what it would say
	if len(buf) > 0 {
		s.buf, s.last = buf, len(buf)
		s.room = nil
		s.records.Add(float64(len(buf)))
		s.bytes.Add(float64(size))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, kafka.RequestTimedOut) { // the end of the batch; nothing came
		return nil
	}
	return err
}

func (s *stream) fillIn(r *pipeline.Record, m *kafka.Message, size *int) {
	*r = pipeline.Record{TP: s.tp, Offset: m.Offset, Wire: event.Wire{Key: m.Key, Value: m.Value, Time: m.Time}}
	if r.Value == nil {
		r.Value = empty
	}
	if len(m.Headers) > 0 {
		const piece = 512 // headers are made for some records at once
		if len(s.room) < len(m.Headers) {
			s.room = make([]event.Header, max(piece, len(m.Headers)))
		}
		r.Headers, s.room = s.room[:len(m.Headers):len(m.Headers)], s.room[len(m.Headers):]
		for i, h := range m.Headers {
			r.Headers[i] = event.Header{Key: h.Key, Value: h.Value}
			*size += len(h.Key) + len(h.Value)
		}
	}
}

// Close hands the connection back for the next stream of the partition.
func (s *stream) Close() error {
	if s.conn != nil {
		s.client.idle.put(s.tp, s.leader, s.conn)
		s.conn = nil
	}
	s.buf = nil
	return nil
}
