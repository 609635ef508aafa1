package pipeline

import "github.com/restante/restante/event"

// Fetch is what one fetching rule does for a subscribe.
type Fetch struct {
	Action Action
	Sink   string
	Topic  event.Filter // the rule's
	Replay Replay       // the zero one where it does nothing
	// Skipped is why it does nothing: one of the Skip constants, or "".
	Skipped string
}

// Fetches are the fetching rules that a subscribe concerns, in their order.
func (r *Rules) Fetches(e event.Subscribed) []Fetch {
	var all []Fetch
	for _, c := range r.rules {
		if c.Hook != SessionSubscribed || c.Action == OnSubscribeStore || !c.Topic.Overlaps(e.Filter) {
			continue
		}
		f := Fetch{Action: c.Action, Sink: c.Sink, Topic: c.Topic, Skipped: SkipIgnoredClient}
		if !r.Own(e.Client) {
			f.Replay, f.Skipped = r.replay(c, e.Client, e.Filter, e.QoS)
		}
		if f.Skipped == "" && f.Replay.Mode == Retained && !wantsRetained(e) {
			f.Replay, f.Skipped = Replay{}, SkipRetain
		}
		all = append(all, f)
	}
	return all
}

// Excluded is why a stored topic is none of a replay's.
type Excluded string

// The reasons.
const (
	ExcludedFilter    Excluded = "filter"     // the subscription does not match it
	ExcludedRule      Excluded = "rule"       // the rule's filter does not match it
	ExcludedAddressee Excluded = "addressee"  // it is for another client
	ExcludedUnstored  Excluded = "not_stored" // no rule of the sink stores its messages as pending
)

// replay is what a fetching rule does for a subscription, or why it does nothing.
func (r *Rules) replay(c compiled, client event.ClientID, f event.Filter, qos event.QoS) (Replay, string) {
	mode := map[Action]Mode{OnMessageFetchForQueue: Queue, OnMessageFetchForPubsub: Pubsub, OnRetainLookup: Retained}[c.Action]
	_, exact := f.Exact()
	switch {
	case f.Group() != "":
		return Replay{}, SkipShared
	case !exact && mode != Retained && !c.replaysWildcards():
		return Replay{}, SkipWildcard
	case qos == 0 && mode != Retained && r.qos0 != QoS0Repeat && r.qos0 != QoS0Once,
		qos == 0 && r.qos0 == QoS0Repeat && c.Hook == ClientConnected: // that repeats at subscribes
		return Replay{}, SkipQoS0
	}
	rule, sink, who := c.Topic, c.Sink, c.addressee
	excludes := func(t event.Topic) Excluded {
		switch {
		case !f.Match(t):
			return ExcludedFilter
		case !rule.IsZero() && !rule.Match(t):
			return ExcludedRule
		case !who.is(t, client):
			return ExcludedAddressee
		case mode != Retained && !r.pending(sink, t):
			return ExcludedUnstored
		}
		return ""
	}
	return Replay{
		Mode: mode, Sink: sink, Rule: c.name(), Client: client, Filter: f, QoS: qos, MaxReturned: c.MaxReturned, TimeRange: c.TimeRange,
		Within: c.Topic, First: c.First,
		Once:     qos == 0 && mode == Queue && r.qos0 == QoS0Once,
		Excludes: excludes,
	}, ""
}

// wantsRetained is the retain handling of a subscribe (MQTT 5.0 §3.3.1.3): at 1 retained messages are for new subscriptions only, at 2
// for none. Where the source does not tell whether a subscription is new, it counts as new: a message too many does no harm.
func wantsRetained(e event.Subscribed) bool {
	if e.Options == nil {
		return true
	}
	switch e.Options.RetainHandling {
	case 1:
		return e.New != event.No
	case 2:
		return false
	}
	return true
}
