package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	realstack "github.com/restante/restante/internal/stack"
)

// Everything in one process, beside a broker that is not in it: replays go out over MQTT and come back to the source, which must know
// them by the key that up has made for itself.
func TestUpBesideARealMosquittoKnowsItsOwnReplays(t *testing.T) {
	t.Parallel()
	for _, evidence := range []string{"puback", "app"} {
		t.Run(evidence, func(t *testing.T) {
			t.Parallel()
			addr := realstack.Mosquitto(t, "log_dest topic\nlog_type notice\nlog_type subscribe\nlog_type unsubscribe")
			s := startUp(t, t.TempDir(), "-c", writeConfig(t, fmt.Sprintf(`
sources: {plant: {type: mqtt, url: "mqtt://%[1]s", decode: mosquitto, filters: "t/#"}}
replayer: {settle: 1s}
delivery: {to: topic, evidence: %[2]s, mqtt: {url: "mqtt://%[1]s"}}
`, addr, evidence)))
			e2etest.AwaitReady(t, s.at.Admin)
			e2etest.Publish(t, addr, "t/1", "one", "two")
			e2etest.AwaitRows(t, s.at.database(), 2)
			c := e2etest.Subscribe(t, addr, "device", "t/1")
			got := e2etest.Receive(t, c, 2)
			if diff := cmp.Diff([]string{"one", "two"}, e2etest.Payloads(got)); diff != "" {
				t.Errorf("replay (-want +got):\n%s", diff)
			}
			for _, m := range got {
				if evidence == "app" {
					e2etest.Send(t, c, m.Properties.ResponseTopic, string(m.Properties.CorrelationData))
				}
			}
			e2etest.AwaitRows(t, s.at.database(), 0)
			e2etest.Quiet(t, c, 2*time.Second)
			if n := e2etest.Metric(t, s.at.Admin, "restante_mqtt_events_total", `kind="replay"`); n != 2 {
				t.Errorf("%v replays were recognised, want 2", n)
			}
			e2etest.AwaitRows(t, s.at.database(), 0)
		})
	}
}
