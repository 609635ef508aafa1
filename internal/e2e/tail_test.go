package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/mqtttest"
)

// roundtrips publishes and subscribes at once, on a new topic by a new client each time; every message must come. It gives how many came
// before they were in the store.
func roundtrips(t *testing.T, s *setup, n int) (early int) {
	t.Helper()
	for i := range n {
		topic, want := fmt.Sprintf("t/now/%d", i), fmt.Sprintf("message %d", i)
		e2etest.Publish(t, s.broker, topic, want)
		c := e2etest.Subscribe(t, s.broker, fmt.Sprintf("device-%d", i), topic)
		if got := e2etest.Receive(t, c, 1)[0]; string(got.Payload) != want {
			t.Errorf("%s: got %q, want %q", topic, got.Payload, want)
		}
		if !slices.ContainsFunc(rowsOf(t, s.database), func(row map[string]string) bool { return row["topic"] == topic }) {
			early++
		}
		c.Disconnect()
	}
	return early
}

// leave disconnects a client when the broker has read all its acks: by another connection somebody may be faster.
func leave(t *testing.T, c *mqtttest.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Patience)
	defer cancel()
	if err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	c.Disconnect()
}

func TestASubscribeFindsWhatASlowWriterHasNotWrittenYet(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	writer := s.startAll("ingest", "slow writer", "replayer")["slow writer"]
	for i := range 3 {
		e2etest.Publish(t, s.broker, fmt.Sprintf("t/backlog/%d", i), "for nobody")
	}
	if roundtrips(t, s, 20) == 0 {
		t.Error("all 20 rounds waited for the writer")
	}
	e2etest.AwaitRows(t, s.database, 3)

	// While it finishes what it holds it takes no more work: not ready, and alive.
	e2etest.Publish(t, s.broker, heldTopic, "held")
	writer.AwaitLog("holding " + heldTopic)
	writer.Signal(syscall.SIGTERM)
	drained := false
	for !writer.Ended() {
		status, body := e2etest.Get(t, s.admin["slow writer"], "/readyz")
		if drained = drained || status == http.StatusServiceUnavailable && strings.Contains(body, "shutting down"); drained && status == http.StatusOK {
			t.Error("ready again after it was draining")
		}
	}
	if !drained {
		t.Error("it was ready to its end")
	}
	// The batch takes longer than the drain: the record is not committed, and said to be left. Nothing is lost.
	if code := writer.Code(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	got := e2etest.Receive(t, e2etest.Subscribe(t, s.broker, "last", heldTopic), 1)
	if diff := cmp.Diff([]string{"held"}, e2etest.Payloads(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestASubscribeFindsWhatNoWriterHasWritten(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.startAll("ingest", "replayer")
	roundtrips(t, s, 20)

	// What is acked in the tail is over, for every later subscriber; what is not acked comes again.
	e2etest.Publish(t, s.broker, "t/1", "one", "two")
	c := e2etest.Subscribe(t, s.broker, "device", "t/1")
	e2etest.Receive(t, c, 2)
	leave(t, c)
	e2etest.Publish(t, s.broker, "t/1", "three")
	c = e2etest.Subscribe(t, s.broker, "another", "t/1")
	if diff := cmp.Diff([]string{"three"}, e2etest.Payloads(e2etest.Receive(t, c, 1))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	e2etest.Quiet(t, c, time.Second)
	leave(t, c)
	c = e2etest.Subscribe(t, s.broker, "third", "t/#")
	e2etest.Quiet(t, c, time.Second)
	c.Disconnect()
	if _, rows := e2etest.Table(t, s.database, "mqtt_msg"); len(rows) > 0 {
		t.Errorf("somebody wrote %v", rows)
	}

	// A writer that comes at last leaves nothing of it in the store.
	s.start("writer")
	e2etest.Publish(t, s.broker, "t/2", "four")
	e2etest.AwaitRows(t, s.database, 1)
}

func TestAReplayIsNotStoredAgain(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T) *setup{
		"three processes, delivery by topic": func(t *testing.T) *setup {
			t.Helper()
			s := newSetup(t)
			s.startAll("ingest", "writer", "replayer")
			return s
		},
		"up, direct delivery": func(t *testing.T) *setup {
			t.Helper()
			s := newSetupWithoutKafka(t)
			s.admin["ingest"], s.database = ports.Addr(t), filepath.Join(s.dir, "restante.db")
			e2etest.Start(t, "up", s.dir, s.broker, s.kafka, s.admin["ingest"])
			e2etest.AwaitReady(t, s.admin["ingest"])
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t)
			want := map[string][]string{}
			for round := range 10 {
				for i := range 2 {
					topic, payload := fmt.Sprintf("t/%d", i), fmt.Sprintf("round %d", round)
					e2etest.Publish(t, s.broker, topic, payload)
					want[topic] = append(want[topic], payload)
				}
				c := e2etest.Subscribe(t, s.broker, fmt.Sprintf("device-%d", round%3), "t/#")
				e2etest.Receive(t, c, 2)
				leave(t, c)
			}
			e2etest.AwaitRows(t, s.database, 0)
			if diff := cmp.Diff(want, published(s.records("mqtt.messages"))); diff != "" {
				t.Errorf("publishes in Kafka (-want +got):\n%s", diff)
			}
			if n := len(s.records("mqtt.dead")); n > 0 {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}
