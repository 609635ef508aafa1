package mqtt_test

import (
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
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
