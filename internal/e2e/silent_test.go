package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const silentWindow = 4 // less than each client has waiting

const silentProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
shutdown: {drain: 5s}
sources: {devices: {type: embedded, listen: %[3]q}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
replayer: {clock_skew: 0s, window: %[7]d, ack_timeout: %[8]v}
delivery: {to: topic, evidence: broker, secret_file: %[5]q, mqtt: {url: "mqtt://%[3]s"}}
admin: {listen: %[6]q}
`

// TestClientsThatFallSilentGetTheRestWithoutANewSubscribe: a tenth of them take what the window lets through and stop acknowledging while
// they stay connected. The others get everything meanwhile; when those go on, theirs comes too, in order, by the subscribe that they made.
func TestClientsThatFallSilentGetTheRestWithoutANewSubscribe(t *testing.T) {
	t.Parallel()
	n, silence, patience := 50, time.Duration(0), 15*time.Second // longer than a machine stands still, or the others fall silent too
	if soaking() {
		n, silence, patience = 1000, time.Minute, 30*time.Second
	}
	s := newSetupWithoutKafka(t)
	s.configure = func(admin string) string {
		return fmt.Sprintf(silentProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "secret"), admin, silentWindow, patience)
	}
	startKafka(t, s.kafka)
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	all := s.startAll("ingest", "writer", "replayer")
	c := newCrowd(t, s.broker, "t", n)
	c.fill()
	e2etest.AwaitRows(t, s.database, n*stormMessages)

	clients := make([]*mqtttest.Client, n)
	held := make([][]mqtttest.Message, n)
	silent := func(i int) bool { return i%10 == 0 }
	began := time.Now()
	c.all(n, func(ctx context.Context, i int) (err error) {
		o := mqtttest.Options{ID: fmt.Sprint("device-", i), Version: mqtttest.V5, ManualAck: silent(i)}
		if clients[i], err = mqtttest.Dial(ctx, s.broker, o); err != nil {
			return err
		}
		if codes, err := clients[i].Subscribe(ctx, 1, c.topic(i)); err != nil || codes[0] != 1 {
			return fmt.Errorf("subscribe: codes %v, %w", codes, err)
		}
		if silent(i) {
			held[i], err = clients[i].ReceiveN(ctx, silentWindow)
			return err
		}
		got, err := clients[i].ReceiveN(ctx, stormMessages)
		if diff := cmp.Diff(c.want, e2etest.Payloads(got)); err == nil && diff != "" {
			err = fmt.Errorf("received (-want +got):\n%s", diff)
		}
		return err
	})
	defer func() {
		for _, d := range clients {
			d.Cut()
		}
	}()
	t.Logf("%d of %d clients had everything after %v, while the others were silent", n-n/10, n, time.Since(began).Round(time.Millisecond))
	replayer := s.admin["replayer"]
	e2etest.Await(t, "the silent clients are parked", func() bool {
		return e2etest.Metric(t, replayer, "restante_replay_parked", `reason="not_acking"`) == float64(n/10)
	})
	time.Sleep(time.Until(began.Add(silence)))
	e2etest.AwaitRows(t, s.database, n/10*stormMessages)

	c.all(n, func(ctx context.Context, i int) error {
		if !silent(i) {
			return nil
		}
		var first []string // the first time that each came
		seen := map[string]bool{}
		for queue := held[i]; len(first) < stormMessages; queue = queue[1:] {
			if len(queue) == 0 {
				m, err := clients[i].Receive(ctx)
				if err != nil {
					return fmt.Errorf("after %q: %w", first, err)
				}
				queue = append(queue, m)
			}
			if err := clients[i].Ack(queue[0]); err != nil {
				return err
			}
			if p := string(queue[0].Payload); !seen[p] {
				seen[p], first = true, append(first, p)
			}
		}
		if diff := cmp.Diff(c.want, first); diff != "" {
			return fmt.Errorf("received (-want +got):\n%s", diff)
		}
		return nil
	})
	e2etest.AwaitRows(t, s.database, 0)
	requests := func(outcome string) float64 {
		return e2etest.Metric(t, replayer, "restante_replay_requests_total", fmt.Sprintf("outcome=%q", outcome))
	}
	e2etest.Await(t, "each client has had one replay, which is complete", func() bool { return requests("complete") == float64(n) })
	for _, outcome := range []string{"partial", "aborted", "empty"} {
		if k := requests(outcome); k != 0 {
			t.Errorf("%v replays ended as %s", k, outcome)
		}
	}
	for _, p := range all {
		p.Stop()
	}
}
