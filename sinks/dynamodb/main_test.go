package dynamodb_test

import (
	"flag"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
)

// TestMain bounds the random histories: each step is a request to a real server. A flag says otherwise.
func TestMain(m *testing.M) {
	checks := "3"
	if os.Getenv("RESTANTE_SOAK") != "" {
		checks = "15"
	}
	if err := flag.Set("rapid.checks", checks); err != nil {
		panic(err) // rapid has no such flag any more
	}
	goleak.VerifyTestMain(stack.Main(m))
}

// forSoak skips what takes minutes of a server's time, unless it is asked for.
func forSoak(tb testing.TB) {
	tb.Helper()
	if os.Getenv("RESTANTE_SOAK") == "" {
		tb.Skip("RESTANTE_SOAK is not set")
	}
}

// configOf points at a real server, with tables of the test's own.
func configOf(tb testing.TB) dynamodb.Config {
	tb.Helper()
	return dynamodb.Config{
		Region: "us-west-2", Endpoint: stack.Shared(tb, stack.DynamoDB), AccessKeyID: "restante", SecretAccessKey: "secret",
		TablePrefix: stack.Unique(tb) + "_", RequestTimeout: 20 * time.Second,
	}
}

// opened makes the tables and opens the store; the caller closes it.
func opened(tb testing.TB, cfg dynamodb.Config) *dynamodb.Store {
	tb.Helper()
	if _, err := dynamodb.Migrate(tb.Context(), cfg, false); err != nil {
		tb.Fatal(err)
	}
	s, err := dynamodb.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// open is opened for tests that have no need to close it themselves.
func open(tb testing.TB, cfg dynamodb.Config) *dynamodb.Store {
	tb.Helper()
	s := opened(tb, cfg)
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// message is the nth of a topic, so many µs after the time.
func message(t event.Topic, at time.Time, n int) sinks.Message {
	id := event.IDOf(at.UnixMicro()+int64(n), 0xF44200000901, uint16(n))
	return sinks.Message{
		ID: id, Topic: t, Sender: "mqttjs_231b962d5c", QoS: 1, Payload: []byte(`{ "msg": "Hello, World!" }`),
		Arrived: id.Time().Truncate(time.Second),
	}
}

func apply(tb testing.TB, s sinks.Store, ops ...sinks.Op) {
	tb.Helper()
	if err := s.Apply(tb.Context(), ops); err != nil {
		tb.Fatal(err)
	}
}

// read fetches all of a topic, page by page.
func read(tb testing.TB, s sinks.Store, t event.Topic, limit int, newest bool) []sinks.Message {
	tb.Helper()
	var found []sinks.Message
	for q := (sinks.Query{Topic: t, Until: event.LastIDAt(time.Now().Add(24 * time.Hour)), Limit: limit, Newest: newest}); ; {
		page, err := s.Messages(tb.Context(), q)
		if err != nil {
			tb.Fatal(err)
		}
		if newest {
			found = append(page, found...)
		} else {
			found = append(found, page...)
		}
		if len(page) < limit {
			return found
		}
		if newest {
			q.Until = page[0].ID.Before()
		} else {
			q.After = page[len(page)-1].ID
		}
	}
}

func idsOf(ms []sinks.Message) []string {
	out := make([]string, len(ms))
	for i, m := range ms {
		out[i] = m.ID.String()
	}
	return out
}
