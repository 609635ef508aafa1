package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/restante/restante/internal/e2e/e2etest"
)

// plainDynamoDB is a set of tables, seen by the plain SDK.
type plainDynamoDB struct {
	api    *ddb.Client
	prefix string
}

func lookDynamoDB(endpoint, prefix string) plainDynamoDB {
	return plainDynamoDB{ddb.New(ddb.Options{
		Region: "us-west-2", BaseEndpoint: aws.String(endpoint), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("AKIAU5IM2XOC7AQWG7HK", "none", ""),
	}), prefix}
}

// value is an attribute as the command-line tool of AWS shows it, such as {"S": "x"}.
type value = map[string]any

func show(v types.AttributeValue) value {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return value{"S": v.Value}
	case *types.AttributeValueMemberN:
		return value{"N": v.Value}
	case *types.AttributeValueMemberB:
		return value{"B": string(v.Value)}
	case *types.AttributeValueMemberSS:
		return value{"SS": slices.Sorted(slices.Values(v.Value))}
	case *types.AttributeValueMemberBOOL:
		return value{"BOOL": v.Value}
	default:
		return value{fmt.Sprintf("%T", v): v}
	}
}

// items scans a table.
func (p plainDynamoDB) items(ctx context.Context, table string) ([]map[string]value, error) {
	var all []map[string]value
	for start := map[string]types.AttributeValue(nil); ; {
		out, err := p.api.Scan(ctx, &ddb.ScanInput{TableName: aws.String(p.prefix + table), ConsistentRead: aws.Bool(true), ExclusiveStartKey: start})
		if err != nil {
			return nil, err
		}
		for _, it := range out.Items {
			item := map[string]value{}
			for name, v := range it {
				item[name] = show(v)
			}
			all = append(all, item)
		}
		if start = out.LastEvaluatedKey; start == nil {
			return all, nil
		}
	}
}

// scan is items for a server that is up.
func (p plainDynamoDB) scan(t *testing.T, table string) []map[string]value {
	t.Helper()
	all, err := p.items(t.Context(), table)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (p plainDynamoDB) messages(ctx context.Context) (map[string]stored, error) {
	ctx, cancel := context.WithTimeout(ctx, e2etest.Patience)
	defer cancel()
	items, err := p.items(ctx, "mqtt_msg")
	if err != nil {
		return nil, err
	}
	// A message that is in no map would be replayed to nobody.
	maps, err := p.items(ctx, "mqtt_topic_msg_map")
	if err != nil {
		return nil, err
	}
	mapped := map[string]bool{}
	for _, it := range maps {
		ids, _ := it["MsgId"]["SS"].([]string)
		for _, id := range ids {
			mapped[id] = true
		}
	}
	out := make(map[string]stored, len(items))
	for _, it := range items {
		if id := it["msgid"]["S"].(string); mapped[id] {
			out[id] = stored{it["topic"]["S"].(string), it["payload"]["S"].(string)}
		}
	}
	return out, nil
}

// dump shows of the map which ids stand there for each topic: an id that is added again may stand in the topic's own item and in
// a bucket, and is one to its readers.
func (p plainDynamoDB) dump(ctx context.Context) (map[string][]string, error) {
	out := map[string][]string{}
	for _, table := range []string{"mqtt_client", "mqtt_sub", "mqtt_msg", "mqtt_topic_msg_map", "mqtt_retain", "mqtt_acked", "mqtt_topic_node"} {
		items, err := p.items(ctx, table)
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			if table == "mqtt_topic_msg_map" {
				topic, _, _ := strings.Cut(it["topic"]["S"].(string), "\x1f")
				ids, _ := it["MsgId"]["SS"].([]string)
				for _, id := range ids {
					out[table] = append(out[table], topic+" "+id)
				}
				continue
			}
			text, err := json.Marshal(it)
			if err != nil {
				return nil, err
			}
			out[table] = append(out[table], string(text))
		}
		slices.Sort(out[table])
		out[table] = slices.Compact(out[table])
	}
	return out, nil
}
