package mqtt

import (
	"context"
	"errors"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

var errBudget = errors.New("not durable within the budget")

// Within is the context of a call that a broker waits for. It ends after the budget, or with work, but not with the call's own ctx: a
// broker that hangs up in the middle does not repeat its call, so the event is taken all the same.
func Within(ctx, work context.Context, budget time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), budget, errBudget)
	stop := context.AfterFunc(work, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// Durable hands events over in their order and returns nil once each is durable or not wanted. What the log can never take is given
// to poison and counts as done. After an error some of the events may be in the log.
func Durable(ctx context.Context, accept pipeline.Accept, poison func(error), events ...event.Event) error {
	var receipts []pipeline.Receipt
	for _, e := range events {
		r, err := accept(ctx, e)
		switch {
		case fault.IsPoison(err):
			poison(err)
		case err != nil:
			return err
		case r != nil:
			receipts = append(receipts, r)
		}
	}
	for _, r := range receipts {
		if err := pipeline.Wait(ctx, r); fault.IsPoison(err) {
			poison(err)
		} else if err != nil {
			return err
		}
	}
	return nil
}
