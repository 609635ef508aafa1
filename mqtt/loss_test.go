package mqtt_test

import (
	"testing"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/sourcetest"
)

// TestASourceTellsWhyItLostItsConnection, and nothing of one that it ended itself.
func TestASourceTellsWhyItLostItsConnection(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	wire := startProxy(t, b.addr)
	losses := make(chan mqtt.Loss, 100)
	src, _, stop := startSource(t, mqtt.Server{URLs: []string{"mqtt://" + wire.l.Addr().String()}}, &sourcetest.Journal{},
		func(c *mqtt.SourceConfig) { c.Lost = func(l mqtt.Loss) { losses <- l } })
	back := func(connects int) {
		t.Helper()
		sourcetest.Eventually(t, "the source is there", func() bool { return connectsOf(b, event.ClientID(ingest)) == connects && src.Ready() })
	}
	told := func(want mqtt.Loss) {
		t.Helper()
		if got := <-losses; got != want {
			t.Errorf("it was lost: %s, want %s", got, want)
		}
	}
	back(1)
	wire.cut()
	told(mqtt.LossBroken)
	back(2)
	other := b.dial(t, ingest)
	told(mqtt.LossTakenOver)
	back(4) // the other one, too
	other.Cut()
	stop()
	if n := len(losses); n > 0 {
		t.Errorf("%d more were told", n)
	}
}

// TestAPublisherTellsThatTheBrokerEndedItsConnections, each of them.
func TestAPublisherTellsThatTheBrokerEndedItsConnections(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	ups, losses := make(chan bool, 100), make(chan mqtt.Loss, 100)
	startPublisher(t, b.server(), func(c *mqtt.PublisherConfig) {
		c.Connections = 3
		c.Up = func(up bool) { ups <- up }
		c.Lost = func(l mqtt.Loss) { losses <- l }
	})
	for up := range ups {
		if up {
			break
		}
	}
	b.stop()
	for range 3 {
		if got := <-losses; got != mqtt.LossClosed {
			t.Errorf("it was lost: %s, want %s", got, mqtt.LossClosed)
		}
	}
}
