package spool

import (
	"log/slog"
	"time"

	"github.com/restante/restante/pipeline"
)

// Config is what a [Producer] needs.
type Config struct {
	// Dir is the directory; it is made when it is not there, for this user only. One process uses it at a time.
	Dir string
	// Disk is used instead of Dir where it is set: then its caller sees to it that nobody else uses it.
	Disk Disk
	// Size is how many bytes the spool may take. When it is full, Append waits.
	Size int64
	// After is how long a record may wait for Kafka before the spool begins.
	After time.Duration
	// Inner appends to Kafka. It is closed with the spool.
	Inner pipeline.Producer
	// Topics are the names in Kafka.
	Topics pipeline.Topics
	// Ready is closed when Kafka is known to be as it must be; until then everything goes to the disk, and nothing is drained. Nil says
	// that it is.
	Ready <-chan struct{}
	// Changed is told when the spool begins (with the reason) and ends (""); nil tells nobody.
	Changed func(spooling string)
	// Backoff are the pauses between attempts; the zero one is pipeline.DefaultBackoff.
	Backoff pipeline.Backoff
	// Now is the clock that records are stamped by which have waited for long.
	Now     func() time.Time
	Metrics *Metrics
	Log     *slog.Logger
}
