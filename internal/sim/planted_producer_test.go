package sim

import (
	"context"
	"errors"
	"sync"

	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/spool"
)

// place is where a producer stands.
type place string

const (
	atIngest   place = "ingest"
	atDrain    place = "drain" // between the spool and the log
	atDead     place = "dead"
	atReplayer place = "replayer"
)

// producer plants bugs between somebody and the log.
func (p planted) producer(at place, inner pipeline.Producer) pipeline.Producer {
	switch {
	case p == ackFirst && at == atIngest, p == deadFirst && at == atDead, p == drainFirst && at == atDrain:
		return &hasty{inner}
	case p == sliceLost && at == atReplayer:
		return &forgetful{inner}
	case p == aliasSpooled && at == atIngest:
		return &later{Producer: inner}
	}
	return inner
}

// done is a receipt for what nobody has seen yet.
type done struct{ err error }

var closedChannel = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (done) Done() <-chan struct{} { return closedChannel }
func (d done) Err() error          { return d.err }

// hasty gives receipts before there is anything to say.
type hasty struct{ pipeline.Producer }

func (p *hasty) Append(ctx context.Context, o pipeline.Outgoing) (pipeline.Receipt, error) {
	if _, err := p.Producer.Append(ctx, o); err != nil {
		return nil, err
	}
	return done{}, nil
}

// forgetful does not hand on what is left of a replay.
type forgetful struct{ pipeline.Producer }

func (p *forgetful) Append(ctx context.Context, o pipeline.Outgoing) (pipeline.Receipt, error) {
	for _, h := range o.Headers {
		if h.Key == "ce_type" && string(h.Value) == "restante.replay.continued" {
			return done{}, nil
		}
	}
	return p.Producer.Append(ctx, o)
}

// later answers aliases although the spool does not take them, and appends them when it does.
type later struct {
	pipeline.Producer
	mu      sync.Mutex
	aliases []pipeline.Outgoing
}

func (p *later) Append(ctx context.Context, o pipeline.Outgoing) (pipeline.Receipt, error) {
	r, err := p.Producer.Append(ctx, o)
	switch {
	case o.IsAlias() && errors.Is(err, spool.ErrSpooling):
		p.mu.Lock()
		defer p.mu.Unlock()
		p.aliases = append(p.aliases, o)
		return done{}, nil
	case o.IsAlias():
		return r, err
	}
	p.mu.Lock()
	held := p.aliases
	p.aliases = nil
	p.mu.Unlock()
	for i, a := range held {
		if _, err := p.Producer.Append(ctx, a); err != nil {
			p.mu.Lock()
			p.aliases = append(p.aliases, held[i:]...)
			p.mu.Unlock()
			break
		}
	}
	return r, err
}
