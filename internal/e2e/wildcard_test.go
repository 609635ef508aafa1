package e2e

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

const wildcardProcesses = `
kafka:
  brokers: %[1]q
  names: {topics: %[2]s, groups: %[2]s}
  messages: {partitions: %[3]d, replication: 1}
  sessions: {partitions: %[3]d}
  dead: {partitions: 1}
shutdown: {drain: 5s}
sources: {devices: {type: embedded, listen: %[4]q}}
sinks:%[5]s
rules: [{topic: "#", action: save_offline_messages, sink: store, wildcards: true}]
replayer: {clock_skew: 0s, slice_messages: 100000}
delivery: {to: topic, evidence: broker, secret_file: %[6]q, mqtt: {url: "mqtt://%[4]s"}}
admin: {listen: %[7]q}
`

// grove are n topics, a hundred in each of its parts.
func grove(n int) (out []string) {
	for i := range n / 100 {
		for j := range 49 {
			out = append(out, fmt.Sprintf("t/%d/y/%d", i, j), fmt.Sprintf("t/%d/z/%d", i, j))
		}
		out = append(out, fmt.Sprintf("t/%d/y", i), fmt.Sprintf("s%d/x", i))
	}
	return out
}

// filled is what each topic of the grove gets at first: every tenth two messages.
func filled(n int) map[string]string {
	out := map[string]string{}
	for i, topic := range grove(n) {
		if out[topic] = "1"; i%10 == 0 {
			out[topic] = "12"
		}
	}
	return out
}

// fill publishes that.
func fill(t *testing.T, broker string, n int) {
	t.Helper()
	const abreast = 50 // unacknowledged
	var all []mqtttest.Message
	texts := filled(n)
	for i := range 2 {
		for _, topic := range grove(n) {
			if text := texts[topic]; i < len(text) {
				all = append(all, e2etest.Message(topic, text[i:i+1]))
			}
		}
	}
	c := e2etest.DialWith(t, broker, mqtttest.Options{ID: "publisher", Version: mqtttest.V5})
	defer c.Disconnect()
	ctx, cancel := context.WithTimeout(t.Context(), 4*e2etest.Patience)
	defer cancel()
	for i, m := range all {
		var err error
		if i%abreast < abreast-1 && i < len(all)-1 {
			_, err = c.Post(m)
		} else {
			err = c.Publish(ctx, m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// awaitCaughtUp is awaitCommitted for a great deal: it is patient while there is progress.
func (w *world) awaitCaughtUp(sink string) {
	w.t.Helper()
	for least, since := int64(math.MaxInt64), time.Now(); time.Since(since) < e2etest.Patience; time.Sleep(200 * time.Millisecond) {
		ends, committed, err := w.ends(w.t.Context(), "messages", w.group(sink))
		if err != nil {
			continue
		}
		var lag int64
		for part, end := range ends {
			lag += end - max(committed[part], 0)
		}
		if lag == 0 {
			break
		}
		if lag < least {
			least, since = lag, time.Now()
		}
	}
	w.awaitCommitted(sink)
}

// TestWildcardsReadWhatTheyMatchOnly: of many topics exactly the stored messages of those that match come, in order of each topic, and the
// store is not asked for any other.
func TestWildcardsReadWhatTheyMatchOnly(t *testing.T) {
	t.Parallel()
	n := 500
	if soaking() {
		n = 10_000
	}
	for store, open := range matrixStores(t) {
		if store == "SQLite" {
			continue // in the tests of the pipeline
		}
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			look := open(t, w)
			w.configure = func(admin string) string {
				return fmt.Sprintf(wildcardProcesses, w.kafka, w.name, partitions, w.broker, w.sinks, filepath.Join(w.dir, "secret"), admin)
			}
			w.migrate()
			w.startAll("ingest", "writer", "replayer")
			began := time.Now()
			fill(t, w.broker, n)
			w.awaitCaughtUp("store")
			if rows := len(look(t, "mqtt_msg")); rows != n+n/10 {
				t.Fatalf("%d rows, want %d", rows, n+n/10)
			}
			t.Logf("%s: %d topics are filled after %v", store, n, time.Since(began).Round(time.Second))
			left := filled(n)
			for i, filter := range []string{"$share/g/t/#", "t/3/#", "+/x", "t/+/y/#", "#"} {
				w.readsWildcard(i, filter, n, left)
			}
			if rows := look(t, "mqtt_msg"); len(rows) > 0 {
				t.Errorf("%d rows are left", len(rows))
			}
		})
	}
}

// readsWildcard subscribes a client, as the i-th that gets anything, and takes what it gets from what is left.
func (w *world) readsWildcard(i int, filter string, n int, left map[string]string) {
	w.t.Helper()
	f := eventtest.Filter(w.t, filter)
	want, matches, messages := map[string]string{}, 0, 0
	for _, topic := range grove(n) {
		if f.Group() != "" || !f.Match(eventtest.Topic(w.t, topic)) {
			continue
		}
		matches++
		if text, ok := left[topic]; ok {
			want[topic], messages = text, messages+len(text)
			delete(left, topic)
		}
	}
	of := func(name string, labels ...string) int {
		return int(e2etest.Metric(w.t, w.admin["replayer"], name, labels...))
	}
	asked := func() (sum int) {
		for _, operation := range []string{"read", "Query", "GetItem", "BatchGetItem"} {
			sum += of("restante_sink_request_duration_seconds_count", fmt.Sprintf("operation=%q", operation))
		}
		return sum
	}
	reads, requests, began := of("restante_replay_reads_at_once_count"), asked(), time.Now()
	c := e2etest.Subscribe(w.t, w.broker, fmt.Sprint("device-", i), filter)
	got := map[string]string{}
	for n := messages; n > 0; n -= 100 { // patient with each hundred
		for _, m := range e2etest.Receive(w.t, c, min(n, 100)) {
			got[m.Topic] += string(m.Payload)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("%s (-want +got):\n%s", filter, diff)
	}
	if f.Group() != "" {
		e2etest.Await(w.t, "the shared subscription is counted", func() bool {
			return of("restante_messages_dropped_total", `component="replayer"`, `reason="shared"`) == 1
		})
	} else {
		e2etest.Await(w.t, "the replay of "+filter+" is complete", func() bool {
			return of("restante_replay_requests_total", `outcome="complete"`) == i
		})
	}
	w.awaitCommitted("store")
	if more := e2etest.Payloads(c.Quiet(0)); len(more) > 0 {
		w.t.Errorf("%s: %d messages too many", filter, len(more))
	}
	c.Disconnect()
	reads, requests = of("restante_replay_reads_at_once_count")-reads, asked()-requests
	w.t.Logf("%s: %d topics match, %d messages after %v, by %d reads and %d requests to the store", filter, matches, messages,
		time.Since(began).Round(time.Millisecond), reads, requests)
	if f.Group() != "" {
		if reads+requests > 0 {
			w.t.Errorf("%s: %d reads and %d requests for nothing", filter, reads, requests)
		}
		return
	}
	const looks, page = 2, 500 // a second look follows the first
	if most := looks * (matches + matches/page + 1); reads > most {
		w.t.Errorf("%s: %d reads for %d topics", filter, reads, matches)
	}
	// A read of messages is two requests; the rest is the index, whose inner nodes are a few for each part of the grove.
	if most := 2*reads + looks*(matches/page+1)*5*(n/100+1); requests > most {
		w.t.Errorf("%s: %d requests for %d reads, want %d at most", filter, requests, reads, most)
	}
}
