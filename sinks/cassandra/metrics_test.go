package cassandra

import (
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/sinks"
)

// TestRequestsSayWhichServerWasAsked where the driver does.
func TestRequestsSayWhichServerWasAsked(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	cfg.Metrics = seen
	s := opened(t, cfg)
	one, several := fresh(t, "one"), fresh(t, "several")
	apply(t, s, sinks.PutMessage{Message: message(one, time.Now(), 1)})
	apply(t, s, sinks.PutMessage{Message: message(several, time.Now(), 1)}, sinks.PutMessage{Message: message(several, time.Now(), 2)})
	pending(t, s, one)
	host, _, err := net.SplitHostPort(cfg.Hosts[0])
	if err != nil {
		t.Fatal(err)
	}
	want := map[Request]string{Single: host, Read: host, Batch: ""} // the driver does not say where a batch went
	if diff := cmp.Diff(want, seen.servers); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
}

// TestRequestsInFlightAreToldUpToTheirBound, and none when all is done.
func TestRequestsInFlightAreToldUpToTheirBound(t *testing.T) {
	t.Parallel()
	cfg, seen := ready(t), &counts{}
	cfg.Metrics, cfg.InFlight = seen, 2
	s := opened(t, cfg)
	var ops []sinks.Op
	for range 50 {
		ops = append(ops, sinks.PutMessage{Message: message(fresh(t, "flight"), time.Now(), 1)})
	}
	apply(t, s, ops...)
	seen.mu.Lock()
	defer seen.mu.Unlock()
	if seen.most != 2 || seen.inFlight != 0 {
		t.Errorf("at most %d were in flight, and %d at the end; want 2 and 0", seen.most, seen.inFlight)
	}
}
