package dead

import (
	"bytes"
	"testing"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Whatever somebody has written into the dead-letter topic, it is a letter or a mark, and nothing falls over it.
func FuzzAnyRecordIsALetterOrAMark(f *testing.F) {
	f.Add([]byte("t/1"), "restante_dead_reason", "malformed", "restante_dead_topic", "mqtt.messages", "ce_time", "1")
	f.Add([]byte("t/1"), "restante_dead_mark", "redriven", "restante_dead_mark_partition", "1", "restante_dead_mark_offset", "2")
	f.Add([]byte{0xff}, "restante_dead_offset", "-1", "restante_dead_reason", "", "restante_dead_by", "ingest")
	f.Add([]byte(nil), "ce_specversion", "1.0", "restante_dead_reason", "oversize", "restante_dead_topic", "mqtt.sessions")
	f.Fuzz(func(t *testing.T, key []byte, k1, v1, k2, v2, k3, v3 string) {
		r := pipeline.Record{Offset: 7, Wire: event.Wire{Key: key, Headers: []event.Header{
			{Key: k1, Value: []byte(v1)}, {Key: k2, Value: []byte(v2)}, {Key: k3, Value: []byte(v3)},
		}}}
		topics := pipeline.Topics{Messages: "mqtt.messages", Sessions: "mqtt.sessions", Dead: "mqtt.dead"}
		l := newLetter(r, topics)
		if p, m, ok := readMark(r); ok {
			if m.state != Redriven && m.state != Dropped || p.Part < 0 || p.Offset < 0 {
				t.Errorf("mark %v %v", p, m)
			}
		}
		if l.State != Waiting || l.At != (Place{0, 7}) || (l.Event == nil) == (l.Err == nil) || !bytes.Equal(l.Record.Key, key) {
			t.Errorf("letter %+v", l)
		}
		if l.Topic == "" && l.Event != nil || len(l.Record.Headers) > len(r.Headers) {
			t.Errorf("an event of no topic: %+v", l)
		}
		_ = l.origin()
		all, err := event.ParseFilter("#")
		if err != nil {
			t.Fatal(err)
		}
		_ = Filter{Topic: all, Client: "x"}.Match(&l) // it must not fall over either
	})
}
