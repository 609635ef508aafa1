package cassandra

import (
	"bytes"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/sinktest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	open := func(t *testing.T, now func() time.Time) sinks.Store {
		t.Helper()
		cfg := cfg
		cfg.Now, cfg.MaxRow = now, 1<<20
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sinktest.Run(t, sinktest.Config{
		Open: open,
		Reopen: func(t *testing.T, s sinks.Store, now func() time.Time) sinks.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			return open(t, now)
		},
		Law: sinktest.Commute, RealClock: true, ExpiryPrecision: 30 * time.Second, MaxTopic: maxKey - 1,
		Poison: func(topic event.Topic) sinks.Op {
			m := message(topic, time.Now(), 1)
			m.Payload = bytes.Repeat([]byte("x"), 1<<20+1)
			return sinks.PutMessage{Message: m}
		},
	})
}

func BenchmarkApply(b *testing.B) {
	cfg := ready(b)
	sinktest.Bench(b, opened(b, cfg))
}
