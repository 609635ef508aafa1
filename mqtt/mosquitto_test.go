package mqtt_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// startMosquitto runs the real broker.
func startMosquitto(t *testing.T) (addr string) {
	t.Helper()
	bin, err := exec.LookPath("mosquitto")
	if err != nil {
		bin = "/usr/sbin/mosquitto" // not always in a user's path
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("no mosquitto on this machine: install it to test against a real broker")
	}
	addr = freeAddr(t)
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npersistence false\n", addr[len("127.0.0.1:"):])
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, bin, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	eventually(t, "mosquitto listens", func() bool {
		return mqtt.Probe(contextOf(t), mqtt.Server{URLs: []string{"mqtt://" + addr}}, "probe") == nil
	})
	return addr
}

func TestMosquittoDeliversAgainWhatWasNotDurableAndTellsOfNoSubscriber(t *testing.T) {
	t.Parallel()
	addr := startMosquitto(t)
	s := mqtt.Server{URLs: []string{"mqtt://" + addr}}
	p, _ := startPublisher(t, s)
	out, err := p.Publish(contextOf(t), "dev", outgo(t, "t", "nobody"))
	if err != nil || !out.NoSubscriber {
		t.Errorf("a publish to nobody: got %+v, %v", out, err)
	}
	first := &journal{judge: func(_ context.Context, n int, _ event.Event) (pipeline.Receipt, error) {
		if n == 3 {
			return held(), nil
		}
		return durable(nil), nil
	}}
	_, _, stop := startSource(t, s, first, func(c *mqtt.SourceConfig) { c.Drain = 200 * time.Millisecond })
	dev := dial(t, addr, "dev")
	publishAll(t, dev, 1, numbers(0, 5))
	publishAll(t, dev, 2, numbers(5, 10))
	await[event.Published](t, first, 10)
	stop()
	publishAll(t, dev, 2, numbers(10, 12))
	second := &journal{}
	_, c, _ := startSource(t, s, second)
	await[event.Published](t, second, 9)
	if diff := cmp.Diff(numbers(3, 12), payloads(second)); diff != "" {
		t.Errorf("the second run got (-want +got):\n%s", diff)
	}
	if out, err := p.Publish(contextOf(t), "dev", outgo(t, "t", "ours")); err != nil || out.NoSubscriber {
		t.Errorf("a replay that the source gets: %+v, %v", out, err)
	}
	eventually(t, "the replay is counted", func() bool { return c.all()[mqtt.CountReplay] == 1 })
}
