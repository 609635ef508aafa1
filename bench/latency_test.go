package bench

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/mqtt/device"
)

var payload = strings.Repeat(".", payloadSize)

// quantiles adds p50 and p99 of durations. A target of 0 is none.
func quantiles(b *testing.B, all []time.Duration, p50, p99 float64) {
	b.Helper()
	for _, q := range []struct {
		name      string
		of, limit float64
	}{{"p50", 0.5, p50}, {"p99", 0.99, p99}} {
		v := millis(quantile(all, q.of))
		if q.limit == 0 {
			report(b, q.name, v, "ms")
			continue
		}
		atMost(b, q.name, v, "ms", q.limit)
	}
}

// BenchmarkSubscribeToFirstMessage is the time from SUBSCRIBE to the message that waited, on "restante up", for a client that
// is connected already: for messages that stand in the database, and for those that the writer still holds.
func BenchmarkSubscribeToFirstMessage(b *testing.B) {
	const p50, p99 = 15, 60
	s := startUp(b)
	b.Run("written", func(b *testing.B) {
		var all []time.Duration
		for b.Loop() {
			all = append(all, s.collectWritten(b)...)
		}
		quantiles(b, all, p50, p99)
	})
	b.Run("held by the writer", func(b *testing.B) {
		var all []time.Duration
		for b.Loop() {
			all = append(all, s.collectHeld(b)...)
		}
		quantiles(b, all, p50, p99)
	})
}

// samples is how many subscribers are measured at a time.
const samples = 400

func (s *system) collectWritten(b *testing.B) []time.Duration {
	b.Helper()
	const written = 2500 * time.Millisecond // more than twice the hold
	topic := func(i int) string { return fmt.Sprintf("written/%d/first", i) }
	sender := s.connect(b, "sender")
	defer sender.Close()
	var sent errgroup.Group
	sent.SetLimit(16)
	for i := range samples {
		sent.Go(func() error { return sender.Publish(b.Context(), topic(i), 1, payload) })
	}
	if err := sent.Wait(); err != nil {
		b.Fatal(err)
	}
	time.Sleep(written)
	all := make([]time.Duration, samples)
	for i := range all {
		all[i] = s.collect(b, fmt.Sprintf("late-%d", i), topic(i), func() {})
	}
	return all
}

func (s *system) collectHeld(b *testing.B) []time.Duration {
	b.Helper()
	sender := s.connect(b, "sender")
	defer sender.Close()
	all := make([]time.Duration, samples)
	for i := range all {
		topic := fmt.Sprintf("held/%d/first", i)
		all[i] = s.collect(b, fmt.Sprintf("prompt-%d", i), topic, func() {
			if err := sender.Publish(b.Context(), topic, 1, payload); err != nil {
				b.Fatal(err)
			}
		})
	}
	return all
}

// collect connects a client, calls before, and measures from there how long its subscription takes to bring the message.
func (s *system) collect(b *testing.B, id, topic string, before func()) time.Duration {
	b.Helper()
	c := s.connect(b, id)
	defer c.Close()
	before()
	began := time.Now()
	if err := c.Subscribe(b.Context(), topic, 1); err != nil {
		b.Fatal(err)
	}
	m, err := c.Next(b.Context(), patience)
	took := time.Since(began)
	if err != nil {
		b.Fatalf("%s: %v", topic, err)
	}
	if m.Topic != topic || m.User["offline-msgid"] == "" {
		b.Fatalf("%s was expected, as a stored message; got %+v", topic, m)
	}
	return took
}

// BenchmarkPublishToPuback is the time until a publisher is told that its message is on disk: alone, and beside others.
func BenchmarkPublishToPuback(b *testing.B) {
	s := startUp(b)
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprintf("publishers=%d", n), func(b *testing.B) {
			clients := make([]*device.Device, n)
			for i := range clients {
				clients[i] = s.connect(b, fmt.Sprintf("publisher-%d", i))
				defer clients[i].Close()
			}
			var all []time.Duration
			for b.Loop() {
				took := make([][]time.Duration, n)
				var sent errgroup.Group
				for i, c := range clients {
					sent.Go(func() error {
						for j := range max(samples/n, 100) {
							began := time.Now()
							if err := c.Publish(b.Context(), fmt.Sprintf("puback/%d/%d", i, j), 1, payload); err != nil {
								return err
							}
							took[i] = append(took[i], time.Since(began))
						}
						return nil
					})
				}
				if err := sent.Wait(); err != nil {
					b.Fatal(err)
				}
				for _, t := range took {
					all = append(all, t...)
				}
			}
			quantiles(b, all, 0, 0)
		})
	}
}
