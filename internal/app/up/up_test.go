package up

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/restante/restante/internal/app"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestASlowStartIsWaitedFor: on a busy machine the Kafka of this process may take a while before it answers.
func TestASlowStartIsWaitedFor(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	c, err := app.Parse(fmt.Appendf(nil, `
kafka: {brokers: %q, messages: {partitions: 3, replication: 1}, sessions: {partitions: 2}}
sources: {devices: {type: embedded, listen: "127.0.0.1:0"}}
sinks: {history: {type: sqlite, path: unused}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
`, cluster.ListenAddrs()[0]), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	w, err := app.NewWire(t.Context(), &app.Process{
		Component: app.ProcessIngest, Config: c, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Health: app.NewHealth(),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	// More often than one attempt to make a topic asks.
	slow := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.RequestTimedOut, Count: 25})
	if err := prepare(t.Context(), w); err != nil {
		t.Error(err)
	}
	if n := slow.Hits(); n != 25 {
		t.Errorf("%d answers came too late, want 25", n)
	}
}
