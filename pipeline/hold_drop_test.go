package pipeline

import (
	"testing"
	"time"

	"github.com/restante/restante/event"
)

func TestWhatIsDroppedGivesBackItsBytesWithoutTheRestOfItsFetch(t *testing.T) {
	t.Parallel()
	h := newHolding()
	var fetched []Record
	for i := range 3 {
		id := h.id(time.Duration(i+1) * late)
		e := event.Published{Head: event.Head{ID: id, At: id.Time()}, Topic: holdTopic("t/1"), QoS: 1, Payload: []byte("payload")}
		w := event.Encode(e, e.Routes()[0], id.Time())
		fetched = append(fetched, Record{Offset: h.offset + int64(i), Wire: w})
	}
	for i := range fetched {
		r := &fetched[i]
		e, err := event.Decode(event.Messages, r.Wire)
		if err != nil {
			t.Fatal(err)
		}
		h.add(r, time.Time{}, h.plan(e), nil)
	}
	for dropped := range fetched {
		for i, r := range fetched {
			if gone := r.Key == nil && r.Value == nil && r.Headers == nil; gone != (i < dropped) {
				t.Errorf("of record %d of %d, after %d are dropped, the bytes are gone: %t", i, len(fetched), dropped, gone)
			}
		}
		if left := len(fetched) - dropped; len(h.recs) != left || len(h.puts) != left {
			t.Errorf("%d records and %d publishes are held, want %d", len(h.recs), len(h.puts), left)
		}
		h.drop(1)
	}
	if h.bytes != 0 || len(h.recs) != 0 || len(h.puts) != 0 {
		t.Errorf("after all are dropped %d bytes, %d records and %d publishes are held", h.bytes, len(h.recs), len(h.puts))
	}
}
