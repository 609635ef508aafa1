package pipeline

import (
	"context"
	"fmt"
)

// commit commits the lowest offset that is not finished, when it has moved.
func (o *owner) commit(ctx context.Context) error {
	o.mu.Lock()
	for len(o.low) > 0 && o.open[o.low[0].Offset] == 0 {
		delete(o.open, o.low[0].Offset)
		o.low = o.low[1:]
	}
	if o.last.Topic == "" {
		o.mu.Unlock()
		return nil // nothing was read
	}
	at := o.last.Next()
	if len(o.low) > 0 {
		at = Before(o.low[0])
	}
	o.mu.Unlock()
	if at.Offset() <= o.committed {
		return nil
	}
	if err := o.gen.Commit(ctx, map[TP]Next{o.tp: at}); err != nil {
		return fmt.Errorf("commit %s before %d: %w", o.tp, at.Offset(), err)
	}
	o.committed = at.Offset()
	return nil
}

// begin notes that an event has one more replay that is not finished.
func (o *owner) begin(rec Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.low); o.open[rec.Offset] == 0 && (n == 0 || o.low[n-1].Offset != rec.Offset) {
		o.low = append(o.low, Record{TP: rec.TP, Offset: rec.Offset})
	}
	o.open[rec.Offset]++
}

// done notes that a replay of the event has finished.
func (o *owner) done(offset int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open[offset]--
}
