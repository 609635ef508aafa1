package dynamodb_test

import (
	"testing"
	"time"

	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
)

// TestALookLeavesEverythingAsItIs: also the ids of messages that are no more, which any other read takes out of the map.
func TestALookLeavesEverythingAsItIs(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	store := open(t, cfg)
	topic := eventtest.Topic(t, "t/look")
	const n = 12
	begun := time.Now()
	for i := range n {
		m := message(topic, begun, i)
		m.Expires = begun.Add(20 * time.Second)
		apply(t, store, sinks.PutMessage{Message: m})
	}
	cfg.ReadOnly, cfg.Look = true, true
	look, err := dynamodb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := look.Close(); err != nil {
			t.Error(err)
		}
	}()
	listed := func() int {
		for _, r := range scan(t, cfg, "mqtt_topic_msg_map") {
			if ids := r["MsgId"]; r["topic"]["S"] == topic.String() && ids != nil {
				return len(ids["SS"].([]string))
			}
		}
		return 0
	}
	if got := listed(); got != n {
		t.Fatalf("%d ids are listed, want %d", got, n)
	}
	time.Sleep(time.Until(begun.Add(22 * time.Second)))
	for _, c := range []struct {
		s    *dynamodb.Store
		left int
	}{{look, n}, {store, 0}} {
		if got := read(t, c.s, topic, 100, false); len(got) > 0 {
			t.Fatalf("%d messages are read, and all have expired", len(got))
		}
		if got := listed(); got != c.left {
			t.Errorf("%d ids are listed after the read, want %d", got, c.left)
		}
	}
}
