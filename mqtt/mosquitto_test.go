package mqtt_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/pipeline"
)

func TestMosquittoDeliversAgainWhatWasNotDurableAndTellsOfNoSubscriber(t *testing.T) {
	t.Parallel()
	addr := stack.Mosquitto(t, "persistence false")
	s := mqtt.Server{URLs: []string{"mqtt://" + addr}}
	p, _ := startPublisher(t, s)
	out, err := p.Publish(contextOf(t), "dev", outgo(t, "t", "nobody"))
	if err != nil || !out.NoSubscriber {
		t.Errorf("a publish to nobody: got %+v, %v", out, err)
	}
	first := &sourcetest.Journal{Judge: func(_ context.Context, n int, _ event.Event) (pipeline.Receipt, error) {
		if n == 3 {
			return sourcetest.Held(), nil
		}
		return sourcetest.Durable(nil), nil
	}}
	_, _, stop := startSource(t, s, first, func(c *mqtt.SourceConfig) { c.Drain = 200 * time.Millisecond })
	dev := dial(t, addr, "dev")
	publishAll(t, dev, 1, numbers(0, 5))
	publishAll(t, dev, 2, numbers(5, 10))
	await[event.Published](t, first, 10)
	stop()
	publishAll(t, dev, 2, numbers(10, 12))
	second := &sourcetest.Journal{}
	_, c, _ := startSource(t, s, second)
	await[event.Published](t, second, 9)
	if diff := cmp.Diff(numbers(3, 12), payloads(second)); diff != "" {
		t.Errorf("the second run got (-want +got):\n%s", diff)
	}
	if out, err := p.Publish(contextOf(t), "dev", outgo(t, "t", "ours")); err != nil || out.NoSubscriber {
		t.Errorf("a replay that the source gets: %+v, %v", out, err)
	}
	sourcetest.Eventually(t, "the replay is counted", func() bool { return c.Counts()[mqtt.CountReplay] == 1 })
}

// A source at a real Mosquitto hears who comes, subscribes and goes, and what is published, over one connection.
func TestMosquittoTellsOfItsClientsByItsLog(t *testing.T) {
	t.Parallel()
	addr := stack.Mosquitto(t, "log_type notice\nlog_type subscribe\nlog_type unsubscribe\nlog_dest topic")
	j := &sourcetest.Journal{}
	startSource(t, mqtt.Server{URLs: []string{"mqtt://" + addr}}, j, func(c *mqtt.SourceConfig) {
		c.Decoder = mqtt.NewMosquitto(plain(t), func(c event.ClientID) bool { return len(c) > 4 && c[:4] == "own-" })
		c.Filters = []event.Filter{eventtest.Filter(t, "t/#")}
		for _, f := range mqtt.MosquittoLogFilters {
			c.Filters = append(c.Filters, eventtest.Filter(t, f))
		}
	})
	dev := dial(t, addr, "dev 1")
	await[event.Connected](t, j, 1)
	publishAll(t, dev, 1, []string{"before"})
	subscribe(t, dev, 1, "t/+")
	if s := await[event.Subscribed](t, j, 1)[0]; s.Client != "dev 1" || s.Filter.String() != "t/+" || s.QoS != 1 {
		t.Errorf("subscribed: %+v", s)
	}
	if _, err := dev.Unsubscribe(contextOf(t), "t/+"); err != nil {
		t.Fatal(err)
	}
	if u := await[event.Unsubscribed](t, j, 1)[0]; u.Client != "dev 1" || u.Filter.String() != "t/+" {
		t.Errorf("unsubscribed: %+v", u)
	}
	dev.Cut()
	if d := await[event.Disconnected](t, j, 1)[0]; d.Client != "dev 1" || d.Reason == "" {
		t.Errorf("disconnected: %+v", d)
	}
	forger := dial(t, addr, "forger")
	m := mqtttest.Message{Topic: "$SYS/broker/log/M/subscribe", Payload: []byte("1795419915: victim 1 t/#"), QoS: 1}
	if err := forger.Publish(contextOf(t), m); err == nil {
		t.Error("a client may write into the log")
	}
	subscribe(t, forger, 1, "t/last")
	for _, s := range await[event.Subscribed](t, j, 2) {
		if s.Client == "victim" {
			t.Error("a forged line was taken")
		}
	}
	if c := all[event.Connected](j); len(c) != 2 || c[0].Client != "dev 1" || c[0].CleanStart != event.Yes {
		t.Errorf("connected: %+v", c)
	}
}
