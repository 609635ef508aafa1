package dynamodb

import (
	"context"
	"errors"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/middleware"
)

// Request is what is told of one request to the service.
type Request struct {
	// Operation is the service's name for it, such as "UpdateItem".
	Operation string
	// Table is the table without its prefix, "" where the request is about several.
	Table string
	Took  time.Duration
	// Capacity is what it consumed, in units of the table's.
	Capacity float64
	// Unprocessed are the items or keys of a batch that the service did not take.
	Unprocessed int
	// Err is nil, or what came of it; a condition that was not met is no error.
	Err error
	// ID is what the service calls it, "" where it did not say: its operators find the request by it.
	ID string
}

// send makes one request, as soon as there is a place in the pool.
func send[In, Out any](ctx context.Context, s *Store, operation, table string, fn func(context.Context, *In, ...func(*ddb.Options)) (*Out, error), in *In) (*Out, error) {
	select {
	case s.pool <- struct{}{}:
		defer func() { <-s.pool }()
		s.cfg.InFlight(1)
		defer s.cfg.InFlight(-1)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	began := time.Now()
	out, err := fn(ctx, in)
	if s.cfg.Observe != nil {
		r := Request{Operation: operation, Table: table, Took: time.Since(began)}
		if _, no := refused(err); !no {
			r.Err = err
		}
		r.ID = requestID(out, err)
		if err == nil {
			r.Capacity, r.Unprocessed = used(out)
		}
		s.cfg.Observe(r)
	}
	return out, err
}

// requestID is what the service called a request, by its answer or its refusal.
func requestID(out any, err error) string {
	if err != nil {
		refusal, _ := errors.AsType[*awshttp.ResponseError](err)
		if refusal == nil {
			return ""
		}
		return refusal.ServiceRequestID()
	}
	id, _ := awsmiddleware.GetRequestIDMetadata(metadata(out))
	return id
}

// metadata is that of an answer: empty for those about whole tables.
func metadata(out any) (m middleware.Metadata) {
	switch out := out.(type) {
	case *ddb.BatchWriteItemOutput:
		m = out.ResultMetadata
	case *ddb.BatchGetItemOutput:
		m = out.ResultMetadata
	case *ddb.BatchExecuteStatementOutput:
		m = out.ResultMetadata
	case *ddb.UpdateItemOutput:
		m = out.ResultMetadata
	case *ddb.PutItemOutput:
		m = out.ResultMetadata
	case *ddb.DeleteItemOutput:
		m = out.ResultMetadata
	case *ddb.GetItemOutput:
		m = out.ResultMetadata
	case *ddb.QueryOutput:
		m = out.ResultMetadata
	}
	return m
}

// used is the capacity that a request consumed, and how many items or keys it left.
func used(out any) (units float64, left int) {
	var all []types.ConsumedCapacity
	one := func(c *types.ConsumedCapacity) {
		if c != nil {
			all = append(all, *c)
		}
	}
	switch out := out.(type) {
	case *ddb.BatchWriteItemOutput:
		all = out.ConsumedCapacity
		for _, w := range out.UnprocessedItems {
			left += len(w)
		}
	case *ddb.BatchGetItemOutput:
		all = out.ConsumedCapacity
		for _, k := range out.UnprocessedKeys {
			left += len(k.Keys)
		}
	case *ddb.BatchExecuteStatementOutput:
		all = out.ConsumedCapacity
	case *ddb.UpdateItemOutput:
		one(out.ConsumedCapacity)
	case *ddb.PutItemOutput:
		one(out.ConsumedCapacity)
	case *ddb.DeleteItemOutput:
		one(out.ConsumedCapacity)
	case *ddb.GetItemOutput:
		one(out.ConsumedCapacity)
	case *ddb.QueryOutput:
		one(out.ConsumedCapacity)
	}
	for _, c := range all {
		if c.CapacityUnits != nil {
			units += *c.CapacityUnits
		}
	}
	return units, left
}

// consumed asks for the capacity where somebody wants to know.
func (s *Store) consumed() types.ReturnConsumedCapacity {
	if s.cfg.Observe == nil {
		return types.ReturnConsumedCapacityNone
	}
	return types.ReturnConsumedCapacityTotal
}

var nameInExpression = regexp.MustCompile(`#\w+`)

// names gives each "#name" of the expressions its attribute: name. So no reserved word is in the way.
func names(expressions ...string) map[string]string {
	found := make(map[string]string)
	for _, e := range expressions {
		for _, n := range nameInExpression.FindAllString(e, -1) {
			found[n] = n[1:]
		}
	}
	return found
}

// pause waits before another round of what a batch left: up to d, longer each round, never in step with others.
func pause(ctx context.Context, round int) error {
	const first, most = 20 * time.Millisecond, time.Second
	d := min(first<<min(round, 10), most)
	t := time.NewTimer(d/2 + rand.N(d)) //nolint:gosec // no secret
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// turns sees to it that no two writes of one key are in flight in this process. The zero turns is ready.
type turns struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the turn ends
}

// take waits for the turn of all keys; release ends it.
func (t *turns) take(ctx context.Context, keys ...string) (release func(), err error) {
	keys = slices.Clone(keys)
	slices.Sort(keys) // all take them in this order, so nobody waits in a circle
	keys = slices.Compact(keys)
	for i, k := range keys {
		if err := t.one(ctx, k); err != nil {
			t.end(keys[:i])
			return nil, err
		}
	}
	return func() { t.end(keys) }, nil
}

func (t *turns) one(ctx context.Context, key string) error {
	for {
		t.mu.Lock()
		before, busy := t.held[key]
		if !busy {
			if t.held == nil {
				t.held = make(map[string]chan struct{})
			}
			t.held[key] = make(chan struct{})
		}
		t.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-before:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (t *turns) end(keys []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		close(t.held[k])
		delete(t.held, k)
	}
}
