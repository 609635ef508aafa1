package app

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// checkPairs finds rules that say the same twice or contradict each other. Each entry of the file is compared with those before
// it, and the first conflict is reported.
func checkPairs(rules []placed, faults *Faults) {
	reported := map[int]bool{}
	for j, b := range rules {
		for _, a := range rules[:j] {
			if a.Sink != b.Sink || reported[b.index] || !related(a.Rule, b.Rule) {
				continue
			}
			if verb, why := conflict(a.Rule, b.Rule); verb != "" {
				reported[b.index] = true
				with := fmt.Sprintf("rules[%d]", a.index)
				if a.index == b.index {
					with = "itself"
				}
				faults.add(fmt.Sprintf("rules[%d]", b.index), "%s %s: %s", verb, with, why)
			}
		}
	}
}

// related is false for most pairs, cheaply: rules that differ in topics, or do different things, stand side by side.
func related(a, b pipeline.Rule) bool {
	fetches := func(r pipeline.Rule) bool {
		switch r.Action { //nolint:exhaustive // those that have a mode
		case pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub,
			pipeline.OnMessageAckedForQueue, pipeline.OnMessageAckedForPubsub:
			return true
		}
		return false
	}
	return (a.Action == b.Action || fetches(a) && fetches(b)) && overlap(a.Topic, b.Topic)
}

// conflict says how a rule stands against an earlier one, and why; "" when the two can stand side by side.
func conflict(a, b pipeline.Rule) (verb, why string) {
	if reflect.DeepEqual(a, b) {
		return "says the same as", fmt.Sprintf("%s on %s %q", b.Action, b.Hook, b.Topic)
	}
	var found *pipeline.RuleError
	if _, err := pipeline.Compile([]pipeline.Rule{a, b}, ""); errors.As(err, &found) {
		// What is wrapped does not count the rules; the number before it counts the pair.
		if inner := errors.Unwrap(found.Err); inner != nil {
			return "contradicts", inner.Error()
		}
		return "contradicts", found.Err.Error()
	}
	who := func(r pipeline.Rule) bool {
		switch r.Action { //nolint:exhaustive // those that go by an addressee
		case pipeline.OnMessageFetchForQueue, pipeline.OnMessageAckedForQueue, pipeline.OnMessageFetchForPubsub, pipeline.OnMessageAckedForPubsub:
			return true
		}
		return false
	}
	if who(a) && who(b) && a.Addressee != b.Addressee && overlap(a.Topic, b.Topic) {
		return "contradicts", fmt.Sprintf("%s on %q has addressee %q and %s on %q has addressee %q; both must have the same",
			b.Action, b.Topic, b.Addressee, a.Action, a.Topic, a.Addressee)
	}
	return "", ""
}

func overlap(a, b event.Filter) bool { return a.IsZero() || b.IsZero() || a.Overlaps(b) }

// open reports whether anybody may post.
func (h WebhookSource) open() bool {
	return h.Token+h.HMACKey == "" && h.TokenFile+h.HMACFile == "" && (!h.TLS.Enabled || h.TLS.ClientCAFile == "")
}

// has reports whether some source is as asked.
func (c Config) has(is func(Source) bool) bool {
	for _, s := range c.Sources {
		if is(s) {
			return true
		}
	}
	return false
}

// Warnings are what is allowed but hardly meant.
func (c Config) Warnings() []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	used := c.UsedSinks()
	for _, name := range sortedKeys(c.Sinks) {
		if !slices.Contains(used, name) {
			warn("sinks.%s: no rule uses it", name)
		}
		if c.Sinks[name].Memory != nil {
			warn("sinks.%s: memory forgets everything when the process ends", name)
		}
	}
	for _, name := range sortedKeys(c.Sources) {
		if e := c.Sources[name].Embedded; e != nil && e.UsersFile == "" && !isLoopback(e.Listen) {
			warn("sources.%s: anybody who reaches %s may connect: set users_file", name, e.Listen)
		}
		if e := c.Sources[name].Exhook; e != nil && !c.Ingest.Spool.used() && len(c.Kafka.Brokers) > 0 { // that of restante up is in the process
			warn("sources.%s: while Kafka is away calls fail after %s and their events are lost to the store: set ingest.spool.path", name, formatDuration(e.Budget))
		}
		if e := c.Sources[name].Exhook; e != nil && (!e.TLS.Enabled || e.TLS.ClientCAFile == "") && !isLoopback(e.Listen) {
			warn("sources.%s: anybody who reaches %s may make up events: set tls with client_ca_file, or keep the address inside", name, e.Listen)
		}
		if h := c.Sources[name].Webhook; h != nil && h.open() && !isLoopback(h.Listen) {
			warn("sources.%s: anybody who reaches %s may make up events: set token_file, hmac_key_file or tls with client_ca_file, or keep the address inside", name, h.Listen)
		}
	}
	for i, r := range c.Rules {
		var names []string
		for _, b := range r.leftOut() {
			names = append(names, string(b.action))
		}
		if len(names) > 0 {
			warn("rules[%d]: preset %s runs without what is not in this version: %s", i, r.Preset, strings.Join(names, ", "))
		}
		if why := c.noLookup(); why != "" && r.looksUp() {
			warn("rules[%d]: preset %s runs without %s", i, r.Preset, why)
		}
	}
	rules, _ := c.expand()
	if lookup := func(p placed) bool { return p.Action == pipeline.OnRetainLookup }; !c.Delivery.Retains && !slices.ContainsFunc(rules, lookup) {
		warn("delivery.broker_retains: no rule on_retain_lookup hands retained messages over, and the broker is said not to")
	}
	blind := map[[2]string]bool{}
	for _, p := range rules {
		at := fmt.Sprintf("rules[%d]", p.index)
		if key := [2]string{at, string(p.Hook)}; len(c.Sources) > 0 && !c.sees(p.Hook) && !blind[key] {
			blind[key] = true
			if p.Hook == pipeline.MessageAcked && c.Delivery.Evidence != "broker" {
				warn("%s: no source tells %s: what is delivered live stays stored until a replay delivers it again", at, p.Hook)
				continue
			}
			warn("%s: no source tells %s: %s never runs", at, p.Hook, p.Action)
		}
		has := func(actions ...pipeline.Action) bool {
			return slices.ContainsFunc(rules, func(q placed) bool {
				return q.Sink == p.Sink && slices.Contains(actions, q.Action) && overlap(q.Topic, p.Topic)
			})
		}
		switch p.Action { //nolint:exhaustive // the others stand alone
		case pipeline.OnMessageRetain, pipeline.OnRetainDelete:
			if len(c.Sources) > 0 && !c.has(func(s Source) bool { return s.sees(seesRetain) }) {
				warn("%s: exhook does not tell whether a message is retained: %s never runs", at, p.Action)
			}
			if p.Action == pipeline.OnRetainDelete && !has(pipeline.OnMessageRetain) {
				warn("%s: retained messages of %q are removed from %s and no rule stores them there", at, p.Topic, p.Sink)
			}
			if p.Action == pipeline.OnMessageRetain && !has(pipeline.OnRetainDelete) {
				warn("%s: no rule on_retain_delete on %q: a retained message that is removed from the broker stays in %s until it expires", at, p.Topic, p.Sink)
			}
		case pipeline.OnRetainLookup:
			switch {
			case c.Delivery.Retains:
				warn("%s: %s is off: the broker hands over what it retains; for one that does not set delivery.broker_retains to false", at, p.Action)
				continue
			case !has(pipeline.OnMessageRetain):
				warn("%s: retained messages of %q are looked up in %s and no rule stores them there", at, p.Topic, p.Sink)
			}
			if c.Delivery.To == "topic" {
				warn("%s: with delivery.to: topic the retained messages that one client asks for reach all subscribers of their topics: use prefix or direct", at)
			}
		case pipeline.OnMessageStore:
			if has(pipeline.OnMessageAckedForQueue) {
				warn("%s: on_message_store keeps a history of %q and on_message_acked_for_queue removes from it what is acked", at, p.Topic)
			}
		case pipeline.OnMessagePublish:
			if source, filter := c.eventsIn(p.Topic); source != "" {
				warn("%s: %q covers %q, by which sources.%s hears of EMQX's events: these are left out here, but a rule of EMQX FROM %q would feed itself, so name narrower topics there", at, p.Topic, filter, source, p.Topic)
			}
			if !has(pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub) {
				warn("%s: messages of %q are stored in %s and no rule fetches them", at, p.Topic, p.Sink)
			}
		case pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub:
			if p.Hook == pipeline.ClientConnected && !has(pipeline.OnSubscribeStore) {
				warn("%s: %s on %s goes by the stored subscriptions of a client, and no rule on_subscribe_store stores them in %s", at, p.Action, p.Hook, p.Sink)
			}
			if !has(pipeline.OnMessagePublish) {
				warn("%s: messages of %q are fetched from %s and no rule stores them there", at, p.Topic, p.Sink)
			}
			if !has(pipeline.OnMessageAckedForQueue, pipeline.OnMessageAckedForPubsub) {
				warn("%s: no rule on message.acked: every subscribe replays messages of %q again until they expire", at, p.Topic)
			}
		}
	}
	return out
}

// eventsIn is a source of EMQX's events, and its filter, that a topic filter overlaps; "" when there is none.
func (c Config) eventsIn(topic event.Filter) (source, filter string) {
	for _, name := range sortedKeys(c.Sources) {
		if m := c.Sources[name].MQTT; m == nil || m.Decode != decodeEMQX {
			continue
		}
		for _, f := range c.SourceFilters(name) {
			if parsed, err := event.ParseFilter(f); err == nil && overlap(parsed, topic) {
				return name, f
			}
		}
	}
	return "", ""
}
