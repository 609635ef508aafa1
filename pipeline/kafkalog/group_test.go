package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

func newGroup(tb testing.TB, c *Client) pipeline.Group {
	tb.Helper()
	g, err := c.Group("g", topic)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = g.Close() })
	return g
}

func next(tb testing.TB, g pipeline.Group) pipeline.Generation {
	tb.Helper()
	gen, err := g.Next(soon(tb))
	if err != nil {
		tb.Fatal(err)
	}
	return gen
}

func before(tp pipeline.TP, offset int64) map[pipeline.TP]pipeline.Next {
	return map[pipeline.TP]pipeline.Next{tp: pipeline.Before(pipeline.Record{TP: tp, Offset: offset})}
}

func TestMissingTopicIsFatalAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t, func(cfg *Config) { cfg.Partitions["mqtt.sessions"] = 2 })
	g, err := client.Group("g", topic, "mqtt.sessions")
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Next(soon(t))
	if !fault.IsFatal(err) || !strings.Contains(err.Error(), `topic mqtt.sessions is missing: run "restante migrate"`) {
		t.Errorf("got %v", err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

func TestUnreachableBrokersAreWaitedFor(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.wire.cut(true)
	g := newGroup(t, c.open(t))
	if _, err := g.Next(within(t, 300*time.Millisecond)); !isDeadline(err) {
		t.Fatalf("got %v", err)
	}
	c.wire.cut(false)
	if got := next(t, g).Assigned(); len(got) != 3 {
		t.Errorf("assigned %v", got)
	}
}

func TestAssignedNamesWhatWasCommitted(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a", "b", "c")
	commitAt(t, client, 2)
	g := newGroup(t, client)
	want := map[pipeline.TP]int64{tp0: 2, {Topic: topic, Part: 1}: -1, {Topic: topic, Part: 2}: -1}
	if diff := cmp.Diff(want, next(t, g).Assigned()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := testutil.ToFloat64(client.metrics.assigned.WithLabelValues("g", topic, "0")); n != 1 {
		t.Errorf("gauge is %v", n)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(client.metrics.assigned.WithLabelValues("g", topic, "0")); n != 0 {
		t.Errorf("gauge is %v after Close", n)
	}
}

// kafka-go takes an offset that the coordinator could not tell for one that was never committed.
func TestOffsetsThatCannotBeReadAreNotTakenForNone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a", "b", "c")
	commitAt(t, client, 2)
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: topic, Err: kerr.CoordinatorLoadInProgress, Count: 4})
	if got := next(t, newGroup(t, client)).Assigned()[tp0]; got != 2 {
		t.Errorf("starts at %d", got)
	}
}

func TestGenerationEndsWithCloseAndWaits(t *testing.T) {
	t.Parallel()
	client := newCluster(t).open(t)
	g := newGroup(t, client)
	gen := next(t, g)
	var mu sync.Mutex
	var drained []string
	for i := range 3 {
		gen.Start(func(ctx context.Context) {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), errEnded) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			time.Sleep(100 * time.Millisecond)
			if err := gen.Commit(context.WithoutCancel(ctx), before(pipeline.TP{Topic: topic, Part: i}, 7)); err != nil {
				t.Errorf("commit while draining: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			drained = append(drained, fmt.Sprint(i))
		})
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if len(drained) != 3 {
		t.Errorf("Close returned with %v drained", drained)
	}
	want := map[int]int64{0: 7, 1: 7, 2: 7}
	if got, err := client.Log("g").Committed(soon(t), "g", topic, 0, 1, 2); err != nil || !cmp.Equal(got, want) {
		t.Errorf("committed %v, %v", got, err)
	}
	if err := gen.Commit(soon(t), before(tp0, 8)); !errors.Is(err, pipeline.ErrFenced) {
		t.Errorf("commit after the end: %v", err)
	}
	if _, err := g.Next(soon(t)); !errors.Is(err, errGroupClosed) {
		t.Errorf("Next after Close: %v", err)
	}
}

func TestCommitSaysFencedForEveryWayToLoseTheGeneration(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	gen := next(t, newGroup(t, c.open(t)))
	for e, want := range map[*kerr.Error]bool{
		kerr.IllegalGeneration: true, kerr.UnknownMemberID: true, kerr.RebalanceInProgress: true, kerr.NotCoordinator: true,
		kerr.CoordinatorLoadInProgress: false, kerr.RequestTimedOut: false, kerr.UnknownTopicOrPartition: false,
	} {
		c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: e})
		if err := gen.Commit(soon(t), before(tp0, 1)); err == nil || errors.Is(err, pipeline.ErrFenced) != want {
			t.Errorf("%v: %v", e.Message, err)
		}
	}
	if err := gen.Commit(soon(t), before(tp0, 1)); err != nil {
		t.Error(err)
	}
	c.wire.cut(false)
	for lasts := soon(t); ; time.Sleep(10 * time.Millisecond) { // the connection's end may be met by a heartbeat or by the commit
		if err := gen.Commit(soon(t), before(tp0, 2)); errors.Is(err, pipeline.ErrFenced) {
			break
		} else if err == nil || lasts.Err() != nil {
			t.Fatalf("commit over a connection that was cut: %v", err)
		}
	}
}

// A member that was fenced must not move what its successor has committed.
func TestFencedCommitChangesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a, b := c.open(t), c.open(t, func(cfg *Config) { cfg.RebalanceTimeout = 300 * time.Millisecond })
	a.cfg.RebalanceTimeout = 300 * time.Millisecond
	ga, gb := newGroup(t, a), newGroup(t, b)
	old := next(t, ga)
	release := make(chan struct{})
	old.Start(func(context.Context) { <-release }) // does not drain
	young := next(t, gb)
	if len(young.Assigned()) != 3 {
		t.Fatalf("assigned %v", young.Assigned())
	}
	if err := young.Commit(soon(t), before(tp0, 50)); err != nil {
		t.Fatal(err)
	}
	if err := old.Commit(soon(t), before(tp0, 10)); !errors.Is(err, pipeline.ErrFenced) {
		t.Errorf("got %v", err)
	}
	if got, err := a.Log("g").Committed(soon(t), "g", topic, 0); err != nil || got[0] != 50 {
		t.Errorf("committed %v, %v", got, err)
	}
	if n := testutil.ToFloat64(a.metrics.commits.WithLabelValues("g", commitFenced)); n != 1 {
		t.Errorf("%v commits counted as fenced", n)
	}
	close(release)
}

// dead is a member that joined and was killed: it never leaves. It is a member until the session is over.
func dead(t *testing.T, c *Client, session time.Duration) {
	t.Helper()
	res, err := c.asking.JoinGroup(soon(t), &kafka.JoinGroupRequest{
		GroupID: "g", SessionTimeout: session, RebalanceTimeout: session, ProtocolType: "consumer",
		Protocols: []kafka.GroupProtocol{{Name: "range", Metadata: kafka.GroupProtocolSubscription{Topics: []string{topic}}}},
	})
	if err == nil {
		err = res.Error
	}
	if errors.Is(err, kafka.MemberIDRequired) {
		res, err = c.asking.JoinGroup(soon(t), &kafka.JoinGroupRequest{
			GroupID: "g", MemberID: res.MemberID, SessionTimeout: session, RebalanceTimeout: session,
			ProtocolType: "consumer",
			Protocols:    []kafka.GroupProtocol{{Name: "range", Metadata: kafka.GroupProtocolSubscription{Topics: []string{topic}}}},
		})
		if err == nil {
			err = res.Error
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	sync, err := c.asking.SyncGroup(soon(t), &kafka.SyncGroupRequest{
		GroupID: "g", GenerationID: res.GenerationID, MemberID: res.MemberID, ProtocolType: "consumer", ProtocolName: "range",
		Assignments: []kafka.SyncGroupRequestAssignment{{
			MemberID: res.MemberID, Assignment: kafka.GroupProtocolAssignment{AssignedPartitions: map[string][]int{topic: {0, 1, 2}}},
		}},
	})
	if err == nil {
		err = sync.Error
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestEvictedMembersDoNotHoldUpTheNext(t *testing.T) {
	t.Parallel()
	for evict, session := range map[bool]time.Duration{true: time.Minute, false: 8 * time.Second} {
		t.Run(fmt.Sprint(evict), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			client := c.open(t)
			if n, err := client.EvictMembers(soon(t), "g"); err != nil || n != 0 {
				t.Errorf("of a group never used: %d, %v", n, err)
			}
			dead(t, client, session)
			if evict {
				if n, err := client.EvictMembers(soon(t), "g"); err != nil || n != 1 {
					t.Fatalf("evicted %d, %v", n, err)
				}
			}
			begin := time.Now()
			gen := next(t, newGroup(t, client))
			took := time.Since(begin)
			t.Logf("joined after %v", took)
			if len(gen.Assigned()) != 3 || evict == (took > session/2) {
				t.Errorf("assigned %v after %v", gen.Assigned(), took)
			}
			if n, err := client.EvictMembers(soon(t), "g"); err != nil || n != 1 {
				t.Errorf("evicted %d, %v", n, err)
			}
		})
	}
}
