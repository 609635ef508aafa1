package bench

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite" // counts what waits

	"github.com/restante/restante/mqtt/device"
)

// BenchmarkUpMemory is what "restante up" has in memory: idle, and after RESTANTE_BENCH_MESSAGES (100000) messages of 256 bytes
// of which one in a hundred waits. The others went to a client that is online, and were acked.
func BenchmarkUpMemory(b *testing.B) {
	const settle = 3 * time.Second // longer than the hold of the writer
	total := fromEnv(b, "RESTANTE_BENCH_MESSAGES", 100_000)
	for b.Loop() {
		s := startUp(b)
		time.Sleep(settle)
		atMost(b, "idle", s.memory(b, "VmRSS"), "MB", 45)
		began := time.Now()
		waiting := s.load(b, total)
		rate := float64(total) / time.Since(began).Seconds()
		s.awaitRows(b, waiting)
		time.Sleep(settle)
		atMost(b, fmt.Sprintf("after %d messages", total), s.memory(b, "VmRSS"), "MB", 250)
		report(b, "peak", s.memory(b, "VmHWM"), "MB")
		report(b, "rate", rate/1000, "k messages/s")
	}
}

// load publishes messages over several connections, and returns how many wait once all others have been received.
func (s *system) load(b *testing.B, total int) (waiting int) {
	b.Helper()
	const connections, inFlight, topics = 8, 64, 1000
	online := s.connect(b, "online")
	defer online.Close()
	if err := online.Subscribe(b.Context(), "live/#", 1); err != nil {
		b.Fatal(err)
	}
	waiting = (total + 99) / 100 // each hundredth, from the first
	var all errgroup.Group
	all.Go(func() error {
		for n := range total - waiting {
			_, err := online.Next(b.Context(), patience)
			if errors.Is(err, device.ErrNothing) {
				return fmt.Errorf("the client that is online got %d messages of %d", n, total-waiting)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	var next atomic.Int64
	for i := range connections {
		c := s.connect(b, fmt.Sprintf("publisher-%d", i))
		defer c.Close()
		for range inFlight {
			all.Go(func() error {
				for {
					n := int(next.Add(1) - 1)
					if n >= total {
						return nil
					}
					topic := fmt.Sprintf("live/%d", n%topics)
					if n%100 == 0 {
						topic = fmt.Sprintf("waiting/%d", n/100%topics)
					}
					if err := c.Publish(b.Context(), topic, 1, payload); err != nil {
						return err
					}
				}
			})
		}
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
	return waiting
}

// awaitRows waits until the database holds what waits and nothing else.
func (s *system) awaitRows(b *testing.B, want int) {
	b.Helper()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: s.database}).EscapedPath()+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }() // nothing was written
	got := -1
	for until := time.Now().Add(patience); got != want; time.Sleep(500 * time.Millisecond) {
		if time.Now().After(until) {
			b.Fatalf("%d messages wait, want %d", got, want)
		}
		if err := db.QueryRowContext(b.Context(), "select count(*) from mqtt_msg").Scan(&got); err != nil {
			b.Fatal(err)
		}
	}
}
