package app

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/sinks/cassandra"
	"github.com/restante/restante/sinks/dynamodb"
)

// TestASlowRequestCanBeFound: a scrape that asks for OpenMetrics is told by an exemplar which one it was; one that is fast leaves none.
func TestASlowRequestCanBeFound(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := NewSinkMetrics(reg, Config{}, nil)
	m.dynamodb("d", dynamodb.Request{Operation: "Query", Took: time.Second, ID: "SLOW1"})
	m.dynamodb("d", dynamodb.Request{Operation: "Query", Took: time.Millisecond, ID: "FAST"})
	m.dynamodb("d", dynamodb.Request{Operation: "Query", Took: time.Second / 5, ID: strings.Repeat("x", 500)})
	cassandraMetrics{m, "c"}.Observe(cassandra.Batch, 3, time.Second, false, "10.1.2.3")

	ask := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
	ask.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	answer := httptest.NewRecorder()
	adminHandler(false, reg, NewHealth(), slog.New(slog.DiscardHandler)).ServeHTTP(answer, ask)
	var got []string
	for line := range strings.Lines(answer.Body.String()) {
		if series, exemplar, ok := strings.Cut(line, " # "); ok {
			got = append(got, strings.Fields(series)[0]+" "+strings.Fields(exemplar)[0])
		}
	}
	const duration = "restante_sink_request_duration_seconds_bucket"
	want := []string{
		duration + `{operation="Query",outcome="ok",sink="d",le="1.0"} {request_id="SLOW1"}`,
		duration + `{operation="batch",outcome="error",sink="c",le="1.0"} {server="10.1.2.3"}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("exemplars:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !strings.Contains(answer.Body.String(), duration[:len(duration)-len("bucket")]+`count{operation="Query",outcome="ok",sink="d"} 3`) {
		t.Error("not all requests were counted")
	}
}
