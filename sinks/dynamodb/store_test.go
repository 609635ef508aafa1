package dynamodb_test

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
	"github.com/restante/restante/sinks/sinktest"
)

// conform runs the suite. Small buckets make the map of each topic a deep one.
func conform(t *testing.T, law sinktest.Law, change func(*dynamodb.Config)) {
	t.Helper()
	var configs sync.Map // store → config
	at := func(t *testing.T, cfg dynamodb.Config, open func(testing.TB, dynamodb.Config) *dynamodb.Store) sinks.Store {
		t.Helper()
		s := open(t, cfg)
		configs.Store(s, cfg)
		return s
	}
	sinktest.Run(t, sinktest.Config{
		Open: func(t *testing.T, now func() time.Time) sinks.Store {
			t.Helper()
			cfg := configOf(t)
			cfg.Now, cfg.PoolSize, cfg.ByClient = now, 16, true
			change(&cfg)
			return at(t, cfg, opened)
		},
		Reopen: func(t *testing.T, s sinks.Store, now func() time.Time) sinks.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			old, _ := configs.Load(s)
			cfg := old.(dynamodb.Config)
			cfg.Now = now
			return at(t, cfg, opened)
		},
		Law: law, OneTopicAnID: true, TimePrecision: time.Second, ExpiryPrecision: time.Second, MaxTopic: 1023,
		Poison: func(topic event.Topic) sinks.Op {
			at := time.Now()
			return sinks.PutMessage{Message: sinks.Message{ID: event.LastIDAt(at), Topic: topic, Payload: bytes.Repeat([]byte("x"), 400<<10), Arrived: at}}
		},
	})
}

func TestStrictStoreKeepsBothLaws(t *testing.T) {
	t.Parallel()
	conform(t, sinktest.Commute, func(c *dynamodb.Config) { c.Strict = true })
}

func TestStrictStoreKeepsBothLawsInSmallBuckets(t *testing.T) {
	t.Parallel()
	forSoak(t)
	conform(t, sinktest.Commute, func(c *dynamodb.Config) {
		c.Strict, c.FirstIDs, c.BucketMinutes, c.BucketBytes = true, 1, 1, 1
	})
}

func TestPlainStoreReplays(t *testing.T) {
	t.Parallel()
	conform(t, sinktest.Replay, func(*dynamodb.Config) {})
}

func TestPlainStoreWithTheSeedsIDsReplays(t *testing.T) {
	t.Parallel()
	forSoak(t)
	conform(t, sinktest.Replay, func(c *dynamodb.Config) {
		c.IDFormat, c.TimeUnit, c.OnDemand = dynamodb.Base62, time.Millisecond, true
	})
}
