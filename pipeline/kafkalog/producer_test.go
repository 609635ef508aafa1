package kafkalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

func TestPartitionIsThatOfJavasClients(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]int32{ // from the tests of Java's client
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		n := rapid.IntRange(1, 100).Draw(t, "partitions")
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		if got, want := partition(key, n), (kafka.Murmur2Balancer{Consistent: true}).Balance(kafka.Message{Key: key}, all...); got != want {
			t.Fatalf("partition(%q, %d) = %d, want %d", key, n, got, want)
		}
	})
}

func TestPartitionsAddedLaterChangeNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kfake.SeedTopics(7, topic)) // and 3 are configured
	client := c.open(t)
	p := client.Producer()
	var want [3][]string
	for i := range 200 {
		k := fmt.Sprintf("key %d", i)
		if _, err := p.Append(soon(t), out(k, k)); err != nil {
			t.Fatal(err)
		}
		n := partition([]byte(k), 3)
		want[n] = append(want[n], k)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if diff := cmp.Diff(want[n], values(readAll(t, client, n, 0))); diff != "" {
			t.Errorf("partition %d (-want +got):\n%s", n, diff)
		}
	}
	for n := 3; n < 7; n++ {
		if end := c.PartitionInfo(topic, int32(n)).HighWatermark; end != 0 {
			t.Errorf("partition %d holds %d records", n, end)
		}
	}
}

func TestRecordComesBackAsItWent(t *testing.T) {
	t.Parallel()
	client := newCluster(t).open(t)
	at := time.UnixMilli(1_700_000_123_456)
	for name, w := range map[string]event.Wire{
		"all": {
			Key: []byte("k"), Value: []byte("v"), Time: at,
			Headers: []event.Header{{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}, {Key: "ü", Value: []byte{0, 255}}},
		},
		"an empty value is not null":           {Key: []byte("k"), Value: []byte{}, Time: at},
		"not even when the caller says nil":    {Key: []byte("k"), Time: at},
		"a large value and no key is possible": {Value: bytes.Repeat([]byte("x"), 500_000), Time: at},
	} {
		p := client.Producer()
		r, err := p.Append(soon(t), pipeline.Outgoing{Topic: topic, Wire: w})
		if err == nil {
			err = pipeline.Wait(soon(t), r)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(soon(t)); err != nil {
			t.Fatal(err)
		}
		all := readAll(t, client, partition(w.Key, 3), 0)
		got := all[len(all)-1].Wire
		if w.Value == nil {
			w.Value = []byte{}
		}
		if diff := cmp.Diff(w, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if got.Value == nil {
			t.Errorf("%s: the value is nil", name)
		}
	}
}

// Batches may be repeated: a lost answer is not told from a lost request. Order means that the first copies are in order.
func TestNothingIsLostOrReorderedUnderFaults(t *testing.T) {
	t.Parallel()
	const records, seeds = 600, 4
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			client := c.open(t)
			rnd := rand.New(rand.NewPCG(seed, 1))
			var mu sync.Mutex
			kinds := []*kerr.Error{
				kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend,
				kerr.UnknownTopicOrPartition, kerr.LeaderNotAvailable, kerr.KafkaStorageError, kerr.CorruptMessage,
			}
			for _, k := range kinds {
				c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: k, Count: -1, When: func(kmsg.Request) bool {
					mu.Lock()
					defer mu.Unlock()
					return rnd.IntN(20) == 0
				}})
			}
			p := client.Producer()
			var want [3][]string
			var receipts []pipeline.Receipt
			for i := range records {
				n := i % 3
				v := fmt.Sprint(i)
				r, err := p.Append(soon(t), out(keyFor(n), v))
				if err != nil {
					t.Fatal(err)
				}
				want[n], receipts = append(want[n], v), append(receipts, r)
				switch {
				case i%150 == 149:
					c.wire.cut(false)
				case i%10 == 0:
					time.Sleep(time.Millisecond)
				}
			}
			for _, r := range receipts {
				if err := pipeline.Wait(soon(t), r); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(soon(t)); err != nil {
				t.Fatal(err)
			}
			for n := range 3 {
				seen := map[string]bool{}
				var got []string
				for _, v := range values(readAll(t, client, n, 0)) {
					if !seen[v] {
						got = append(got, v)
					}
					seen[v] = true
				}
				if diff := cmp.Diff(want[n], got); diff != "" {
					t.Errorf("partition %d (-want +got):\n%s", n, diff)
				}
			}
		})
	}
}

func TestReceiptIsDoneOnlyWhenKafkaHasTheRecord(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	p := c.open(t).Producer()
	failing := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	r, err := p.Append(soon(t), out("k", "v"))
	if err != nil {
		t.Fatal(err)
	}
	if err := failing.Wait(soon(t), 4); err != nil { // tries
		t.Fatal(err)
	}
	if ended(r) {
		t.Error("the receipt is done and the record is not in the log")
	}
	failing.Remove()
	if err := pipeline.Wait(soon(t), r); err != nil {
		t.Error(err)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
}

func TestMissingTopicIsWaitedFor(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	p := c.open(t, func(cfg *Config) { cfg.Partitions = map[string]int{"later": 2} }).Producer()
	o := out("k", "v")
	o.Topic = "later"
	r, err := p.Append(soon(t), o)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if ended(r) {
		t.Fatalf("the receipt is done: %v", r.Err())
	}
	if err := c.CreateTopic("later", 2, nil); err != nil {
		t.Fatal(err)
	}
	if err := pipeline.Wait(soon(t), r); err != nil {
		t.Error(err)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
	if _, err := p.Append(soon(t), out("k", "v")); !fault.IsFatal(err) {
		t.Errorf("a topic that is not configured: %v", err)
	}
}

func TestRecordOverTheLimitIsPoisonAtOnce(t *testing.T) {
	t.Parallel()
	p := newCluster(t).open(t).Producer()
	_, err := p.Append(soon(t), out("k", strings.Repeat("x", maxBatchBytes)))
	if !fault.IsPoison(err) {
		t.Errorf("got %v", err)
	}
	r, err := p.Append(soon(t), out("k", strings.Repeat("x", maxBatchBytes-200)))
	if err == nil {
		err = pipeline.Wait(soon(t), r)
	}
	if err != nil {
		t.Errorf("just below the limit: %v", err)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
}

func TestRefusedRecordHoldsUpNobody(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	c.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.MessageTooLarge, Count: -1,
		When: func(r kmsg.Request) bool {
			return bytes.Contains(r.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records, []byte("refuse me"))
		},
	})
	gather := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.LeaderNotAvailable, Count: -1})
	p := client.Producer()
	var want []string
	var receipts []pipeline.Receipt
	for i := range 50 {
		v := fmt.Sprint(i)
		if i == 7 || i == 30 || i == 49 {
			v = "refuse me"
		} else {
			want = append(want, v)
		}
		r, err := p.Append(soon(t), out(keyFor(1), v))
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	if err := gather.Wait(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	gather.Remove()
	for i, r := range receipts {
		err := pipeline.Wait(soon(t), r)
		if bad := i == 7 || i == 30 || i == 49; bad != fault.IsPoison(err) || !bad && err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, values(readAll(t, client, 1, 0))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAppendBlocksWhileTooMuchIsOnItsWay(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	p := c.open(t, func(cfg *Config) { cfg.MaxBatchBytes, cfg.MaxInFlightBytes = 10_000, 10_000 }).Producer()
	stuck := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	for range 2 {
		if _, err := p.Append(soon(t), out("k", strings.Repeat("x", 4000))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Append(within(t, 100*time.Millisecond), out("k", strings.Repeat("x", 4000))); !isDeadline(err) {
		t.Fatalf("got %v", err)
	}
	stuck.Remove()
	if _, err := p.Append(soon(t), out("k", strings.Repeat("x", 4000))); err != nil {
		t.Error(err)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
	if _, err := p.Append(soon(t), out("k", "v")); !errors.Is(err, errProducerClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCloseLeavesNoReceiptOpen(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	p := c.open(t).Producer()
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	var receipts []pipeline.Receipt
	for i := range 10 {
		r, err := p.Append(soon(t), out(fmt.Sprint(i), "v"))
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	begin := time.Now()
	err := p.Close(within(t, 100*time.Millisecond))
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("Close took %v", took)
	}
	if err == nil || !strings.Contains(err.Error(), "10 records of unknown fate") {
		t.Errorf("got %v", err)
	}
	for _, r := range receipts {
		if !ended(r) || !errors.Is(r.Err(), errUnknownFate) {
			t.Fatalf("done %v: %v", ended(r), r.Err())
		}
	}
	if err := p.Close(context.Background()); err == nil {
		t.Error("a second Close has forgotten them")
	}
}

func TestIdlePartitionSendsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	p := c.open(t, func(cfg *Config) { cfg.Linger = time.Minute }).Producer()
	for range 20 {
		r, err := p.Append(soon(t), out("k", "v"))
		if err == nil {
			err = pipeline.Wait(soon(t), r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
}

func TestBusyProducerGathersRecords(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	p, ok := c.open(t, func(cfg *Config) { cfg.Linger = 200 * time.Millisecond }).Producer().(*producer)
	if !ok {
		t.Fatal("not ours")
	}
	requests := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Observe: true, Count: -1})
	p.sending.Store(busyFrom)
	var last pipeline.Receipt
	for range 20 {
		r, err := p.Append(soon(t), out("k", "v"))
		if err != nil {
			t.Fatal(err)
		}
		last = r
		time.Sleep(time.Millisecond)
	}
	if err := pipeline.Wait(soon(t), last); err != nil {
		t.Error(err)
	}
	if n := requests.Hits(); n > 2 {
		t.Errorf("20 records took %d requests", n)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
}
