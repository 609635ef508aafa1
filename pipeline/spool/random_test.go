package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/restante/restante/pipeline"
)

// step is one thing that happens. Two producers and a disk know nothing of chance: all of it is drawn before.
type step struct {
	what  string
	n     int
	pause time.Duration
}

var steps = rapid.Custom(func(t *rapid.T) step {
	return step{
		what: rapid.SampledFrom([]string{
			"messages", "messages", "messages", "messages", "session", "alias", "away", "back", "back", "ill", "well", "well", "full disk", "kill", "restart",
		}).Draw(t, "what"),
		n: rapid.IntRange(1, 40).Draw(t, "n"),
		pause: rapid.SampledFrom([]time.Duration{
			0, time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond, 3 * time.Second, 10 * time.Minute,
		}).Draw(t, "pause"),
	}
})

// sent is a record of the history.
type sent struct {
	value   string
	topic   string
	key     string
	receipt pipeline.Receipt
	durable bool // its receipt was resolved with nil
	inLog   bool // it was in Kafka when that was seen
	before  int  // of a session event: how many records had been durable when it was appended
}

// history is what happened, and what is in Kafka in the end.
type history struct {
	sent     []*sent
	durables []*sent // in the order in which they were seen to be
	log      []string
	faults   []string
}

// world runs one history: one caller appends as ingest does, to one process after another on the same disk and the same Kafka.
type world struct {
	t      *testing.T
	h      history
	rng    *rand.Rand
	disk   *memory
	kafka  *kafka
	p      *Producer
	landed []pipeline.Outgoing // of processes before
	away   bool
	room   int
	kinds  map[string]int
	open   []*sent
}

func (w *world) begin() {
	w.kafka = newKafka(3 * time.Millisecond)
	w.kafka.room = w.room
	w.kafka.set(w.away)
	cfg := Config{
		Size: 64 << 10, After: after, Inner: w.kafka, Topics: topics, Now: time.Now, Metrics: NewMetrics(nil), Log: slog.New(slog.DiscardHandler),
	}
	p, err := open(cfg, w.disk)
	if err != nil {
		w.t.Fatal(err)
	}
	w.p = p
}

// over takes what this process has got into Kafka.
func (w *world) over() {
	w.look()
	w.kafka.mu.Lock()
	w.landed = append(w.landed, w.kafka.log...)
	w.kafka.mu.Unlock()
	w.open = nil
}

// look notes which receipts are resolved.
func (w *world) look() {
	synctest.Wait()
	var logged map[string]bool
	still := w.open[:0]
	for _, s := range w.open {
		select {
		case <-s.receipt.Done():
		default:
			still = append(still, s)
			continue
		}
		if s.receipt.Err() != nil {
			if !strings.HasPrefix(s.value, "alias") && !w.p.closed {
				w.h.faults = append(w.h.faults, fmt.Sprintf("%s: %v", s.value, s.receipt.Err()))
			}
			continue
		}
		if logged == nil {
			logged = map[string]bool{}
			w.kafka.mu.Lock()
			for _, o := range slices.Concat(w.landed, w.kafka.log) {
				logged[string(o.Value)] = true
			}
			w.kafka.mu.Unlock()
		}
		s.durable, s.inLog = true, logged[s.value]
		w.h.durables = append(w.h.durables, s)
	}
	w.open = still
}

func (w *world) append(o pipeline.Outgoing) {
	w.look()
	s := &sent{value: string(o.Value), topic: o.Topic, key: string(o.Key), before: len(w.h.durables)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := w.p.Append(ctx, o)
	switch {
	case err == nil:
		s.receipt = r
		w.h.sent, w.open = append(w.h.sent, s), append(w.open, s)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrSpooling) && o.IsAlias():
	default:
		w.h.faults = append(w.h.faults, fmt.Sprintf("append %s: %v", s.value, err))
	}
}

func (w *world) name(kind string) string {
	w.kinds[kind]++
	return fmt.Sprintf("%s %05d", kind, w.kinds[kind])
}

func (w *world) do(s step) {
	switch s.what {
	case "messages":
		for i := range s.n {
			key := fmt.Sprint("t", i%3)
			w.append(message(key, w.name(key)))
		}
	case "session": // as ingest does it: after everything before it is durable, or not at all
		time.Sleep(2 * time.Second)
		if w.look(); len(w.open) == 0 {
			w.append(session(w.name("session")))
		}
	case "alias":
		w.append(alias(w.name("alias")))
	case "away", "back":
		w.away = s.what == "away"
		w.kafka.set(w.away)
	case "ill", "well", "full disk":
		what, share, rng := s.what, float64(s.n)/40, w.rng
		ill := func(call string) error {
			if what == "ill" && call != "list" && rng.Float64() < share || what == "full disk" && (call == "write" || call == "open") {
				return errIO
			}
			return nil
		}
		w.disk.be(ill)
	case "kill":
		w.look()
		disk := w.disk.kill(func(n int) int { return w.rng.IntN(n + 1) })
		w.kill()
		w.disk = disk
		w.begin()
	case "restart":
		w.end(20 * time.Second)
		w.disk = copyOf(w.disk)
		w.begin()
	}
	time.Sleep(s.pause)
}

// kill ends the process: nothing of it gets to the disk or to Kafka any more.
func (w *world) kill() {
	w.kafka.set(true)
	w.over()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = w.p.Close(ended) // it was killed
}

func (w *world) end(within time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	_ = w.p.Close(ctx) // receipts say what is durable
	w.over()
}

func play(t *testing.T, seed uint64, list []step) (h history) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, rng: rand.New(rand.NewPCG(seed, 0)), disk: newMemory(), kinds: map[string]int{}, room: []int{0, 5, 200}[seed%3],
		}
		w.begin()
		for _, s := range list {
			w.do(s)
		}
		w.do(step{what: "well"})
		w.do(step{what: "back"})
		time.Sleep(time.Minute)
		if w.look(); len(w.open) > 0 {
			w.h.faults = append(w.h.faults, fmt.Sprintf("%d receipts are open a minute after everything is well, the first is %s", len(w.open), w.open[0].value))
		}
		if !w.p.passes() {
			w.h.faults = append(w.h.faults, "it still spools a minute after everything is well")
		}
		if n := w.p.queue.room.inUse(); n != 0 {
			w.h.faults = append(w.h.faults, fmt.Sprintf("an empty spool takes %d bytes", n))
		}
		w.end(time.Minute)
		for _, o := range w.landed {
			w.h.log = append(w.h.log, string(o.Value))
		}
		h = w.h
	})
	return h
}

// judge finds what a history must not have.
func judge(h history) []string {
	faults := slices.Clone(h.faults)
	at := map[string]int{}
	for i, v := range h.log {
		if _, again := at[v]; !again {
			at[v] = i
		}
	}
	last := map[string]string{}
	for _, v := range firsts(h.log) {
		kind, _, _ := strings.Cut(v, " ")
		if v < last[kind] && kind != "alias" {
			faults = append(faults, fmt.Sprintf("%s comes after %s", v, last[kind]))
		}
		last[kind] = v
	}
	for _, s := range h.sent {
		place, found := at[s.value]
		switch {
		case s.durable && strings.HasPrefix(s.value, "alias") && !s.inLog:
			faults = append(faults, s.value+" was called durable before it was in the log")
		case s.durable && !found:
			faults = append(faults, s.value+" was called durable and is lost")
		case s.topic == topics.Sessions && found:
			for _, b := range h.durables[:s.before] {
				if p, ok := at[b.value]; b.topic == topics.Messages && (!ok || p > place) {
					faults = append(faults, fmt.Sprintf("%s is before %s", s.value, b.value))
				}
			}
		}
	}
	return faults
}

func TestNothingIsLostOrReorderedInAnyHistory(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		list := rapid.SliceOfN(steps, 1, 40).Draw(rt, "steps")
		h := play(t, rapid.Uint64Max(1<<20).Draw(rt, "seed"), list)
		if faults := judge(h); len(faults) > 0 {
			rt.Fatalf("%d faults in %d records, the first: %q", len(faults), len(h.sent), faults[:min(len(faults), 5)])
		}
	})
}
