package dynamodb

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// get reads one item; it is empty when it is not there.
func (s *Store) get(ctx context.Context, table string, key item) (item, error) {
	out, err := send(ctx, s, "GetItem", table, s.api.GetItem, &ddb.GetItemInput{
		TableName: aws.String(s.table(table)), Key: key, ConsistentRead: aws.Bool(true), ReturnConsumedCapacity: s.consumed(),
	})
	if err != nil {
		return nil, explain("read", s.table(table), err)
	}
	return out.Item, nil
}

// manyKeys is the most that the service reads in one call.
const manyKeys = 100

// getAll reads the items of up to manyKeys keys at once, in any order; what is not there is left out. The service answers with
// up to 16 MB at a time.
func (s *Store) getAll(ctx context.Context, table string, keys []item) ([]item, error) {
	name := s.table(table)
	var found []item
	for round := 0; len(keys) > 0; {
		n := min(len(keys), manyKeys)
		out, err := send(ctx, s, "BatchGetItem", table, s.api.BatchGetItem, &ddb.BatchGetItemInput{
			RequestItems:           map[string]types.KeysAndAttributes{name: {Keys: keys[:n], ConsistentRead: aws.Bool(true)}},
			ReturnConsumedCapacity: s.consumed(),
		})
		if err != nil {
			return nil, explain("read", name, err)
		}
		found = append(found, out.Responses[name]...)
		left := out.UnprocessedKeys[name].Keys
		keys = append(slices.Clone(left), keys[n:]...)
		if len(left) < n {
			round = 0
			continue
		}
		if round++; round == manyRounds {
			return nil, explain("read", name, errUnprocessed)
		}
		if err := pause(ctx, round); err != nil {
			return nil, explain("read", name, err)
		}
	}
	return found, nil
}

// query calls fn for each item of one key, in the order of the range key, until it returns false.
func (s *Store) query(ctx context.Context, table string, in *ddb.QueryInput, fn func(item) bool) error {
	in.TableName, in.ConsistentRead, in.ReturnConsumedCapacity = aws.String(s.table(table)), aws.Bool(true), s.consumed()
	for {
		out, err := send(ctx, s, "Query", table, s.api.Query, in)
		if err != nil {
			return explain("read", s.table(table), err)
		}
		for _, it := range out.Items {
			if !fn(it) {
				return nil
			}
		}
		if len(out.LastEvaluatedKey) == 0 {
			return nil
		}
		in.ExclusiveStartKey = out.LastEvaluatedKey
	}
}

// Topics implements [sinks.Reader].
func (s *Store) Topics(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	t, ok := f.Exact()
	if !ok {
		return topicindex.Walk(ctx, nodes{s}, topicindex.Messages, f, after, limit)
	}
	if t.String() <= after.String() || limit < 1 || len(topicKey(t)) > maxHash {
		return nil, nil
	}
	it, err := s.get(ctx, tMap, item{aTopic: str(topicKey(t))})
	if err != nil || len(texts(it, aMsgIDs)) == 0 && len(texts(it, aBuckets)) == 0 {
		return nil, err
	}
	return []event.Topic{t}, nil
}

// Retained implements [sinks.Reader].
func (s *Store) Retained(ctx context.Context, f event.Filter, after event.Topic, limit int) ([]sinks.Message, error) {
	if t, ok := f.Exact(); ok {
		if t.String() <= after.String() || limit < 1 {
			return nil, nil
		}
		return s.retained(ctx, []event.Topic{t})
	}
	var found []sinks.Message
	for {
		topics, err := topicindex.Walk(ctx, nodes{s}, topicindex.Retained, f, after, manyKeys)
		if err != nil {
			return nil, err
		}
		ms, err := s.retained(ctx, topics)
		if err != nil {
			return nil, err
		}
		if found = append(found, ms...); len(found) >= limit || len(topics) < manyKeys {
			return found[:min(limit, len(found))], nil
		}
		after = topics[len(topics)-1]
	}
}

// retained reads the retained messages of up to manyKeys topics, in ascending order.
func (s *Store) retained(ctx context.Context, topics []event.Topic) ([]sinks.Message, error) {
	var keys []item
	for _, t := range topics {
		if len(t.String()) <= maxHash {
			keys = append(keys, item{aTopic: str(t.String())})
		}
	}
	items, err := s.getAll(ctx, tRetain, keys)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	var found []sinks.Message
	for _, it := range items {
		m, alive, err := s.message(it, now)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", s.table(tRetain), err)
		}
		if alive {
			found = append(found, m)
		}
	}
	slices.SortFunc(found, func(a, b sinks.Message) int { return strings.Compare(a.Topic.String(), b.Topic.String()) })
	return found, nil
}

// Acked implements [sinks.Reader].
func (s *Store) Acked(ctx context.Context, client event.ClientID, topic string) (event.ID, bool, error) {
	if storableKey(tAcked, topic, string(client)) != nil {
		return event.ID{}, false, ctx.Err() // it cannot be there
	}
	it, err := s.get(ctx, tAcked, item{aTopic: str(topic), aClient: str(string(client))})
	if _, gone := it[aGone]; err != nil || gone || len(it) == 0 {
		return event.ID{}, false, err
	}
	id, err := s.parseID(text(it, aMsgID))
	if err != nil {
		return event.ID{}, false, fmt.Errorf("read %s: row %.80q %.80q: %w", s.table(tAcked), topic, client, err)
	}
	return id, true, nil
}

// Positions implements [sinks.Reader], where the rows are kept by client.
func (s *Store) Positions(ctx context.Context, client event.ClientID) ([]sinks.PutAcked, error) {
	if !s.cfg.ByClient || storableKey(tOfClient, string(client), "") != nil {
		return nil, ctx.Err()
	}
	const condition = "#clientid = :c"
	var found []sinks.PutAcked
	var bad error
	err := s.query(ctx, tOfClient, &ddb.QueryInput{
		KeyConditionExpression: aws.String(condition), ExpressionAttributeNames: names(condition), ExpressionAttributeValues: item{":c": str(string(client))},
	}, func(it item) bool {
		if _, gone := it[aGone]; gone {
			return true
		}
		p := sinks.PutAcked{Client: client, Topic: text(it, aTopic), Stamp: integer(it, aStamp)}
		if p.Message, bad = s.parseID(text(it, aMsgID)); bad != nil {
			bad = fmt.Errorf("read %s: row %.80q %.80q: %w", s.table(tOfClient), client, p.Topic, bad)
			return false
		}
		found = append(found, p)
		return true
	})
	if err != nil {
		return nil, err
	}
	return found, bad
}

// Client implements [sinks.Reader].
func (s *Store) Client(ctx context.Context, client event.ClientID) (sinks.Client, bool, error) {
	if storableKey(tClient, string(client), "") != nil {
		return sinks.Client{}, false, ctx.Err()
	}
	it, err := s.get(ctx, tClient, item{aClient: str(string(client))})
	if err != nil || len(it) == 0 {
		return sinks.Client{}, false, err
	}
	return sinks.Client{
		ID: client, Online: integer(it, aState) != 0, Node: text(it, aNode),
		OnlineAt: s.timeOf(integer(it, aOnline)), OfflineAt: s.timeOf(integer(it, aOffline)),
	}, true, nil
}

// Subs implements [sinks.Reader].
func (s *Store) Subs(ctx context.Context, client event.ClientID) ([]sinks.Sub, error) {
	if storableKey(tSub, string(client), "") != nil {
		return nil, ctx.Err()
	}
	const condition = "#clientid = :c"
	var found []sinks.Sub
	err := s.query(ctx, tSub, &ddb.QueryInput{
		KeyConditionExpression: aws.String(condition), ExpressionAttributeNames: names(condition), ExpressionAttributeValues: item{":c": str(string(client))},
	}, func(it item) bool {
		if _, gone := it[aGone]; gone {
			return true
		}
		var sub sinks.Sub
		sub.QoS = event.QoS(integer(it, aQoS) & 3)
		var bad error
		if sub.Filter, bad = event.ParseFilter(text(it, aTopic)); bad != nil {
			sub = sinks.Sub{}
		}
		found = append(found, sub)
		return true
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}
