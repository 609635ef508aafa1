package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack/ports"
)

// The ingest process over a Kafka: what is posted stands in the log when it is answered with 200, and with the log away it is
// answered with 503 in time.
func TestIngestTakesWebhooksIntoKafka(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	closeCluster := sync.OnceFunc(cluster.Close)
	t.Cleanup(closeCluster)
	rules, verne := ports.Addr(t), ports.Addr(t)
	c, err := Parse(fmt.Appendf(nil, `
kafka: {brokers: %q, messages: {partitions: 3, replication: 1}, sessions: {partitions: 2}}
sources:
  rules: {type: webhook, format: emqx-rule, listen: %q, token: 0123456789abcdef, budget: 8s}
  verne: {type: webhook, format: vernemq, listen: %q, budget: 8s}
sinks: {history: {type: sqlite, path: unused}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
delivery: {mqtt: {url: "mqtt://broker:1883"}}
shutdown: {drain: 1s}
`, cluster.ListenAddrs()[0], rules, verne), mapEnv(nil))
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{
		Component: ProcessIngest, Config: c, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Health: NewHealth(),
	}
	kafka, err := OpenKafka(t.Context(), c, prometheus.NewRegistry(), p.Log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kafka.Migrate(t.Context(), c.Specs(), false); err != nil {
		t.Fatal(err)
	}
	kafka.Close()
	ctx, stop := context.WithCancel(context.Background())
	work, giveUp := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := RunIngest(ctx, work, p); err != nil && work.Err() == nil {
			t.Errorf("RunIngest: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		giveUp()
		wg.Wait()
	})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	post := func(addr, hook, body string) (int, string) {
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/events", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("vernemq-hook", hook)
			r.Header.Set("Authorization", "Bearer 0123456789abcdef")
			answer, err := (&http.Client{Transport: transport, Timeout: 2 * time.Minute}).Do(r)
			if err != nil && time.Now().Before(end) {
				continue // it does not listen yet
			}
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close() // it is read
			if err != nil {
				t.Fatal(err)
			}
			return answer.StatusCode, string(text)
		}
	}
	id := event.IDOf(time.Now().UnixMicro(), 1, 7)
	publish := fmt.Sprintf(`{"event":"message.publish","id":%q,"clientid":"pub","topic":"t/1","qos":1,"payload":"x"}`, id)
	for _, c := range []struct{ addr, hook, body string }{
		{rules, "", "[" + publish + `,{"event":"message.acked","id":"` + id.String() + `","clientid":"dev","topic":"t/1","from_clientid":"pub","qos":1}]`},
		{rules, "", `{"event":"session.subscribed","clientid":"dev","topic":"t/#","qos":1}`},
		{verne, "on_publish", `{"client_id":"pub","topic":"t/2","qos":1,"payload":"eA=="}`},
		{verne, "on_publish", `{"client_id":"restante-replay-1-0","topic":"t/2","qos":1,"payload":"eA=="}`},
		{verne, "on_register", `{"client_id":"dev"}`},
	} {
		if status, text := post(c.addr, c.hook, c.body); status != http.StatusOK {
			t.Errorf("%s was answered %d %s", c.body, status, text)
		}
	}
	got := map[string]int{}
	for _, e := range stored(t, c, cluster.ListenAddrs()[0], 4) {
		switch e := e.(type) { //nolint:gochecksumtype // the others are reported
		case event.Published:
			got["publish "+e.Topic.String()]++
		case event.Acked:
			got["ack of "+e.Message.String()]++
		case event.Subscribed:
			got["subscribe "+e.Filter.String()]++
		case event.Connected:
			got["connect "+string(e.Client)]++
		default:
			t.Errorf("unexpected event %#v", e)
		}
	}
	delete(got, "connect dev") // no rule needs it, but a replay ends with it
	if diff := cmp.Diff(map[string]int{"publish t/1": 1, "publish t/2": 1, "ack of " + id.String(): 1, "subscribe t/#": 1}, got); diff != "" {
		t.Errorf("log differs (-want +got):\n%s", diff)
	}
	closeCluster()
	before := time.Now()
	if status, text := post(rules, "", publish); status != http.StatusServiceUnavailable {
		t.Errorf("with Kafka away: answered %d %s", status, text)
	}
	if took := time.Since(before); took > 30*time.Second {
		t.Errorf("with Kafka away a request took %v, the budget is 8s", took)
	}
	if n := gathered(t, p.Registry, "restante_mqtt_events_total", "unavailable"); n != 1 {
		t.Errorf("%v requests are counted as unavailable, want 1", n)
	}
}
