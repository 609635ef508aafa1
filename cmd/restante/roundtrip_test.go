package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
)

func roundtripConfig(t *testing.T, addr, rules string) string {
	t.Helper()
	return writeConfig(t, fmt.Sprintf("sources: {devices: {type: embedded, listen: %q}}\nsinks: {history: {type: sqlite, path: unused.db}}\nrules:\n%s", addr, rules))
}

func TestARoundTripSeesItsMessageReplayed(t *testing.T) {
	t.Parallel()
	for name, rules := range map[string]string{
		"of a queue":      `- {topic: "t/#", action: save_offline_messages, sink: history}`,
		"of an addressee": `- {topic: "t/+/#", addressee: "t/{clientid}/#", action: save_offline_messages, sink: history}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := ports.Addr(t)
			config := roundtripConfig(t, addr, rules)
			s := startUp(t, t.TempDir(), "-c", config)
			code, out, log := call("roundtrip", "-c", config, "-o", "json")
			var got tripResult
			if err := json.Unmarshal([]byte(out), &got); code != app.ExitOK || err != nil {
				t.Fatalf("exit code %d, %v: %s%s", code, err, out, log)
			}
			if len(got.MsgID) != 32 || !strings.HasPrefix(got.Topic, "t/") || got.Seconds <= 0 {
				t.Errorf("got %+v", got)
			}
			e2etest.AwaitRows(t, s.at.database(), 0) // it was acknowledged, and leaves nothing behind
			code, out, log = call("roundtrip", "-c", config)
			if code != app.ExitOK {
				t.Errorf("exit code %d: %s", code, log)
			}
			wants(t, "output", out, "ok      t/", "came back", "offline-msgid ")
		})
	}
}

func TestARoundTripThatBringsNothingBackFails(t *testing.T) {
	t.Parallel()
	addr := ports.Addr(t)
	config := roundtripConfig(t, addr, `- {topic: "t/#", action: save_offline_messages, sink: history}`)
	startUp(t, t.TempDir(), "-c", config)
	code, out, log := call("roundtrip", "-c", config, "--topic", "not/stored/{clientid}", "--timeout", "2s")
	if code != app.ExitFailed || out != "" {
		t.Errorf("exit code %d, want %d: %s", code, app.ExitFailed, out)
	}
	wants(t, "stderr", log, "round trip on not/stored/roundtrip-", "the time of 2s is over", "was not replayed", "/readyz")
}

func TestARoundTripSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ config, want string }{
		"a rule that fits": {"rules: [{on: message.publish, topic: \"t/#\", do: on_message_store, sink: history}]", "name a --topic"},
		"a broker":         {"rules: [{topic: \"t/#\", action: save_offline_messages, sink: history}]", "delivery.mqtt.url is missing"},
		"a broker that is there": {
			"rules: [{topic: \"t/#\", action: save_offline_messages, sink: history}]\ndelivery: {mqtt: {url: \"mqtt://" + ports.Addr(t) + "\"}}",
			"connection refused",
		},
		"a login": {
			"rules: [{topic: \"t/#\", action: save_offline_messages, sink: history}]\ndelivery: {mqtt: {url: \"mqtt://x\", user: u, password_file: /not/there}}",
			"/not/there",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := writeConfig(t, "kafka: {brokers: [\"x:9092\"]}\nsinks: {history: {type: sqlite, path: unused.db}}\n"+c.config)
			code, _, log := call("roundtrip", "-c", config)
			if code == app.ExitOK {
				t.Error("exit code 0")
			}
			wants(t, "stderr", log, c.want)
		})
	}
}

// A broker hears nothing in the clear, the password least, on a URL that asks for TLS.
func TestARoundTripKeepsToTheSchemeOfItsURL(t *testing.T) {
	t.Parallel()
	const connect, handshake = 0x10, 0x16
	for scheme, want := range map[string]byte{"mqtt": connect, "tcp": connect, "mqtts": handshake, "ssl": handshake, "tls": handshake} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			l := e2etest.Listen(t, ports.Addr(t))
			t.Cleanup(func() { _ = l.Close() })
			first := make(chan byte, 1)
			go func() { // ends with the listener
				defer close(first)
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer func() { _ = c.Close() }()
				var b [1]byte
				if _, err := c.Read(b[:]); err == nil {
					first <- b[0]
				}
			}()
			config := writeConfig(t, "kafka: {brokers: [\"x:9092\"]}\nsinks: {history: {type: sqlite, path: unused.db}}\n"+
				"rules: [{topic: \"t/#\", action: save_offline_messages, sink: history}]\ndelivery: {mqtt: {url: \""+scheme+"://"+l.Addr().String()+"\"}}")
			if code, _, log := call("roundtrip", "-c", config); code != app.ExitFailed {
				t.Errorf("exit code %d: %s", code, log)
			}
			if got := <-first; got != want {
				t.Errorf("the first byte is %#x, want %#x", got, want)
			}
		})
	}
}
