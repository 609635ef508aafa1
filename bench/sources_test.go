package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/device"
	"github.com/restante/restante/mqtt/exhook/exhooktest"
)

// BenchmarkSources is how many publishes a second come through a broker and its source into a real Kafka, from the first publish
// to the last record. Eight connections publish at QoS 1 with 20 un-acked messages each; posts are made by 32 connections at once.
// RESTANTE_BENCH_PUBLISHES is how many (20000). The brokers are those of the tests: how many EMQX manages, it does not say.
func BenchmarkSources(b *testing.B) {
	n := fromEnv(b, "RESTANTE_BENCH_PUBLISHES", 20_000)
	for _, c := range []struct {
		name   string
		source func(b *testing.B, own string) (source, publishTo string)
		after  func(b *testing.B, s *sourced)
		body   func(i int) (topic, payload string) // of a publish, when it is not of its own topic
		post   bool
	}{
		{name: "embedded", source: func(_ *testing.B, own string) (string, string) {
			return fmt.Sprintf("{type: embedded, listen: %q}", own), own
		}},
		{name: "plain beside Mosquitto", source: func(b *testing.B, _ string) (string, string) {
			b.Helper()
			addr := stack.Mosquitto(b, "max_queued_messages 0\nmax_inflight_messages 0")
			return fmt.Sprintf("{type: mqtt, url: %q, decode: plain}", "mqtt://"+addr), addr
		}},
		{name: "EMQX's rule events beside Mosquitto", source: func(b *testing.B, _ string) (string, string) {
			b.Helper()
			addr := stack.Mosquitto(b, "max_queued_messages 0\nmax_inflight_messages 0")
			return fmt.Sprintf("{type: mqtt, url: %q, decode: emqx}", "mqtt://"+addr), addr
		}, body: func(i int) (string, string) { return "restante/events", string(ruleEvent(i)) }},
		{name: "ExHook of a test broker", source: func(b *testing.B, own string) (string, string) {
			b.Helper()
			return fmt.Sprintf("{type: exhook, listen: %q}", own), ports.Addr(b)
		}, after: func(b *testing.B, s *sourced) {
			b.Helper()
			exhooktest.Start(b, exhooktest.Options{Servers: []string{s.own}, Version: 2, Listen: s.publishTo}).AwaitLoaded(1)
		}},
		{name: "webhook, posts of EMQX's rules", post: true, source: func(_ *testing.B, own string) (string, string) {
			return fmt.Sprintf("{type: webhook, format: emqx-rule, listen: %q, token: a token for the posts}", own), own
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := startSource(b, c.source)
			if c.after != nil {
				c.after(b, s)
			}
			var rates []float64
			for b.Loop() {
				before := s.log.length(b)
				began := time.Now()
				if c.post {
					s.postAll(b, n)
				} else {
					s.publishAll(b, n, c.body)
				}
				for until := time.Now().Add(patience); s.log.length(b)-before < n; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(until) {
						b.Fatalf("%d of %d messages are in Kafka", s.log.length(b)-before, n)
					}
				}
				rates = append(rates, float64(n)/time.Since(began).Seconds())
			}
			report(b, "publishes", median(rates), "1/s")
		})
	}
}

// sourced is an ingest process with one source.
type sourced struct {
	own       string // what its source listens on, if it does
	publishTo string
	log       *backlog
}

const sourceConfig = `
kafka:
  brokers: [%[1]s]
  names: {topics: %[2]s, groups: %[2]s}
  messages: {partitions: %[3]d, replication: 1}
  sessions: {partitions: %[3]d}
  dead: {partitions: 1}
sources: {bench: %[4]s}
sinks: {%[5]s: {type: sqlite, path: %[6]q}}
rules: [{on: message.publish, topic: "#", do: on_message_publish, sink: %[5]s, ttl: 168h}]
delivery: {evidence: puback, secret: a key for the marks of the replays, mqtt: {url: "mqtt://127.0.0.1:1"}}
admin: {listen: %[7]q}
`

func startSource(b *testing.B, source func(*testing.B, string) (string, string)) *sourced {
	b.Helper()
	dir, name, brokers, admin := b.TempDir(), stack.Unique(b), brokersOf(b), ports.Addr(b)
	s := &sourced{own: ports.Addr(b)}
	s.log = &backlog{client: openKafka(b, brokers, name+".messages"), brokers: brokers, topic: name + ".messages"}
	b.Cleanup(s.log.client.Close)
	text, publishTo := source(b, s.own)
	s.publishTo = publishTo
	file := filepath.Join(dir, "ingest.yaml")
	text = fmt.Sprintf(sourceConfig, quoted(brokers), name, partitions, text, sinkName, filepath.Join(dir, "unused.db"), admin)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.CommandContext(b.Context(), build(b, "restante"), "migrate", "-c", file).CombinedOutput(); err != nil {
		b.Fatalf("restante migrate: %v\n%s", err, out)
	}
	start(b, build(b, "ingest"), "-config", file)
	awaitReady(b, admin)
	return s
}

// publishAll publishes n messages, or what body makes of them, over the broker.
func (s *sourced) publishAll(b *testing.B, n int, body func(int) (string, string)) {
	b.Helper()
	const connections, unacked = 8, 20
	if body == nil {
		body = func(i int) (string, string) { return fmt.Sprintf("bench/%d", i%sinkTopics), payload }
	}
	var all errgroup.Group
	for c := range connections {
		d, err := device.Connect(b.Context(), device.Options{Addr: s.publishTo, ClientID: fmt.Sprint("publisher-", c)})
		if err != nil {
			b.Fatal(err)
		}
		defer d.Close()
		all.Go(func() error {
			var sent errgroup.Group
			sent.SetLimit(unacked)
			for i := c; i < n; i += connections {
				topic, body := body(i)
				sent.Go(func() error { return d.Publish(b.Context(), topic, 1, body) })
			}
			return sent.Wait()
		})
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
}

// ruleEvent is what EMQX's rule engine tells of a publish.
func ruleEvent(i int) []byte {
	now := time.Now().UnixMilli()
	return fmt.Appendf(nil, `{"event":"message.publish","clientid":"pub","topic":"bench/%d","qos":1,"flags":{},"payload_b64":"aGk=",`+
		`"publish_received_at":%d,"timestamp":%d,"node":"n1"}`, i%sinkTopics, now, now)
}

// postAll posts n messages as EMQX's rule engine does.
func (s *sourced) postAll(b *testing.B, n int) {
	b.Helper()
	const abreast = 32
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: abreast}}
	defer client.CloseIdleConnections()
	var sent errgroup.Group
	sent.SetLimit(abreast)
	for i := range n {
		sent.Go(func() error {
			return post(b.Context(), client, "http://"+s.publishTo+"/events", ruleEvent(i))
		})
	}
	if err := sent.Wait(); err != nil {
		b.Fatal(err)
	}
}

func post(ctx context.Context, client *http.Client, url string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer a token for the posts")
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }() // it is read
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %s: %s", answer.Status, text)
	}
	return err
}
