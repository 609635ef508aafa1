package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/mqtt/mqtttest"
)

// look runs a command of restante that only looks and reads its JSON.
func (w *world) look(into any, args ...string) {
	w.t.Helper()
	code, out := w.restante(append(args, "-o", "json", "-c", w.config("restante"))...)
	if err := json.Unmarshal([]byte(out), into); err != nil || code != 0 {
		w.t.Fatalf("%q: exit code %d, %v:\n%s", args, code, err, out)
	}
}

// TestWhatIsExplainedBesideRunningProcessesIsReplayed: in queue mode out of Cassandra, in pub/sub out of DynamoDB, and a look changes
// not a row of either.
func TestWhatIsExplainedBesideRunningProcessesIsReplayed(t *testing.T) {
	t.Parallel()
	cassandra, dynamodb := stack.Shared(t, stack.Cassandra), stack.Shared(t, stack.DynamoDB)
	w := newWorld(t, "")
	w.cassandra("wide", cassandra, w.name, "")
	w.dynamodb("dynamo", dynamodb, w.name+"_", "")
	w.rules += `
  - {topic: "q/#", action: save_offline_messages, sink: wide, wildcards: true}
  - {on: message.publish, topic: "p/#", do: on_message_publish, sink: dynamo}
  - {on: session.subscribed, topic: "p/#", do: on_message_fetch_for_pubsub, sink: dynamo, first_subscribe: all}
  - {on: message.acked, topic: "p/#", do: on_message_acked_for_pubsub, sink: dynamo}`
	plain := w.configure
	w.configure = func(admin string) string { return strings.Replace(plain(admin), "to: topic", "to: prefix", 1) }
	w.migrate()
	looks := map[string]plainStore{"wide": lookCassandra(t, cassandra, w.name), "dynamo": lookDynamoDB(dynamodb, w.name+"_")}
	w.startAll("ingest", "writer", "replayer")
	for _, topic := range []string{"q/1", "q/2", "p/1", "p/2"} {
		e2etest.Publish(t, w.broker, topic, topic+" one", topic+" two", topic+" three")
	}
	w.awaitCommitted("wide")
	w.awaitCommitted("dynamo")
	dumps := func() map[string]map[string][]string {
		out := map[string]map[string][]string{}
		for sink, l := range looks {
			d, err := l.dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			out[sink] = d
		}
		return out
	}
	before := dumps()
	type explanation struct {
		Complete      bool
		Subscriptions []struct {
			Known string `json:"known_by"`
			Rules []struct {
				Sink     string
				Messages int
				First    bool
				LeftOut  map[string]int `json:"left_out"`
				Topics   []struct {
					Topic    string
					Messages int
				}
			}
		}
	}
	explained := func(client, filter string) (topics, left map[string]int) {
		t.Helper()
		var x explanation
		w.look(&x, "explain", client, "--filter", filter)
		topics = map[string]int{}
		for _, r := range x.Subscriptions[0].Rules {
			left = r.LeftOut
			for _, one := range r.Topics {
				if one.Messages > 0 {
					topics[one.Topic] = one.Messages
				}
			}
		}
		return topics, left
	}
	for _, f := range []string{"q", "p"} {
		want := map[string]int{f + "/1": 3, f + "/2": 3}
		got, _ := explained("device", f+"/#")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s/# (-want +got):\n%s", f, diff)
		}
	}
	if diff := cmp.Diff(before, dumps()); diff != "" {
		t.Errorf("a look changed the stores:\n%s", diff)
	}

	c := w.comes(mqtttest.Options{ID: "device"}, "q/#", "p/#")
	got := e2etest.Receive(t, c, 12)
	c.Disconnect()
	sent := map[string]int{}
	for _, m := range got {
		sent[strings.TrimPrefix(m.Topic, "offline/device/")]++
	}
	if diff := cmp.Diff(map[string]int{"q/1": 3, "q/2": 3, "p/1": 3, "p/2": 3}, sent); diff != "" {
		t.Errorf("replayed, which had been explained (-want +got):\n%s", diff)
	}
	left := map[string]map[string]int{}
	e2etest.Await(t, "nothing is explained any more", func() bool {
		open := 0
		for _, f := range []string{"q", "p"} {
			var topics map[string]int
			topics, left[f] = explained("device", f+"/#")
			open += len(topics)
		}
		return open == 0
	})
	if n := left["p"]["position"] + left["p"]["acked"]; n != 6 {
		t.Errorf("left out of pub/sub: %v, want 6 behind the position or acknowledged", left["p"])
	}
	if topics, _ := explained("another", "p/#"); len(topics) != 2 {
		t.Errorf("another client would get %v, want all six", topics)
	}
	var traced struct {
		Lines []struct{ What, Sink string }
	}
	w.look(&traced, "trace", got[0].User("offline-msgid"))
	var kinds []string
	for _, l := range traced.Lines {
		kinds = append(kinds, l.What+" "+l.Sink)
	}
	last := map[bool]string{true: "not stored", false: "stored"}
	queue := strings.Contains(got[0].Topic, "q/")
	want := []string{"published ", "replay acked ", last[queue] + " dynamo", last[true] + " wide"}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("traced (-want +got):\n%s", diff)
	}
	var held struct {
		Sinks []struct {
			Sink     string
			Messages int
		}
	}
	w.look(&held, "inspect", "topic", "p/1")
	if len(held.Sinks) != 2 || held.Sinks[0].Messages != 3 || held.Sinks[1].Messages != 0 {
		t.Errorf("inspected: %+v", held)
	}
}
