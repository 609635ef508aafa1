package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

// consumption runs Consume over three partitions.
func consumption(t *testing.T, log *slog.Logger, run pipeline.Part) (*stack, *process) {
	t.Helper()
	s := newStack(t, 3)
	p := s.start(nil, func(ctx, work context.Context, c *fakelog.Client) error {
		return pipeline.Consume(ctx, work, c.Group(writerGroup, topics.Messages), log, run)
	})
	return s, p
}

func TestAFatalErrorOfOnePartitionEndsAllAndLeavesTheGroup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var drained atomic.Int64
		boom := fault.Fatal(errors.New("no table"))
		s, p := consumption(t, quiet, func(ctx, work context.Context, _ pipeline.Generation, tp pipeline.TP, _ int64) error {
			if tp.Part == 1 {
				if err := pipeline.Sleep(ctx, time.Minute); err != nil {
					return err
				}
				return boom
			}
			<-ctx.Done()
			if err := pipeline.Sleep(work, 5*time.Second); err == nil { // finishes what it holds
				drained.Add(1)
			}
			return nil
		})
		<-p.done
		if !errors.Is(p.err, boom) || drained.Load() != 2 {
			t.Errorf("ended with %v after %d others had drained; want the fatal error after 2", p.err, drained.Load())
		}
		joined := make(chan struct{})
		s.start(nil, func(ctx, work context.Context, c *fakelog.Client) error {
			return pipeline.Consume(ctx, work, c.Group(writerGroup, topics.Messages), quiet, func(ctx, _ context.Context, _ pipeline.Generation, tp pipeline.TP, _ int64) error {
				if tp.Part == 0 {
					close(joined)
				}
				<-ctx.Done()
				return nil
			})
		})
		began := time.Now()
		<-joined
		if d := time.Since(began); d > time.Second {
			t.Errorf("the next member waited %v: the group was not left", d)
		}
	})
}

func TestAnErrorInARebalanceIsLoggedAndWorkGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		var runs atomic.Int64
		s, p := consumption(t, slog.New(slog.NewTextHandler(&text, nil)), func(ctx, _ context.Context, _ pipeline.Generation, tp pipeline.TP, _ int64) error {
			runs.Add(1)
			<-ctx.Done()
			if tp.Part == 2 && runs.Load() == 3 {
				return errDown
			}
			return nil
		})
		time.Sleep(time.Second)
		s.cluster.Rebalance(writerGroup)
		time.Sleep(time.Minute)
		if runs.Load() != 6 {
			t.Errorf("%d partitions were worked, want 3 in each of 2 generations", runs.Load())
		}
		if err := p.stop(); err != nil {
			t.Errorf("ended with %v", err)
		}
		if !strings.Contains(text.String(), "partition given up in a rebalance") || strings.Count(text.String(), "\n") != 1 {
			t.Errorf("logged: %s", text.String())
		}
	})
}

func TestWhatIsNotFinishedAtTheEndIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, p := consumption(t, quiet, func(ctx, _ context.Context, _ pipeline.Generation, tp pipeline.TP, _ int64) error {
			<-ctx.Done()
			if tp.Part == 0 {
				return errDown
			}
			return nil
		})
		time.Sleep(time.Second)
		if err := p.stop(); !errors.Is(err, errDown) {
			t.Errorf("ended with %v, want what was not finished", err)
		}
	})
}

func TestAGenerationIsOverBeforeTheNextIsAskedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int64
		s := newStack(t, 2)
		p := s.start(nil, func(ctx, work context.Context, c *fakelog.Client) error {
			g := &strict{Group: c.Group(writerGroup, topics.Messages), running: &running, t: t}
			return pipeline.Consume(ctx, work, g, quiet, func(ctx, _ context.Context, _ pipeline.Generation, _ pipeline.TP, _ int64) error {
				running.Add(1)
				defer running.Add(-1)
				<-ctx.Done()
				return pipeline.Sleep(context.Background(), time.Second)
			})
		})
		time.Sleep(time.Second)
		for range 3 {
			s.cluster.Rebalance(writerGroup)
			time.Sleep(10 * time.Second)
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
}

// strict is a group that must not be asked for a generation while functions of the last one run.
type strict struct {
	pipeline.Group
	running *atomic.Int64
	t       *testing.T
}

func (g *strict) Next(ctx context.Context) (pipeline.Generation, error) {
	if n := g.running.Load(); n > 0 {
		g.t.Errorf("asked for a generation while %d functions of the last one run", n)
	}
	return g.Group.Next(ctx)
}
