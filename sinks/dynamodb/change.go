package dynamodb

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// change is a write of one item with a condition. A condition that is not met means that somebody newer was there: done.

// change applies an op on a row of its own.
func (s *Store) change(ctx context.Context, o sinks.Op, now time.Time) error {
	release, err := s.turns.take(ctx, o.Row())
	if err != nil {
		return fmt.Errorf("write one row: %w", err)
	}
	defer release()
	switch o := o.(type) {
	case sinks.PutAcked:
		return s.putAcked(ctx, o)
	case sinks.DeleteAcked:
		key := item{aTopic: str(o.Topic), aClient: str(string(o.Client))}
		if err := s.remove(ctx, tAcked, key, now, aStamp, num(o.Stamp)); err != nil || !s.cfg.ByClient {
			return err
		}
		return s.remove(ctx, tOfClient, key, now, aStamp, num(o.Stamp)) // last: what is still in mqtt_acked can be found
	case sinks.PutRetained:
		return s.changeRetained(ctx, o, now)
	case sinks.DeleteRetained:
		last := lastIDOf(o.Stamp)
		return s.remove(ctx, tRetain, item{aTopic: str(o.Topic.String())}, now, s.ordered(), str(last))
	case sinks.PutClient:
		return s.changeClient(ctx, o)
	case sinks.PutSub:
		it := item{aClient: str(string(o.Client)), aTopic: str(o.Filter.String()), aQoS: num(int64(o.QoS)), aStamp: num(o.Stamp)}
		return s.put(ctx, tSub, it, "attribute_not_exists(#stamp) OR #stamp < :s OR (#stamp = :s AND attribute_not_exists(#gone) AND #qos <= :q)",
			item{":s": num(o.Stamp), ":q": num(int64(o.QoS))})
	case sinks.DeleteSub:
		return s.remove(ctx, tSub, item{aClient: str(string(o.Client)), aTopic: str(o.Filter.String())}, now, aStamp, num(o.Stamp))
	case sinks.PutMessage, sinks.DeleteMessage:
	}
	panic(fmt.Sprintf("dynamodb: %T has no row of its own", o)) // unreachable: Apply sorts them out
}

// putAcked writes the row by client first: what is in mqtt_acked can be found.
func (s *Store) putAcked(ctx context.Context, o sinks.PutAcked) error {
	it := item{aTopic: str(o.Topic), aClient: str(string(o.Client)), aMsgID: str(s.id(o.Message)), aStamp: num(o.Stamp)}
	m := s.ordered()
	it[m] = str(o.Message.String())
	tables := []string{tAcked}
	if s.cfg.ByClient {
		tables = []string{tOfClient, tAcked}
	}
	for _, t := range tables {
		err := s.put(ctx, t, it, "attribute_not_exists(#stamp) OR #stamp < :s OR (#stamp = :s AND attribute_not_exists(#gone) AND #"+m+" <= :m)",
			item{":s": num(o.Stamp), ":m": str(o.Message.String())})
		if err != nil {
			return err
		}
	}
	return nil
}

// changeRetained puts a retained message over an older one. One that has expired takes the place all the same.
func (s *Store) changeRetained(ctx context.Context, o sinks.PutRetained, now time.Time) error {
	id := str(o.ID.String())
	if expired(o.Message, now) {
		return s.remove(ctx, tRetain, item{aTopic: str(o.Topic.String())}, now, s.ordered(), id)
	}
	it, err := s.row(o.Message)
	if err != nil {
		return fault.Poison(err)
	}
	it[s.ordered()] = id
	if s.cfg.Strict && !o.Expires.IsZero() {
		// It outlives its message: what it replaced could still come late.
		if until := s.forgotten(now); until > expirySeconds(o.Expires) {
			it[aExpiry], it[aExpires] = it[aExpires], num(until)
		}
	}
	if n := size(it); n > maxItem {
		return fault.Poison(fmt.Errorf("store message %s into %s: its item would have %d bytes: DynamoDB takes %d", o.ID, tRetain, n, maxItem))
	}
	m := "#" + s.ordered()
	return s.put(ctx, tRetain, it, "attribute_not_exists("+m+") OR "+m+" < :m OR ("+m+" = :m AND attribute_not_exists(#gone))", item{":m": id})
}

// put writes a whole item.
func (s *Store) put(ctx context.Context, table string, it item, condition string, values item) error {
	_, err := send(ctx, s, "PutItem", table, s.api.PutItem, &ddb.PutItemInput{
		TableName: aws.String(s.table(table)), Item: it, ConditionExpression: aws.String(condition),
		ExpressionAttributeNames: names(condition), ExpressionAttributeValues: values, ReturnConsumedCapacity: s.consumed(),
	})
	if _, no := refused(err); no {
		return nil
	}
	return explain("write into", s.table(table), err)
}

// remove takes an item away that is not newer than at, by the attribute given. A strict store leaves a small one that says so.
func (s *Store) remove(ctx context.Context, table string, key item, now time.Time, attribute string, at types.AttributeValue) error {
	condition, values := "attribute_not_exists(#"+attribute+") OR #"+attribute+" <= :at", item{":at": at}
	if s.cfg.Strict {
		it := item{aGone: num(1), aExpires: num(s.forgotten(now)), attribute: at}
		maps.Copy(it, key)
		return s.put(ctx, table, it, condition, values)
	}
	_, err := send(ctx, s, "DeleteItem", table, s.api.DeleteItem, &ddb.DeleteItemInput{
		TableName: aws.String(s.table(table)), Key: key, ConditionExpression: aws.String(condition),
		ExpressionAttributeNames: names(condition), ExpressionAttributeValues: values, ReturnConsumedCapacity: s.consumed(),
	})
	if _, no := refused(err); no {
		return nil
	}
	return explain("remove a row from", s.table(table), err)
}

// The conditions and changes of a client's two registers. A disconnect that is older than what the connect register says can
// never be seen again, so it is not kept.
const (
	laterUp = "(attribute_not_exists(#up_stamp) OR #up_stamp < :u OR (#up_stamp = :u AND (#online_at < :o OR (#online_at = :o AND #node <= :n))))"

	online      = "SET #node = :n, #online_at = :o, #up_stamp = :u, #connect_state = :one, #offline_at = :zero"
	onlineIf    = laterUp + " AND (attribute_not_exists(#down_stamp) OR #down_stamp < :u)"
	goneAgain   = "SET #node = :n, #online_at = :o, #up_stamp = :u"
	goneAgainIf = laterUp + " AND #down_stamp >= :u"
	offline     = "SET #connect_state = :zero, #offline_at = :f, #down_stamp = :d"
	offlineIf   = "(attribute_not_exists(#up_stamp) OR #up_stamp <= :d) AND (attribute_not_exists(#down_stamp) OR #down_stamp < :d OR (#down_stamp = :d AND #offline_at <= :f))"
)

func (s *Store) changeClient(ctx context.Context, o sinks.PutClient) error {
	key := item{aClient: str(string(o.Client))}
	if u := o.Up; u.Stamp != 0 {
		values := item{":u": num(u.Stamp), ":o": s.time(u.OnlineAt), ":n": str(u.Node), ":one": num(1), ":zero": num(0)}
		_, err := s.update(ctx, tClient, key, online, onlineIf, values)
		if have, no := refused(err); no {
			err = nil
			if _, ok := have[aDown]; ok && integer(have, aDown) >= u.Stamp {
				delete(values, ":one")
				delete(values, ":zero")
				_, err = s.update(ctx, tClient, key, goneAgain, goneAgainIf, values)
			}
		}
		if _, no := refused(err); err != nil && !no {
			return explain("write into", s.table(tClient), err)
		}
	}
	if d := o.Down; d.Stamp != 0 {
		_, err := s.update(ctx, tClient, key, offline, offlineIf, item{":d": num(d.Stamp), ":f": s.time(d.OfflineAt), ":zero": num(0)})
		if _, no := refused(err); err != nil && !no {
			return explain("write into", s.table(tClient), err)
		}
	}
	return nil
}

// update changes attributes of an item and returns it as it is then. Where the condition is not met, the error holds the item.
func (s *Store) update(ctx context.Context, table string, key item, expression, condition string, values item) (item, error) {
	in := &ddb.UpdateItemInput{
		TableName: aws.String(s.table(table)), Key: key, UpdateExpression: aws.String(expression), ExpressionAttributeNames: names(expression, condition),
		ExpressionAttributeValues: values, ReturnConsumedCapacity: s.consumed(), ReturnValues: types.ReturnValueAllNew,
	}
	if condition != "" {
		in.ConditionExpression = aws.String(condition)
		in.ReturnValuesOnConditionCheckFailure = types.ReturnValuesOnConditionCheckFailureAllOld
	}
	out, err := send(ctx, s, "UpdateItem", table, s.api.UpdateItem, in)
	if err != nil {
		return nil, err
	}
	return out.Attributes, nil
}
