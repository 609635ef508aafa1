package pipeline_test

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/sinktest"
)

var pageRow = regexp.MustCompile("(?m)^\\| \\[`(on_\\w+)`\\]\\(#\\w+\\) \\| (.*?) \\| (\\w+) \\|")

// onHook plans for an event of the hook by one rule alone.
func onHook(t *testing.T, h pipeline.Hook, a pipeline.Action, change func(event.Event) event.Event) pipeline.Plan {
	t.Helper()
	m := sinktest.PageMessage("t/1", 1)
	head := event.Head{ID: event.FirstIDAt(m.Arrived.Add(time.Second)), At: m.Arrived}
	filter := eventtest.Filter(t, "t/#")
	events := map[pipeline.Hook]event.Event{
		pipeline.ClientConnected:     event.Connected{Head: head, Client: "dev1"},
		pipeline.SessionCreated:      event.Connected{Head: head, Client: "dev1"},
		pipeline.ClientDisconnected:  event.Disconnected{Head: head, Client: "dev1"},
		pipeline.SessionSubscribed:   event.Subscribed{Head: head, Client: "dev1", Filter: filter, QoS: 1},
		pipeline.SessionUnsubscribed: event.Unsubscribed{Head: head, Client: "dev1", Filter: filter},
		pipeline.MessagePublish:      event.Published{Head: event.Head{ID: m.ID, At: m.Arrived}, Topic: m.Topic, QoS: 1, Payload: m.Payload},
		pipeline.MessageAcked:        event.Acked{Head: head, Topic: m.Topic, Client: "dev1", Message: m.ID},
	}
	r := pipeline.Rule{Hook: h, Action: a, Sink: "s"}
	if h != pipeline.ClientConnected && h != pipeline.ClientDisconnected && h != pipeline.SessionCreated {
		r.Topic = filter
	}
	e := events[h]
	if change != nil {
		e = change(e)
	}
	return compile(t, r).Plan(e)
}

// retained makes a publish one that the actions on retained messages are about.
func retained(a pipeline.Action) func(event.Event) event.Event {
	return func(e event.Event) event.Event {
		p, ok := e.(event.Published)
		if !ok || a != pipeline.OnMessageRetain && a != pipeline.OnRetainDelete {
			return e
		}
		p.Retain = true
		if a == pipeline.OnRetainDelete {
			p.Payload = []byte{}
		}
		return p
	}
}

func TestThePageOnActionsListsEachWithItsHooksAndItsProcess(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/actions.md")
	if err != nil {
		t.Fatal(err)
	}
	got, want := map[string]string{}, map[string]string{}
	for _, m := range pageRow.FindAllStringSubmatch(string(b), -1) {
		got[m[1]] = m[2] + ", " + m[3]
	}
	for a, hooks := range pipeline.HooksOf {
		hooks = slices.DeleteFunc(slices.Clone(hooks), func(h pipeline.Hook) bool {
			return pipeline.Rule{Hook: h, Action: a}.Unsupported() != ""
		})
		if len(hooks) == 0 {
			continue
		}
		var names []string
		process := "replayer"
		for _, h := range hooks {
			names = append(names, "`"+string(h)+"`")
			if len(onHook(t, h, a, retained(a)).Ops) > 0 {
				process = "writer"
			}
		}
		want[string(a)] = strings.Join(names, ", ") + ", " + process
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/actions.md (-true +shown):\n%s", d)
	}
}

// What the stores' tests take for an action is what the rules plan for it.
func TestTheActionsOfThePageAreThoseThatArePlanned(t *testing.T) {
	t.Parallel()
	kinds := func(ops any) string { return fmt.Sprintf("%T", ops) }
	shown := map[string]bool{}
	for _, a := range sinktest.Actions() {
		hooks := pipeline.HooksOf[pipeline.Action(a.Name)]
		if len(hooks) == 0 {
			continue // about several
		}
		shown[a.Name] = true
		var got, want []string
		plan := onHook(t, hooks[0], pipeline.Action(a.Name), retained(pipeline.Action(a.Name)))
		for _, o := range plan.Ops {
			got = append(got, kinds(o))
		}
		for range plan.Positions { // the replayer makes rows of them
			got = append(got, kinds(sinks.PutAcked{}))
		}
		for range plan.Forgets {
			got = append(got, kinds(sinks.DeleteAcked{}))
		}
		for _, o := range a.Ops {
			want = append(want, kinds(o))
		}
		if d := cmp.Diff(want, got); d != "" && a.Read == nil {
			t.Errorf("%s (-on the page +planned):\n%s", a.Name, d)
		}
		if a.Read != nil && len(got) > 0 {
			t.Errorf("%s is planned to write %v, and the page shows that it reads", a.Name, got)
		}
	}
	for _, a := range slices.Sorted(maps.Keys(pipeline.HooksOf)) {
		if !shown[string(a)] && (pipeline.Rule{Hook: pipeline.HooksOf[a][0], Action: a}).Unsupported() == "" {
			t.Errorf("the page shows nothing of %s", a)
		}
	}
}
