package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/mqtt/mqtttest"
)

// sums is what became of all that was published in a run. What waits and what has expired in a store is one number by the metrics of the
// processes, since stores remove what has expired by themselves.
type sums struct {
	Published, Delivered, WaitingOrExpired, Refused int
	ExpiredUnwritten                                int
}

// bookkeeper counts without asking any of our processes: what clients published and got, the rows of the store, the dead letters.
type bookkeeper struct {
	*matrix
	published map[string]bool // by payload; each is published once
	had       map[string]bool // that a client has acknowledged
	fleeting  map[string]bool // whose time ends before anybody asks for them
	unwritten int             // of these, those whose time is over before they can be written
}

// sends publishes n messages to a topic.
func (k *bookkeeper) sends(n int, topic string, change func(*mqtttest.Message)) (payloads []string) {
	k.t.Helper()
	c := e2etest.Dial(k.t, k.broker, "publisher")
	defer c.Disconnect()
	for i := range n {
		m := e2etest.Message(topic, fmt.Sprintf("%.40s #%03d", topic, i))
		if change != nil {
			change(&m)
		}
		if err := c.Publish(k.t.Context(), m); err != nil {
			k.t.Fatal(err)
		}
		k.published[string(m.Payload)] = true
		payloads = append(payloads, string(m.Payload))
	}
	if err := c.Ping(k.t.Context()); err != nil { // it has read what it does not answer
		k.t.Fatal(err)
	}
	return payloads
}

// takes is what a client gets next, acknowledged.
func (k *bookkeeper) takes(c *mqtttest.Client, payloads []string) {
	k.t.Helper()
	got := e2etest.Payloads(e2etest.Receive(k.t, c, len(payloads)))
	if diff := cmp.Diff(payloads, got); diff != "" {
		k.t.Errorf("received (-want +got):\n%s", diff)
	}
	for _, p := range got {
		k.had[p] = true
	}
}

// count is the sums without the metrics. Each message must have one end, and one only.
func (k *bookkeeper) count() sums {
	k.t.Helper()
	ends := map[string][]string{}
	end := func(payload, what string) { ends[payload] = append(ends[payload], what) }
	for p := range k.had {
		end(p, "delivered")
	}
	for _, row := range k.look(k.t, "mqtt_msg") {
		if p := row["payload"]; !k.fleeting[p] {
			end(p, "waiting")
		}
	}
	for p := range k.fleeting {
		end(p, "expired")
	}
	for _, m := range readTopic(k.t, k.kafka, k.name+".dead") {
		end(string(m.Value), "refused: "+header(m, "restante_dead_reason"))
	}
	for p := range k.published {
		if strings.HasPrefix(p, "q/none") {
			end(p, "refused: QoS 0")
		}
	}
	out := sums{Published: len(k.published), ExpiredUnwritten: k.unwritten}
	for _, p := range slices.Sorted(maps.Keys(k.published)) {
		switch is := ends[p]; {
		case len(is) != 1:
			k.t.Errorf("%.60q ended as %q, want one end", p, is)
		case is[0] == "delivered":
			out.Delivered++
		case is[0] == "waiting", is[0] == "expired":
			out.WaitingOrExpired++
		default:
			out.Refused++
		}
		delete(ends, p)
	}
	out.WaitingOrExpired -= k.unwritten
	if len(ends) > 0 {
		k.t.Errorf("nobody published %q", slices.Sorted(maps.Keys(ends)))
	}
	return out
}

// metrics are the sums by the metrics of the processes alone.
func (k *bookkeeper) metrics() sums {
	k.t.Helper()
	of := func(process, name string, labels ...string) int {
		return int(e2etest.Metric(k.t, k.admin[process], name, labels...))
	}
	const dropped, messages, acks = "restante_ingest_dropped_total", "restante_writer_messages_total", "restante_writer_acks_total"
	fate := func(f string) int { return of("writer", messages, `sink="store"`, fmt.Sprintf("fate=%q", f)) }
	effect := func(e string) int { return of("writer", acks, `sink="store"`, fmt.Sprintf("effect=%q", e)) }
	qos0, oversize := of("ingest", dropped, `reason="qos0"`), of("ingest", dropped, `reason="oversize"`)
	return sums{
		Published:        of("ingest", "restante_ingest_events_total", `event="mqtt.message.publish"`) + qos0,
		Delivered:        effect("deleted") + effect("elided"),
		WaitingOrExpired: fate("stored") + fate("overtaken") - effect("deleted"),
		Refused:          fate("rejected") + fate("qos0") + qos0 + oversize,
		ExpiredUnwritten: fate("expired"),
	}
}

// TestTheBooksAddUp: what was published is delivered, waiting, expired or refused, and the metrics alone say the same.
func TestTheBooksAddUp(t *testing.T) {
	t.Parallel()
	for store, open := range matrixStores(t) {
		if store == "Cassandra" && !soaking() {
			continue // two stores are enough for every change
		}
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			k := &bookkeeper{matrix: &matrix{world: w}, published: map[string]bool{}, had: map[string]bool{}, fleeting: map[string]bool{}}
			k.look = open(t, w)
			w.rules = `
  - {topic: "q/#", action: save_offline_messages, sink: store, ttl: 1h}
  - {topic: "few/#", action: save_offline_messages, sink: store, ttl: 1h, max_returned_count: 5}`
			w.more = "writer: {hold: 2500ms}\ningest: {max_payload: 8KiB}"
			w.migrate()
			w.startAll("ingest", "writer", "replayer")
			k.run(store)

			var want, got sums
			defer func() {
				if t.Failed() {
					t.Logf("counted %+v, by the metrics %+v", want, got)
				}
			}()
			want = k.count()
			e2etest.Await(t, "the metrics say what was counted", func() bool {
				got = k.metrics()
				// On a machine that stood still more of them have expired before they could be written; or fewer, where the later ones
				// were young when the batch of the first was. That first one always has.
				if more := got.ExpiredUnwritten - want.ExpiredUnwritten; -more < k.unwritten && more <= len(k.fleeting)-k.unwritten {
					got.ExpiredUnwritten, got.WaitingOrExpired = got.ExpiredUnwritten-more, got.WaitingOrExpired+more
				}
				return got == want
			})
			t.Logf("%s: %+v", store, got)
			if sum := got.Delivered + got.WaitingOrExpired + got.Refused + got.ExpiredUnwritten; sum != got.Published {
				t.Errorf("%d messages have an end, %d were published", sum, got.Published)
			}
			if left := e2etest.Metric(t, k.admin["replayer"], "restante_replay_messages_total", `outcome="left_out"`); left != 15 {
				t.Errorf("%v messages are counted as left out, want 15", left)
			}
			if store == "SQLite" && soaking() { // it removes what has expired once a minute
				e2etest.Await(t, "all that has expired is counted", func() bool {
					removed := e2etest.Metric(t, k.admin["writer"], "restante_sink_expired_messages_total")
					unwritten := e2etest.Metric(t, k.admin["writer"], "restante_writer_messages_total", `fate="expired"`)
					return int(removed+unwritten) == len(k.fleeting)
				})
			}
		})
	}
}

// run lets messages end in each way there is.
func (k *bookkeeper) run(store string) {
	const life = 6 * time.Second
	fleeting := func(after time.Duration) func(*mqtttest.Message) {
		return func(m *mqtttest.Message) { m.Expiry = after }
	}
	for _, p := range k.sends(4, "q/at once", fleeting(time.Second)) { // the writer holds it for longer
		k.fleeting[p] = true
		k.unwritten++
	}
	for _, p := range k.sends(7, "q/fleeting", fleeting(life)) {
		k.fleeting[p] = true
	}
	over := time.Now().Add(life)
	k.sends(5, "q/none", func(m *mqtttest.Message) { m.QoS = 0 })
	k.sends(2, "q/large", func(m *mqtttest.Message) { m.Payload = append(m.Payload, make([]byte, 8<<10)...) })
	if store == "DynamoDB" { // the others take every topic
		k.sends(3, "q/"+strings.Repeat("long", 600), nil)
	}
	k.sends(11, "q/nobody", nil)

	away := k.sends(30, "q/away", nil)
	few := k.sends(20, "few/1", nil)
	one, two := e2etest.Subscribe(k.t, k.broker, "one", "q/both"), e2etest.Subscribe(k.t, k.broker, "two", "q/both")
	both := k.sends(10, "q/both", nil) // two acks each
	k.takes(one, both)
	k.takes(two, both)
	k.takes(e2etest.Subscribe(k.t, k.broker, "three", "q/away"), away)
	k.takes(e2etest.Subscribe(k.t, k.broker, "four", "few/1"), few[15:])
	k.awaitCommitted("store")
	time.Sleep(time.Until(over) + time.Second)

	late := e2etest.Subscribe(k.t, k.broker, "late", "q/fleeting", "q/at once")
	e2etest.Await(k.t, "the late subscribes are done with", func() bool {
		return e2etest.Metric(k.t, k.admin["replayer"], "restante_replay_requests_total", `outcome="empty"`) >= 4 // and those of one and two
	})
	for _, p := range e2etest.Payloads(late.Quiet(0)) {
		k.had[p] = true
	}
}
