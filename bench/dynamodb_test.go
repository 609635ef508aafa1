package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks/dynamodb"
)

const (
	ddbWorkers = 8  // requests in flight, on both sides
	ddbBatch   = 25 // items in a batch
	ddbTimeout = 30 * time.Second
)

// BenchmarkDynamoDB compares the way of messages from Kafka into DynamoDB Local, in the plain mode, with a bare loop of the SDK
// that makes the same requests from messages that it has in memory: the same batches, and as many additions to the map as the
// round of ours before. Each writes into tables of its own. RESTANTE_BENCH_ITEMS is how many messages a round writes (12000).
func BenchmarkDynamoDB(b *testing.B) {
	n := fromEnv(b, "RESTANTE_BENCH_ITEMS", 12_000)
	seen := &ddbCounts{n: map[string]int{}}
	cfg := dynamodb.Config{
		Region: "us-west-2", Endpoint: stack.Shared(b, stack.DynamoDB), AccessKeyID: "restante", SecretAccessKey: "secret",
		TablePrefix: stack.Unique(b) + "_", RequestTimeout: ddbTimeout, PoolSize: ddbWorkers, Observe: seen.observe,
	}
	bare := openBareDDB(b, cfg)
	defer bare.http.CloseIdleConnections()
	if _, err := dynamodb.Migrate(b.Context(), cfg, false); err != nil {
		b.Fatal(err)
	}
	store, err := dynamodb.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	}()
	var last, mine, theirs map[string]int // requests
	prepare := func() (ours, ceiling func() cost, done func()) {
		events := messagesFor(b, n)
		k := newBacklog(b, events)
		ours = func() cost {
			before := seen.all()
			c := k.work(b, store, pipeline.DefaultLimits)
			last = since(seen.all(), before)
			mine = sum(mine, last)
			return c
		}
		ceiling = func() cost {
			c, made := bare.write(b, events, last[addition])
			theirs = sum(theirs, made)
			return c
		}
		return ours, ceiling, func() {
			bare.compare(b, cfg.TablePrefix, events)
			k.client.Close()
		}
	}
	for range 2 { // gets the server warm; the second, whose topics are known, says how many additions there are
		ours, ceiling, done := prepare()
		ours()
		ceiling()
		done()
	}
	mine, theirs = nil, nil
	p := pairs{n: n}
	for b.Loop() {
		p.run(prepare)
	}
	p.report(b, "items", 0.85, 0)
	for _, name := range slices.Sorted(maps.Keys(sum(mine, theirs))) {
		report(b, "ours, "+name, float64(mine[name])/float64(len(p.ours)), "requests a round")
		report(b, "ceiling, "+name, float64(theirs[name])/float64(len(p.ours)), "requests a round")
	}
}

// Requests by operation and table.
const (
	putting  = "BatchWriteItem mqtt_msg"
	addition = "UpdateItem mqtt_topic_msg_map"
)

// ddbCounts counts the requests of the store.
type ddbCounts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *ddbCounts) observe(r dynamodb.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[r.Operation+" "+r.Table]++
}

func (c *ddbCounts) all() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

func since(now, before map[string]int) map[string]int {
	out := map[string]int{}
	for name, n := range now {
		if n -= before[name]; n > 0 {
			out[name] = n
		}
	}
	return out
}

func sum(a, b map[string]int) map[string]int {
	out := map[string]int{}
	for _, m := range []map[string]int{a, b} {
		for name, n := range m {
			out[name] += n
		}
	}
	return out
}

// bareDDB is the SDK without anything of ours.
type bareDDB struct {
	*ddb.Client
	http   *http.Transport
	prefix string
}

// openBareDDB makes the tables of the bare loop. The caller closes its connections.
func openBareDDB(b *testing.B, cfg dynamodb.Config) bareDDB {
	b.Helper()
	cfg.TablePrefix += barePrefix
	if _, err := dynamodb.Migrate(b.Context(), cfg, false); err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConns: ddbWorkers, MaxIdleConnsPerHost: ddbWorkers}
	return bareDDB{ddb.New(ddb.Options{
		BaseEndpoint: aws.String(cfg.Endpoint), Region: cfg.Region, Retryer: aws.NopRetryer{}, DisableValidateResponseChecksum: true,
		Credentials: credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""),
		HTTPClient:  &http.Client{Transport: transport, Timeout: ddbTimeout},
	}), transport, cfg.TablePrefix}
}

// write writes the messages, then so many additions to the map, and counts its requests.
func (d bareDDB) write(b *testing.B, events []event.Event, additions int) (cost, map[string]int) {
	b.Helper()
	var puts, adds []func(context.Context) error
	for some := range slices.Chunk(events, ddbBatch) {
		puts = append(puts, func(ctx context.Context) error { return d.put(ctx, some) })
	}
	topics := map[string][]string{}
	for _, e := range events {
		m := e.(event.Published)
		topics[m.Topic.String()] = append(topics[m.Topic.String()], m.ID.String())
	}
	for i, topic := range slices.Sorted(maps.Keys(topics)) {
		ids := topics[topic]
		share := max((additions-i+len(topics)-1)/len(topics), 1)
		for part := range share {
			some := ids[part*len(ids)/share : (part+1)*len(ids)/share]
			key := topic + "\x1f" + ids[part*len(ids)/share/ddbCell*ddbCell] // each item holds so many
			adds = append(adds, func(ctx context.Context) error { return d.add(ctx, key, some) })
		}
	}
	c := measure(func() {
		for _, calls := range [][]func(context.Context) error{puts, adds} {
			all, ctx := errgroup.WithContext(b.Context())
			all.SetLimit(ddbWorkers)
			for _, call := range calls {
				all.Go(func() error { return call(ctx) })
			}
			if err := all.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	})
	return c, map[string]int{putting: len(puts), addition: len(adds)}
}

func (d bareDDB) put(ctx context.Context, events []event.Event) error {
	requests := make([]types.WriteRequest, len(events))
	for i, e := range events {
		m := e.(event.Published)
		requests[i].PutRequest = &types.PutRequest{Item: map[string]types.AttributeValue{
			"msgid": text(m.ID.String()), "topic": text(m.Topic.String()), "arrived": number(m.At.Unix()), "payload": text(string(m.Payload)),
			"qos": number(int64(m.QoS)), "retain": number(0), "sender": text(string(m.Sender)), "expires_at": number(expiry(m)),
		}}
	}
	out, err := d.BatchWriteItem(ctx, &ddb.BatchWriteItemInput{
		RequestItems: map[string][]types.WriteRequest{d.prefix + "mqtt_msg": requests}, ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	})
	if err == nil && len(out.UnprocessedItems) > 0 {
		err = errors.New("items were left unprocessed, which this server never does")
	}
	return err
}

// expiry is the second at which the message has expired.
func expiry(m event.Published) int64 {
	return m.At.Add(timeToLive + time.Second - time.Nanosecond).Unix()
}

func (d bareDDB) add(ctx context.Context, key string, ids []string) error {
	_, err := d.UpdateItem(ctx, &ddb.UpdateItemInput{
		TableName: aws.String(d.prefix + "mqtt_topic_msg_map"), Key: map[string]types.AttributeValue{"topic": text(key)},
		UpdateExpression:         aws.String("ADD #MsgId :ids SET #expires_at = :e"),
		ConditionExpression:      aws.String("attribute_not_exists(#MsgId) OR size(#MsgId) <= :room"),
		ExpressionAttributeNames: map[string]string{"#MsgId": "MsgId", "#expires_at": "expires_at"},
		ExpressionAttributeValues: map[string]types.AttributeValue{
			":ids": &types.AttributeValueMemberSS{Value: ids}, ":room": number(1 << 20), ":e": number(time.Now().Add(timeToLive).Unix()),
		},
		ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	})
	return err
}

// ddbCell is how many ids an item of the map takes, as much as the store lets it grow to.
const ddbCell = 800

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

// compare makes sure that both wrote the same items.
func (d bareDDB) compare(b *testing.B, ours string, events []event.Event) {
	b.Helper()
	get := func(prefix string, id event.ID) string {
		out, err := d.GetItem(b.Context(), &ddb.GetItemInput{
			TableName: aws.String(prefix + "mqtt_msg"), Key: map[string]types.AttributeValue{"msgid": text(id.String())}, ConsistentRead: aws.Bool(true),
		})
		if err != nil {
			b.Fatal(err)
		}
		var all []string
		for _, name := range slices.Sorted(maps.Keys(out.Item)) {
			all = append(all, fmt.Sprintf("%s=%#v", name, reflect.ValueOf(out.Item[name]).Elem().Interface()))
		}
		return strings.Join(all, " ")
	}
	for i := 0; i < len(events); i += max(len(events)/100, 1) {
		id := events[i].(event.Published).ID
		if got, want := get(ours, id), get(d.prefix, id); got != want || want == "" {
			b.Fatalf("message %d is stored as\n%s\nand by the bare loop as\n%s", i, got, want)
		}
	}
}
