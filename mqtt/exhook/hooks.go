package exhook

import (
	"slices"

	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
	"github.com/restante/restante/pipeline"
)

// Hook is what the broker is asked to call us for.
type Hook struct {
	Name pipeline.Hook
	// Topics are filters of the topics that a message hook is called for; none = all. The broker ignores them for other hooks.
	Topics []string
}

// Needs are the hooks that the rules need, in a fixed order. Each hook costs the broker a blocking call for every event of it, so
// what no rule uses is not asked for, and message hooks only for the topics of their rules.
func Needs(rules []pipeline.Rule) []Hook {
	topics := map[pipeline.Hook][]string{}
	need := func(h pipeline.Hook) {
		if _, ok := topics[h]; !ok {
			topics[h] = nil
		}
	}
	for _, rule := range rules {
		for _, r := range rule.Expand() {
			switch r.Hook {
			case pipeline.MessagePublish, pipeline.MessageAcked:
				topics[r.Hook] = append(topics[r.Hook], r.Topic.String())
			case pipeline.SessionCreated: // a connection tells of it: the order of the broker's own two hooks varies
				need(pipeline.ClientConnected)
			case pipeline.ClientConnected, pipeline.ClientDisconnected, pipeline.SessionSubscribed, pipeline.SessionUnsubscribed:
				need(r.Hook)
			}
			switch r.Action { //nolint:exhaustive // those that start a replay
			case pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub, pipeline.OnRetainLookup:
				// A replay begins with a subscribe, and ends early with an unsubscribe, a disconnect or a new connection.
				need(pipeline.SessionSubscribed)
				need(pipeline.SessionUnsubscribed)
				need(pipeline.ClientConnected)
				need(pipeline.ClientDisconnected)
			}
		}
	}
	return inOrder(topics)
}

func inOrder(topics map[pipeline.Hook][]string) []Hook {
	var out []Hook
	for _, h := range []pipeline.Hook{
		pipeline.ClientConnected, pipeline.ClientDisconnected, pipeline.SessionSubscribed, pipeline.SessionUnsubscribed,
		pipeline.MessagePublish, pipeline.MessageAcked,
	} {
		if t, ok := topics[h]; ok {
			slices.Sort(t)
			out = append(out, Hook{Name: h, Topics: slices.Compact(t)})
		}
	}
	return out
}

// withEnvelopes adds the topics of envelopes to message.publish, and to message.acked those that replays are delivered on, where
// they have topics of their own. A hook that is there for all topics stays so.
func withEnvelopes(hooks []Hook, delivered mqtt.Template) []Hook {
	topics := map[pipeline.Hook][]string{}
	for _, h := range hooks {
		topics[h.Name] = slices.Clone(h.Topics)
	}
	add := func(h pipeline.Hook, filter string) {
		if have, ok := topics[h]; !ok || len(have) > 0 {
			topics[h] = append(have, filter)
		}
	}
	add(pipeline.MessagePublish, mqtt.EnvelopePrefix+"#")
	if !delivered.IsZero() {
		add(pipeline.MessageAcked, delivered.Filter().String())
	}
	return inOrder(topics)
}

// loaded is the answer that registers the hooks.
func loaded(hooks []Hook) *exhookpb.LoadedResponse {
	out := &exhookpb.LoadedResponse{}
	for _, h := range hooks {
		out.Hooks = append(out.Hooks, &exhookpb.HookSpec{Name: string(h.Name), Topics: h.Topics})
	}
	return out
}
