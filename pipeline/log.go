package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/restante/restante/event"
)

// TP is a partition of a Kafka topic. Topic is the full name.
type TP struct {
	Topic string
	Part  int
}

func (tp TP) String() string { return fmt.Sprintf("%s/%d", tp.Topic, tp.Part) }

// Parts are the numbers of n partitions.
func Parts(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// Record is one record of the log.
type Record struct {
	TP
	Offset int64
	event.Wire
}

// Next is the offset after r: all that can be committed.
func (r Record) Next() Next { return Next{r.Offset + 1} }

// Next is an offset to be committed: the first one that is not done. Only [Record.Next] makes one, and [Before] for a record
// that is not done.
type Next struct{ o int64 }

// Before is the commit that leaves r to be read again.
func Before(r Record) Next { return Next{r.Offset} }

// Offset is the number that goes to Kafka.
func (n Next) Offset() int64 { return n.o }

// Span is what a partition holds: First is the offset of its first record, End the one that the next record will get.
type Span struct{ First, End int64 }

// ErrFenced is what Commit returns when the partition has, or may have, another owner. What is held belongs to that owner.
var ErrFenced = errors.New("the generation is over: another member owns its partitions")

// ErrGap is what Fetch returns when the offset asked for is not there any more (or not yet): retention removed it, or the
// topic was made anew.
var ErrGap = errors.New("the offset is not in the log")

// Group is one member of a Kafka consumer group.
type Group interface {
	// Next joins (or rejoins) and returns the generation that begins. It retries what is transient until ctx ends.
	// It returns only after all functions of the generation before have returned.
	Next(ctx context.Context) (Generation, error)
	// Close leaves the group and returns when all Start functions have returned.
	Close() error
}

// Generation is one assignment of partitions.
type Generation interface {
	// Assigned maps each partition to its committed offset; < 0 = none: start at Span.First.
	Assigned() map[TP]int64
	// Start runs fn beside the others. Its ctx ends with the generation; returning ends the generation for all.
	Start(fn func(ctx context.Context))
	// Commit commits for this generation only. It returns ErrFenced when another member may own the partition; any other
	// error is transient or the end of ctx, and says nothing about whether the commit was made.
	Commit(ctx context.Context, at map[TP]Next) error
}

// Log reads the log. All methods are safe for concurrent use. Errors are transient unless marked by package fault.
type Log interface {
	// Spans returns the spans of the partitions named. An acknowledged record is below End.
	Spans(ctx context.Context, topic string, parts ...int) (map[int]Span, error)
	// Committed returns a group's committed offsets; < 0 = none. An error is never "none".
	Committed(ctx context.Context, group, topic string, parts ...int) (map[int]int64, error)
	// OffsetAt returns the first offset whose record time is at or after t, and End when there is none.
	OffsetAt(ctx context.Context, tp TP, t time.Time) (int64, error)
	// Open reads a partition from an offset on.
	Open(ctx context.Context, tp TP, from int64) (Stream, error)
}

// Stream reads one partition in order. It is not safe for concurrent use.
type Stream interface {
	// Fetch returns at least one and at most limit records, or none when nothing came within wait, or only offsets that hold
	// no record: Position tells. It reconnects by itself where that is safe; an error means that the stream must be closed and
	// opened anew. ErrGap: see there. The records belong to the caller.
	Fetch(ctx context.Context, limit int, wait time.Duration) ([]Record, error)
	// Position is the offset before which everything has been returned. It passes offsets that hold no record.
	Position() int64
	Close() error
}

// Outgoing is a record to be appended; its partition is murmur2(key) mod the configured count.
type Outgoing struct {
	Topic string
	event.Wire
}

// Producer appends to the log: acks=all, retried for ever, order kept.
type Producer interface {
	// Append takes a record. Records of one partition get there in the order of their Append. It blocks while too much is on
	// its way; an error (the end of ctx, a closed producer, a record that Kafka can never take: fault.Poison) means that the
	// record was not taken.
	Append(ctx context.Context, r Outgoing) (Receipt, error)
	// Close waits until all that was taken is durable, or ctx ends.
	Close(ctx context.Context) error
}

// Receipt is the fate of one appended record.
type Receipt interface {
	// Done is closed when the fate is known.
	Done() <-chan struct{}
	// Err is valid after Done; nil = durable: with acks=all, or synced to the disk of the spool that stands before the log.
	Err() error
}

// Wait returns when the receipt is done or ctx ends.
func Wait(ctx context.Context, r Receipt) error {
	select {
	case <-r.Done():
		return r.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
