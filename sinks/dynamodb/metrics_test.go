package dynamodb_test

import (
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
)

// TestEachRequestHasTheIDThatTheServiceGaveIt, one that it refused too.
func TestEachRequestHasTheIDThatTheServiceGaveIt(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	ids := map[string]map[string]bool{} // by operation
	cfg := configOf(t)
	var refusing atomic.Bool
	cfg.Endpoint = proxy(t, cfg.Endpoint, func(c call) {
		id := "TAKEN"
		if refusing.Load() {
			id = "REFUSED"
		}
		c.w.Header().Set("X-Amzn-Requestid", id)
		if refusing.Load() {
			c.refuse(http.StatusBadRequest, "ProvisionedThroughputExceededException")
			return
		}
		c.answer(c.forward(c.body))
	})
	if _, err := dynamodb.Migrate(t.Context(), cfg, false); err != nil {
		t.Fatal(err)
	}
	cfg.Observe = func(r dynamodb.Request) {
		mu.Lock()
		defer mu.Unlock()
		if ids[r.Operation] == nil {
			ids[r.Operation] = map[string]bool{}
		}
		ids[r.Operation][r.ID] = true
	}
	s, err := dynamodb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	topic, now := eventtest.Topic(t, "t/1"), time.Now()
	m := message(topic, now, 1)
	apply(t, s, sinks.PutMessage{Message: m}, sinks.PutMessage{Message: message(topic, now, 2)})
	apply(t, s, sinks.PutMessage{Message: message(eventtest.Topic(t, "t/2"), now, 3)})
	apply(t, s, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
	if got := read(t, s, topic, 10, false); len(got) != 1 {
		t.Fatalf("%d messages are read", len(got))
	}
	if _, err := s.Subs(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	for _, operation := range []string{"BatchWriteItem", "BatchGetItem", "UpdateItem", "GetItem", "Query"} {
		if got := slices.Collect(maps.Keys(ids[operation])); !cmp.Equal(got, []string{"TAKEN"}) {
			t.Errorf("%s: ids %q", operation, got)
		}
	}
	clear(ids)
	mu.Unlock()
	refusing.Store(true)
	if _, err := s.Subs(t.Context(), "c"); err == nil {
		t.Error("a refused request was done")
	}
	mu.Lock()
	defer mu.Unlock()
	if d := cmp.Diff(map[string]map[string]bool{"Query": {"REFUSED": true}}, ids); d != "" {
		t.Errorf("ids of the refused (-want +got):\n%s", d)
	}
}

// TestRequestsInFlightAreToldUpToTheirBound: those that wait for a place are not among them.
func TestRequestsInFlightAreToldUpToTheirBound(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	var now, most atomic.Int64
	cfg.PoolSize = 2
	cfg.InFlight = func(change int) {
		n := now.Add(int64(change))
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				return
			}
		}
	}
	let := make(chan struct{})
	var holding atomic.Bool
	var held sync.WaitGroup
	cfg.Endpoint = proxy(t, cfg.Endpoint, func(c call) {
		if holding.Load() {
			held.Done()
			<-let
		}
		c.answer(c.forward(c.body))
	})
	s := open(t, cfg)
	if now.Load() != 0 || most.Load() == 0 {
		t.Fatalf("%d are in flight, and %d were", now.Load(), most.Load())
	}
	holding.Store(true)
	held.Add(2)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			if _, err := s.Subs(t.Context(), "c"); err != nil {
				t.Error(err)
			}
		})
	}
	held.Wait()
	if now.Load() != 2 {
		t.Errorf("%d are in flight, want the 2 that get no answer", now.Load())
	}
	holding.Store(false)
	for range 10 {
		all.Go(func() {
			if _, err := s.Subs(t.Context(), "c"); err != nil {
				t.Error(err)
			}
		})
	}
	close(let)
	all.Wait()
	if now.Load() != 0 || most.Load() != 2 {
		t.Errorf("%d are in flight at the end, and %d were; want 0 and 2", now.Load(), most.Load())
	}
}
