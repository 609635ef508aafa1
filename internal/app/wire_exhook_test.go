package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
	"github.com/restante/restante/pipeline"
)

// The ingest process over a Kafka: what the broker calls stands in the log when the call is answered; our own clients' does not; and
// with the log away the call fails in time.
func TestIngestTakesExhookIntoKafka(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	closeCluster := sync.OnceFunc(cluster.Close)
	t.Cleanup(closeCluster)
	listen := ports.Addr(t)
	c, err := Parse(fmt.Appendf(nil, `
kafka: {brokers: %q, messages: {partitions: 3, replication: 1}, sessions: {partitions: 2}}
sources: {emqx: {type: exhook, listen: %q, budget: 8s}}
sinks: {history: {type: sqlite, path: unused}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
delivery: {evidence: puback, mqtt: {url: "mqtt://broker:1883"}}
shutdown: {drain: 1s}
`, cluster.ListenAddrs()[0], listen), mapEnv(nil))
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
	conn, err := grpc.NewClient(listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	call := func(service int, hook string, request, answer proto.Message) error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		return conn.Invoke(ctx, "/"+exhook.Services[service]+"/"+hook, request, answer, grpc.WaitForReady(true))
	}

	var hooks exhookpb.LoadedResponse
	if err := call(0, "OnProviderLoaded", &exhookpb.ProviderLoadedRequest{}, &hooks); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range hooks.GetHooks() {
		names = append(names, h.GetName())
	}
	want := []string{"client.connected", "client.disconnected", "session.subscribed", "session.unsubscribed", "message.publish", "message.acked"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("hooks differ (-want +got):\n%s", diff)
	}

	message := func(n int, from, topic string) *exhookpb.Message {
		at := time.Now()
		return &exhookpb.Message{
			Id: []byte(event.IDOf(at.UnixMicro(), 1, uint16(n)).String()), Qos: 1, From: []byte(from), Topic: []byte(topic),
			Payload: []byte("hello"), Timestamp: uint64(at.UnixMilli()),
		}
	}
	var ignored exhookpb.ValuedResponse
	publish := func(service, n int, from, topic string) error {
		return call(service, "OnMessagePublish", &exhookpb.MessagePublishRequest{Message: message(n, from, topic)}, &ignored)
	}
	for service := range exhook.Services {
		if err := publish(service, service, "pub", fmt.Sprint("t/", service)); err != nil || ignored.GetType() != exhookpb.ValuedResponse_IGNORE {
			t.Fatalf("publish: %v, %v", ignored.GetType(), err)
		}
	}
	if err := publish(1, 7, "restante-replay-x-0", "t/own"); err != nil { // a replay that comes back
		t.Fatal(err)
	}
	var done exhookpb.EmptySuccess
	subscribe := &exhookpb.SessionSubscribedRequest{
		Clientinfo: &exhookpb.ClientInfo{Clientid: []byte("dev")}, Topic: []byte("t/#"), Subopts: &exhookpb.SubOpts{Qos: 1},
	}
	if err := call(1, "OnSessionSubscribed", subscribe, &done); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, e := range stored(t, c, cluster.ListenAddrs()[0], 4) {
		switch e := e.(type) { //nolint:gochecksumtype // the others are reported
		case event.Published:
			got["publish "+e.Topic.String()]++
		case event.Subscribed:
			got["subscribe "+e.Filter.String()+" by "+string(e.Client)]++
		default:
			t.Errorf("unexpected event %#v", e)
		}
	}
	if diff := cmp.Diff(map[string]int{"publish t/0": 1, "publish t/1": 1, "publish t/2": 1, "subscribe t/# by dev": 1}, got); diff != "" {
		t.Errorf("log differs (-want +got):\n%s", diff)
	}

	closeCluster()
	before := time.Now()
	if err := publish(2, 9, "pub", "t/gone"); status.Code(err) != codes.Unavailable {
		t.Errorf("with Kafka away: %v, want Unavailable", err)
	}
	if took := time.Since(before); took < 8*time.Second || took > 30*time.Second {
		t.Errorf("with Kafka away a call took %v, the budget is 8s", took)
	}
	if n := gathered(t, p.Registry, "restante_ingest_dropped_total", "own_client"); n != 1 {
		t.Errorf("%v events of our own clients were dropped, want 1", n)
	}
	if n := gathered(t, p.Registry, "restante_mqtt_events_total", "gap"); n != 1 {
		t.Errorf("%v gaps are counted, want 1", n)
	}
}

// stored reads at least n events back from Kafka.
func stored(t *testing.T, c Config, broker string, n int) []event.Event {
	t.Helper()
	kinds := map[string]event.Kind{}
	for _, k := range []event.Kind{event.Messages, event.Sessions} {
		kinds[c.Kafka.Topic(k).Name] = k
	}
	topics := sortedKeys(kinds)
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out []event.Event
	for len(out) < n && ctx.Err() == nil {
		client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			w := event.Wire{Key: r.Key, Value: r.Value, Time: r.Timestamp}
			for _, h := range r.Headers {
				w.Headers = append(w.Headers, event.Header{Key: h.Key, Value: h.Value})
			}
			e, err := event.Decode(kinds[r.Topic], w)
			if err != nil {
				t.Error(err)
				return
			}
			out = append(out, e)
		})
	}
	return out
}

// gathered is the value of a counter by the value of its one label.
func gathered(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Errorf("no metric %s has the label %s", name, label)
	return 0
}

// The configuration of the page that says how to connect an EMQX is one that the check accepts.
func TestExhookPageIsAccepted(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/brokers/emqx-4.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "```yaml\n")
	text, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("the page holds no configuration")
	}
	c, err := Parse([]byte(text), mapEnv(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range []string{ProcessIngest, ProcessWriter, ProcessReplayer} {
		if err := c.For(process); err != nil {
			t.Errorf("%s: %v", process, err)
		}
	}
	want := []exhook.Hook{
		{Name: pipeline.ClientConnected},
		{Name: pipeline.ClientDisconnected},
		{Name: pipeline.SessionSubscribed},
		{Name: pipeline.SessionUnsubscribed},
		{Name: pipeline.MessagePublish, Topics: []string{"t/#"}},
		{Name: pipeline.MessageAcked, Topics: []string{"t/#"}},
	}
	if diff := cmp.Diff(want, exhook.Needs(c.PipelineRules())); diff != "" {
		t.Errorf("hooks differ from those that the page names (-want +got):\n%s", diff)
	}
}
