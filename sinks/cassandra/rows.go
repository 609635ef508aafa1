package cassandra

import (
	"bytes"
	"encoding/base64"
	"time"
	"unicode/utf8"

	"github.com/restante/restante/sinks"
)

// marker begins a payload that is not kept as it is.
const marker = "\u0001b64:"

// payloadText is what stands in the text column: UTF-8 as it is, all else behind a mark in base64. A text that begins with the
// mark itself goes in base64 too, so what begins with it always is.
func payloadText(p []byte) []byte {
	if utf8.Valid(p) && !bytes.HasPrefix(p, []byte(marker)) {
		if p == nil {
			return []byte{} // nil would be a null
		}
		return p
	}
	out := make([]byte, len(marker)+base64.StdEncoding.EncodedLen(len(p)))
	copy(out, marker)
	base64.StdEncoding.Encode(out[len(marker):], p)
	return out
}

// payloadOf is the payload of a text. A text of somebody else that begins with the mark, but is no base64, is taken as it is.
func payloadOf(text []byte) []byte {
	if rest, ok := bytes.CutPrefix(text, []byte(marker)); ok {
		out := make([]byte, base64.StdEncoding.DecodedLen(len(rest)))
		if n, err := base64.StdEncoding.Strict().Decode(out, rest); err == nil {
			return out[:n]
		}
	}
	if text == nil {
		return []byte{}
	}
	return text
}

// never is the time to live of what does not expire.
const never = 0

// maxTTL is the most seconds that Cassandra takes: 20 years. What lives longer does not expire.
const maxTTL = 20 * 365 * 24 * 60 * 60

// ttl is how many seconds are left, rounded up; false when none are.
func ttl(expires, now time.Time) (int, bool) {
	if expires.IsZero() {
		return never, true
	}
	left := expires.Sub(now)
	if left <= 0 {
		return 0, false
	}
	seconds := int64(left / time.Second)
	if left%time.Second > 0 {
		seconds++
	}
	if seconds > maxTTL {
		return never, true
	}
	return int(seconds), true
}

// The write times of a message's row, before T = the time of its id. They tell a reader where else to look, and stand for the
// order of what two rules or two sources may say of one message: to be pending wins over to be kept for the record.
const (
	plainAt   = 0 // all of the message is in mqtt_msg
	propsAt   = 1 // it has properties in mqtt_msg_props
	historyAt = 2 // it is there for the record only, says mqtt_msg_props
)

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// expires is the time that a row's remaining seconds stand for.
func expires(left *int, now time.Time) time.Time {
	if left == nil {
		return time.Time{}
	}
	return now.Add(time.Duration(*left) * time.Second)
}

// expired reports whether a message is not to be written any more.
func expired(m sinks.Message, now time.Time) bool {
	_, lives := ttl(m.Expires, now)
	return !lives
}
