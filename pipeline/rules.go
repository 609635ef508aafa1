package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
)

// Hook is the event that a rule is bound to, by EMQX's name.
type Hook string

// The hooks.
const (
	ClientConnected     Hook = "client.connected"
	ClientDisconnected  Hook = "client.disconnected"
	SessionCreated      Hook = "session.created" // connected with session present 0 or unknown
	SessionSubscribed   Hook = "session.subscribed"
	SessionUnsubscribed Hook = "session.unsubscribed"
	MessagePublish      Hook = "message.publish"
	MessageAcked        Hook = "message.acked"
)

// Action is what a rule does, by the name of EMQX's backend plugins; on_subscribe_store and on_unsubscribe_delete are ours.
type Action string

// The actions.
const (
	OnClientConnected       Action = "on_client_connected"
	OnClientDisconnected    Action = "on_client_disconnected"
	OnSubscribeLookup       Action = "on_subscribe_lookup"
	OnSubscribeStore        Action = "on_subscribe_store"
	OnUnsubscribeDelete     Action = "on_unsubscribe_delete"
	OnMessageFetchForQueue  Action = "on_message_fetch_for_queue"
	OnMessageFetchForPubsub Action = "on_message_fetch_for_pubsub"
	OnRetainLookup          Action = "on_retain_lookup"
	OnAckedDelete           Action = "on_acked_delete"
	OnMessagePublish        Action = "on_message_publish"
	OnMessageStore          Action = "on_message_store"
	OnMessageRetain         Action = "on_message_retain"
	OnRetainDelete          Action = "on_retain_delete"
	OnMessageAckedForQueue  Action = "on_message_acked_for_queue"
	OnMessageAckedForPubsub Action = "on_message_acked_for_pubsub"

	// SaveOfflineMessages is EMQX's rule action; [Rule.Expand] turns it into three rules.
	SaveOfflineMessages Action = "save_offline_messages"
)

// hooksOf says to which hooks each action can be bound.
var hooksOf = map[Action][]Hook{
	OnClientConnected:       {ClientConnected},
	OnClientDisconnected:    {ClientDisconnected},
	OnSubscribeLookup:       {ClientConnected, SessionCreated},
	OnSubscribeStore:        {SessionSubscribed},
	OnUnsubscribeDelete:     {SessionUnsubscribed},
	OnMessageFetchForQueue:  {SessionSubscribed, ClientConnected},
	OnMessageFetchForPubsub: {SessionSubscribed},
	OnRetainLookup:          {SessionSubscribed},
	OnAckedDelete:           {SessionUnsubscribed},
	OnMessagePublish:        {MessagePublish},
	OnMessageStore:          {MessagePublish},
	OnMessageRetain:         {MessagePublish},
	OnRetainDelete:          {MessagePublish},
	OnMessageAckedForQueue:  {MessageAcked},
	OnMessageAckedForPubsub: {MessageAcked},
}

// Rule binds a hook and a topic filter to an action on a named sink.
type Rule struct {
	Hook   Hook
	Topic  event.Filter // zero = all, for the client hooks only
	Action Action
	Sink   string
	// TTL is how long a message is kept from its id's time on; 0 = for ever.
	TTL time.Duration
	// MaxReturned is the most messages a fetch returns: the newest, delivered oldest first. 0 = no limit.
	MaxReturned int
	// TimeRange limits a fetch to messages not older than this. 0 = no limit.
	TimeRange time.Duration
	// Addressee says whom a message is for: a filter with {clientid} as one level. "" = whoever acknowledges first.
	Addressee string
	// Wildcards says whether a subscribe with a wildcard filter replays. nil = false in queue mode without an addressee,
	// else true.
	Wildcards *bool
	// IgnoreClients are patterns ('*' stands for any text) of client ids whose acks never count.
	IgnoreClients []string
	// First is what a client gets at its first subscribe to a filter, in pub/sub: messages not older than this. 0 = what comes from
	// then on, [FirstAll] = all that is stored.
	First time.Duration
	// Delay puts off a fetch on client.connected.
	Delay time.Duration
}

// Expand turns EMQX's rule action save_offline_messages into the three rules that it stands for; any other rule is returned
// as it is.
func (r Rule) Expand() []Rule {
	if r.Action != SaveOfflineMessages {
		return []Rule{r}
	}
	var out []Rule
	for _, b := range []struct {
		h Hook
		a Action
	}{{MessagePublish, OnMessagePublish}, {SessionSubscribed, OnMessageFetchForQueue}, {MessageAcked, OnMessageAckedForQueue}} {
		c := r
		c.Hook, c.Action = b.h, b.a
		out = append(out, c)
	}
	return out
}

// RuleError is a fault of one rule.
type RuleError struct {
	// Index is the rule's place in the list given to Compile.
	Index int
	// Field is the faulty part: on, topic, do, sink, addressee, …
	Field string
	Err   error
}

func (e *RuleError) Error() string { return fmt.Sprintf("rules[%d].%s: %v", e.Index, e.Field, e.Err) }
func (e *RuleError) Unwrap() error { return e.Err }

// Rules are compiled rules. They are immutable and safe for concurrent use.
type Rules struct {
	rules []compiled
	own   []string
	qos0  QoS0
}

// QoS0 says what a subscribe at QoS 0 gets, to which no ack will come.
type QoS0 string

// The kinds of it.
const (
	QoS0Skip   QoS0 = "skip"   // nothing
	QoS0Repeat QoS0 = "repeat" // what is stored, at every subscribe; nothing is removed by it
	QoS0Once   QoS0 = "once"   // what is stored, and what the broker takes counts as acknowledged
)

// WithQoS0 returns rules that give subscribes at QoS 0 what q says; without it that is nothing.
func (r *Rules) WithQoS0(q QoS0) *Rules {
	out := *r
	out.qos0 = q
	return &out
}

type compiled struct {
	Rule
	index     int
	addressee addressee
}

// Compile checks the rules and returns all faults at once, each a [*RuleError]. own are the prefixes of the client ids of
// our own connections: their acks never count. Rules of the action save_offline_messages must be expanded before.
func Compile(rules []Rule, own ...string) (*Rules, error) {
	out := &Rules{own: slices.DeleteFunc(slices.Clone(own), func(s string) bool { return s == "" })}
	var errs []error
	for i, r := range rules {
		bad := func(field, format string, args ...any) {
			errs = append(errs, &RuleError{i, field, fmt.Errorf(format, args...)})
		}
		hooks, ok := hooksOf[r.Action]
		switch {
		case !ok:
			bad("do", "unknown action %q", r.Action)
		case !slices.Contains(hooks, r.Hook):
			bad("on", "%s cannot run on %q, only on %q", r.Action, r.Hook, hooks)
		}
		byTopic := r.Hook != ClientConnected && r.Hook != ClientDisconnected && r.Hook != SessionCreated
		if byTopic && r.Topic.IsZero() {
			bad("topic", "%s needs a topic filter; \"#\" for all", r.Hook)
		}
		if r.Topic.Group() != "" {
			bad("topic", "%q: a rule's filter cannot be shared", r.Topic)
		}
		if r.Sink == "" {
			bad("sink", "no sink is named")
		}
		if r.TTL < 0 || r.TimeRange < 0 || r.Delay < 0 || r.MaxReturned < 0 {
			bad("ttl", "ttl, time_range, delay and max_returned_count cannot be negative")
		}
		a, err := parseAddressee(r.Addressee)
		if err != nil {
			bad("addressee", "%w", err)
		}
		c := compiled{Rule: r, index: i, addressee: a}
		for _, o := range out.rules {
			if err := contradiction(o.Rule, r); err != nil {
				bad("do", "contradicts rules[%d]: %w", o.index, err)
			}
		}
		out.rules = append(out.rules, c)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

func isQueue(a Action) bool { return a == OnMessageFetchForQueue || a == OnMessageAckedForQueue }

func isPubsub(a Action) bool { return a == OnMessageFetchForPubsub || a == OnMessageAckedForPubsub }

// contradiction says why two rules cannot both hold.
func contradiction(a, b Rule) error {
	if a.Sink != b.Sink || !a.Topic.IsZero() && !b.Topic.IsZero() && !a.Topic.Overlaps(b.Topic) {
		return nil
	}
	if isQueue(a.Action) && isPubsub(b.Action) || isPubsub(a.Action) && isQueue(b.Action) {
		return fmt.Errorf("%s on %q and %s on %q: topics of sink %q would be in queue and in pub/sub mode at once",
			b.Action, b.Topic, a.Action, a.Topic, a.Sink)
	}
	if a.Hook != b.Hook || a.Action != b.Action {
		return nil
	}
	same := a.TTL == b.TTL && a.MaxReturned == b.MaxReturned && a.TimeRange == b.TimeRange && a.Addressee == b.Addressee &&
		a.Delay == b.Delay && a.First == b.First && a.replaysWildcards() == b.replaysWildcards() && slices.Equal(a.IgnoreClients, b.IgnoreClients)
	if !same {
		return fmt.Errorf("%s on %q and on %q of sink %q overlap but have different options", b.Action, b.Topic, a.Topic, a.Sink)
	}
	return nil
}

// name tells the rule from others of its hook and action: two of the same sink and topic are the same, or contradict each other.
func (r Rule) name() string { return r.Sink + " " + r.Topic.String() }

func (r Rule) replaysWildcards() bool {
	if r.Wildcards != nil {
		return *r.Wildcards
	}
	return r.Addressee != "" || isPubsub(r.Action)
}

// Sinks returns the names of the sinks that rules use, sorted.
func (r *Rules) Sinks() []string {
	var names []string
	for _, c := range r.rules {
		names = append(names, c.Sink)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// addressee is a compiled addressee template; the zero one has no levels.
type addressee struct{ levels []string }

const clientPlaceholder = "{clientid}"

func parseAddressee(s string) (addressee, error) {
	if s == "" {
		return addressee{}, nil
	}
	if _, err := event.ParseFilter(strings.Replace(s, clientPlaceholder, "x", 1)); err != nil {
		return addressee{}, err
	}
	levels := strings.Split(s, "/")
	n := 0
	for _, l := range levels {
		if l == clientPlaceholder {
			n++
		} else if strings.Contains(l, "{") {
			return addressee{}, fmt.Errorf("%q: %s must stand alone in its level", s, clientPlaceholder)
		}
	}
	if n != 1 {
		return addressee{}, fmt.Errorf("%q: want %s as exactly one level", s, clientPlaceholder)
	}
	return addressee{levels}, nil
}

// is reports whether the topic's message is for the client. Without a template it is for anybody. A topic that does not fit
// the template is for nobody in particular, and so for anybody.
func (a addressee) is(t event.Topic, c event.ClientID) bool {
	if a.levels == nil {
		return true
	}
	parts := strings.Split(t.String(), "/")
	who := ""
	for i, l := range a.levels {
		if l == "#" {
			break
		}
		if i >= len(parts) || l != "+" && l != clientPlaceholder && l != parts[i] {
			return true
		}
		if l == clientPlaceholder {
			who = parts[i]
		}
		if i == len(a.levels)-1 && len(parts) > len(a.levels) {
			return true
		}
	}
	return who == "" || who == string(c) || who == escapeLevel(string(c)) // no client id is empty
}

// escapeLevel percent-encodes what would break a client id's place as one topic level.
func escapeLevel(s string) string {
	return strings.NewReplacer("%", "%25", "/", "%2F", "+", "%2B", "#", "%23").Replace(s)
}

func (c compiled) ignores(client event.ClientID) bool {
	return slices.ContainsFunc(c.IgnoreClients, func(p string) bool { return glob(p, string(client)) })
}

// glob reports whether s matches the pattern, in which '*' stands for any text and any other character for itself.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	last := len(parts) - 1
	if last == 0 {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, p := range parts[1:last] {
		if _, s, ok = strings.Cut(s, p); !ok {
			return false
		}
	}
	return strings.HasSuffix(s, parts[last])
}
