package pipeline

import (
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// Plan is what one event leads to on one sink. It is a pure function of the rules and the event.
type Plan struct {
	// Ops are for the writer. A row may stand more than once; see [sinks.Coalesce].
	Ops []sinks.Op
	// Elidable says that a PutMessage or DeleteMessage among Ops may annihilate with its counterpart (DESIGN §6): all rules of
	// the topic are queue mode.
	Elidable bool
	// Replays are for the replayer.
	Replays []Replay
	// Positions, Forgets and Resubscribes are for the replayer too: pub/sub positions that move or go, and clients whose
	// stored subscriptions are to be restored.
	Positions    []Position
	Forgets      []Forget
	Resubscribes []Resubscribe
	// CatchUps are for the replayer: replays of a client's stored subscriptions, because its session was resumed.
	CatchUps []CatchUp
	// Skipped is why nothing came of an event that a rule selects: one of the Skip constants, or "".
	Skipped string
}

// Why an event that a rule selects leads to nothing.
const (
	SkipQoS0          = "qos0"
	SkipIgnoredClient = "ignored_client"
	SkipUnsupported   = "unsupported"
	SkipUnknownAlias  = "unknown_alias"
	SkipNotAddressee  = "not_addressee"
	SkipWildcard      = "wildcard"
	SkipShared        = "shared"
	SkipRetain        = "retain_handling"
	SkipNotNew        = "not_new"     // the subscription was there already
	SkipNewSession    = "new_session" // nothing of it can be un-acked
)

// Skips are all values of Plan.Skipped, for metrics.
var Skips = []string{SkipQoS0, SkipIgnoredClient, SkipUnsupported, SkipUnknownAlias, SkipNotAddressee, SkipWildcard, SkipShared, SkipRetain, SkipNotNew, SkipNewSession}

// Mode is how a replay decides what is pending.
type Mode string

// The modes.
const (
	Queue    Mode = "queue"
	Pubsub   Mode = "pubsub"
	Retained Mode = "retained"
)

// Replay asks for the stored messages of one subscribe under one rule.
type Replay struct {
	Mode   Mode
	Sink   string
	Rule   string // the rule's name, the same in whichever place it stands: part of the job's key
	Client event.ClientID
	Filter event.Filter
	QoS    event.QoS // granted
	// Once says that what the broker takes counts as acknowledged, although it is sent at QoS 0.
	Once bool
	// Excludes says why [Replay.Selects] is false of a topic, "" where it is true.
	Excludes func(event.Topic) Excluded
	// Within is the rule's own filter, and First how much a client gets at its first subscribe; see [Rule].
	Within      event.Filter
	First       time.Duration
	MaxReturned int
	TimeRange   time.Duration
}

// Selects reports whether a stored topic belongs to the replay: it matches the subscription and the rule, is stored as pending by some
// rule of the sink, and is addressed to the client.
func (r Replay) Selects(t event.Topic) bool { return r.Excludes(t) == "" }

// CatchUp asks for the replays of what is still un-acked of a client's stored subscriptions, a while after its session was resumed.
type CatchUp struct {
	Sink  string
	Rule  string // the rule's name
	Delay time.Duration
	// Written says that rules of the sink write subscriptions.
	Written bool
	// Replay is what a stored subscription asks for, or why it asks for nothing: one of the Skip constants. The zero Replay and "" =
	// it is of no interest to the rule.
	Replay func(sinks.Sub) (Replay, string)
}

// Position moves a client's pub/sub position of a topic.
type Position struct {
	Sink    string
	Client  event.ClientID
	Topic   event.Topic
	Message event.ID
	Stamp   int64 // µs
}

// Forget removes a client's positions for a filter.
type Forget struct {
	Sink   string
	Client event.ClientID
	Filter event.Filter
	Stamp  int64 // µs
}

// Resubscribe restores a client's stored subscriptions.
type Resubscribe struct {
	Sink   string
	Client event.ClientID
	// Written says that rules of the sink write subscriptions, so that its writers may have some of the client still to store.
	Written bool
}

// Planner turns an event into its plan. It is pure and safe for concurrent use.
type Planner func(event.Event) Plan

// ForSink returns the planner of one sink.
func (r *Rules) ForSink(sink string) Planner {
	sub := &Rules{own: r.own, qos0: r.qos0}
	for _, c := range r.rules {
		if c.Sink == sink {
			sub.rules = append(sub.rules, c)
		}
	}
	return sub.Plan
}

// Wants reports whether some rule on some sink has use for the event. Session events are always wanted: the replayer follows
// clients by them.
func (r *Rules) Wants(e event.Event) bool {
	switch e := e.(type) {
	case event.Published:
		return r.any(MessagePublish, e.Topic, func(a Action) bool {
			switch a { //nolint:exhaustive // the actions of message.publish
			case OnMessagePublish:
				return e.QoS > 0
			case OnMessageRetain, OnRetainDelete:
				return e.Retain
			}
			return true
		})
	case event.Acked:
		return e.Replayed || r.any(MessageAcked, e.Topic, func(Action) bool { return true })
	case event.Replayed, event.Dropped, event.Subscribed, event.Unsubscribed, event.Connected, event.Disconnected, event.ReplayContinued:
		return true
	}
	return false
}

// leavesOut reports whether the event is a publish that a rule would store at another QoS.
func (r *Rules) leavesOut(e event.Event) bool {
	p, ok := e.(event.Published)
	return ok && p.QoS == 0 && r.any(MessagePublish, p.Topic, func(a Action) bool { return a == OnMessagePublish })
}

// LooksUpRetained reports whether retained messages are looked up on the sink.
func (r *Rules) LooksUpRetained(sink string) bool {
	return slices.ContainsFunc(r.rules, func(c compiled) bool { return c.Sink == sink && c.Action == OnRetainLookup })
}

// Watches reports whether the replayer must see the ack of a live message on the topic: it moves a pub/sub position.
func (r *Rules) Watches(t event.Topic) bool {
	return r.any(MessageAcked, t, isPubsub)
}

func (r *Rules) any(h Hook, t event.Topic, ok func(Action) bool) bool {
	for _, c := range r.rules {
		if c.Hook == h && c.Topic.Match(t) && ok(c.Action) {
			return true
		}
	}
	return false
}

// Plan is the planner of all sinks together.
func (r *Rules) Plan(e event.Event) Plan {
	switch e := e.(type) {
	case event.Published:
		return r.published(e)
	case event.Acked:
		return r.acked(e)
	case event.Subscribed:
		return r.subscribed(e)
	case event.ReplayContinued:
		return r.continued(e)
	case event.Unsubscribed:
		return r.unsubscribed(e)
	case event.Connected:
		return r.connected(e)
	case event.Disconnected:
		return r.disconnected(e)
	case event.Dropped:
		return r.dropped(e)
	case event.Replayed:
		return Plan{}
	}
	return Plan{}
}

func (r *Rules) published(e event.Published) Plan {
	p := Plan{Elidable: true}
	for _, c := range r.rules {
		if isPubsub(c.Action) && c.Topic.Match(e.Topic) {
			p.Elidable = false
		}
		if c.Hook != MessagePublish || !c.Topic.Match(e.Topic) {
			continue
		}
		gone := e.Retain && len(e.Payload) == 0
		switch c.Action { //nolint:exhaustive // the actions of message.publish
		case OnMessagePublish:
			switch {
			case gone:
			case e.QoS == 0:
				p.Skipped = SkipQoS0
			default:
				p.Ops = append(p.Ops, sinks.PutMessage{Message: c.message(e)})
			}
		case OnMessageStore:
			p.Elidable = false
			p.Ops = append(p.Ops, sinks.PutMessage{Message: c.message(e), History: true})
		case OnMessageRetain:
			if e.Retain && !gone {
				p.Ops = append(p.Ops, sinks.PutRetained{Message: c.message(e)})
			}
		case OnRetainDelete:
			if gone {
				p.Ops = append(p.Ops, sinks.DeleteRetained{Topic: e.Topic, Stamp: e.ID.Micros()})
			}
		}
	}
	if len(p.Ops) > 0 {
		p.Skipped = ""
	}
	return p
}

func (c compiled) message(e event.Published) sinks.Message {
	m := sinks.Message{
		ID: e.ID, Topic: e.Topic, Sender: e.Sender, QoS: e.QoS, Retain: e.Retain, Payload: e.Payload, Arrived: e.At,
		Properties: e.Properties,
	}
	if c.TTL > 0 {
		m.Expires = e.ID.Time().Add(c.TTL)
	}
	if e.Expiry > 0 {
		if x := e.At.Add(e.Expiry); m.Expires.IsZero() || x.Before(m.Expires) {
			m.Expires = x
		}
	}
	return m
}

func (r *Rules) acked(e event.Acked) Plan {
	p := Plan{Elidable: true}
	for _, c := range r.rules {
		if (isPubsub(c.Action) || c.Action == OnMessageStore) && c.Topic.Match(e.Topic) {
			p.Elidable = false
		}
		if c.Hook != MessageAcked || !c.Topic.Match(e.Topic) {
			continue
		}
		switch {
		case e.Message.IsZero():
			p.Skipped = SkipUnsupported
			continue
		case r.Own(e.Client) || c.ignores(e.Client):
			p.Skipped = SkipIgnoredClient
			continue
		case !c.addressee.is(e.Topic, e.Client):
			p.Skipped = SkipNotAddressee
			continue
		}
		switch c.Action { //nolint:exhaustive // the actions of message.acked
		case OnMessageAckedForQueue:
			t := e.Message.Micros()
			p.Ops = append(p.Ops,
				sinks.DeleteMessage{Topic: e.Topic, ID: e.Message, Stamp: max(t+1, e.ID.Micros())},
				sinks.PutAcked{Client: e.Client, Topic: e.Topic.String(), Message: e.Message, Stamp: t})
		case OnMessageAckedForPubsub:
			p.Positions = append(p.Positions, Position{Sink: c.Sink, Client: e.Client, Topic: e.Topic, Message: e.Message, Stamp: e.ID.Micros()})
		}
	}
	if len(p.Ops)+len(p.Positions) > 0 {
		p.Skipped = ""
	}
	return p
}

// Own reports whether the client is one of our own connections.
func (r *Rules) Own(c event.ClientID) bool {
	return slices.ContainsFunc(r.own, func(prefix string) bool { return strings.HasPrefix(string(c), prefix) })
}

// pending reports whether a rule of the sink stores messages of the topic as pending.
func (r *Rules) pending(sink string, t event.Topic) bool {
	for _, c := range r.rules {
		if c.Sink == sink && c.Action == OnMessagePublish && c.Topic.Match(t) {
			return true
		}
	}
	return false
}

func (r *Rules) subscribed(e event.Subscribed) Plan {
	var p Plan
	if r.Own(e.Client) {
		return Plan{Skipped: SkipIgnoredClient}
	}
	for _, c := range r.rules {
		if c.Action == OnSubscribeStore && c.Topic.Overlaps(e.Filter) {
			p.Ops = append(p.Ops, sinks.PutSub{Client: e.Client, Filter: e.Filter, QoS: e.QoS, Stamp: e.ID.Micros()})
		}
	}
	for _, f := range r.Fetches(e) {
		if f.Skipped != "" {
			p.Skipped = f.Skipped
			continue
		}
		p.Replays = append(p.Replays, f.Replay)
	}
	if len(p.Ops)+len(p.Replays) > 0 {
		p.Skipped = ""
	}
	return p
}

// continued is the replay that goes on, by whichever rule of its name.
func (r *Rules) continued(e event.ReplayContinued) Plan {
	var p Plan
	for _, c := range r.rules {
		if c.name() != e.Rule || c.Hook != SessionSubscribed && c.Hook != ClientConnected {
			continue
		}
		if rp, why := r.replay(c, e.Client, e.Filter, e.QoS); why == "" && rp.Mode != "" {
			p.Replays = append(p.Replays, rp)
		}
	}
	return p
}

func (r *Rules) unsubscribed(e event.Unsubscribed) Plan {
	var p Plan
	for _, c := range r.rules {
		if c.Hook != SessionUnsubscribed || !c.Topic.Overlaps(e.Filter) {
			continue
		}
		switch c.Action { //nolint:exhaustive // the actions of session.unsubscribed
		case OnUnsubscribeDelete:
			p.Ops = append(p.Ops, sinks.DeleteSub{Client: e.Client, Filter: e.Filter, Stamp: e.ID.Micros()})
		case OnAckedDelete:
			p.Forgets = append(p.Forgets, Forget{Sink: c.Sink, Client: e.Client, Filter: e.Filter, Stamp: e.ID.Micros()})
		}
	}
	return p
}

func (r *Rules) connected(e event.Connected) Plan {
	var p Plan
	at := e.ConnectedAt
	if at.IsZero() {
		at = e.At
	}
	for _, c := range r.rules {
		switch {
		case c.Action == OnMessageFetchForQueue && c.Hook == ClientConnected:
			switch {
			case r.Own(e.Client):
				p.Skipped = SkipIgnoredClient
			case e.SessionPresent == event.No || e.CleanStart == event.Yes:
				p.Skipped = SkipNewSession
			default:
				p.CatchUps = append(p.CatchUps, r.catchUp(c, e.Client))
			}
		case c.Action == OnClientConnected:
			p.Ops = append(p.Ops, sinks.PutClient{Client: e.Client, Up: sinks.ClientUp{Node: e.Node, OnlineAt: at, Stamp: at.UnixMicro()}})
		case c.Action == OnSubscribeLookup && (c.Hook == ClientConnected || e.SessionPresent != event.Yes):
			rs := Resubscribe{Sink: c.Sink, Client: e.Client, Written: r.writesSubs(c.Sink)}
			switch {
			case r.Own(e.Client):
				p.Skipped = SkipIgnoredClient
			case !slices.Contains(p.Resubscribes, rs):
				p.Resubscribes = append(p.Resubscribes, rs)
			}
		}
	}
	if len(p.Ops)+len(p.CatchUps) > 0 {
		p.Skipped = ""
	}
	return p
}

func (r *Rules) catchUp(c compiled, client event.ClientID) CatchUp {
	return CatchUp{
		Sink: c.Sink, Rule: c.name(), Delay: c.Delay, Written: r.writesSubs(c.Sink),
		Replay: func(s sinks.Sub) (Replay, string) {
			if !c.Topic.IsZero() && !c.Topic.Overlaps(s.Filter) {
				return Replay{}, "" // none of the rule's
			}
			return r.replay(c, client, s.Filter, s.QoS)
		},
	}
}

// writesSubs reports whether a rule of the sink writes subscriptions.
func (r *Rules) writesSubs(sink string) bool {
	return slices.ContainsFunc(r.rules, func(c compiled) bool {
		return c.Sink == sink && (c.Action == OnSubscribeStore || c.Action == OnUnsubscribeDelete)
	})
}

// takenOver reports whether a connection ended because the client made another one, where only the reason can tell.
func takenOver(e event.Disconnected) bool {
	return e.ConnectedAt.IsZero() && (e.Reason == "discarded" || e.Reason == "takeovered" || e.Reason == "takenover")
}

func (r *Rules) disconnected(e event.Disconnected) Plan {
	var p Plan
	down := sinks.ClientDown{OfflineAt: e.DisconnectedAt, Stamp: e.ConnectedAt.UnixMicro() + 1}
	if down.OfflineAt.IsZero() {
		down.OfflineAt = e.At
	}
	if e.ConnectedAt.IsZero() {
		// Without the time of the connection only the event's own time can order it; a take-over says nothing about the client.
		if takenOver(e) {
			return p
		}
		down.Stamp = e.At.UnixMicro()
	}
	for _, c := range r.rules {
		if c.Action == OnClientDisconnected {
			p.Ops = append(p.Ops, sinks.PutClient{Client: e.Client, Down: down})
		}
	}
	return p
}
