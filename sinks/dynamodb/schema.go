package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/restante/restante/fault"
)

// The tables, without their prefix.
const (
	tClient = "mqtt_client"
	tSub    = "mqtt_sub"
	tMsg    = "mqtt_msg"
	tMap    = "mqtt_topic_msg_map"
	tRetain = "mqtt_retain"
	tAcked  = "mqtt_acked"
	tNode   = "mqtt_topic_node"
	// tOfClient are the rows of mqtt_acked by client: mqtt_acked can only be asked for one topic and client.
	tOfClient = "mqtt_acked_client"
)

// table is the key of a table. Both parts are text; all other attributes are free.
type table struct {
	name, hash, sort string
	// expires: items have a TTL attribute.
	expires bool
}

// tables are those of EMQX's backend, and of ours the topic index and, where it is asked for, that by client.
func (s *Store) tables() []table {
	all := []table{
		{tClient, aClient, "", false},
		{tSub, aClient, aTopic, true},
		{tMsg, aMsgID, "", true},
		{tMap, aTopic, "", true},
		{tRetain, aTopic, "", true},
		{tAcked, aTopic, aClient, true},
		{tNode, aParent, aLevel, true},
	}
	if s.cfg.ByClient {
		all = append(all, table{tOfClient, aClient, aTopic, true})
	}
	return all
}

func (t table) schema() (keys []types.KeySchemaElement, attributes []types.AttributeDefinition) {
	add := func(name string, kind types.KeyType) {
		if name != "" {
			keys = append(keys, types.KeySchemaElement{AttributeName: aws.String(name), KeyType: kind})
			attributes = append(attributes, types.AttributeDefinition{AttributeName: aws.String(name), AttributeType: types.ScalarAttributeTypeS})
		}
	}
	add(t.hash, types.KeyTypeHash)
	add(t.sort, types.KeyTypeRange)
	return keys, attributes
}

// key puts a table's key into words.
func keyWords(keys []types.KeySchemaElement, attributes []types.AttributeDefinition) string {
	kinds := make(map[string]types.ScalarAttributeType)
	for _, a := range attributes {
		kinds[aws.ToString(a.AttributeName)] = a.AttributeType
	}
	var words []string
	for _, k := range keys {
		name := aws.ToString(k.AttributeName)
		words = append(words, fmt.Sprintf("%s %s (%s)", k.KeyType, name, kinds[name]))
	}
	return strings.Join(words, ", ")
}

// Migrate makes the tables that are missing, waits until they can be used, and enables their expiry; it says what it did. On a
// dry run it changes nothing and says what it would do. What exists is compared and never changed but for the expiry; a
// difference is an error. Run again it finds nothing to do.
func Migrate(ctx context.Context, cfg Config, dryRun bool) ([]string, error) {
	s, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // it returns none
	var work []string
	var wrong []string
	for _, t := range s.tables() {
		did, differs, err := s.migrate(ctx, t, dryRun)
		work = append(work, did...)
		wrong = append(wrong, differs...)
		if err != nil {
			return work, err
		}
	}
	return work, different(wrong)
}

// different is the error of differences between the tables and what they should be, nil = there are none.
func different(found []string) error {
	if len(found) == 0 {
		return nil
	}
	return fault.Fatal(fmt.Errorf(`check the tables: %s: "restante migrate" makes what is missing; give another table prefix in the config where a table belongs to somebody else`,
		strings.Join(found, "; ")))
}

func (s *Store) migrate(ctx context.Context, t table, dryRun bool) (work, differs []string, err error) {
	name := s.table(t.name)
	d, err := s.describe(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	if d == nil {
		work = append(work, "create table "+name)
		if !dryRun {
			if err := s.create(ctx, t); err != nil {
				return nil, nil, err
			}
		}
	} else if differs = s.compare(t, d); len(differs) > 0 {
		return nil, differs, nil
	}
	if !dryRun {
		if err := s.awaitActive(ctx, t); err != nil {
			return work, nil, err
		}
	}
	if !t.expires {
		return work, nil, nil
	}
	if d != nil {
		on, differs, err := s.expiry(ctx, t)
		if err != nil || on || len(differs) > 0 {
			return work, differs, err
		}
	}
	if dryRun {
		return append(work, "enable expiry of table "+name), nil, nil
	}
	_, err = send(ctx, s, "UpdateTimeToLive", t.name, s.api.UpdateTimeToLive, &ddb.UpdateTimeToLiveInput{
		TableName:               aws.String(name),
		TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: aws.String(aExpires), Enabled: aws.Bool(true)},
	})
	if err != nil {
		return work, nil, explain("enable expiry of table", name, err)
	}
	return append(work, "enable expiry of table "+name), nil, nil
}

// describe returns nil when the table is not there.
func (s *Store) describe(ctx context.Context, t table) (*types.TableDescription, error) {
	out, err := send(ctx, s, "DescribeTable", t.name, s.api.DescribeTable, &ddb.DescribeTableInput{TableName: aws.String(s.table(t.name))})
	if _, missing := errors.AsType[*types.ResourceNotFoundException](err); missing {
		return nil, nil //nolint:nilnil // not there
	}
	if err != nil {
		return nil, explain("describe table", s.table(t.name), err)
	}
	return out.Table, nil
}

func (s *Store) create(ctx context.Context, t table) error {
	keys, attributes := t.schema()
	in := &ddb.CreateTableInput{TableName: aws.String(s.table(t.name)), KeySchema: keys, AttributeDefinitions: attributes}
	if s.cfg.OnDemand {
		in.BillingMode = types.BillingModePayPerRequest
	} else {
		in.ProvisionedThroughput = &types.ProvisionedThroughput{
			ReadCapacityUnits: aws.Int64(s.cfg.ReadCapacity), WriteCapacityUnits: aws.Int64(s.cfg.WriteCapacity),
		}
	}
	_, err := send(ctx, s, "CreateTable", t.name, s.api.CreateTable, in)
	if _, inUse := errors.AsType[*types.ResourceInUseException](err); inUse {
		return nil // somebody else was faster
	}
	return explain("create table", s.table(t.name), err)
}

// awaitActive returns when the table can be used.
func (s *Store) awaitActive(ctx context.Context, t table) error {
	for round := 0; ; round++ {
		d, err := s.describe(ctx, t)
		if err != nil {
			return err
		}
		if d != nil && (d.TableStatus == types.TableStatusActive || d.TableStatus == types.TableStatusUpdating) {
			return nil
		}
		if err := pause(ctx, round); err != nil {
			return fmt.Errorf("wait for table %s: %w", s.table(t.name), err)
		}
	}
}

// compare says how a table's key differs from what it should be.
func (s *Store) compare(t table, d *types.TableDescription) []string {
	keys, attributes := t.schema()
	want, have := keyWords(keys, attributes), keyWords(d.KeySchema, d.AttributeDefinitions)
	if want != have {
		return []string{fmt.Sprintf("table %s has the key %s, want %s", s.table(t.name), have, want)}
	}
	return nil
}

// expiry reports whether the table's items expire by our attribute, or how they do instead.
func (s *Store) expiry(ctx context.Context, t table) (on bool, differs []string, err error) {
	out, err := send(ctx, s, "DescribeTimeToLive", t.name, s.api.DescribeTimeToLive, &ddb.DescribeTimeToLiveInput{TableName: aws.String(s.table(t.name))})
	if err != nil {
		return false, nil, explain("describe the expiry of table", s.table(t.name), err)
	}
	d := out.TimeToLiveDescription
	if d == nil || d.TimeToLiveStatus != types.TimeToLiveStatusEnabled && d.TimeToLiveStatus != types.TimeToLiveStatusEnabling {
		return false, nil, nil
	}
	if a := aws.ToString(d.AttributeName); a != aExpires {
		return false, []string{fmt.Sprintf("table %s expires by attribute %s, want %s", s.table(t.name), a, aExpires)}, nil
	}
	return true, nil, nil
}

// Check reaches the service, logs in, compares the tables, and writes, reads and removes a row in each.
func (s *Store) Check(ctx context.Context) error {
	var wrong []string
	for _, t := range s.tables() {
		d, err := s.describe(ctx, t)
		switch {
		case err != nil:
			return err
		case d == nil:
			wrong = append(wrong, fmt.Sprintf("table %s is missing", s.table(t.name)))
			continue
		case d.TableStatus != types.TableStatusActive && d.TableStatus != types.TableStatusUpdating:
			return fmt.Errorf("check table %s: it is %s: wait until it is ACTIVE", s.table(t.name), d.TableStatus)
		}
		differs := s.compare(t, d)
		if t.expires && len(differs) == 0 {
			var on bool
			if on, differs, err = s.expiry(ctx, t); err != nil {
				return err
			}
			if !on && len(differs) == 0 {
				differs = []string{fmt.Sprintf("table %s has no expiry by %s", s.table(t.name), aExpires)}
			}
		}
		wrong = append(wrong, differs...)
	}
	if err := different(wrong); err != nil {
		return err
	}
	for _, t := range s.tables() {
		if err := s.probe(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// probe writes, reads and removes an item that no reader takes for one of its own.
func (s *Store) probe(ctx context.Context, t table) error {
	name := aws.String(s.table(t.name))
	text := fmt.Sprintf("%srestante check%s%016x", separator, separator, rand.Uint64()) //nolint:gosec // no secret
	key := item{t.hash: str(text)}
	if t.sort != "" {
		key[t.sort] = str(text)
	}
	if !s.cfg.ReadOnly {
		it := item{aGone: num(1), aExpires: num(s.cfg.Now().Add(time.Hour).Unix())}
		maps.Copy(it, key)
		_, err := send(ctx, s, "PutItem", t.name, s.api.PutItem, &ddb.PutItemInput{TableName: name, Item: it})
		if err != nil {
			return explain("write a row into", *name, err)
		}
	}
	out, err := send(ctx, s, "GetItem", t.name, s.api.GetItem, &ddb.GetItemInput{TableName: name, Key: key, ConsistentRead: aws.Bool(true)})
	switch {
	case err != nil:
		return explain("read a row of", *name, err)
	case s.cfg.ReadOnly:
		return nil
	case len(out.Item) == 0:
		return fmt.Errorf("check table %s: the row that was written cannot be read", *name)
	}
	_, err = send(ctx, s, "DeleteItem", t.name, s.api.DeleteItem, &ddb.DeleteItemInput{TableName: name, Key: key})
	return explain("remove a row from", *name, err)
}
