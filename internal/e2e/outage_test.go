package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/proxy"
)

// payloadsOf are the payloads that a store holds now; none when it cannot be asked.
func payloadsOf(ctx context.Context, s plainStore) (map[string]bool, error) {
	ms, err := s.messages(ctx)
	out := make(map[string]bool, len(ms))
	for _, m := range ms {
		out[m.Payload] = true
	}
	return out, err
}

// Loads that the local stores can take beside other tests; DynamoDB Local that keeps its data takes less.
const (
	calm   = 30 * time.Millisecond
	gentle = 120 * time.Millisecond
)

// fresh is how old the oldest message that is not stored may be where nothing is wrong: messages are held for a second.
const fresh = 3500 * time.Millisecond

// awaitFresh waits until the store holds all that had its PUBACK before, and of what came since all but the newest. It gives how
// long that took.
func awaitFresh(t *testing.T, s plainStore, load *e2etest.Load) time.Duration {
	t.Helper()
	began := time.Now()
	var rows int
	var lag, took time.Duration
	var err error
	defer func() {
		if t.Failed() {
			t.Logf("%d rows, %d PUBACKs, the lag is %v, a look takes %v (last error: %v)", rows, load.Acked(), lag, took, err)
		}
	}()
	// A look reads all there is, and a local store does nothing else meanwhile.
	for more := began; time.Since(more) < e2etest.Patience; time.Sleep(max(2*took, 25*time.Millisecond)) {
		asked := time.Now()
		var have map[string]bool
		have, err = payloadsOf(t.Context(), s)
		if took = time.Since(asked); err != nil {
			continue
		}
		if len(have) > rows {
			more = time.Now()
		}
		rows, lag = len(have), load.Lag(have, asked)
		if lag == 0 || lag < min(fresh, asked.Sub(began)) {
			return time.Since(began).Round(100 * time.Millisecond)
		}
	}
	t.Fatal("the store does not catch up")
	return 0
}

// progress waits for more PUBACKs.
func progress(t *testing.T, load *e2etest.Load, more int) {
	t.Helper()
	before := load.Acked()
	e2etest.Await(t, fmt.Sprintf("%d more PUBACKs", more), func() bool { return load.Acked() >= before+more })
}

const (
	notThere   = `"msg":"not there yet, will retry"`
	applyFails = `"msg":"apply failed, will retry until it succeeds"`
	appliesNow = `"msg":"apply succeeded again"`
)

// calmWriter waits until the writer has no trouble with the sink, and gives how often it had: a server that is slow now and then
// makes a request time out.
func calmWriter(t *testing.T, writer *e2etest.Process, sink string) (before int) {
	t.Helper()
	named := `"sink":"` + sink + `"`
	e2etest.Await(t, "the writer is at peace with "+sink, func() bool {
		before = said(writer, applyFails, named)
		return before == said(writer, appliesNow, named)
	})
	return before
}

// saidOnce checks what the writer has said of an outage that still lasts.
func saidOnce(t *testing.T, writer *e2etest.Process, sink string, before int) {
	t.Helper()
	named := `"sink":"` + sink + `"`
	e2etest.Await(t, "the writer has tried "+sink, func() bool { return said(writer, applyFails, named) > before })
	// A request that timed out just before the outage is told of too, and that it went on.
	times(t, writer, said(writer, appliesNow, named)+1, applyFails, named)
}

// TestAStoreThatIsAwayIsWaitedFor: at the start of the writer and in its middle, under load. It says so once each time, never
// ends for it, and loses nothing.
func TestAStoreThatIsAwayIsWaitedFor(t *testing.T) {
	outage(t)
	t.Parallel()
	for _, kind := range []stack.Kind{stack.Cassandra, stack.DynamoDB} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			server := stack.Own(t, kind) // one of each kind is alive at a time: no other test has its own
			var look plainStore
			pace := calm
			if kind == stack.Cassandra {
				w.cassandra("history", server.Address(), "mqtt", "")
				look = plainCassandra{address: server.Address(), keyspace: "mqtt"}
			} else {
				w.dynamodb("history", server.Address(), "", "")
				look = lookDynamoDB(server.Address(), "")
				pace = gentle
			}
			w.offline("history")
			w.migrate()
			if err := server.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}

			ingest, writer := w.begin("ingest"), w.begin("writer")
			e2etest.AwaitReady(t, w.admin["ingest"])
			load := e2etest.StartLoad(t, w.broker, "t/load/%d", 3, pace)
			writer.AwaitLog(notThere)
			progress(t, load, 50)
			time.Sleep(long(3*time.Second, time.Minute))
			w.notReady("writer", "sink history")
			if err := server.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			took := awaitFresh(t, look, load)
			t.Logf("%s was away at the start: caught up %v after it was back, %d PUBACKs", kind, took, load.Acked())
			onceAMinute(t, writer, notThere, `"what":"sink history"`)

			w.start("replayer")
			visitor := e2etest.StartVisitor(t, w.broker, "visitor", "t/load/0")
			progress(t, load, 50)
			before := calmWriter(t, writer, "history")
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(long(10*time.Second, time.Minute))
			progress(t, load, 1) // nobody waits for the store
			saidOnce(t, writer, "history", before)
			if err := server.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			had := visitor.Stop() // what it takes is not in the store: the lag of the other topics tells
			others := map[string]bool{}
			e2etest.Await(t, "the store has caught up", func() bool {
				asked := time.Now()
				have, err := payloadsOf(t.Context(), look)
				clear(others)
				for p := range have {
					others[p] = true
				}
				for p := range had {
					others[p] = true
				}
				most := min(fresh, asked.Sub(began))
				return err == nil && load.LagOf("t/load/1", others, asked) < most && load.LagOf("t/load/2", others, asked) < most
			})
			t.Logf("%s was killed: caught up %v after it was back", kind, time.Since(began).Round(100*time.Millisecond))
			acked := load.Stop()
			ingest.Stop() // all that happened is in Kafka now
			w.awaitCommitted("history")
			b := w.book()
			promised(t, b, acked)
			awaitStored(t, look, b.waiting())
			if len(b.acked) == 0 {
				t.Error("the visitor has acknowledged nothing")
			}
			t.Logf("%d PUBACKs, %d published, %d acknowledged by the visitor, %d rows", len(acked), len(b.published), len(b.acked), len(b.waiting()))
			if writer.Ended() {
				t.Error("the writer has ended")
			}
			calmWriter(t, writer, "history")
		})
	}
}

// sideBySide is a world with two sinks that hold the same, each behind a proxy of its own.
func sideBySide(t *testing.T) (w *world, addresses map[string]string, wires map[string]*proxy.TCP) {
	t.Helper()
	w = newWorld(t, "")
	addresses = map[string]string{"cassandra": stack.Shared(t, stack.Cassandra), "dynamodb": strings.TrimPrefix(stack.Shared(t, stack.DynamoDB), "http://")}
	wires = map[string]*proxy.TCP{}
	for name, address := range addresses {
		p, err := proxy.ListenTCP(address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
		wires[name] = p
	}
	w.cassandra("cassandra", wires["cassandra"].Address(), w.name, "")
	w.dynamodb("dynamodb", "http://"+wires["dynamodb"].Address(), w.name+"_", "")
	w.offline("cassandra")
	w.offline("dynamodb")
	w.migrate()
	return w, addresses, wires
}

// TestAReplayerWaitsForNoOtherSink: what one store holds is replayed while the other was never there.
func TestAReplayerWaitsForNoOtherSink(t *testing.T) {
	t.Parallel()
	w, addresses, wires := sideBySide(t)
	wires["dynamodb"].Set(proxy.Refuse)
	w.start("ingest")
	w.begin("writer")
	e2etest.Publish(t, w.broker, "t/1", "one", "two", "three")
	look := lookCassandra(t, addresses["cassandra"], w.name)
	e2etest.Await(t, "three rows in cassandra", func() bool {
		have, err := payloadsOf(t.Context(), look)
		return err == nil && len(have) == 3
	})
	replayer := w.begin("replayer")
	c := e2etest.Subscribe(t, w.broker, "device", "t/1")
	got := e2etest.Receive(t, c, 3)
	if d := cmp.Diff([]string{"one", "two", "three"}, e2etest.Payloads(got)); d != "" {
		t.Error(d)
	}
	if err := e2etest.Replays(got); err != nil {
		t.Error(err)
	}
	w.notReady("replayer", "sink dynamodb")
	onceAMinute(t, replayer, notThere, `"what":"sink dynamodb"`)
}

// TestASinkThatIsDownStallsNoOther: two sinks side by side, each with a group of its own, in one writer.
func TestASinkThatIsDownStallsNoOther(t *testing.T) {
	outage(t)
	t.Parallel()
	w, addresses, wires := sideBySide(t)
	looks := map[string]plainStore{
		"cassandra": lookCassandra(t, addresses["cassandra"], w.name), "dynamodb": lookDynamoDB("http://"+addresses["dynamodb"], w.name+"_"),
	}
	// One is down at the start already.
	wires["dynamodb"].Set(proxy.Refuse)
	w.start("ingest")
	writer := w.begin("writer")
	load := e2etest.StartLoad(t, w.broker, "t/load/%d", 2, calm)
	writer.AwaitLog(notThere)
	progress(t, load, 50)
	took := awaitFresh(t, looks["cassandra"], load)
	t.Logf("dynamodb is down at the start: cassandra was up to date %v after 50 PUBACKs", took)
	onceAMinute(t, writer, notThere, `"what":"sink dynamodb"`)
	wires["dynamodb"].Set(proxy.Pass)
	took = awaitFresh(t, looks["dynamodb"], load)
	t.Logf("dynamodb was down at the start: caught up %v after it was back", took)

	for down, up := range map[string]string{"cassandra": "dynamodb", "dynamodb": "cassandra"} {
		before := calmWriter(t, writer, down)
		wires[down].Set(proxy.Refuse)
		progress(t, load, 1)
		var most time.Duration
		for until := time.Now().Add(long(10*time.Second, 10*time.Minute)); time.Now().Before(until); time.Sleep(400 * time.Millisecond) {
			asked := time.Now()
			have, err := payloadsOf(t.Context(), looks[up])
			if err != nil {
				t.Fatal(err)
			}
			most = max(most, load.Lag(have, asked))
		}
		if most == 0 || soaking() && most > 5*time.Second {
			t.Errorf("while %s was down the lag of %s was up to %v, want at most 5 s", down, up, most)
		}
		awaitFresh(t, looks[up], load)
		saidOnce(t, writer, down, before)
		wires[down].Set(proxy.Pass)
		took := awaitFresh(t, looks[down], load)
		t.Logf("while %s was down the lag of %s was at most %v; it caught up %v after it was back", down, up, most.Round(10*time.Millisecond), took)
	}
	acked := load.Stop()
	w.awaitCommitted("cassandra")
	w.awaitCommitted("dynamodb")
	b := w.book()
	promised(t, b, acked)
	for _, look := range looks {
		awaitStored(t, look, b.waiting())
	}
	if writer.Ended() {
		t.Error("the writer has ended")
	}
}
