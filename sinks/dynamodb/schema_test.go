package dynamodb_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
)

func TestMigrateMakesWhatIsMissingOnce(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	store, err := dynamodb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // it returns none
	plan, err := dynamodb.Migrate(t.Context(), cfg, true)
	if err != nil || len(plan) != 13 {
		t.Fatalf("the dry run: %v, %q", err, plan)
	}
	err = store.Check(t.Context())
	if !fault.IsFatal(err) || strings.Count(err.Error(), "_mqtt_") != 7 || !strings.Contains(err.Error(), "restante migrate") {
		t.Errorf("Check without tables: %v", err)
	}
	if err := store.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: message(eventtest.Topic(t, "t"), time.Now(), 1)}}); !fault.IsFatal(err) {
		t.Errorf("Apply without tables: %v", err)
	}
	did, err := dynamodb.Migrate(t.Context(), cfg, false)
	if d := cmp.Diff(plan, did); err != nil || d != "" {
		t.Errorf("the work: %v (-planned +done):\n%s", err, d)
	}
	if err := store.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for _, dry := range []bool{true, false} {
		if did, err = dynamodb.Migrate(t.Context(), cfg, dry); err != nil || len(did) > 0 {
			t.Errorf("again, dry run %v: %v, %q", dry, err, did)
		}
	}
	for _, table := range []string{"mqtt_client", "mqtt_sub", "mqtt_msg", "mqtt_topic_msg_map", "mqtt_retain", "mqtt_acked", "mqtt_topic_node"} {
		if rows := scan(t, cfg, table); len(rows) > 0 {
			t.Errorf("the check left %v in %s", rows, table)
		}
	}
	d, err := plain(t, cfg).DescribeTable(t.Context(), &ddb.DescribeTableInput{TableName: aws.String(cfg.TablePrefix + "mqtt_acked")})
	if err != nil {
		t.Fatal(err)
	}
	if p := d.Table.ProvisionedThroughput; *p.ReadCapacityUnits != 5 || *p.WriteCapacityUnits != 5 {
		t.Errorf("the capacity is %d and %d, want 5 and 5", *p.ReadCapacityUnits, *p.WriteCapacityUnits)
	}
}

func TestATableOfSomebodyElsesIsNamedAndLeft(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	name := aws.String(cfg.TablePrefix + "mqtt_acked")
	_, err := plain(t, cfg).CreateTable(t.Context(), &ddb.CreateTableInput{
		TableName: name, BillingMode: types.BillingModePayPerRequest,
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("topic"), KeyType: types.KeyTypeHash}},
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("topic"), AttributeType: types.ScalarAttributeTypeN}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const says = "mqtt_acked has the key HASH topic (N), want HASH topic (S), RANGE clientid (S)"
	if _, err := dynamodb.Migrate(t.Context(), cfg, false); !fault.IsFatal(err) || !strings.Contains(err.Error(), says) {
		t.Errorf("Migrate: %v", err)
	}
	store, err := dynamodb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // it returns none
	if err := store.Check(t.Context()); !fault.IsFatal(err) || !strings.Contains(err.Error(), says) {
		t.Errorf("Check: %v", err)
	}
	err = store.Apply(t.Context(), []sinks.Op{sinks.PutAcked{Client: "c", Topic: "t", Stamp: 1}})
	if !fault.IsFatal(err) || fault.IsPoison(err) {
		t.Errorf("a write into a table with another key gave %v: it must not make poison of good records", err)
	}
}

// TestAStoreThatIsDownIsWaitedFor: neither its absence at the start nor later is the end of the process.
func TestAStoreThatIsDownIsWaitedFor(t *testing.T) {
	t.Parallel()
	direct := configOf(t)
	open(t, direct)
	var up atomic.Bool
	cfg := direct
	cfg.Endpoint = proxy(t, direct.Endpoint, func(c call) {
		if !up.Load() {
			c.cut(nil)
			return
		}
		status, answer := c.forward(c.body)
		c.answer(status, answer)
	})
	s, err := dynamodb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open while the store is down: %v", err)
	}
	defer s.Close() //nolint:errcheck // it returns none
	topic := eventtest.Topic(t, "t/1")
	op := sinks.PutMessage{Message: message(topic, time.Now(), 1)}
	for _, err := range []error{s.Check(t.Context()), s.Apply(t.Context(), []sinks.Op{op})} {
		if err == nil || fault.IsFatal(err) || fault.IsPoison(err) {
			t.Errorf("while the store is down: %v, want an error that is tried again", err)
		}
	}
	up.Store(true)
	apply(t, s, op)
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if got := read(t, s, topic, 10, false); len(got) != 1 {
		t.Errorf("%d messages", len(got))
	}
}

func TestOpenSaysWhatIsWrongWithItsConfig(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		change func(*dynamodb.Config)
		says   string
	}{
		"half a key pair":           {func(c *dynamodb.Config) { c.SecretAccessKey = "" }, "give both"},
		"an odd time unit":          {func(c *dynamodb.Config) { c.TimeUnit = time.Minute }, "want 1s or 1ms"},
		"an unknown format":         {func(c *dynamodb.Config) { c.IDFormat = "base64" }, `want "hex" or "base62"`},
		"buckets over the table":    {func(c *dynamodb.Config) { c.BucketBytes = 1 << 20 }, "want at most"},
		"a profile that is nowhere": {func(c *dynamodb.Config) { c.Profile = "nobody-has-this-one" }, "AWS configuration"},
	} {
		cfg := dynamodb.Config{Region: "us-west-2", AccessKeyID: "a", SecretAccessKey: "b"}
		c.change(&cfg)
		if _, err := dynamodb.Open(t.Context(), cfg); !fault.IsFatal(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", sentence, err)
		}
	}
}

func TestALoginThatIsRefusedIsFatal(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	cfg.AccessKeyID = "not-alphanumeric" // the local server refuses no other
	s, err := dynamodb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it returns none
	if err := s.Check(t.Context()); !fault.IsFatal(err) || !strings.Contains(err.Error(), "access key") {
		t.Errorf("Check: %v", err)
	}
}
