package cassandra

import "time"

// Counter names something that a store counts.
type Counter string

// What a store counts.
const (
	Retries      Counter = "retries"       // requests sent a second time
	Timeouts     Counter = "timeouts"      // requests without an answer in time: nobody knows whether they were done
	Bisections   Counter = "bisections"    // batches cut in two to find the row that cannot be stored
	Expired      Counter = "expired"       // messages that had expired before they could be written
	Tombstones   Counter = "tombstones"    // ranges cut in two because they hold more tombstones than a read may meet
	Warnings     Counter = "warnings"      // warnings of the servers
	Late         Counter = "late"          // hours listed because of a message that comes late
	Marks        Counter = "marks"         // low marks moved
	Foreign      Counter = "foreign"       // messages read that somebody else wrote
	Unreadable   Counter = "unreadable"    // rows left out of a read because their key or content is none of ours
	Reconnects   Counter = "reconnects"    // times that the session was made again
	PropsMissing Counter = "props_missing" // messages read whose properties were not there
)

// Counters lists all counters.
func Counters() []Counter {
	return []Counter{Retries, Timeouts, Bisections, Expired, Tombstones, Warnings, Late, Marks, Foreign, Unreadable, Reconnects, PropsMissing}
}

// Request names a kind of request to the cluster.
type Request string

// The kinds of requests.
const (
	Batch  Request = "batch"  // several rows of one partition
	Single Request = "single" // one row
	Read   Request = "read"
)

// Requests lists all kinds of requests.
func Requests() []Request { return []Request{Batch, Single, Read} }

// Metrics is told what a store does, from many goroutines at once.
type Metrics interface {
	// Count adds n to a counter.
	Count(c Counter, n int)
	// Observe says how long a request of so many rows took, whether it was done, and which server was asked last ("" = none, or a batch).
	Observe(r Request, rows int, took time.Duration, ok bool, server string)
	// InFlight says that so many more requests are under way, or fewer.
	InFlight(change int)
}

// nobody listens.
type nobody struct{}

func (nobody) Count(Counter, int)                                {}
func (nobody) Observe(Request, int, time.Duration, bool, string) {}
func (nobody) InFlight(int)                                      {}
