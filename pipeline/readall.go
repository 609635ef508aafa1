package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/restante/restante/fault"
)

// ReadAll calls each for every record of [from, to) of a partition, in order, and returns nil only when it has had them all.
// What is transient is tried again until nothing has come for as long as patience. An error of each ends the reading and is
// returned as it is; [ErrGap] says that retention has removed what was asked for.
func ReadAll(ctx context.Context, l Log, tp TP, from, to int64, patience time.Duration, each func(Record) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var refused error
	last := time.Now()
	for attempt := 1; ; attempt++ {
		began := from
		err := readRange(ctx, l, tp, from, to, func(r Record) {
			if refused != nil {
				return
			}
			if refused = each(r); refused != nil {
				stop()
				return
			}
			from = r.Offset + 1
		})
		switch {
		case refused != nil:
			return refused
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if from > began {
			last, attempt = time.Now(), 1
		}
		if errors.Is(err, ErrGap) || fault.IsFatal(err) || time.Since(last) > patience {
			return fmt.Errorf("read offset %d of %s: %w", from, tp, err)
		}
		if err := Sleep(ctx, DefaultBackoff.Delay(attempt)); err != nil {
			return err
		}
	}
}
