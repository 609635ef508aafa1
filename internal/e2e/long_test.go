package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const slicedProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
  session_timeout: 12s
  rebalance_timeout: 12s
shutdown: {drain: 6500ms}
sources: {devices: {type: embedded, listen: %[3]q}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
replayer: {clock_skew: 0s, slice_messages: %[7]d}
delivery: {to: topic, evidence: broker, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// peak is the most memory that the process ever had, in MB.
func peak(t *testing.T, p *e2etest.Process) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in %s", b)
	}
	kb, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb / 1024
}

// TestALongReplayOutlivesItsReplayer: it is killed in the middle; what it had sent and was not acknowledged comes again, and nothing else.
func TestALongReplayOutlivesItsReplayer(t *testing.T) {
	t.Parallel()
	total, slice := 2_000, 200
	if os.Getenv("RESTANTE_SOAK") != "" {
		total, slice = 100_000, 1000
	}
	s := newSetupWithoutKafka(t)
	s.configure = func(admin string) string {
		return fmt.Sprintf(slicedProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, slice)
	}
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	s.startAll("ingest", "writer")
	publishMany(t, s.broker, total)
	e2etest.AwaitRows(t, s.database, total)

	replayer := s.start("replayer")
	c := e2etest.Subscribe(t, s.broker, "device", "t/1")
	got := e2etest.Payloads(e2etest.Receive(t, c, total*2/5+slice/2))
	memory := peak(t, replayer)
	replayer.Kill()
	replayer = s.start("replayer")
	ctx, cancel := context.WithTimeout(t.Context(), 4*e2etest.Patience)
	defer cancel()
	seen := map[string]bool{}
	for _, payload := range got {
		seen[payload] = true
	}
	for len(seen) < total {
		m, err := c.Receive(ctx)
		if err != nil {
			t.Fatalf("received %d messages, %d of %d: %v", len(got), len(seen), total, err)
		}
		got = append(got, string(m.Payload))
		seen[string(m.Payload)] = true
	}
	e2etest.AwaitRows(t, s.database, 0)
	got = append(got, e2etest.Payloads(c.Quiet(0))...)
	memory = max(memory, peak(t, replayer))

	// In order, but for what was repeated once.
	first := slices.Clone(got)
	again := 0
	for i := 1; i < len(first); {
		if first[i] <= first[i-1] {
			first = slices.Delete(first, i, i+1)
			again++
			continue
		}
		i++
	}
	if len(first) != total {
		t.Errorf("%d of %d messages came in their order", len(first), total)
	}
	const window = 16
	if again > window {
		t.Errorf("%d messages came again, %d can be un-acknowledged", again, window)
	}
	t.Logf("%d messages in slices of %d: %d came again, the replayer had at most %.0f MB", total, slice, again, memory)
	const most = 100 + 64 // MB: 64 are the budget of the tail
	if os.Getenv("RESTANTE_SOAK") != "" && memory > most {
		t.Errorf("the replayer had %.0f MB, want at most %d", memory, most)
	}
	if continued := e2etest.Metric(t, s.admin["replayer"], "restante_replay_requests_total", `outcome="continued"`); continued < 1 {
		t.Error("no slice was handed on")
	}
	replayer.Stop()
}

// publishMany publishes so many messages to t/1, whose payloads are in their order.
func publishMany(t *testing.T, broker string, n int) {
	t.Helper()
	const abreast = 20 // unacknowledged
	c := e2etest.DialWith(t, broker, mqtttest.Options{ID: "publisher", Version: mqtttest.V5})
	defer c.Disconnect()
	ctx, cancel := context.WithTimeout(t.Context(), 4*e2etest.Patience)
	defer cancel()
	for i := range n {
		m := e2etest.Message("t/1", fmt.Sprintf("%06d", i))
		if i%abreast < abreast-1 {
			if _, err := c.Post(m); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := c.Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
}
