package dead

import (
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Filter selects letters. The zero Filter selects all; what is set must hold.
type Filter struct {
	Places []Place
	State  State
	Reason pipeline.Reason
	// By is the consumer group that buried the letter, or [pipeline.ByIngest].
	By string
	// Topic matches the MQTT topic of the record; of a subscribe, the topics that its filter can match.
	Topic event.Filter
	// Client published or acknowledged the message, or is the one that the session event is about.
	Client event.ClientID
	// Since and Until bound the time of the burial: Since ≤ time < Until.
	Since, Until time.Time
	// Partition is that of the record in its topic; nil = any. A letter that never was in its topic has none.
	Partition *int
}

// IsZero reports whether all letters are selected.
func (f Filter) IsZero() bool {
	return len(f.Places) == 0 && f.State == "" && f.Reason == "" && f.By == "" && f.Topic.IsZero() && f.Client == "" && f.Since.IsZero() &&
		f.Until.IsZero() && f.Partition == nil
}

// Match reports whether the letter is selected.
func (f Filter) Match(l *Letter) bool {
	switch {
	case len(f.Places) > 0 && !slices.Contains(f.Places, l.At),
		f.State != "" && f.State != l.State,
		f.Reason != "" && f.Reason != l.Reason,
		f.By != "" && f.By != l.By,
		!f.Since.IsZero() && l.BuriedAt.Before(f.Since),
		!f.Until.IsZero() && !l.BuriedAt.Before(f.Until),
		f.Partition != nil && (l.Offset == pipeline.NoOffset || *f.Partition != l.Part),
		f.Client != "" && !l.concerns(f.Client),
		!f.Topic.IsZero() && !l.about(f.Topic):
		return false
	}
	return true
}

func (l *Letter) concerns(c event.ClientID) bool {
	who := string(c)
	return l.Header("ce_sender") == who || l.Header("ce_clientid") == who || l.keyedByClient && string(l.Record.Key) == who
}

func (l *Letter) about(f event.Filter) bool {
	if !l.keyedByClient {
		t, err := event.ParseTopic(string(l.Record.Key))
		return err == nil && f.Match(t)
	}
	if t, err := event.ParseTopic(l.Header("ce_topic")); err == nil {
		return f.Match(t)
	}
	sub, err := event.ParseFilter(l.Header("ce_filter"))
	return err == nil && f.Overlaps(sub)
}
