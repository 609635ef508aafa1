package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/restante/restante/internal/e2e/e2etest"
)

func TestThreeProcessesTellTheStory(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	all := s.startAll("ingest", "writer", "replayer")

	e2etest.Publish(t, s.broker, "t/1", "one", "two", "three")
	e2etest.AwaitRows(t, s.database, 3)
	columns, _ := e2etest.Table(t, s.database, "mqtt_msg")
	if diff := cmp.Diff([]string{"topic", "msgid", "arrived", "payload", "qos", "retain", "sender"}, columns); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}

	c := e2etest.Subscribe(t, s.broker, "device-1", "t/1")
	got := e2etest.Receive(t, c, 3)
	if diff := cmp.Diff([]string{"one", "two", "three"}, e2etest.Payloads(got)); diff != "" {
		t.Errorf("replay (-want +got):\n%s", diff)
	}
	if err := e2etest.Replays(got); err != nil {
		t.Error(err)
	}
	for i, want := range []string{"2", "1", "0"} {
		if m := got[i]; m.User("offline-remaining") != want || m.User("offline-clientid") != "device-1" || m.User("offline-mac") == "" || m.QoS != 1 || m.Retain {
			t.Errorf("message %d: %+v", i, m)
		}
	}
	e2etest.Quiet(t, c, 500*time.Millisecond)
	e2etest.AwaitRows(t, s.database, 0)
	c.Disconnect()

	e2etest.Publish(t, s.broker, "t/2", "for two")
	e2etest.Publish(t, s.broker, "t/3/x", "for three")
	c = e2etest.Subscribe(t, s.broker, "device-2", "t/#")
	got = e2etest.Receive(t, c, 2)
	if diff := cmp.Diff([]string{"for two", "for three"}, e2etest.Payloads(got), cmpopts.SortSlices(func(a, b string) bool { return a < b })); diff != "" {
		t.Errorf("wildcard (-want +got):\n%s", diff)
	}
	e2etest.AwaitRows(t, s.database, 0)

	e2etest.Publish(t, s.broker, "t/4", "live")
	got = e2etest.Receive(t, c, 1)
	if m := got[0]; string(m.Payload) != "live" || m.User("offline-msgid") != "" {
		t.Errorf("live: %+v", m)
	}
	e2etest.Quiet(t, c, time.Second)
	late := e2etest.Subscribe(t, s.broker, "device-3", "t/4")
	e2etest.Quiet(t, late, time.Second)
	e2etest.AwaitRows(t, s.database, 0)

	want := map[string][]string{"t/1": {"one", "two", "three"}, "t/2": {"for two"}, "t/3/x": {"for three"}, "t/4": {"live"}}
	if diff := cmp.Diff(want, published(s.records("mqtt.messages"))); diff != "" {
		t.Errorf("publishes in Kafka (-want +got):\n%s", diff)
	}
	for _, name := range []string{"replayer", "writer", "ingest"} {
		all[name].Stop()
	}
}

// The load goes on while each process is ended and killed and started again; a device comes and goes.
func TestThreeProcessesLoseNothingWhenEachIsEndedAndKilled(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	all := s.startAll("ingest", "writer", "replayer")
	load := e2etest.StartLoad(t, s.broker, "t/load/%d", 3, 5*time.Millisecond)
	visitor := e2etest.StartVisitor(t, s.broker, "visitor", "t/load/#")
	progress := func(n int) {
		t.Helper()
		before := load.Acked()
		e2etest.Await(t, fmt.Sprintf("%d more PUBACKs", n), func() bool { return load.Acked() >= before+n })
	}
	progress(50)
	for _, name := range []string{"writer", "replayer", "ingest"} {
		all[name].Stop()
		if name != "ingest" {
			progress(30)
		}
		all[name] = s.begin(name)
		progress(30)
	}
	for _, name := range []string{"replayer", "writer", "ingest"} {
		all[name].Kill()
		if name != "ingest" {
			progress(30)
		}
		all[name] = s.begin(name)
		progress(30)
	}
	for name := range all {
		e2etest.AwaitReady(t, s.admin[name])
	}
	acked := load.Stop()
	had := visitor.Stop()
	left := map[string]bool{}
	for p := range acked {
		if !had[p] {
			left[p] = true
		}
	}
	t.Logf("%d messages had their PUBACK, %d reached the visitor, %d were left", len(acked), len(had), len(left))
	e2etest.AwaitAll(t, s.broker, "last", "t/load/#", left)
	e2etest.AwaitRows(t, s.database, 0) // what was acked is gone
	for _, name := range []string{"replayer", "writer", "ingest"} {
		all[name].Stop()
	}
}
