package cassandra

import (
	"net"
	"testing"
	"time"

	"github.com/restante/restante/sinks"
)

// TestEachKindOfRequestSaysWhichServerWasAsked.
func TestEachKindOfRequestSaysWhichServerWasAsked(t *testing.T) {
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
	for _, r := range Requests() {
		if got := seen.servers[r]; got != host {
			t.Errorf("%s: server %q, want %s", r, got, host)
		}
	}
}
