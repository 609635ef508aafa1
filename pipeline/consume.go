package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/restante/restante/fault"
)

// Part is the work on one partition for one generation. Run returns when ctx, the generation, has ended and what was held is
// finished, or with an error. See [Worker.Run] and [Replayer.Own].
type Part func(ctx, work context.Context, g Generation, tp TP, from int64) error

// Consume works as one member of a group until ctx ends, then finishes what is held, leaves the group and returns. It returns
// an error when the process cannot work (fault.Fatal), or when something was still held when the time to finish it was over.
func Consume(ctx, work context.Context, g Group, log *slog.Logger, run Part) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var fatal, late error
	for ctx.Err() == nil {
		var parts sync.WaitGroup
		gen, err := g.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				fatal = err
			}
			break
		}
		for tp, from := range gen.Assigned() {
			parts.Add(1)
			gen.Start(func(gctx context.Context) {
				defer parts.Done()
				pctx, stop := context.WithCancel(gctx)
				defer stop()
				defer context.AfterFunc(ctx, stop)()
				err := run(pctx, work, gen, tp, from)
				if err == nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				switch {
				case fault.IsFatal(err):
					fatal = errors.Join(fatal, err)
					cancel()
				case ctx.Err() != nil:
					late = errors.Join(late, err)
				default:
					log.WarnContext(gctx, "partition given up in a rebalance", "topic", tp.Topic, "partition", tp.Part, "err", err)
				}
			})
		}
		parts.Wait()
	}
	err := g.Close()
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(fatal, late, err)
}
