package mqtt_test

import (
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt"
)

func TestProbeConnectsOnceAndLeaves(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	if err := mqtt.Probe(contextOf(t), b.server(), "probe"); err != nil {
		t.Fatal(err)
	}
	if got := await[event.Connected](t, b.log, 1); len(got) != 1 || got[0].Client != "probe" {
		t.Errorf("connects: %v", got)
	}
	if got := await[event.Disconnected](t, b.log, 1); len(got) != 1 {
		t.Errorf("disconnects: %v", got)
	}
}

func TestProbeTellsAtOnceWhyItCannotConnect(t *testing.T) {
	t.Parallel()
	refusing := &fake{connack: func(a *packets.Connack) { a.ReasonCode = 0x86 }}
	old := &fake{connack: func(a *packets.Connack) { a.ReasonCode = packets.ConnackUnsupportedProtocolVersion }}
	for sentence, c := range map[string]struct {
		server mqtt.Server
		want   string
	}{
		"nobody listens":      {mqtt.Server{URLs: []string{"mqtt://" + ports.Addr(t)}}, "connection refused: start the broker"},
		"a refused login":     {refusing.start(t), "put user and password right"},
		"a broker of old":     {old.start(t), "does not speak MQTT 5"},
		"a broker that waits": {silent(t), "put the URL right"},
	} {
		c.server.ConnectTimeout = patience
		if sentence == "a broker that waits" {
			c.server.ConnectTimeout = 300 * time.Millisecond
		}
		begun := time.Now()
		err := mqtt.Probe(contextOf(t), c.server, "probe")
		if time.Since(begun) >= patience {
			t.Errorf("%s: told only when it had waited", sentence)
		}
		if err == nil || !strings.Contains(err.Error(), "connect to broker") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", sentence, err)
		}
	}
}

// silent is a server that takes connections and says nothing.
func silent(t *testing.T) mqtt.Server {
	t.Helper()
	return mqtt.Server{URLs: []string{"mqtt://" + listen(t).Addr().String()}}
}
