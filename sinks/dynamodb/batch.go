package dynamodb

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/restante/restante/fault"
)

const (
	// manyWrites is the most that the service takes in one call; 25 items of 400 KB are below its bound of 16 MB.
	manyWrites = 25
	// manyRounds is how often what a call left is sent again before the caller is told.
	manyRounds = 6
)

// write is one item of mqtt_msg to be put, or to be removed where put is nil.
type write struct {
	op  int
	key string
	put item
}

// run makes the writes with call and notes which failed. Their keys are theirs meanwhile.
func (b *batch) run(ctx context.Context, writes []write, call func(context.Context, []write) ([]write, map[int]error, error)) {
	keys := make([]string, len(writes))
	for i, w := range writes {
		keys[i] = tMsg + separator + w.key
	}
	release, err := b.s.turns.take(ctx, keys...)
	if err != nil {
		b.failAll(fmt.Errorf("write into %s: %w", b.s.table(tMsg), err), writes)
		return
	}
	defer release()
	b.rounds(ctx, writes, call)
}

func (b *batch) failAll(err error, writes []write) {
	for _, w := range writes {
		b.fail(err, w.op)
	}
}

// rounds sends the writes, and again those that were left, and halves a call that can never succeed as a whole.
func (b *batch) rounds(ctx context.Context, writes []write, call func(context.Context, []write) ([]write, map[int]error, error)) {
	for round := 1; len(writes) > 0; round++ {
		left, failed, err := call(ctx, writes)
		if fault.IsPoison(err) && len(writes) > 1 {
			b.rounds(ctx, writes[:len(writes)/2], call)
			b.rounds(ctx, writes[len(writes)/2:], call)
			return
		}
		if err != nil {
			b.failAll(err, writes)
			return
		}
		for op, cause := range failed {
			b.fail(cause, op)
		}
		if len(left) == 0 {
			return
		}
		if writes = left; round == manyRounds {
			b.failAll(explain("write into", b.s.table(tMsg), errUnprocessed), writes)
			return
		}
		if err := pause(ctx, round); err != nil {
			b.failAll(explain("write into", b.s.table(tMsg), err), writes)
			return
		}
	}
}

// write puts and removes without conditions.
func (s *Store) write(ctx context.Context, writes []write) (left []write, failed map[int]error, err error) {
	name := s.table(tMsg)
	requests := make([]types.WriteRequest, len(writes))
	for i, w := range writes {
		if w.put == nil {
			requests[i].DeleteRequest = &types.DeleteRequest{Key: item{aMsgID: str(w.key)}}
		} else {
			requests[i].PutRequest = &types.PutRequest{Item: w.put}
		}
	}
	out, err := send(ctx, s, "BatchWriteItem", tMsg, s.api.BatchWriteItem, &ddb.BatchWriteItemInput{
		RequestItems: map[string][]types.WriteRequest{name: requests}, ReturnConsumedCapacity: s.consumed(),
	})
	if err != nil {
		return nil, nil, explain("write into", name, err)
	}
	for _, r := range out.UnprocessedItems[name] {
		var key string
		switch {
		case r.PutRequest != nil:
			key = text(r.PutRequest.Item, aMsgID)
		case r.DeleteRequest != nil:
			key = text(r.DeleteRequest.Key, aMsgID)
		}
		i := slices.IndexFunc(writes, func(w write) bool { return w.key == key })
		if i < 0 {
			return nil, nil, fmt.Errorf("write into %s: the answer names an item that was not sent", name)
		}
		left = append(left, writes[i])
	}
	return left, nil, nil
}

// insert puts what is not there yet. What is there stays: it is the same message, or says that the message is gone.
func (s *Store) insert(ctx context.Context, writes []write) (left []write, failed map[int]error, err error) {
	name := s.table(tMsg)
	statements := make([]types.BatchStatementRequest, len(writes))
	for i, w := range writes {
		statements[i] = insertStatement(name, w.put)
	}
	out, err := send(ctx, s, "BatchExecuteStatement", tMsg, s.api.BatchExecuteStatement, &ddb.BatchExecuteStatementInput{
		Statements: statements, ReturnConsumedCapacity: s.consumed(),
	})
	if err != nil {
		return nil, nil, explain("write into", name, err)
	}
	if len(out.Responses) != len(writes) {
		return nil, nil, fmt.Errorf("write into %s: %d answers to %d statements", name, len(out.Responses), len(writes))
	}
	failed = make(map[int]error)
	for i, r := range out.Responses {
		if r.Error == nil {
			continue
		}
		e := &statementError{code: string(r.Error.Code), message: aws.ToString(r.Error.Message)}
		switch c, _ := classify(e); c {
		case done:
		case transient:
			left = append(left, writes[i])
		case poison, fatal:
			failed[writes[i].op] = explain("write into", name, e)
		}
	}
	return left, failed, nil
}

func insertStatement(table string, it item) types.BatchStatementRequest {
	var b strings.Builder
	fmt.Fprintf(&b, `INSERT INTO "%s" VALUE {`, table)
	var values []types.AttributeValue
	for name, v := range it {
		if len(values) > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "'%s': ?", name)
		values = append(values, v)
	}
	b.WriteString("}")
	return types.BatchStatementRequest{Statement: aws.String(b.String()), Parameters: values}
}
