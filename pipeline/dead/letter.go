// Package dead is the dead-letter office: it reads the dead-letter topic for an operator, puts letters back into the topics that
// they came from, and drops them, which is a mark too and removes nothing.
//
// What has become of a letter is a record of the same topic, the mark, appended after what it says is durable. Writes are
// functions of their events, so a letter that is put back twice, because its mark was not written in time, is stored once.
package dead

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Place is where a letter lies in the dead-letter topic. It names the letter.
type Place struct {
	Part   int
	Offset int64
}

// String is partition/offset.
func (p Place) String() string { return fmt.Sprintf("%d/%d", p.Part, p.Offset) }

// ParsePlace reads what [Place.String] writes.
func ParsePlace(s string) (Place, error) {
	part, offset, _ := strings.Cut(s, "/")
	p, err := strconv.Atoi(part)
	o, errOffset := strconv.ParseInt(offset, 10, 64)
	if errors.Join(err, errOffset) != nil || p < 0 || o < 0 {
		return Place{}, fmt.Errorf("letter %q: want partition/offset, as list shows it", s)
	}
	return Place{p, o}, nil
}

// State is what has become of a letter.
type State string

// The states.
const (
	Waiting  State = "waiting"
	Redriven State = "redriven" // its record was put back
	Dropped  State = "dropped"  // somebody has decided that it is not needed
)

// States are all of them.
var States = []State{Waiting, Redriven, Dropped}

// Letter is one dead letter.
type Letter struct {
	At       Place
	State    State
	MarkedAt time.Time // when it was redriven or dropped
	BuriedAt time.Time
	// Obituary is zero but for its Offset when somebody else has written the record: nobody knows where it belongs.
	pipeline.Obituary
	// Record is the record as it was, with its own headers and time.
	Record event.Wire
	// Event is what the record says; nil when this program cannot make it out, and Err says why.
	Event event.Event
	Err   error

	keyedByClient bool // it belongs in sessions
}

// EventTime is the time of the letter's event, that of its message id for a publish; zero when there is none.
func (l *Letter) EventTime() time.Time {
	if l.Event == nil {
		return time.Time{}
	}
	if e, ok := l.Event.(event.Published); ok {
		return e.ID.Time()
	}
	return l.Event.Meta().At
}

// Header is the text of a header of the letter's record, "" when it has none.
func (l *Letter) Header(key string) string {
	for _, h := range l.Record.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// newLetter takes a record of the dead-letter topic apart.
func newLetter(r pipeline.Record, topics pipeline.Topics) Letter {
	l := Letter{At: Place{r.Part, r.Offset}, State: Waiting, BuriedAt: r.Time, Record: r.Wire}
	o, headers, ok := pipeline.ReadObituary(r.Headers)
	l.Obituary, l.Record.Headers = o, headers
	if !ok {
		l.Err = errors.New("no dead letter of ours: it does not say where it belongs")
		return l
	}
	if !o.Time.IsZero() {
		l.Record.Time = o.Time
	}
	switch o.Topic {
	case topics.Messages:
		l.Event, l.Err = event.Decode(event.Messages, l.Record)
	case topics.Sessions:
		l.keyedByClient = true
		l.Event, l.Err = event.Decode(event.Sessions, l.Record)
	default:
		l.Err = fmt.Errorf("topic %q is not one of the configured ones", o.Topic)
	}
	return l
}

// origin names the record of a letter; the same record is buried by each sink that refuses it, and again after a crash. The zero
// origin is nobody's.
type origin struct {
	topic  string
	part   int
	offset int64
	id     string // ce_id, for what never was in its topic
}

func (l *Letter) origin() origin {
	switch id := l.Header("ce_id"); {
	case l.Topic == "":
	case l.Offset != pipeline.NoOffset:
		return origin{topic: l.Topic, part: l.Part, offset: l.Offset}
	case id != "":
		return origin{topic: l.Topic, offset: pipeline.NoOffset, id: id}
	}
	return origin{}
}
