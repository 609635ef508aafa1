package pipeline

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/restante/restante/event"
)

// Reason is why a record is a dead letter. The set is closed: docs/deadletters.md says of each what it means and what to do.
type Reason string

// The reasons.
const (
	// ReasonMalformed: the record is no event of ours, or not of its topic.
	ReasonMalformed Reason = deadMalformed
	// ReasonRejected: a store can never take what the record asks of it.
	ReasonRejected Reason = deadRejected
	// ReasonOversize: the payload is over ingest.max_payload.
	ReasonOversize Reason = dropOversize
	// ReasonRefused: Kafka can never take the record, which ingest had in its spool.
	ReasonRefused Reason = "kafka_refused"
)

// Reasons are all of them.
var Reasons = []Reason{ReasonMalformed, ReasonRejected, ReasonOversize, ReasonRefused}

// ParseReason refuses what is no reason.
func ParseReason(s string) (Reason, error) {
	if r := Reason(s); slices.Contains(Reasons, r) {
		return r, nil
	}
	return "", fmt.Errorf("reason %q: want one of %v", s, Reasons)
}

// Headers that a dead letter has behind those of its record.
const (
	HeaderDeadReason    = "restante_dead_reason"
	HeaderDeadError     = "restante_dead_error"
	HeaderDeadTopic     = "restante_dead_topic"
	HeaderDeadPartition = "restante_dead_partition"
	HeaderDeadOffset    = "restante_dead_offset"
	HeaderDeadTime      = "restante_dead_time" // of the record, ms since the epoch
	HeaderDeadBy        = "restante_dead_by"   // the consumer group, or ingest
)

// ByIngest is who buried what never was in its topic.
const ByIngest = "ingest"

// NoOffset is the offset of a record that never was in its topic.
const NoOffset = -1

// Obituary is what a dead letter says of its record.
type Obituary struct {
	Reason Reason
	Cause  string // an error's text
	Topic  string // full name of the topic that the record belongs in
	Part   int    // of its place in that topic
	Offset int64  // of its place in that topic, or [NoOffset]
	By     string // the consumer group that buried it, or [ByIngest]
	// Time is the record's timestamp; zero = the letter has it.
	Time time.Time
}

// Append returns the headers with those of the obituary behind them. The headers given stay as they are.
func (o Obituary) Append(headers []event.Header) []event.Header {
	const longest = 2000 // bytes of an error's text
	text := o.Cause
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "")
	}
	out := append(slices.Clip(headers),
		event.Header{Key: HeaderDeadReason, Value: []byte(o.Reason)},
		event.Header{Key: HeaderDeadError, Value: []byte(text)},
		event.Header{Key: HeaderDeadTopic, Value: []byte(o.Topic)})
	if o.Offset != NoOffset {
		out = append(out,
			event.Header{Key: HeaderDeadPartition, Value: strconv.AppendInt(nil, int64(o.Part), 10)},
			event.Header{Key: HeaderDeadOffset, Value: strconv.AppendInt(nil, o.Offset, 10)})
	}
	if !o.Time.IsZero() {
		out = append(out, event.Header{Key: HeaderDeadTime, Value: strconv.AppendInt(nil, o.Time.UnixMilli(), 10)})
	}
	return append(out, event.Header{Key: HeaderDeadBy, Value: []byte(o.By)})
}

// ReadObituary splits the headers of a dead letter into those of its record, as they were, and its obituary. It is the last one
// that counts: a record may have been a dead letter before, copied by somebody. ok is false for a record that is no dead letter.
func ReadObituary(headers []event.Header) (o Obituary, record []event.Header, ok bool) {
	seen := make(map[string]string)
	n := len(headers)
	var late []event.Header
	if n > 0 && headers[n-1].Key == "ce_time" { // a letter that has waited in a spool, see [event.Restamp]
		n--
		late = headers[n:]
	}
	for ; n > 0; n-- {
		h := headers[n-1]
		if _, twice := seen[h.Key]; twice || !isDeadHeader(h.Key) {
			break
		}
		seen[h.Key] = string(h.Value)
		if h.Key == HeaderDeadReason { // the first of them
			n--
			ok = true
			break
		}
	}
	if !ok {
		return Obituary{Offset: NoOffset}, headers, false
	}
	o = Obituary{
		Reason: Reason(seen[HeaderDeadReason]), Cause: seen[HeaderDeadError], Topic: seen[HeaderDeadTopic], Offset: NoOffset, By: seen[HeaderDeadBy],
	}
	part, err := strconv.Atoi(seen[HeaderDeadPartition])
	offset, errOffset := strconv.ParseInt(seen[HeaderDeadOffset], 10, 64)
	if err == nil && errOffset == nil && part >= 0 && offset >= 0 {
		o.Part, o.Offset = part, offset
	}
	if ms, err := strconv.ParseInt(seen[HeaderDeadTime], 10, 64); err == nil {
		o.Time = time.UnixMilli(ms).UTC()
	}
	return o, append(headers[:n:n], late...), true
}

func isDeadHeader(key string) bool {
	switch key {
	case HeaderDeadReason, HeaderDeadError, HeaderDeadTopic, HeaderDeadPartition, HeaderDeadOffset, HeaderDeadTime, HeaderDeadBy:
		return true
	}
	return false
}
