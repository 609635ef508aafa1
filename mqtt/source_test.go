package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/pipeline"
)

// startSource runs a source of everything and returns when it has subscribed.
func startSource(t *testing.T, s mqtt.Server, j *sourcetest.Journal, change ...func(*mqtt.SourceConfig)) (src *mqtt.Source, c *sourcetest.Tally, stop func()) {
	t.Helper()
	c = &sourcetest.Tally{}
	cfg := mqtt.SourceConfig{
		Server: s, Prefix: "own-", Filters: []event.Filter{eventtest.Filter(t, "#")}, Decoder: plain(t), Drain: patience / 2, Count: c.Count,
	}
	for _, f := range change {
		f(&cfg)
	}
	src, err := mqtt.NewSource(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop = background(t, "the source", func(ctx context.Context) error { return src.Run(ctx, j.Accept) })
	sourcetest.Eventually(t, "the source is ready", src.Ready)
	return src, c, stop
}

func acksOf(b *broker, client event.ClientID) int {
	n := 0
	for _, a := range all[event.Acked](b.log) {
		if a.Client == client {
			n++
		}
	}
	return n
}

func numbers(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("m%d", i))
	}
	return out
}

func publishAll(t *testing.T, c *mqtttest.Client, qos event.QoS, payloads []string) {
	t.Helper()
	for _, p := range payloads {
		publish(t, c, mqtttest.Message{Topic: "t", Payload: []byte(p), QoS: qos})
	}
}

// stalled is a journal that takes nothing until it is opened.
func stalled() (j *sourcetest.Journal, open func()) {
	gate := make(chan struct{})
	return &sourcetest.Journal{Judge: func(ctx context.Context, _ int, _ event.Event) (pipeline.Receipt, error) {
		select {
		case <-gate:
			return sourcetest.Durable(nil), nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}}, func() { close(gate) }
}

func connectsOf(b *broker, client event.ClientID) int {
	n := 0
	for _, c := range all[event.Connected](b.log) {
		if c.Client == client {
			n++
		}
	}
	return n
}

const ingest = "own-ingest-0-0"

func TestSourceAcknowledgesOnlyWhatIsDurableAndInOrder(t *testing.T) {
	t.Parallel()
	for _, qos := range []event.QoS{1, 2} {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, "127.0.0.1:0")
			first := &sourcetest.Journal{Judge: func(_ context.Context, n int, _ event.Event) (pipeline.Receipt, error) {
				if n == 2 || n == 5 { // holds all behind it back, though they are durable
					return sourcetest.Held(), nil
				}
				return sourcetest.Durable(nil), nil
			}}
			_, _, stop := startSource(t, b.server(), first, func(c *mqtt.SourceConfig) { c.Drain = 100 * time.Millisecond })
			dev := b.dial(t, "dev")
			publishAll(t, dev, qos, numbers(0, 10))
			await[event.Published](t, first, 10)
			sourcetest.Eventually(t, "two acks", func() bool { return acksOf(b, ingest) >= 2 })
			stop()
			if got := acksOf(b, ingest); got != 2 {
				t.Errorf("%d acks, want 2", got)
			}
			publishAll(t, dev, qos, numbers(10, 12))
			second := &sourcetest.Journal{}
			startSource(t, b.server(), second)
			await[event.Published](t, second, 10)
			if diff := cmp.Diff(numbers(2, 12), payloads(second)); diff != "" {
				t.Errorf("the second run got (-want +got):\n%s", diff)
			}
			sourcetest.Eventually(t, "all acks", func() bool { return acksOf(b, ingest) == 12 })
		})
	}
}

func TestSourceStopsWithAllThatItTookAcknowledged(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	r := sourcetest.Held()
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return r, nil }}
	_, c, stop := startSource(t, b.server(), j)
	publishAll(t, b.dial(t, "dev"), 1, numbers(0, 20))
	await[event.Published](t, j, 20)
	time.AfterFunc(100*time.Millisecond, func() { r.Complete() })
	begun := time.Now()
	stop()
	if d := time.Since(begun); d < 90*time.Millisecond || d > patience/2 {
		t.Errorf("stopped after %v, want just after the receipts", d)
	}
	sourcetest.Eventually(t, "the broker has all acks", func() bool { return acksOf(b, ingest) == 20 })
	if got := c.Counts()[mqtt.CountNotTaken]; got != 0 {
		t.Errorf("%d not taken", got)
	}
}

func TestSourceGivesUpAfterTheDrainAndAcknowledgesNothing(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	handed := make(chan struct{}, 3)
	j := &sourcetest.Journal{Judge: func(ctx context.Context, _ int, _ event.Event) (pipeline.Receipt, error) {
		handed <- struct{}{}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	_, c, stop := startSource(t, b.server(), j, func(c *mqtt.SourceConfig) { c.Drain = 50 * time.Millisecond })
	publishAll(t, b.dial(t, "dev"), 1, numbers(0, 3))
	<-handed
	stop()
	if got := c.Counts()[mqtt.CountNotTaken]; got != 1 {
		t.Errorf("%d not taken, want the one that was handed over", got)
	}
	second := &sourcetest.Journal{}
	startSource(t, b.server(), second)
	await[event.Published](t, second, 3)
	if diff := cmp.Diff(numbers(0, 3), payloads(second)); diff != "" {
		t.Errorf("the second run got (-want +got):\n%s", diff)
	}
}

func TestSourceRetriesWhatDidNotBecomeDurableAndSkipsPoison(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	var mu sync.Mutex
	tries := map[string]int{}
	j := &sourcetest.Journal{Judge: func(_ context.Context, _ int, e event.Event) (pipeline.Receipt, error) {
		mu.Lock()
		defer mu.Unlock()
		p := string(e.(event.Published).Payload)
		tries[p]++
		switch {
		case p == "m1":
			return nil, fault.Poison(errors.New("too large"))
		case p == "m2" && tries[p] == 1:
			return nil, errors.New("away")
		case p == "m3" && tries[p] == 1:
			return sourcetest.Durable(errors.New("not written")), nil
		case p == "m4":
			return nil, nil //nolint:nilnil // not wanted
		}
		return sourcetest.Durable(nil), nil
	}}
	_, c, _ := startSource(t, b.server(), j)
	publishAll(t, b.dial(t, "dev"), 1, numbers(0, 6))
	sourcetest.Eventually(t, "all acks", func() bool { return acksOf(b, ingest) == 6 })
	mu.Lock()
	defer mu.Unlock()
	want := map[string]int{"m0": 1, "m1": 1, "m2": 2, "m3": 2, "m4": 1, "m5": 1}
	if diff := cmp.Diff(want, tries); diff != "" {
		t.Errorf("tries (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountRefusedPoison: 1}, c.Counts()); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

func TestSourceKeepsItsConnectionWhileTheLogStalls(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	j, open := stalled()
	s := b.server()
	s.Keepalive = 12 * time.Second // the broker waits half of it longer: room for a slow machine
	startSource(t, s, j, func(c *mqtt.SourceConfig) { c.ReceiveMaximum = 8 })
	publishAll(t, b.dial(t, "dev"), 1, numbers(0, 50))
	time.Sleep(2*s.Keepalive + 500*time.Millisecond)
	open()
	await[event.Published](t, j, 50)
	if diff := cmp.Diff(numbers(0, 50), payloads(j)); diff != "" {
		t.Errorf("got (-want +got):\n%s", diff)
	}
	if n := connectsOf(b, ingest); n != 1 {
		t.Errorf("%d connects, want 1", n)
	}
}

func TestSourceTakesOnceWhatComesAgainAfterACut(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	wire := startProxy(t, b.addr)
	j, open := stalled()
	ups := make(chan bool, 100)
	src, _, _ := startSource(t, mqtt.Server{URLs: []string{"mqtt://" + wire.l.Addr().String()}}, j, func(c *mqtt.SourceConfig) { c.Up = func(up bool) { ups <- up } })
	publishAll(t, b.dial(t, "dev"), 1, numbers(0, 6))
	time.Sleep(time.Second) // all are in the source's queue, the first in the log's hands
	wire.cut()
	for _, want := range []bool{true, false, true} {
		if got := <-ups; got != want {
			t.Errorf("told that it is up: %v, want %v", got, want)
		}
	}
	sourcetest.Eventually(t, "the source is there again", func() bool { return connectsOf(b, ingest) == 2 && src.Ready() })
	time.Sleep(time.Second) // all have come again
	open()
	// The first was in the log's hands before the cut, and comes again without a mark that it did.
	want := append([]string{"m0"}, numbers(0, 6)...)
	await[event.Published](t, j, len(want))
	sourcetest.Eventually(t, "all acks", func() bool { return acksOf(b, ingest) == 6 })
	if diff := cmp.Diff(want, payloads(j)); diff != "" {
		t.Errorf("got (-want +got):\n%s", diff)
	}
}

func TestSourceDropsOnlyQoS0WhenItsQueueIsFull(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	j, open := stalled()
	_, c, _ := startSource(t, b.server(), j, func(c *mqtt.SourceConfig) { c.ReceiveMaximum = 4 })
	dev := b.dial(t, "dev")
	publishAll(t, dev, 0, numbers(0, 10))
	publishAll(t, dev, 1, numbers(10, 14))
	sourcetest.Eventually(t, "drops", func() bool { return c.Counts()[mqtt.CountDroppedQoS0] > 0 })
	open()
	sourcetest.Eventually(t, "the acks", func() bool { return acksOf(b, ingest) == 4 })
	got := payloads(j)
	if diff := cmp.Diff(numbers(10, 14), got[len(got)-4:]); diff != "" {
		t.Errorf("QoS 1 (-want +got):\n%s", diff)
	}
	if n := len(got) - 4 + c.Counts()[mqtt.CountDroppedQoS0]; n != 10 {
		t.Errorf("%d of 10 messages at QoS 0 are accounted for", n)
	}
}

func TestSourceCarriesAllOfAMessage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	j := &sourcetest.Journal{}
	startSource(t, b.server(), j)
	m := mqtttest.Message{
		Topic: "t/ü", Payload: []byte{0, 0xff}, QoS: 2, Retain: true, Expiry: time.Minute, Properties: event.Properties{
			ContentType: "x/y", ResponseTopic: "r", CorrelationData: []byte{0}, PayloadFormat: 0,
			User: []event.UserProperty{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}},
		},
	}
	dev := b.dial(t, "dev")
	publish(t, dev, m)
	publish(t, dev, mqtttest.Message{Topic: "t/empty", QoS: 1})
	events := await[event.Published](t, j, 2)
	got := events[0]
	if diff := cmp.Diff(m.Properties, got.Properties); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	if got.Topic.String() != m.Topic || string(got.Payload) != string(m.Payload) || got.QoS != 2 || !got.Retain || got.Sender != "" {
		t.Errorf("got %+v", got)
	}
	if got.Expiry < 50*time.Second || got.Expiry > time.Minute {
		t.Errorf("expiry %v, want about a minute", got.Expiry)
	}
	if got.ID.IsZero() || got.Source != "restante/plain" || !got.At.Equal(got.ID.Time().Truncate(time.Millisecond)) {
		t.Errorf("head %+v", got.Head)
	}
	if e := events[1]; e.Payload == nil || len(e.Payload) != 0 || e.Retain || e.Expiry != 0 || !e.Properties.IsZero() {
		t.Errorf("the empty message: %+v", e)
	}
}

func TestSourceRefusesOurReplaysAndCountsForgedOnes(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	j := &sourcetest.Journal{}
	_, c, _ := startSource(t, b.server(), j)
	p, _ := startPublisher(t, b.server())
	if _, err := p.Publish(contextOf(t), "dev", outgo(t, "t", "ours")); err != nil {
		t.Fatal(err)
	}
	forged := secretOf(t, keyB).Properties("dev", "t", outgo(t, "t", "forged"))
	publish(t, b.dial(t, "dev"), mqtttest.Message{Topic: "t", Payload: []byte("forged"), QoS: 1, Properties: event.Properties{User: forged}})
	await[event.Published](t, j, 1)
	sourcetest.Eventually(t, "both acks", func() bool { return acksOf(b, ingest) == 2 })
	if diff := cmp.Diff([]string{"forged"}, payloads(j)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountReplay: 1, mqtt.CountForged: 1}, c.Counts()); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

func TestFetchWaitsUntilAllBeforeItIsDurable(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	r := sourcetest.Held()
	j := &sourcetest.Journal{Judge: func(_ context.Context, n int, _ event.Event) (pipeline.Receipt, error) {
		if n == 0 {
			return r, nil
		}
		return sourcetest.Durable(nil), nil
	}}
	_, c, _ := startSource(t, b.server(), j)
	dev := b.dial(t, "dev")
	publishAll(t, dev, 1, numbers(0, 1))
	publish(t, dev, mqtttest.Message{Topic: "offline/fetch/dev", Payload: []byte("a/#/b"), QoS: 1})
	publish(t, dev, mqtttest.Message{Topic: "offline/fetch/dev", Payload: []byte("t/+"), QoS: 1})
	await[event.Published](t, j, 1)
	time.Sleep(50 * time.Millisecond)
	if got := all[event.Subscribed](j); len(got) != 0 {
		t.Fatalf("handed over before: %v", got)
	}
	r.Complete()
	got := await[event.Subscribed](t, j, 1)
	if got[0].Client != "dev" || got[0].Filter.String() != "t/+" {
		t.Errorf("got %+v", got[0])
	}
	if n := c.Counts()[mqtt.CountRefusedFilter]; n != 1 {
		t.Errorf("%d refused filters, want 1", n)
	}
}

func TestConnectionsShareAFilterByTheirGroup(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	j := &sourcetest.Journal{}
	startSource(t, b.server(), j, func(c *mqtt.SourceConfig) {
		c.Connections, c.Group, c.Filters = 3, "g", []event.Filter{eventtest.Filter(t, "t/#")}
	})
	publishAll(t, b.dial(t, "dev"), 1, numbers(0, 60))
	await[event.Published](t, j, 60)
	sourcetest.Eventually(t, "all acks", func() bool { return len(all[event.Acked](b.log)) == 60 })
	got := payloads(j)
	slices.Sort(got)
	want := numbers(0, 60)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("each once (-want +got):\n%s", diff)
	}
}

func TestSourceDoesNotTakeWhatWasRetainedBefore(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	dev := b.dial(t, "dev")
	publish(t, dev, mqtttest.Message{Topic: "t", Payload: []byte("old"), QoS: 1, Retain: true})
	if err := dev.Ping(contextOf(t)); err != nil { // the PUBACK may come before the routing
		t.Fatal(err)
	}
	j := &sourcetest.Journal{}
	startSource(t, b.server(), j)
	publish(t, dev, mqtttest.Message{Topic: "t", Payload: []byte("new"), QoS: 1, Retain: true})
	if got := await[event.Published](t, j, 1); string(got[0].Payload) != "new" || !got[0].Retain {
		t.Errorf("got %+v", got[0])
	}
}
