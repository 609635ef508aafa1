package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mqtttest"
)

const stormMessages = 10 // for each client

// crowd are clients that each have a topic of its own.
type crowd struct {
	t      *testing.T
	broker string
	name   string
	n      int
	want   []string
}

func newCrowd(t *testing.T, broker, name string, n int) *crowd {
	t.Helper()
	c := &crowd{t: t, broker: broker, name: name, n: n}
	for i := range stormMessages {
		c.want = append(c.want, fmt.Sprint("message ", i))
	}
	return c
}

func (c *crowd) topic(i int) string { return fmt.Sprintf("%s/%d", c.name, i) }

// all runs do for every client, so many at a time; the first error ends the test.
func (c *crowd) all(abreast int, do func(ctx context.Context, i int) error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 4*e2etest.Patience)
	defer cancel()
	next := make(chan int)
	errs := make(chan error, abreast)
	var wg sync.WaitGroup
	for range abreast {
		wg.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					errs <- fmt.Errorf("client %d of %s: %w", i, c.name, err)
					cancel()
					return
				}
			}
		})
	}
	for i := range c.n {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		c.t.Fatal(err)
	}
}

// fill publishes everybody's messages, while nobody is there.
func (c *crowd) fill() {
	c.t.Helper()
	c.all(64, func(ctx context.Context, i int) error {
		p, err := mqtttest.Dial(ctx, c.broker, mqtttest.Options{ID: fmt.Sprintf("%s-publisher-%d", c.name, i), Version: mqtttest.V5})
		if err != nil {
			return err
		}
		defer p.Cut()
		for _, payload := range c.want {
			if err := p.Publish(ctx, e2etest.Message(c.topic(i), payload)); err != nil {
				return err
			}
		}
		return nil
	})
}

// storm connects everybody, has them subscribe within the time, and returns how long each waited for all its messages, ascending.
func (c *crowd) storm(within time.Duration) []time.Duration {
	c.t.Helper()
	clients := make([]*mqtttest.Client, c.n)
	defer func() {
		for _, d := range clients {
			if d != nil {
				d.Cut()
			}
		}
	}()
	c.all(64, func(ctx context.Context, i int) (err error) {
		clients[i], err = mqtttest.Dial(ctx, c.broker, mqtttest.Options{ID: fmt.Sprintf("%s-%d", c.name, i), Version: mqtttest.V5})
		return err
	})
	took := make([]time.Duration, c.n)
	began := time.Now()
	c.all(c.n, func(ctx context.Context, i int) error {
		time.Sleep(time.Until(began.Add(within * time.Duration(i) / time.Duration(c.n))))
		at := time.Now()
		if codes, err := clients[i].Subscribe(ctx, 1, c.topic(i)); err != nil || codes[0] != 1 {
			return fmt.Errorf("subscribe: codes %v, %w", codes, err)
		}
		got, err := clients[i].ReceiveN(ctx, stormMessages)
		if err != nil {
			return err
		}
		took[i] = time.Since(at)
		if diff := cmp.Diff(c.want, e2etest.Payloads(got)); diff != "" {
			return fmt.Errorf("received (-want +got):\n%s", diff)
		}
		return e2etest.Replays(got)
	})
	slices.Sort(took)
	c.t.Logf("%s: %d clients subscribed within %v; their %d messages were there after p50 %v, p99 %v, at most %v", c.name, c.n, within,
		stormMessages, took[c.n/2].Round(time.Millisecond), took[c.n*99/100].Round(time.Millisecond), took[c.n-1].Round(time.Millisecond))
	return took
}

// TestAStormOfSubscribesIsServed: everybody gets everything in order, also beside a client that acknowledges one message a second.
func TestAStormOfSubscribesIsServed(t *testing.T) {
	t.Parallel()
	s := newSetupWithoutKafka(t)
	s.admin["ingest"], s.database = ports.Addr(t), filepath.Join(s.dir, "restante.db")
	up := e2etest.Start(t, "up", s.dir, s.broker, s.kafka, s.admin["ingest"])
	e2etest.AwaitReady(t, s.admin["ingest"])

	n := 100
	if os.Getenv("RESTANTE_SOAK") != "" {
		n = 10_000
	}
	within := time.Duration(n) * time.Millisecond
	alone, beside := newCrowd(t, s.broker, "alone", n), newCrowd(t, s.broker, "beside", n)
	alone.fill()
	beside.fill()
	const slowly = 30
	for i := range slowly {
		e2etest.Publish(t, s.broker, "slow", fmt.Sprint(i))
	}
	e2etest.AwaitRows(t, s.database, 2*n*stormMessages+slowly)
	alone.storm(within)
	e2etest.AwaitRows(t, s.database, n*stormMessages+slowly)

	slow := e2etest.DialWith(t, s.broker, mqtttest.Options{ID: "slow", Version: mqtttest.V5, ManualAck: true})
	e2etest.More(t, slow, "slow")
	var wg sync.WaitGroup
	var got []string
	wg.Go(func() {
		for range slowly {
			m, err := slow.Receive(t.Context())
			if err == nil {
				time.Sleep(min(time.Second, 2*within/slowly))
				err = slow.Ack(m)
			}
			if err != nil {
				t.Errorf("slow client: %v", err)
				return
			}
			got = append(got, string(m.Payload))
		}
	})
	beside.storm(within)
	wg.Wait()
	for i, payload := range got {
		if payload != fmt.Sprint(i) {
			t.Errorf("the slow client got %q as number %d", payload, i)
		}
	}
	e2etest.AwaitRows(t, s.database, 0)
	for _, outcome := range []string{"error", "unacked", "expired"} {
		if n := e2etest.Metric(t, s.admin["ingest"], "restante_replay_messages_total", fmt.Sprintf("outcome=%q", outcome)); n != 0 {
			t.Errorf("%v messages of replays are counted as %s", n, outcome)
		}
	}
	s.boundedReads("ingest", 64, 2*n+1)
	booked := func(name, label string) float64 { return e2etest.Metric(t, s.admin["ingest"], name, label) }
	counts := map[string]float64{}
	defer func() {
		if t.Failed() {
			t.Log(counts)
		}
	}()
	e2etest.Await(t, "all is counted as published, stored, acknowledged and delivered", func() bool { // a while after it has happened
		counts["published"] = booked("restante_ingest_events_total", `event="mqtt.message.publish"`)
		counts["stored"] = booked("restante_writer_messages_total", `fate="stored"`)
		counts["acked"] = booked("restante_replay_messages_total", `outcome="acked"`)
		counts["delivered"] = booked("restante_writer_acks_total", `effect="deleted"`)
		for _, count := range counts {
			if count != float64(2*n*stormMessages+slowly) {
				return false
			}
		}
		return true
	})
	up.Stop()
}

// boundedReads checks that a process has never read more than so many times at once for its replays, and gives how many reads began beside
// at least half as many.
func (s *setup) boundedReads(process string, limit, replays int) (beside float64) {
	s.t.Helper()
	began := func(most string) float64 {
		return e2etest.Metric(s.t, s.admin[process], "restante_replay_reads_at_once_bucket", fmt.Sprintf("le=%q", most))
	}
	all := began("+Inf")
	beside = all - began(fmt.Sprint(limit/2))
	s.t.Logf("%v reads of the store for %d replays, at most %d at a time; %v began beside %d or more", all, replays, limit, beside, limit/2)
	if over := all - began(fmt.Sprint(limit)); over > 0 || all < float64(replays) {
		s.t.Errorf("%v of %v reads began beside %d or more", over, all, limit)
	}
	return beside
}

const stormProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
shutdown: {drain: 5s}
sources: {devices: {type: embedded, listen: %[3]q}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules: [{topic: "slow/#", action: save_offline_messages, sink: history}]
replayer: {clock_skew: 0s, max_reads: %[7]d}
delivery: {to: topic, evidence: broker, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// TestAStormAsksTheStoreForNoMoreThanItMay: many subscribe at once, and the store is slow.
func TestAStormAsksTheStoreForNoMoreThanItMay(t *testing.T) {
	t.Parallel()
	const limit = 8
	n := 100
	if soaking() {
		n = 2000
	}
	s := newSetupWithoutKafka(t)
	s.configure = func(admin string) string {
		return fmt.Sprintf(stormProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, limit)
	}
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	all := s.startAll("ingest", "writer")
	all["replayer"] = e2etest.Start(t, "slow reader", "-config", s.config("replayer"))
	e2etest.AwaitReady(t, s.admin["replayer"])
	c := newCrowd(t, s.broker, "slow", n)
	c.fill()
	e2etest.AwaitRows(t, s.database, n*stormMessages)
	c.storm(time.Duration(n) * time.Millisecond)
	e2etest.AwaitRows(t, s.database, 0)
	if s.boundedReads("replayer", limit, n) == 0 {
		t.Error("the storm did not come near the limit")
	}
	for _, p := range all {
		p.Stop()
	}
}
