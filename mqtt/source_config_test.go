package mqtt_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/mqtt/sourcetest"
)

func TestSourceConfigThatWouldLoseMessagesIsRefused(t *testing.T) {
	t.Parallel()
	good := mqtt.SourceConfig{
		Server: mqtt.Server{URLs: []string{"mqtt://h"}}, Prefix: "p-", Filters: []event.Filter{eventtest.Filter(t, "#")}, Decoder: plain(t),
	}
	if _, err := mqtt.NewSource(good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*mqtt.SourceConfig){
		"clean start":    func(c *mqtt.SourceConfig) { c.CleanStart = true },
		"session expiry": func(c *mqtt.SourceConfig) { c.SessionExpiry = time.Hour - time.Second },
		"no filter":      func(c *mqtt.SourceConfig) { c.Filters = nil },
		"no decoder":     func(c *mqtt.SourceConfig) { c.Decoder = nil },
		"prefix":         func(c *mqtt.SourceConfig) { c.Prefix = "" },
		"qos 3":          func(c *mqtt.SourceConfig) { c.QoS = 3 },
		"share group":    func(c *mqtt.SourceConfig) { c.Connections = 2 },
		"has a share": func(c *mqtt.SourceConfig) {
			c.Group, c.Filters = "g", []event.Filter{eventtest.Filter(t, "$share/x/#")}
		},
		"share name":      func(c *mqtt.SourceConfig) { c.Group = "a+b" },
		"broker url":      func(c *mqtt.SourceConfig) { c.Server.URLs = nil },
		"scheme \"http\"": func(c *mqtt.SourceConfig) { c.Server.URLs = []string{"http://h"} },
	} {
		c := good
		change(&c)
		if _, err := mqtt.NewSource(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// A broker that takes MQTT 5's Request Problem Information for more than it is leaves user properties out of messages when it is 0:
// then replays come back as new messages.
func TestSourceAsksForUserProperties(t *testing.T) {
	t.Parallel()
	asked := make(chan *byte, 8)
	f := &fake{connect: func(c *packets.Connect) {
		if c.Properties == nil {
			c.Properties = &packets.Properties{}
		}
		select {
		case asked <- c.Properties.RequestProblemInfo:
		default:
		}
	}}
	s, err := mqtt.NewSource(mqtt.SourceConfig{Server: f.start(t), Prefix: "own-", Filters: []event.Filter{eventtest.Filter(t, "#")}, Decoder: plain(t), Drain: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	background(t, "the source", func(ctx context.Context) error { return s.Run(ctx, (&sourcetest.Journal{}).Accept) })
	if got := <-asked; got != nil && *got != 1 {
		t.Errorf("Request Problem Information is %d, want 1 or nothing", *got)
	}
}

// What a device sends must not fill the log: each refusal is counted, and one a minute is told.
func TestRefusedPacketsAreToldOnceAMinute(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	var said lines
	_, c, _ := startSource(t, b.server(), &sourcetest.Journal{}, func(c *mqtt.SourceConfig) { c.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	dev := b.dial(t, "dev")
	const forged = 20
	for range forged {
		publish(t, dev, mqtttest.Message{Topic: "offline/fetch/dev", Payload: []byte("a/#/b"), QoS: 1})
	}
	sourcetest.Eventually(t, "all are counted", func() bool { return c.Counts()[mqtt.CountRefusedFilter] == forged })
	if n := strings.Count(said.String(), "packet refused"); n != 1 {
		t.Errorf("%d lines for %d packets:\n%s", n, forged, said.String())
	}
}

// lines collects a log.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
