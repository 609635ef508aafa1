package exhook_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/pipeline"
)

func rule(t *testing.T, h pipeline.Hook, a pipeline.Action, topic string) pipeline.Rule {
	t.Helper()
	r := pipeline.Rule{Hook: h, Action: a, Sink: "s"}
	if topic != "" {
		f, err := event.ParseFilter(topic)
		if err != nil {
			t.Fatal(err)
		}
		r.Topic = f
	}
	return r
}

func TestNeedsAsksForWhatTheRulesUseAndNoMore(t *testing.T) {
	t.Parallel()
	session := func(more ...exhook.Hook) []exhook.Hook {
		return append([]exhook.Hook{
			{Name: pipeline.ClientConnected},
			{Name: pipeline.ClientDisconnected},
			{Name: pipeline.SessionSubscribed},
			{Name: pipeline.SessionUnsubscribed},
		}, more...)
	}
	tests := map[string]struct {
		rules []pipeline.Rule
		want  []exhook.Hook
	}{
		"no rules need nothing": {},
		"a whole action needs its three events and what ends a replay": {
			[]pipeline.Rule{rule(t, "", pipeline.SaveOfflineMessages, "t/#")},
			session(exhook.Hook{Name: pipeline.MessagePublish, Topics: []string{"t/#"}}, exhook.Hook{Name: pipeline.MessageAcked, Topics: []string{"t/#"}}),
		},
		"message hooks carry the filters of their rules, each once and in order": {
			[]pipeline.Rule{
				rule(t, pipeline.MessagePublish, pipeline.OnMessageStore, "log/#"),
				rule(t, pipeline.MessagePublish, pipeline.OnMessagePublish, "a/+"),
				rule(t, pipeline.MessagePublish, pipeline.OnMessageRetain, "log/#"),
			},
			[]exhook.Hook{{Name: pipeline.MessagePublish, Topics: []string{"a/+", "log/#"}}},
		},
		"a history alone needs publishes only": {
			[]pipeline.Rule{rule(t, pipeline.MessagePublish, pipeline.OnMessageStore, "#")},
			[]exhook.Hook{{Name: pipeline.MessagePublish, Topics: []string{"#"}}},
		},
		"client rows need both ends of a connection": {
			[]pipeline.Rule{
				rule(t, pipeline.ClientDisconnected, pipeline.OnClientDisconnected, ""),
				rule(t, pipeline.ClientConnected, pipeline.OnClientConnected, ""),
			},
			[]exhook.Hook{{Name: pipeline.ClientConnected}, {Name: pipeline.ClientDisconnected}},
		},
		"a created session is told by the connection": {
			[]pipeline.Rule{rule(t, pipeline.SessionCreated, pipeline.OnSubscribeLookup, "")},
			[]exhook.Hook{{Name: pipeline.ClientConnected}},
		},
		"stored subscriptions need no message": {
			[]pipeline.Rule{
				rule(t, pipeline.SessionSubscribed, pipeline.OnSubscribeStore, "#"),
				rule(t, pipeline.SessionUnsubscribed, pipeline.OnUnsubscribeDelete, "#"),
			},
			[]exhook.Hook{{Name: pipeline.SessionSubscribed}, {Name: pipeline.SessionUnsubscribed}},
		},
		"a fetch at a connection follows its subscriptions too": {
			[]pipeline.Rule{rule(t, pipeline.ClientConnected, pipeline.OnMessageFetchForQueue, "t/#")}, session(),
		},
		"a retained lookup follows its client": {
			[]pipeline.Rule{rule(t, pipeline.SessionSubscribed, pipeline.OnRetainLookup, "t/#")}, session(),
		},
		"a position that is forgotten needs its unsubscribe only": {
			[]pipeline.Rule{rule(t, pipeline.SessionUnsubscribed, pipeline.OnAckedDelete, "t/#")},
			[]exhook.Hook{{Name: pipeline.SessionUnsubscribed}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, exhook.Needs(tc.rules)); diff != "" {
				t.Errorf("Needs differs (-want +got):\n%s", diff)
			}
		})
	}
}

// Every event that some rule wants comes from a hook that is asked for.
func TestNeedsLeavesNoRuleBlind(t *testing.T) {
	t.Parallel()
	for _, h := range []pipeline.Hook{
		pipeline.ClientConnected, pipeline.ClientDisconnected, pipeline.SessionSubscribed, pipeline.SessionUnsubscribed,
		pipeline.MessagePublish, pipeline.MessageAcked,
	} {
		got := exhook.Needs([]pipeline.Rule{rule(t, h, "any", "x/#")})
		if len(got) != 1 || got[0].Name != h {
			t.Errorf("a rule on %s asks for %v", h, got)
		}
	}
}

func TestBrokerIsToldWhichHooksToCall(t *testing.T) {
	t.Parallel()
	hooks := exhook.Needs([]pipeline.Rule{rule(t, "", pipeline.SaveOfflineMessages, "t/#"), rule(t, pipeline.MessagePublish, pipeline.OnMessageStore, "log/+")})
	b := dial(t, serve(t, exhook.Config{Hooks: hooks}, &sourcetest.Journal{}), nil)
	for _, service := range exhook.Services {
		answer, err := b.call(service, "OnProviderLoaded", encode(t, "OnProviderLoaded", obj{"broker": obj{"version": "5.8.9", "uptime": uint64(17)}}))
		if err != nil {
			t.Fatal(err)
		}
		var got exhookpb.LoadedResponse
		if err := proto.Unmarshal(answer, &got); err != nil {
			t.Fatal(err)
		}
		want := map[string][]string{
			"client.connected": nil, "client.disconnected": nil, "session.subscribed": nil, "session.unsubscribed": nil,
			"message.publish": {"log/+", "t/#"}, "message.acked": {"t/#"},
		}
		have := map[string][]string{}
		for _, h := range got.GetHooks() {
			have[h.GetName()] = h.GetTopics()
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: hooks differ (-want +got):\n%s", service, diff)
		}
	}
}
