package mqtt_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/mochitest"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/mqtt/sourcetest"
)

// with is how often a log has the text.
func (l *lines) with(text string) int { return strings.Count(l.String(), text) }

func TestACounterCountsItsRisesAndIsSaidOnceAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log lines
		var c sourcetest.Tally
		var dropped []uint64
		const node, other = "$SYS/brokers/n1/metrics/delivery/dropped/queue_full", "$SYS/brokers/n2/metrics/delivery/dropped/queue_full"
		tell := mqtt.Drops(mqtt.SourceConfig{
			Drops: mqtt.EMQXDropFilters, Dropped: func(n uint64) { dropped = append(dropped, n) }, Count: c.Count,
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		for _, step := range []struct{ topic, says string }{
			{node, "100"},                  // counting begins
			{node, "100"},                  // no more
			{other, "7"},                   // another node's begins
			{node, "103"},                  // 3
			{node, "110"},                  // 7
			{other, "7"},                   //
			{node, "5"},                    // the broker is new: 5
			{node, "0"},                    // and again
			{node, "18446744073709551615"}, // all that there are
		} {
			tell(step.topic, []byte(step.says))
		}
		if diff := cmp.Diff([]uint64{3, 7, 5, 18446744073709551615}, dropped); diff != "" {
			t.Errorf("rises (-want +got):\n%s", diff)
		}
		if n := log.with("broker drops deliveries"); n != 1 {
			t.Errorf("said %d times within a minute", n)
		}
		time.Sleep(time.Minute)
		tell(other, []byte("8"))
		if log.with("broker drops deliveries") != 2 || log.with("unsaid=3") != 1 || log.with("max_mqueue_len") != 2 {
			t.Errorf("a minute later: %s", log.String())
		}
		if len(c.Counts()) > 0 {
			t.Errorf("counted %v", c.Counts())
		}
	})
}

func TestWhatIsNoCounterIsRefused(t *testing.T) {
	t.Parallel()
	const topic = "$SYS/broker/publish/messages/dropped"
	for name, step := range map[string]struct{ topic, says string }{
		"nothing":          {topic, ""},
		"a word":           {topic, "many"},
		"a sign":           {topic, "-1"},
		"a fraction":       {topic, "1.5"},
		"a space":          {topic, " 1"},
		"other digits":     {topic, "١"},
		"over 64 bits":     {topic, "18446744073709551616"},
		"no end":           {topic, strings.Repeat("0", 1<<20)},
		"binary":           {topic, "\x00\xff"},
		"another topic":    {"$SYS/broker/messages/dropped", "1"},
		"a client's topic": {"t/1", "1"},
		"no topic":         {"", "1"},
		"a wildcard":       {"$SYS/broker/publish/messages/#", "1"},
	} {
		var c sourcetest.Tally
		tell := mqtt.Drops(mqtt.SourceConfig{
			Drops: mqtt.MosquittoDropFilters, Dropped: func(n uint64) { t.Errorf("%s: %d were dropped", name, n) }, Count: c.Count, Log: slog.New(slog.DiscardHandler),
		})
		tell(topic, []byte("1"))
		tell(step.topic, []byte(step.says))
		tell(topic, []byte("1"))
		if diff := cmp.Diff(map[mqtt.Counter]int{mqtt.CountRefusedLine: 1}, c.Counts()); diff != "" {
			t.Errorf("%s: counted (-want +got):\n%s", name, diff)
		}
	}
}

func FuzzDrops(f *testing.F) {
	for _, says := range []string{"", "0", "17", "18446744073709551615", "18446744073709551616", "-1", "1e3", "\xff"} {
		f.Add("$SYS/broker/publish/messages/dropped", []byte(says))
		f.Add("$SYS/brokers/emqx@127.0.0.1/metrics/delivery/dropped/queue_full", []byte(says))
	}
	f.Fuzz(func(t *testing.T, topic string, says []byte) {
		const known = "$SYS/broker/messages/dropped"
		var c sourcetest.Tally
		rises := uint64(0)
		tell := mqtt.Drops(mqtt.SourceConfig{
			Drops: mqtt.AnyDropFilters, Dropped: func(n uint64) { rises += n }, Count: c.Count, Log: slog.New(slog.DiscardHandler),
		})
		tell(known, []byte("5"))
		tell(topic, says)
		refused := c.Counts()[mqtt.CountRefusedLine]
		if topic != known && rises > 0 {
			t.Errorf("the first value of %q counts as %d", topic, rises)
		}
		if text := string(says); refused == 0 && (text == "" || strings.Trim(text, "0123456789") != "") {
			t.Errorf("%q was taken for a number", text)
		}
		before := rises
		tell(known, []byte("5"))
		tell(known, []byte("9"))
		if topic != known && rises != before+4 {
			t.Errorf("%q on %q spoilt another counter: %d", says, topic, rises)
		}
	})
}

// watched is a source that watches counters.
func watched(t *testing.T, s mqtt.Server, filters []string) (dropped func() uint64, c *sourcetest.Tally, log *lines) {
	t.Helper()
	var sum atomic.Uint64
	log = &lines{}
	_, c, _ = startSource(t, s, &sourcetest.Journal{}, func(c *mqtt.SourceConfig) {
		c.Drops, c.Dropped, c.Log = filters, func(n uint64) { sum.Add(n) }, slog.New(slog.NewTextHandler(log, nil))
	})
	return sum.Load, c, log
}

// countingBroker is mochi as anybody may run it. It hangs up on those who subscribe to $SYS when strict is 2, and refuses them when 1.
type countingBroker struct {
	mochi.HookBase
	strict int
	asked  atomic.Int32
}

func (b *countingBroker) Provides(hook byte) bool {
	return hook == mochi.OnConnectAuthenticate || hook == mochi.OnACLCheck || hook == mochi.OnSubscribe
}
func (b *countingBroker) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (b *countingBroker) OnACLCheck(_ *mochi.Client, topic string, write bool) bool {
	return write || b.strict != 1 || !strings.HasPrefix(topic, "$SYS/")
}

func (b *countingBroker) OnSubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	if strings.HasPrefix(pk.Filters[0].Filter, "$SYS/") {
		b.asked.Add(1)
		if b.strict == 2 {
			cl.Stop(packets.ErrNotAuthorized)
		}
	}
	return pk
}

func (b *countingBroker) start(t *testing.T) (*mochi.Server, mqtt.Server) {
	t.Helper()
	server := mochi.New(&mochi.Options{Logger: slog.New(slog.DiscardHandler), SysTopicResendInterval: 1, InlineClient: true})
	l := listen(t)
	for _, err := range []error{server.AddHook(b, nil), server.AddListener(mochitest.Listener(server, l)), server.Serve()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = server.Close() }) // the test is over
	return server, mqtt.Server{URLs: []string{"mqtt://" + l.Addr().String()}}
}

func TestTheDropsOfABrokerAreSeen(t *testing.T) {
	t.Parallel()
	b := &countingBroker{}
	server, s := b.start(t)
	atomic.StoreInt64(&server.Info.MessagesDropped, 40) // before anybody looked
	dropped, _, log := watched(t, s, mqtt.AnyDropFilters)
	// Retained: the broker publishes it each second.
	sourcetest.Eventually(t, "the counter was seen", func() bool {
		atomic.AddInt64(&server.Info.MessagesDropped, 1)
		time.Sleep(20 * time.Millisecond)
		return dropped() > 0
	})
	if n := dropped(); n >= 40+uint64(atomic.LoadInt64(&server.Info.MessagesDropped)) {
		t.Errorf("%d were dropped, of which some before", n)
	}
	if log.with("broker drops deliveries") != 1 {
		t.Errorf("the log says %s", log.String())
	}
}

// TestABrokerThatHidesItsCountersStopsNothing: it refuses, or hangs up.
func TestABrokerThatHidesItsCountersStopsNothing(t *testing.T) {
	t.Parallel()
	for strict, why := range map[int]string{1: "refused with reasons", 2: "was cut 5 times"} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			b := &countingBroker{strict: strict}
			_, s := b.start(t)
			j := &sourcetest.Journal{}
			log := &lines{}
			startSource(t, s, j, func(c *mqtt.SourceConfig) {
				c.Drops, c.Log = mqtt.AnyDropFilters, slog.New(slog.NewTextHandler(log, nil))
			})
			dev := dial(t, strings.TrimPrefix(s.URLs[0], "mqtt://"), "dev")
			publishAll(t, dev, 1, numbers(0, 3))
			sourcetest.Eventually(t, "it gives up", func() bool { return log.with(why) == 1 })
			publishAll(t, dev, 1, numbers(3, 6))
			await[event.Published](t, j, 6)
			if diff := cmp.Diff(numbers(0, 6), payloads(j)); diff != "" {
				t.Errorf("got (-want +got):\n%s", diff)
			}
			asked := b.asked.Load()
			time.Sleep(200 * time.Millisecond)
			if n := b.asked.Load(); n != asked {
				t.Errorf("it was asked %d times more", n-asked)
			}
			if log.with("cannot subscribe") != 0 || log.with("connection to broker lost") != 0 || log.with("broker_drops: false") != 1 {
				t.Errorf("the log says %s", log.String())
			}
		})
	}
}

// TestTheDropsOfARealMosquittoAreSeen: a client that takes nothing makes it drop.
func TestTheDropsOfARealMosquittoAreSeen(t *testing.T) {
	t.Parallel()
	addr := stack.Mosquitto(t, "sys_interval 1\nmax_inflight_messages 1\nmax_queued_messages 2")
	s := mqtt.Server{URLs: []string{"mqtt://" + addr}}
	dropped, c, log := watched(t, s, mqtt.MosquittoDropFilters)
	slow := dial(t, addr, "slow", func(o *mqtttest.Options) { o.ManualAck = true })
	subscribe(t, slow, 1, "u/#")
	dev := dial(t, addr, "dev")
	sent := 0
	sourcetest.Eventually(t, "the counter has risen", func() bool {
		for range 10 {
			sent++
			publish(t, dev, mqtttest.Message{Topic: "u/1", Payload: fmt.Append(nil, sent), QoS: 1})
		}
		time.Sleep(50 * time.Millisecond)
		return dropped() > 0
	})
	if n := dropped(); n > uint64(sent) {
		t.Errorf("%d of %d were dropped", n, sent)
	}
	if log.with("broker drops deliveries") != 1 || c.Counts()[mqtt.CountRefusedLine] > 0 {
		t.Errorf("counted %v, and the log says %s", c.Counts(), log.String())
	}
}
