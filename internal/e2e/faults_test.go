package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/proxy"
)

// store is a store that a test puts into its world, of a kind that it need not know.
type store struct {
	address string                               // host:port
	add     func(w *world, address, more string) // adds the sink history on that address, with more keys
	look    func(t *testing.T, w *world) plainStore
}

// storesOf are both stores.
func storesOf(t *testing.T) map[string]store {
	t.Helper()
	c, d := stack.Shared(t, stack.Cassandra), stack.Shared(t, stack.DynamoDB)
	return map[string]store{
		"cassandra": {
			c, func(w *world, address, more string) { w.cassandra("history", address, w.name, more) },
			func(t *testing.T, w *world) plainStore { t.Helper(); return lookCassandra(t, c, w.name) },
		},
		"dynamodb": {
			strings.TrimPrefix(d, "http://"), func(w *world, address, more string) { w.dynamodb("history", "http://"+address, w.name+"_", more) },
			func(t *testing.T, w *world) plainStore { t.Helper(); return lookDynamoDB(d, w.name+"_") },
		},
	}
}

// TestAWriteWithoutAnAnswerIsNotDone: the store has written and nobody hears of it, so the offset stays where it is until a write
// is answered.
func TestAWriteWithoutAnAnswerIsNotDone(t *testing.T) {
	t.Parallel()
	for name, s := range storesOf(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wire, err := proxy.ListenTCP(s.address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := wire.Close(); err != nil {
					t.Error(err)
				}
			})
			w := newWorld(t, "")
			s.add(w, s.address, "") // tables are not made with such time-outs
			w.offline("history")
			w.migrate()
			w.sinks = ""
			s.add(w, wire.Address(), map[string]string{"cassandra": ", write_timeout: 1500ms, read_timeout: 1500ms", "dynamodb": ", request_timeout: 1500ms"}[name])
			look := s.look(t, w)
			writer := w.startAll("ingest", "writer")["writer"]
			e2etest.Publish(t, w.broker, "t/1", "answered")
			w.awaitCommitted("history")
			_, before, err := w.ends(t.Context(), "messages", w.group("history"))
			if err != nil {
				t.Fatal(err)
			}
			persisted := e2etest.Metric(t, w.admin["writer"], "restante_writer_persisted_records_total")

			failed := calmWriter(t, writer, "history")
			wire.Set(proxy.Swallow)
			e2etest.Publish(t, w.broker, "t/1", "not answered")
			e2etest.Await(t, "it is there", func() bool {
				tables, err := look.dump(t.Context())
				return err == nil && strings.Contains(strings.Join(tables["mqtt_msg"], ""), `"not answered"`)
			})
			e2etest.Await(t, "three retries", func() bool {
				if _, now, err := w.ends(t.Context(), "messages", w.group("history")); err == nil && !cmp.Equal(now, before) {
					t.Fatalf("committed %v, want %v: nobody has answered", now, before)
				}
				return e2etest.Metric(t, w.admin["writer"], "restante_sink_retries_total") >= 3
			})
			if n := e2etest.Metric(t, w.admin["writer"], "restante_writer_persisted_records_total"); n != persisted {
				t.Errorf("%v ops count as durable, want %v", n, persisted)
			}
			saidOnce(t, writer, "history", failed)
			wire.Set(proxy.Pass)
			began := time.Now()
			w.awaitCommitted("history")
			t.Logf("%s: %d bytes of answers were swallowed; committed %v after one came", name, wire.Swallowed(), time.Since(began).Round(100*time.Millisecond))
			awaitStored(t, look, w.book().waiting())
		})
	}
}

// TestOnePoisonRowInABatchLeavesTheOthersInOrder: 64 messages of one topic are one batch, one of them larger than the store takes.
func TestOnePoisonRowInABatchLeavesTheOthersInOrder(t *testing.T) {
	t.Parallel()
	for name, s := range storesOf(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const many, bad = 64, 31
			w := newWorld(t, "")
			s.add(w, s.address, map[string]string{"cassandra": ", max_row: 64KiB"}[name])
			w.offline("history")
			w.more = "ingest: {max_payload: 1MiB}\nwriter: {hold: 10s}" // they are one batch, however slowly they come
			w.migrate()
			look := s.look(t, w)
			w.startAll("ingest", "replayer")
			poison := strings.Repeat("x", 401<<10) // an item of DynamoDB has 400 KiB
			var want []string
			c := e2etest.Dial(t, w.broker, "publisher")
			for i := range many {
				payload := fmt.Sprintf("message %02d", i)
				if i == bad {
					payload = poison
				} else {
					want = append(want, payload)
				}
				e2etest.Send(t, c, "t/1", payload)
			}
			w.start("writer")
			w.awaitCommitted("history")
			rows, err := look.messages(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var ids, got []string
			for id := range rows {
				ids = append(ids, id)
			}
			slices.Sort(ids)
			for _, id := range ids {
				got = append(got, rows[id].Payload)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("rows in the order of their ids (-want +got):\n%s", d)
			}
			// 64 records were one flush: none went alone.
			batches := func(le string) float64 {
				return e2etest.Metric(t, w.admin["writer"], "restante_writer_batch_records_bucket", `le="`+le+`"`)
			}
			if n := batches("64") - batches("16"); n != 1 {
				t.Errorf("%v flushes of 17 to 64 records, want 1", n)
			}

			dead := readTopic(t, w.kafka, w.name+".dead")
			if len(dead) != 1 {
				t.Fatalf("%d dead letters, want 1", len(dead))
			}
			m := dead[0]
			if string(m.Value) != poison || string(m.Key) != "t/1" || header(m, "ce_type") != "mqtt.message.publish" || header(m, "ce_sender") != "publisher" {
				t.Errorf("the dead letter is not whole: key %q, %d bytes, headers %q", m.Key, len(m.Value), m.Headers)
			}
			if header(m, "restante_dead_reason") != "sink_rejected" || header(m, "restante_dead_by") != w.group("history") || header(m, "restante_dead_error") == "" {
				t.Errorf("the dead letter does not say why: %q", m.Headers)
			}
			t.Logf("%s: %s", name, header(m, "restante_dead_error"))
			if n := e2etest.Metric(t, w.admin["writer"], "restante_dlq_records_total", `reason="sink_rejected"`); n != 1 {
				t.Errorf("the writer counts %v dead letters, want 1", n)
			}

			device := e2etest.Subscribe(t, w.broker, "device", "t/1")
			if d := cmp.Diff(want, e2etest.Payloads(e2etest.Receive(t, device, many-1))); d != "" {
				t.Errorf("replay (-want +got):\n%s", d)
			}
		})
	}
}
