package pipeline

import "time"

// Evidence says what counts as delivered.
type Evidence string

// The kinds of evidence.
const (
	EvidenceBroker Evidence = "broker" // the broker's acked event
	EvidencePuback Evidence = "puback" // the broker took the message
	EvidenceApp    Evidence = "app"    // the client answers on a response topic, which a source turns into an acked event
)

// ReplayLimits bound the replays.
type ReplayLimits struct {
	// Window is the most un-acked messages of a client.
	Window int
	// Active is the most replays under way in this process; the others are parked.
	Active int
	// Slice is the most messages of one slice; then what is left is handed on.
	Slice int
	// AckTimeout is how long an ack may take before the client is parked; Retry are the pauses before it is tried again.
	AckTimeout time.Duration
	Retry      []time.Duration
	// ClockSkew is how far broker clocks may be apart. 0 = the broker's clock and ingest's are one.
	ClockSkew time.Duration
	// ResumeDelay is how long a replay waits where the subscription may have been there before, so that the broker hands over its
	// own queue first. 0 = it does not wait.
	ResumeDelay time.Duration
	// Settle is how long after a replay a last look follows, for events that are late. 0 = sources lose no order.
	Settle time.Duration
	// Page is how many rows one read returns.
	Page int
	// Patience is how long a replay waits for a lagging writer before it begins with what there is.
	Patience time.Duration
	// ClientRate and ProcessRate are the most messages a second to one client and from this process; 0 = no limit.
	ClientRate, ProcessRate int
	// Reads is how many reads of one store run at once; fewer while they take longer than ReadTarget on average.
	Reads      int
	ReadTarget time.Duration
	// Lookups is the most lookups of stored subscriptions that read and call the broker at a time; the others wait.
	Lookups int
	// LookupPatience is how long a lookup waits for a lagging writer before it goes by what is stored.
	LookupPatience time.Duration
	// PositionHold is how long pub/sub positions that have moved wait for others to be written with them.
	PositionHold time.Duration
	// Drain is how long finished work may still be committed after the generation has ended.
	Drain time.Duration
}

// DefaultReplayLimits are the limits of DESIGN §8.
var DefaultReplayLimits = ReplayLimits{
	Window: 16, Active: 2000, Slice: 1000, AckTimeout: 30 * time.Second,
	Retry:       []time.Duration{30 * time.Second, 2 * time.Minute, 10 * time.Minute},
	ResumeDelay: 2 * time.Second, ClockSkew: 2 * time.Second, Settle: 10 * time.Second, Page: 500, Patience: 3 * time.Second,
	Reads: 64, ReadTarget: 100 * time.Millisecond,
	Lookups: 32, LookupPatience: 10 * time.Second, PositionHold: 3 * time.Second, Drain: 10 * time.Second,
}
