package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
)

// leader is the node that leads most partitions of mqtt.messages that have records.
func (w *world) leader(nodes stack.Cluster) *stack.Server {
	w.t.Helper()
	var meta *kafka.MetadataResponse
	var ends map[int]int64
	var err error
	defer func() {
		if w.t.Failed() {
			w.t.Logf("last error: %v", err)
		}
	}()
	e2etest.Await(w.t, "all partitions have a leader that knows its end", func() bool {
		if meta, err = w.client().Metadata(w.t.Context(), &kafka.MetadataRequest{Topics: []string{w.name + ".messages"}}); err == nil {
			ends, _, err = w.ends(w.t.Context(), "messages", w.group("nobody"))
		}
		return err == nil
	})
	var busiest kafka.Partition
	for _, p := range meta.Topics[0].Partitions {
		if len(p.Replicas) != 3 {
			w.t.Fatalf("partition %d has %d replicas, want 3", p.ID, len(p.Replicas))
		}
		if ends[p.ID] > ends[busiest.ID] || busiest.Leader.Port == 0 {
			busiest = p
		}
	}
	for _, s := range nodes {
		if strings.HasSuffix(s.Address(), ":"+strconv.Itoa(busiest.Leader.Port)) {
			return s
		}
	}
	w.t.Fatalf("partition %d is led by %+v, none of the nodes", busiest.ID, busiest.Leader)
	return nil
}

// TestALeaderThatDiesLosesNothingAcknowledged: Kafka with three nodes, the leader of a partition killed under load.
func TestALeaderThatDiesLosesNothingAcknowledged(t *testing.T) {
	outage(t)
	t.Parallel()
	nodes := stack.OwnKafka(t, 3)
	w := newWorld(t, nodes.Addresses())
	w.copies = 3
	address, endpoint := stack.Shared(t, stack.Cassandra), stack.Shared(t, stack.DynamoDB)
	w.cassandra("cassandra", address, w.name, "")
	w.dynamodb("dynamodb", endpoint, w.name+"_", "")
	w.offline("cassandra")
	w.offline("dynamodb")
	w.migrate()
	looks := map[string]plainStore{"cassandra": lookCassandra(t, address, w.name), "dynamodb": lookDynamoDB(endpoint, w.name+"_")}
	all := w.startAll("ingest", "writer")

	load := e2etest.StartLoad(t, w.broker, "t/load/%d", 3, calm)
	progress(t, load, 150)
	for round := range 2 { // another leader the second time, while the first one catches up
		dead := w.leader(nodes)
		if err := dead.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		progress(t, load, 150)
		t.Logf("round %d: 150 PUBACKs within %v after the leader was killed", round+1, time.Since(began).Round(100*time.Millisecond))
		if err := dead.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	acked := load.Stop()
	all["ingest"].Stop()
	w.awaitCommitted("cassandra")
	w.awaitCommitted("dynamodb")
	b := w.book()
	promised(t, b, acked)
	for _, look := range looks {
		awaitStored(t, look, b.published)
	}
	t.Logf("%d PUBACKs, %d rows in each store; the longest time without a PUBACK was %v", len(acked), len(b.published), load.Stall().Round(10*time.Millisecond))
	for name, p := range all {
		if name != "ingest" && p.Ended() {
			t.Errorf("%s has ended", name)
		}
	}
}
