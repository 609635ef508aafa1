package fakelog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/restante/restante/pipeline"
)

type reader struct{ *Client }

var _ pipeline.Log = (*reader)(nil)

// Spans returns the spans of the partitions.
func (r *reader) Spans(ctx context.Context, topic string, parts ...int) (map[int]pipeline.Span, error) {
	out := make(map[int]pipeline.Span)
	err := r.do(ctx, Call{Op: OpSpans, TP: one(topic, parts)}, func() error {
		for _, n := range parts {
			p, err := r.c.part(pipeline.TP{Topic: topic, Part: n})
			if err != nil {
				return err
			}
			out[n] = pipeline.Span{First: p.first, End: p.end()}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Committed returns the group's committed offsets.
func (r *reader) Committed(ctx context.Context, group, topic string, parts ...int) (map[int]int64, error) {
	out := make(map[int]int64)
	err := r.do(ctx, Call{Op: OpCommitted, TP: one(topic, parts), Group: group}, func() error {
		for _, n := range parts {
			out[n] = r.c.committed(group, pipeline.TP{Topic: topic, Part: n})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func one(topic string, parts []int) pipeline.TP {
	if len(parts) == 1 {
		return pipeline.TP{Topic: topic, Part: parts[0]}
	}
	return pipeline.TP{Topic: topic, Part: -1}
}

// OffsetAt looks for the first record whose time is not before t.
func (r *reader) OffsetAt(ctx context.Context, tp pipeline.TP, t time.Time) (int64, error) {
	var at int64
	err := r.do(ctx, Call{Op: OpOffsetAt, TP: tp}, func() error {
		p, err := r.c.part(tp)
		if err != nil {
			return err
		}
		at = p.end()
		for _, rec := range p.recs {
			if !rec.Time.Before(t) {
				at = rec.Offset
				break
			}
		}
		return nil
	})
	return at, err
}

// Open begins at an offset. Whether it is there shows at the first fetch.
func (r *reader) Open(ctx context.Context, tp pipeline.TP, from int64) (pipeline.Stream, error) {
	err := r.do(ctx, Call{Op: OpOpen, TP: tp, Offset: from}, func() error {
		_, err := r.c.part(tp)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &stream{c: r.Client, tp: tp, next: from}, nil
}

type stream struct {
	c    *Client
	tp   pipeline.TP
	next int64
	err  error
}

var errBroken = errors.New("the stream must be closed")

// Fetch breaks the stream when it returns an error, so that a caller that goes on with it is found.
func (s *stream) Fetch(ctx context.Context, limit int, wait time.Duration) ([]pipeline.Record, error) {
	if s.err != nil {
		return nil, s.err
	}
	recs, more, err := s.look(ctx, OpFetch, limit)
	if err == nil && len(recs) == 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-more:
		case <-t.C:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		recs, _, err = s.look(ctx, OpFetched, limit)
	}
	if errors.Is(err, errEmpty) {
		return nil, pipeline.Sleep(ctx, wait)
	}
	if err != nil {
		s.err = fmt.Errorf("fetch %s from %d: %w: %w", s.tp, s.next, errBroken, err)
		return nil, err
	}
	return recs, nil
}

// Position is behind all that was returned, and behind the marks that follow.
func (s *stream) Position() int64 { return s.next }

func (s *stream) look(ctx context.Context, op string, limit int) (recs []pipeline.Record, more <-chan struct{}, err error) {
	next := s.next
	err = s.c.do(ctx, Call{Op: op, TP: s.tp, Offset: s.next}, func() error {
		p, err := s.c.c.part(s.tp)
		if err != nil {
			return err
		}
		if s.next < p.first || s.next > p.end() {
			return pipeline.ErrGap
		}
		recs = append(recs, p.recs[s.next-p.first:]...)
		recs = recs[:min(limit, len(recs))]
		next += int64(len(recs))
		recs = slices.DeleteFunc(recs, func(r pipeline.Record) bool { return p.marks[r.Offset] })
		more = p.more
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	s.next = next
	return recs, more, nil
}

// Close ends the stream.
func (s *stream) Close() error {
	s.err = errBroken
	return nil
}
