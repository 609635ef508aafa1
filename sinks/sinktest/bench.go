package sinktest

import (
	"fmt"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// Bench measures Apply with batches as a busy writer makes them: of 1,000 ops 500 messages of 256 bytes with a life of a week,
// 250 removals of earlier ones, and 250 positions. It reports rows a second.
func Bench(b *testing.B, s sinks.Store) {
	b.Helper()
	const puts, topics = 500, 200
	ns := space()
	names := make([]event.Topic, topics)
	for i := range names {
		names[i] = mustTopic(fmt.Sprintf("%s/%d/state", ns, i))
	}
	begin := time.Now().Truncate(time.Second)
	payload := make([]byte, 256)
	for i := range payload {
		payload[i] = 'a' + byte(i%26)
	}
	message := func(n int) sinks.Message {
		id := event.IDOf(begin.UnixMicro()+int64(n), 0xF44200000003, 1)
		return sinks.Message{
			ID: id, Topic: names[n%topics], Sender: "sender", QoS: 1, Payload: payload, Arrived: id.Time().Truncate(time.Millisecond),
			Expires: id.Time().Add(7 * 24 * time.Hour),
		}
	}
	rows, n := 0, 0
	for b.Loop() {
		ops := make([]sinks.Op, 0, 2*puts)
		for i := range puts {
			m := message(n + i)
			ops = append(ops, sinks.PutMessage{Message: m})
			if i%2 == 0 && n > 0 {
				old := message(n - puts + i)
				ops = append(
					ops, sinks.DeleteMessage{Topic: old.Topic, ID: old.ID, Stamp: m.ID.Micros() + 1},
					sinks.PutAcked{Client: event.ClientID(fmt.Sprint("client-", i)), Topic: old.Topic.String(), Message: old.ID, Stamp: old.ID.Micros()},
				)
			}
		}
		n += puts
		if err := s.Apply(b.Context(), ops); err != nil {
			b.Fatal(err)
		}
		rows += len(ops)
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}
