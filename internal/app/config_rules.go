package app

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// maxRules bounds the comparison of each rule with each other.
const maxRules = 500

// Rule is one entry of rules, in one of four forms: on + topic + do; topic + action; sql + action; preset.
type Rule struct {
	On          string        `yaml:"on,omitempty" one:"|client.connected|client.disconnected|session.created|session.subscribed|session.unsubscribed|message.publish|message.acked" doc:"The event that the rule is bound to."`
	Topic       string        `yaml:"topic,omitempty" doc:"The topic filter that selects events; events of client.* and session.created have none."`
	Do          List          `yaml:"do,omitempty" doc:"What is done with the event: one action or a list."`
	SQL         string        `yaml:"sql,omitempty" doc:"A rule of EMQX's rule engine that selects whole events: SELECT * FROM topics and events, WHERE topic =~ a filter. It replaces on, topic and do."`
	Action      string        `yaml:"action,omitempty" one:"|save_offline_messages" doc:"With sql, or with topic alone: save_offline_messages stores publishes, fetches them at a subscribe, and removes them when they are acked."`
	Preset      string        `yaml:"preset,omitempty" one:"|emqx-offline-cassandra|emqx-backend-dynamo" doc:"A ready set of rules: the rule action, or the hooks, that EMQX 4 had for the store. It may have a topic, # by default."`
	Sink        string        `yaml:"sink" need:"true" doc:"The name of the sink."`
	TTL         time.Duration `yaml:"ttl" min:"0s" doc:"How long a message is kept, from its own time on; 0 = for ever."`
	MaxReturned int           `yaml:"max_returned_count,omitempty" min:"0" doc:"A replay returns the newest so many messages of all its topics together, oldest first, and leaves the others stored; 0 = all."`
	TimeRange   time.Duration `yaml:"time_range,omitempty" min:"0s" doc:"A replay returns messages not older than this; 0 = all."`
	Addressee   string        `yaml:"addressee,omitempty" doc:"Whom a message is for, such as t/{clientid}/#: only that client's subscribe replays it and only its ack removes it. Empty = whoever acks first."`
	Wildcards   *bool         `yaml:"wildcards,omitempty" doc:"Whether a subscribe with a wildcard replays. Unset = only with an addressee, or in pub/sub."`
	Delay       time.Duration `yaml:"delay,omitempty" min:"0s" max:"1h" doc:"How long on_message_fetch_for_queue on client.connected waits, since the broker hands over its own queue first; 0 = 10s."`
	First       string        `yaml:"first_subscribe,omitempty" doc:"In pub/sub, what a client gets at its first subscribe to a filter: none = what is published from then on, all = all that is stored, or a duration = what is not older. Unset = none: it was promised nothing, and a new subscriber of many topics is not flooded."`
	Ack         RuleAck       `yaml:"ack,omitempty" doc:"Which acks count."`
}

// RuleAck says which acks count.
type RuleAck struct {
	IgnoreClients List `yaml:"ignore_clients" doc:"Client ids, with * for any text, whose acks never count. Our own clients' never do."`
}

func defaultRule() Rule { return Rule{TTL: 168 * time.Hour} }

// bound is one hook with the action that runs on it.
type bound struct {
	hook   pipeline.Hook
	action pipeline.Action
}

// presets are EMQX's own sets: the rule action of its Cassandra page, and the hooks of its DynamoDB backend's conf file, in order.
var presets = map[string][]bound{
	"emqx-offline-cassandra": {
		{pipeline.MessagePublish, pipeline.OnMessagePublish},
		{pipeline.SessionSubscribed, pipeline.OnMessageFetchForQueue},
		{pipeline.MessageAcked, pipeline.OnMessageAckedForQueue},
	},
	"emqx-backend-dynamo": {
		{pipeline.ClientConnected, pipeline.OnClientConnected},
		{pipeline.SessionCreated, pipeline.OnSubscribeLookup},
		{pipeline.ClientDisconnected, pipeline.OnClientDisconnected},
		{pipeline.SessionSubscribed, pipeline.OnMessageFetchForQueue},
		{pipeline.SessionSubscribed, pipeline.OnRetainLookup},
		{pipeline.SessionUnsubscribed, pipeline.OnAckedDelete},
		{pipeline.MessagePublish, pipeline.OnMessagePublish},
		{pipeline.MessagePublish, pipeline.OnMessageRetain},
		{pipeline.MessagePublish, pipeline.OnRetainDelete},
		{pipeline.MessageAcked, pipeline.OnMessageAckedForQueue},
	},
}

// hasTopic reports whether the hook's events have a topic or a filter.
func hasTopic(h pipeline.Hook) bool {
	return h != pipeline.ClientConnected && h != pipeline.ClientDisconnected && h != pipeline.SessionCreated
}

// PipelineRules are the rules of a valid configuration, expanded to one hook and one action each. What the broker does itself is not
// among them.
func (c Config) PipelineRules() []pipeline.Rule {
	placed, _ := c.expand()
	var rules []pipeline.Rule
	for _, p := range placed {
		if p.Action != pipeline.OnRetainLookup || !c.Delivery.Retains {
			rules = append(rules, p.Rule)
		}
	}
	return rules
}

// UsedSinks are the names of the sinks that rules use, sorted.
func (c Config) UsedSinks() []string {
	var names []string
	for _, r := range c.Rules {
		names = append(names, r.Sink)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// placed is an expanded rule and its place in the file.
type placed struct {
	pipeline.Rule
	index int
}

func (c Config) expand() ([]placed, Faults) {
	var out []placed
	var faults Faults
	for i, r := range c.Rules {
		path := fmt.Sprintf("rules[%d]", i)
		for _, one := range r.expand(path, &faults) {
			if r.Preset == "" || one.Action != pipeline.OnSubscribeLookup || c.noLookup() == "" {
				out = append(out, placed{one, i})
			}
		}
	}
	return out, faults
}

// expand turns the rule's form into pipeline rules. A faulty rule gives none.
func (r Rule) expand(path string, faults *Faults) []pipeline.Rule {
	before := len(*faults)
	var out []pipeline.Rule
	bind := func(f event.Filter, bs ...bound) {
		for _, b := range bs {
			out = append(out, r.bind(f, b))
		}
	}
	r.checkForm(path, faults)
	if _, err := parseFirst(r.First); err != nil {
		faults.add(path+".first_subscribe", "%s", err)
	}
	switch {
	case len(*faults) > before:
	case r.SQL != "":
		sql, err := ParseSQL(r.SQL)
		if err != nil {
			faults.add(path+".sql", "%s", err)
			break
		}
		for _, f := range sql.Topics {
			bind(f, bound{pipeline.MessagePublish, pipeline.OnMessagePublish})
		}
		for _, h := range sql.Hooks {
			bind(sql.Where, bound{h, map[pipeline.Hook]pipeline.Action{
				pipeline.SessionSubscribed: pipeline.OnMessageFetchForQueue,
				pipeline.MessageAcked:      pipeline.OnMessageAckedForQueue,
			}[h]})
		}
	default:
		f := r.filter(path, faults)
		switch {
		case r.Preset != "":
			bind(f, presets[r.Preset]...)
			out = slices.DeleteFunc(out, func(p pipeline.Rule) bool { return p.Unsupported() != "" })
		case r.Action != "":
			bind(f, presets["emqx-offline-cassandra"]...)
		default:
			for _, a := range r.Do {
				bind(f, bound{pipeline.Hook(r.On), pipeline.Action(a)})
			}
		}
	}
	if len(*faults) > before {
		return nil
	}
	return out
}

// leftOut are the hooks and actions of the rule's preset that this version cannot carry out. A preset runs without them; the check
// and each start name them. An action that the file itself names is refused instead.
func (r Rule) leftOut() []bound {
	return slices.DeleteFunc(slices.Clone(presets[r.Preset]), func(b bound) bool {
		return pipeline.Rule{Hook: b.hook, Action: b.action}.Unsupported() == ""
	})
}

// looksUp reports whether the rule's preset restores subscriptions.
func (r Rule) looksUp() bool {
	return slices.ContainsFunc(presets[r.Preset], func(b bound) bool { return b.action == pipeline.OnSubscribeLookup })
}

// checkForm checks that the rule has the keys of exactly one form.
func (r Rule) checkForm(path string, faults *Faults) {
	hooked := r.On != "" || len(r.Do) > 0
	forms := 0
	for _, has := range []bool{hooked, r.SQL != "", r.Preset != "", r.Action != "" && r.SQL == ""} {
		if has {
			forms++
		}
	}
	switch {
	case forms == 0:
		faults.add(path, "says nothing to do: write on, topic and do; or topic and action; or sql and action; or preset")
	case forms > 1:
		faults.add(path, "mixes forms: write on, topic and do; or topic and action; or sql and action; or preset")
	case r.SQL != "" && r.Action == "":
		faults.add(path+".action", "is missing: save_offline_messages is what sql needs")
	case r.SQL != "" && r.Topic != "":
		faults.add(path+".topic", "has no place beside sql: the statement names the topics")
	case hooked && r.On == "":
		faults.add(path+".on", "is missing: the event that the actions are bound to")
	case hooked && len(r.Do) == 0:
		faults.add(path+".do", "is missing: the actions to be done on %s", r.On)
	}
}

// filter reads the topic; a rule without one is about all topics where that can be meant.
func (r Rule) filter(path string, faults *Faults) event.Filter {
	text := r.Topic
	switch {
	case text == "" && r.On != "" && !hasTopic(pipeline.Hook(r.On)):
		return event.Filter{}
	case text == "" && r.Preset != "":
		text = "#"
	case text == "":
		faults.add(path+".topic", "is missing: \"#\" for all topics")
		return event.Filter{}
	}
	f, err := event.ParseFilter(text)
	if err != nil {
		faults.add(path+".topic", "%s", err)
	}
	if f.Group() != "" {
		faults.add(path+".topic", "filter %q: a rule selects topics and cannot be shared", text)
	}
	return f
}

// bind makes the pipeline's rule of one hook and action, with the options that mean something to it.
func (r Rule) bind(f event.Filter, b bound) pipeline.Rule {
	out := pipeline.Rule{Hook: b.hook, Action: b.action, Sink: r.Sink}
	if hasTopic(b.hook) || r.Topic != "" && r.On != "" {
		out.Topic = f
	}
	if takes("ttl", b) {
		out.TTL = r.TTL
	}
	if takes("time_range", b) {
		out.MaxReturned, out.TimeRange, out.Wildcards = r.MaxReturned, r.TimeRange, r.Wildcards
	}
	if takes("first_subscribe", b) {
		out.First, _ = parseFirst(r.First) // checked
	}
	if takes("delay", b) {
		const usual = 10 * time.Second
		out.Delay = cmp.Or(r.Delay, usual)
	}
	if takes("addressee", b) {
		out.Addressee = r.Addressee
	}
	if takes("ack", b) {
		out.IgnoreClients = r.Ack.IgnoreClients
	}
	return out
}

// takes reports whether an option means something to the action on the hook.
func takes(option string, b bound) bool {
	if option == "first_subscribe" {
		return b.action == pipeline.OnMessageFetchForPubsub
	}
	if option == "delay" {
		return b.hook == pipeline.ClientConnected && b.action == pipeline.OnMessageFetchForQueue
	}
	switch b.action { //nolint:exhaustive // the others take none
	case pipeline.OnMessagePublish, pipeline.OnMessageStore, pipeline.OnMessageRetain:
		return option == "ttl"
	case pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub:
		return option == "max_returned_count" || option == "time_range" || option == "wildcards" || option == "addressee"
	case pipeline.OnMessageAckedForQueue, pipeline.OnMessageAckedForPubsub:
		return option == "ack" || option == "addressee"
	}
	return false
}

// parseFirst reads first_subscribe.
func parseFirst(text string) (time.Duration, error) {
	switch text {
	case "", "none":
		return 0, nil
	case "all":
		return pipeline.FirstAll, nil
	}
	d, err := ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is neither none nor all nor a duration above zero, such as 24h", text)
	}
	return d, nil
}

// set are the options that the rule gives.
func (r Rule) set() []string {
	var out []string
	for _, o := range []struct {
		name string
		is   bool
	}{
		{"ttl", r.TTL != defaultRule().TTL},
		{"max_returned_count", r.MaxReturned != 0},
		{"time_range", r.TimeRange != 0},
		{"first_subscribe", r.First != ""},
		{"addressee", r.Addressee != ""},
		{"wildcards", r.Wildcards != nil},
		{"delay", r.Delay != 0},
		{"ack", len(r.Ack.IgnoreClients) > 0},
	} {
		if o.is {
			out = append(out, o.name)
		}
	}
	return out
}

// checkRules finds what is wrong with the rules, each alone and two together.
func (c Config) checkRules(faults *Faults) {
	if len(c.Rules) > maxRules {
		faults.add("rules", "%d rules are more than the %d that are allowed: use wider topic filters", len(c.Rules), maxRules)
		return
	}
	for i, r := range c.Rules {
		if _, ok := c.Sinks[r.Sink]; !ok && r.Sink != "" {
			hint := "sinks are " + strings.Join(sortedKeys(c.Sinks), ", ")
			if len(c.Sinks) == 0 {
				hint = "there are no sinks"
			} else if best := nearest(r.Sink, sortedKeys(c.Sinks)); best != "" {
				hint = fmt.Sprintf("did you mean %q?", best)
			}
			faults.add(fmt.Sprintf("rules[%d].sink", i), "sink %q is not configured: %s", r.Sink, hint)
		}
	}
	rules, bad := c.expand()
	*faults = append(*faults, bad...)
	sound := rules[:0]
	for _, p := range rules {
		if c.checkAlone(p, faults) {
			sound = append(sound, p)
		}
	}
	for i, r := range c.Rules {
		c.checkOptions(r, i, sound, faults)
	}
	checkPairs(sound, faults)
}

// checkAlone lets the pipeline judge one rule.
func (c Config) checkAlone(p placed, faults *Faults) bool {
	_, err := pipeline.Compile([]pipeline.Rule{p.Rule}, "")
	why := p.Unsupported()
	if p.Action == pipeline.OnSubscribeLookup && why == "" {
		why = c.noLookup()
	}
	if err == nil && why != "" {
		faults.add(fmt.Sprintf("rules[%d].do", p.index), "%s", why)
	}
	for _, e := range ruleErrors(err) {
		if e.Field == "sink" {
			continue // reported already
		}
		at := fmt.Sprintf("rules[%d].%s", p.index, e.Field)
		faults.add(at, "%s", e.Err)
	}
	return err == nil
}

func ruleErrors(err error) []*pipeline.RuleError {
	var all []*pipeline.RuleError
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			all = append(all, ruleErrors(e)...)
		}
		return all
	}
	if one, ok := errors.AsType[*pipeline.RuleError](err); ok {
		all = append(all, one)
	}
	return all
}

// checkOptions finds options that none of the rule's actions looks at.
func (c Config) checkOptions(r Rule, i int, sound []placed, faults *Faults) {
	var mine []bound
	for _, p := range sound {
		if p.index == i {
			mine = append(mine, bound{p.Hook, p.Action})
		}
	}
	if len(mine) == 0 {
		return // the rule is faulty anyhow
	}
	path := fmt.Sprintf("rules[%d]", i)
	for _, o := range r.set() {
		if !slices.ContainsFunc(mine, func(b bound) bool { return takes(o, b) }) {
			faults.add(path+"."+o, "means nothing to %s on %s", mine[0].action, mine[0].hook)
		}
	}
	fetches := slices.ContainsFunc(mine, func(b bound) bool { return b.action == pipeline.OnMessageFetchForQueue })
	if r.On != "" && r.Topic != "" && !hasTopic(pipeline.Hook(r.On)) && !fetches {
		faults.add(path+".topic", "means nothing: events of %s have no topic", r.On)
	}
	f, err := event.ParseFilter(strings.Replace(r.Addressee, "{clientid}", "+", 1))
	if r.Addressee == "" || err != nil {
		return
	}
	for _, p := range sound {
		if p.index == i && !p.Topic.IsZero() && !p.Topic.Overlaps(f) {
			faults.add(path+".addressee", "%q fits no topic of the rule's filter %q", r.Addressee, p.Topic)
			return
		}
	}
}
