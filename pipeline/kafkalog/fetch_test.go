package kafkalog

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// foreign is a producer that is none of ours.
func (c *cluster) foreign(tb testing.TB, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	base := []kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic)}
	p, err := kgo.NewClient(append(base, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

func send(tb testing.TB, p *kgo.Client, values ...string) {
	tb.Helper()
	recs := make([]*kgo.Record, len(values))
	for i, v := range values {
		recs[i] = &kgo.Record{Key: []byte(keyFor(0)), Value: []byte(v), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte(v[:1])}}}
	}
	if err := p.ProduceSync(soon(tb), recs...).FirstErr(); err != nil {
		tb.Fatal(err)
	}
}

// readTo reads a stream until its position is the end of the partition.
func readTo(tb testing.TB, c *Client, s pipeline.Stream) []pipeline.Record {
	tb.Helper()
	spans, err := c.Log("test").Spans(soon(tb), topic, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var all []pipeline.Record
	begin := time.Now()
	for at := position(tb, s); at < spans[0].End; at = position(tb, s) {
		all = append(all, fetch(tb, s, 7, 30*time.Second)...)
		if time.Since(begin) > time.Minute {
			tb.Fatalf("stands at %d of %d", at, spans[0].End)
		}
	}
	return all
}

func position(tb testing.TB, s pipeline.Stream) int64 {
	tb.Helper()
	p, ok := s.(interface{ Position() int64 })
	if !ok {
		tb.Fatalf("%T has no position", s)
	}
	return p.Position()
}

func TestMarkersOfTransactionsAreNoRecordsAndNoEndlessWait(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	p := c.foreign(t, kgo.TransactionalID("foreign"))
	for i, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit, kgo.TryAbort} {
		if err := p.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		send(t, p, fmt.Sprint(i, "a"), fmt.Sprint(i, "b"))
		if err := p.EndTransaction(soon(t), end); err != nil {
			t.Fatal(err)
		}
	}
	// What was aborted is read too: waiting for the ends of transactions would let other programs stop this one.
	want := []string{"0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"}
	s := openStream(t, client, 0)
	begin := time.Now()
	got := readTo(t, client, s)
	if diff := cmp.Diff(want, values(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if d := time.Since(begin); d > 25*time.Second {
		t.Errorf("the markers at the end took %v", d)
	}
	if at := position(t, s); at != 12 {
		t.Errorf("position %d", at)
	}
	s = openStream(t, client, 11) // the last marker
	if got := fetch(t, s, 10, 10*time.Second); len(got) > 0 || position(t, s) != 12 {
		t.Errorf("position %d, %v", position(t, s), got)
	}
	put(t, client, 0, "last")
	if got := values(fetch(t, s, 10, 10*time.Second)); !cmp.Equal(got, []string{"last"}) {
		t.Errorf("got %v", got)
	}
}

func TestAnOpenTransactionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	p := c.foreign(t, kgo.TransactionalID("foreign"))
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	send(t, p, "open")
	put(t, client, 0, "behind")
	if got := values(readTo(t, client, openStream(t, client, 0))); !cmp.Equal(got, []string{"open", "behind"}) {
		t.Errorf("got %v", got)
	}
}

func TestCompactedPartitionsAreReadToTheirEnd(t *testing.T) {
	t.Parallel()
	const compacted = "compacted"
	c := newCluster(t)
	admin := c.foreign(t)
	req := kmsg.NewPtrCreateTopicsRequest()
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = compacted, 1, 1
	for k, v := range map[string]string{"cleanup.policy": "compact", "segment.bytes": "2000", "min.cleanable.dirty.ratio": "0"} {
		cfg := kmsg.NewCreateTopicsRequestTopicConfig()
		cfg.Name, cfg.Value = k, &v
		rt.Configs = append(rt.Configs, cfg)
	}
	req.Topics = append(req.Topics, rt)
	if res, err := req.RequestWith(soon(t), admin); err != nil || res.Topics[0].ErrorCode != 0 {
		t.Fatal(res, err)
	}
	for i := range 60 {
		for k := range 3 {
			r := &kgo.Record{Topic: compacted, Key: []byte(fmt.Sprint(k)), Value: []byte(fmt.Sprint(k, " ", i, strings.Repeat("x", 50)))}
			if err := admin.ProduceSync(soon(t), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Compact()
	client := c.open(t, func(cfg *Config) { cfg.Partitions[compacted] = 1 })
	spans, err := client.Log("test").Spans(soon(t), compacted, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := client.Log("test").Open(soon(t), pipeline.TP{Topic: compacted}, spans[0].First)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	seen := map[string]int64{}
	n, last := 0, int64(-1)
	for position(t, s) < spans[0].End {
		for _, r := range fetch(t, s, 5, time.Second) {
			if r.Offset <= last {
				t.Fatalf("offset %d follows %d", r.Offset, last)
			}
			n, last = n+1, r.Offset
			seen[string(r.Key)] = r.Offset
		}
	}
	if n >= 180 || n < 3 {
		t.Errorf("%d records of 180: nothing was compacted", n)
	}
	if want := map[string]int64{"0": 177, "1": 178, "2": 179}; !cmp.Equal(seen, want) {
		t.Errorf("got %v", seen)
	}
}

func TestABatchLargerThanAFetchIsReadAsAWhole(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t, func(cfg *Config) { cfg.FetchBytes = 1024 })
	p := c.foreign(t, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(50*time.Millisecond))
	var want []string
	for i := range 30 {
		want = append(want, fmt.Sprint(i, strings.Repeat("x", 2000)))
	}
	send(t, p, want...)
	send(t, p, "small")
	want = append(want, "small")
	if got := values(readTo(t, client, openStream(t, client, 0))); !cmp.Equal(want, got) {
		t.Errorf("%d records of %d", len(got), len(want))
	}
}

func TestEveryCompressionIsRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	var want []string
	for i, codec := range []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	} {
		var vs []string
		for n := range 50 {
			vs = append(vs, fmt.Sprint(i, " ", n, strings.Repeat("x", 100*n)))
		}
		send(t, c.foreign(t, kgo.ProducerBatchCompression(codec)), vs...)
		want = append(want, vs...)
	}
	got := readTo(t, client, openStream(t, client, 0))
	if diff := cmp.Diff(want, values(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i, r := range got {
		if len(r.Headers) != 1 || r.Headers[0].Key != "h" || string(r.Headers[0].Value) != want[i][:1] {
			t.Fatalf("record %d has headers %v", i, r.Headers)
		}
	}
}

// answering lets a test change the partition in answers to fetches. It runs in the cluster, one at a time.
func (c *cluster) answering(change func(p *kmsg.FetchResponseTopicPartition, res *kmsg.FetchResponse) bool) {
	c.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req, ok := r.(*kmsg.FetchRequest)
		if !ok {
			return nil, nil, false
		}
		res := req.ResponseKind().(*kmsg.FetchResponse)
		t := kmsg.NewFetchResponseTopic()
		t.Topic = req.Topics[0].Topic
		p := kmsg.NewFetchResponseTopicPartition()
		p.Partition = req.Topics[0].Partitions[0].Partition
		if !change(&p, res) {
			return nil, nil, false
		}
		t.Partitions = append(t.Partitions, p)
		res.Topics = append(res.Topics, t)
		return res, nil, true
	})
}

func TestABatchThatIsDamagedOnItsWayIsFetchedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a", "b", "c")
	first, second := batchOf(0, "a").bytes(t), batchOf(1, "b", "c").bytes(t)
	second[len(second)-2] ^= 4
	times := 0
	c.answering(func(p *kmsg.FetchResponseTopicPartition, _ *kmsg.FetchResponse) bool {
		times++
		p.RecordBatches = slices.Concat(first, second)
		return times == 1
	})
	s := openStream(t, client, 0)
	var got []string
	for len(got) < 3 {
		got = append(got, values(fetch(t, s, 10, 5*time.Second))...)
	}
	if want := []string{"a", "b", "c"}; !cmp.Equal(got, want) || times < 2 {
		t.Errorf("got %v in %d fetches", got, times)
	}
}

func TestABatchThatStaysDamagedIsNeverSkipped(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a", "b")
	set := batchOf(0, "a", "b").bytes(t)
	set[len(set)-2] ^= 4
	c.answering(func(p *kmsg.FetchResponseTopicPartition, _ *kmsg.FetchResponse) bool {
		p.RecordBatches = set
		return true
	})
	s := openStream(t, client, 0)
	if got := fetch(t, s, 10, 500*time.Millisecond); len(got) > 0 || position(t, s) != 0 {
		t.Errorf("position %d, %v", position(t, s), got)
	}
}

func TestMessagesOfOldFormatsAreAFatalError(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	set := batchOf(0, "a").bytes(t)
	set[batchMagic] = 1
	c.answering(func(p *kmsg.FetchResponseTopicPartition, _ *kmsg.FetchResponse) bool {
		p.RecordBatches = set
		return true
	})
	s := openStream(t, client, 0)
	if got, err := s.Fetch(soon(t), 10, time.Minute); !fault.IsFatal(err) || !strings.Contains(err.Error(), "v1") {
		t.Errorf("%v, %v", got, err)
	}
}

func TestABrokerThatThrottlesIsLeftAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a")
	times := 0
	c.answering(func(_ *kmsg.FetchResponseTopicPartition, res *kmsg.FetchResponse) bool {
		times++
		res.ThrottleMillis = 300
		return times == 1
	})
	s := openStream(t, client, 0)
	begin := time.Now()
	got := fetch(t, s, 10, 10*time.Second)
	if d := time.Since(begin); len(got) != 1 || d < 300*time.Millisecond || times != 2 {
		t.Errorf("%v after %v in %d fetches", got, d, times)
	}
}

func TestBrokersFromTheFirstWithRecordBatchesAreRead(t *testing.T) {
	t.Parallel()
	for version := int16(oldestFetch - 1); version <= newestFetch+1; version++ {
		v := kversion.Stable()
		v.SetMaxKeyVersion(int16(kmsg.Fetch), version)
		c := newCluster(t, kfake.MaxVersions(v))
		client := c.open(t)
		put(t, client, 0, "a")
		s := openStream(t, client, 0)
		got, err := s.Fetch(soon(t), 10, time.Minute)
		switch {
		case version < oldestFetch && !fault.IsFatal(err):
			t.Errorf("v%d: %v, %v", version, got, err)
		case version >= oldestFetch && (err != nil || len(got) != 1):
			t.Errorf("v%d: %v, %v", version, got, err)
		}
	}
}

func TestErrorsOfAFetchAreWaitedOut(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	put(t, client, 0, "a")
	for _, e := range []*kerr.Error{
		kerr.UnknownServerError, kerr.NotLeaderForPartition, kerr.ReplicaNotAvailable, kerr.KafkaStorageError, kerr.UnknownTopicOrPartition,
		kerr.OffsetNotAvailable, kerr.FencedLeaderEpoch, kerr.CorruptMessage,
	} {
		h := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: e, Count: 2})
		if got := fetch(t, openStream(t, client, 0), 10, 10*time.Second); len(got) != 1 || h.Hits() != 2 {
			t.Errorf("%v: %v after %d", e, got, h.Hits())
		}
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.TopicAuthorizationFailed, Count: 1})
	if _, err := openStream(t, client, 0).Fetch(soon(t), 10, time.Minute); !fault.IsFatal(err) || !errors.Is(err, kafka.TopicAuthorizationFailed) {
		t.Errorf("got %v", err)
	}
}

func TestRoomForAnAnswerGrowsWithWhatComes(t *testing.T) {
	t.Parallel()
	sent := bytes.Repeat([]byte("restante"), 10_000)
	for _, said := range []int{len(sent), largest} {
		c := fetchConn{Conn: slow{bytes.NewReader(sent)}}
		var buf []byte
		err := c.readAnswer(&buf, said, 1024)
		if (err == nil) != (said == len(sent)) || !bytes.Equal(buf, sent) || cap(buf) > 4*len(sent) {
			t.Errorf("%d bytes said: %d in room for %d: %v", said, len(buf), cap(buf), err)
		}
	}
}

// slow is a connection that gives a little at a time.
type slow struct{ *bytes.Reader }

func (s slow) Read(b []byte) (int, error) { return s.Reader.Read(b[:min(len(b), 700)]) }

func (slow) Write(b []byte) (int, error)      { return len(b), nil }
func (slow) Close() error                     { return nil }
func (slow) LocalAddr() net.Addr              { return nil }
func (slow) RemoteAddr() net.Addr             { return nil }
func (slow) SetDeadline(time.Time) error      { return nil }
func (slow) SetReadDeadline(time.Time) error  { return nil }
func (slow) SetWriteDeadline(time.Time) error { return nil }
