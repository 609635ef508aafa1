package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const maxPayload = 256 << 10

func TestEveryPayloadUpToTheLimitComesBackBitByBit(t *testing.T) {
	t.Parallel()
	s := startUp(t, t.TempDir())
	every := make([]byte, maxPayload)
	for i := range every {
		every[i] = byte(i*7 + i>>8)
	}
	for name, payload := range map[string][]byte{
		"empty": {}, "one": {0}, "zeros": make([]byte, 1000), "not utf-8": {0xff, 0xfe, 0x80, 'a', 0xc3, 0x28}, "text": []byte("grüße 🙂 \"'\\ \u0000"),
		"limit": every, "json": []byte(`{"a":1}`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := "bytes/" + name
			e2etest.Publish(t, s.at.mqtt(), topic, string(payload))
			if len(payload) > 0 { // so that the replay comes from the database as well as from the tail
				e2etest.Await(t, "a row", func() bool {
					_, rows := e2etest.Table(t, s.at.database(), "mqtt_msg")
					return slices.ContainsFunc(rows, func(r []string) bool { return r[0] == topic })
				})
			}
			got := e2etest.Receive(t, e2etest.Subscribe(t, s.at.mqtt(), "device "+name, topic), 1)[0]
			if !bytes.Equal(got.Payload, payload) {
				t.Errorf("got %d bytes, want the %d that were sent", len(got.Payload), len(payload))
			}
		})
	}
}

func TestAPayloadOverTheLimitIsADeadLetterAndAPacketOverItIsRefused(t *testing.T) {
	t.Parallel()
	s := startUp(t, t.TempDir())
	over := string(make([]byte, maxPayload+1))
	e2etest.Publish(t, s.at.mqtt(), "big/1", over, "small") // both have their PUBACK
	if got := e2etest.Metric(t, s.at.Admin, "restante_ingest_dropped_total", `reason="oversize"`); got != 1 {
		t.Errorf("dropped for oversize: %v, want 1", got)
	}
	c := e2etest.Dial(t, s.at.mqtt(), "huge")
	if err := c.Publish(t.Context(), e2etest.Message("big/1", string(make([]byte, 1<<20)))); err == nil {
		t.Error("a packet of 1 MiB was taken")
	}
	<-c.Done()
	got := e2etest.Receive(t, e2etest.Subscribe(t, s.at.mqtt(), "device", "big/1"), 1)
	if diff := cmp.Diff([]string{"small"}, e2etest.Payloads(got)); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	if got := e2etest.Metric(t, s.at.Admin, "restante_mqtt_events_total", `kind="refused_size"`); got != 1 {
		t.Errorf("refused for size: %v, want 1", got)
	}
}

// A rule for "#" does not select topics that begin with $: it takes one of their own.
const dollarRules = `
rules:
  - {topic: "#", action: save_offline_messages, sink: local, wildcards: true}
  - {topic: "$foo/#", action: save_offline_messages, sink: local, wildcards: true}
sinks: {local: {type: sqlite, path: %q}}
`

func startWithDollarRules(t *testing.T) stack {
	t.Helper()
	dir := t.TempDir()
	return startUp(t, dir, "-c", writeConfig(t, fmt.Sprintf(dollarRules, filepath.Join(dir, "own.db"))))
}

func TestOddButLegalTopicsAndClientIDsWork(t *testing.T) {
	t.Parallel()
	s := startWithDollarRules(t)
	topics := []string{
		"with spaces in it", "emoji/🚀/ü", "a//b", "/leading", "trailing/", "/", "//", "$foo/bar", "quote'\"\\", "per%cent/%2F", "t/\u200b",
		"select * from mqtt_msg; --", "long/" + string(bytes.Repeat([]byte("x"), 2000)),
	}
	ids := []string{"a client", "with/slash", "with+plus", "with#hash", "🤖", "$share/x", "quote'\"\\", "{clientid}"}
	for i, topic := range topics {
		t.Run(fmt.Sprintf("topic %.20q", topic), func(t *testing.T) {
			t.Parallel()
			id := ids[i%len(ids)] + fmt.Sprint(i)
			e2etest.Publish(t, s.at.mqtt(), topic, "stored "+topic)
			if i%2 == 0 {
				e2etest.Await(t, "a row", func() bool {
					_, rows := e2etest.Table(t, s.at.database(), "mqtt_msg")
					return slices.ContainsFunc(rows, func(r []string) bool { return r[0] == topic })
				})
			}
			got := e2etest.Receive(t, e2etest.Subscribe(t, s.at.mqtt(), id, topic), 1)[0]
			if got.Topic != topic || string(got.Payload) != "stored "+topic || got.User("offline-clientid") != id {
				t.Errorf("client %q got %q on %q for %q", id, got.Payload, got.Topic, got.User("offline-clientid"))
			}
		})
	}
	for _, id := range ids {
		t.Run(fmt.Sprintf("client id %q", id), func(t *testing.T) {
			t.Parallel()
			topic := "to/" + fmt.Sprintf("%x", id)
			pub := e2etest.Dial(t, s.at.mqtt(), id+" publishes")
			e2etest.Send(t, pub, topic, "for "+id)
			got := e2etest.Receive(t, e2etest.Subscribe(t, s.at.mqtt(), id, topic), 1)[0]
			if string(got.Payload) != "for "+id || got.User("offline-clientid") != id {
				t.Errorf("got %q for %q", got.Payload, got.User("offline-clientid"))
			}
		})
	}
}

// A leading wildcard does not match topics that begin with $ (MQTT 5, 4.7.2), stored ones neither.
func TestALeadingWildcardDoesNotReplayDollarTopics(t *testing.T) {
	t.Parallel()
	s := startWithDollarRules(t)
	e2etest.Publish(t, s.at.mqtt(), "$foo/bar", "dollar")
	e2etest.Publish(t, s.at.mqtt(), "foo/bar", "plain")
	c := e2etest.Subscribe(t, s.at.mqtt(), "device", "#")
	if got := e2etest.Payloads(e2etest.Receive(t, c, 1)); got[0] != "plain" {
		t.Errorf("# got %q, want plain", got)
	}
	e2etest.Quiet(t, c, time.Second)
	if got := e2etest.Payloads(e2etest.Receive(t, e2etest.Subscribe(t, s.at.mqtt(), "other", "$foo/#"), 1)); got[0] != "dollar" {
		t.Errorf("$foo/# got %q, want dollar", got)
	}
}

func TestADeviceOfMQTT311GetsItsMessages(t *testing.T) {
	t.Parallel()
	s := startUp(t, t.TempDir())
	old := func(id string) *mqtttest.Client {
		return e2etest.DialWith(t, s.at.mqtt(), mqtttest.Options{ID: id, Version: mqtttest.V311})
	}
	p := old("publisher")
	e2etest.Send(t, p, "t/1", "one")
	e2etest.Send(t, p, "t/1", "two")
	c := old("device")
	e2etest.More(t, c, "t/1")
	if diff := cmp.Diff([]string{"one", "two"}, e2etest.Payloads(e2etest.Receive(t, c, 2))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	e2etest.AwaitRows(t, s.at.database(), 0)
}

func TestWhatIsNotAckedStaysAndComesAgain(t *testing.T) {
	t.Parallel()
	s := startUp(t, t.TempDir())
	e2etest.Publish(t, s.at.mqtt(), "t/1", "one", "two", "three")
	c := e2etest.DialWith(t, s.at.mqtt(), mqtttest.Options{ID: "device", Version: mqtttest.V5, ManualAck: true})
	e2etest.More(t, c, "t/1")
	got := e2etest.Receive(t, c, 3)
	if err := c.Ack(got[0]); err != nil {
		t.Fatal(err)
	}
	e2etest.AwaitRows(t, s.at.database(), 2)
	c.Cut()
	c = e2etest.Subscribe(t, s.at.mqtt(), "device", "t/1")
	if diff := cmp.Diff([]string{"two", "three"}, e2etest.Payloads(e2etest.Receive(t, c, 2))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	e2etest.AwaitRows(t, s.at.database(), 0)
}
