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
