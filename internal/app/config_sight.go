package app

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/restante/restante/pipeline"
)

// sense is one thing that a source may tell. The text is what people read.
type sense string

const (
	seesPublish     sense = "publishes"
	seesSender      sense = "who published"
	seesID          sense = "message ids"
	seesRetain      sense = "the retain flag"
	seesProperties  sense = "MQTT 5 properties"
	seesSubscribe   sense = "subscribes"
	seesUnsubscribe sense = "unsubscribes"
	seesAck         sense = "acks of live messages"
	seesReplayAck   sense = "acks of replays"
	seesConnect     sense = "connects"
	seesDisconnect  sense = "disconnects"
	seesCleanStart  sense = "clean start"
	seesResumed     sense = "whether a session was resumed"
)

var senses = []sense{
	seesPublish, seesSender, seesID, seesRetain, seesProperties, seesSubscribe, seesUnsubscribe, seesAck, seesReplayAck, seesConnect,
	seesDisconnect, seesCleanStart, seesResumed,
}

// sensesOf says what a rule's hook needs to run at all.
var sensesOf = map[pipeline.Hook]sense{
	pipeline.ClientConnected: seesConnect, pipeline.ClientDisconnected: seesDisconnect, pipeline.SessionCreated: seesConnect,
	pipeline.SessionSubscribed: seesSubscribe, pipeline.SessionUnsubscribed: seesUnsubscribe,
	pipeline.MessagePublish: seesPublish, pipeline.MessageAcked: seesAck,
}

// kind is what the source is, for people.
func (s Source) kind() string {
	switch {
	case s.MQTT != nil:
		return "mqtt, " + s.MQTT.Decode
	case s.Webhook != nil:
		return "webhook, " + s.Webhook.Format
	}
	return s.Type
}

// blind is what the source does not tell.
func (s Source) blind() []sense {
	switch {
	case s.Exhook != nil: // 5.9 and later tell properties
		return []sense{seesRetain, seesProperties, seesCleanStart, seesResumed}
	case s.Webhook != nil && s.Webhook.Format == formatEMQX:
		return []sense{seesID, seesProperties, seesAck, seesReplayAck, seesCleanStart}
	case s.Webhook != nil && s.Webhook.Format != formatRule:
		return []sense{seesID, seesAck, seesReplayAck, seesCleanStart, seesResumed}
	case s.MQTT != nil && s.MQTT.Decode == decodePlain:
		out := []sense{seesSender, seesID, seesUnsubscribe, seesAck, seesReplayAck, seesConnect, seesDisconnect, seesCleanStart}
		if s.MQTT.FetchTopic == "" {
			out = append(out, seesSubscribe)
		}
		return out
	case s.MQTT != nil && s.MQTT.Decode == decodeLog:
		return []sense{seesSender, seesID, seesAck, seesReplayAck}
	}
	return nil
}

// sees reports whether the source tells it.
func (s Source) sees(what sense) bool { return !slices.Contains(s.blind(), what) }

// sees reports whether some source tells the hook's events.
func (c Config) sees(h pipeline.Hook) bool {
	return c.has(func(s Source) bool { return s.sees(sensesOf[h]) })
}

// consequences are what follows for a rule when no source tells something. A rule whose hook nobody tells is warned of by itself.
var consequences = []struct {
	missing sense
	actions []pipeline.Action
	text    string
}{
	{seesSender, []pipeline.Action{pipeline.OnMessagePublish, pipeline.OnMessageStore}, "the sender of a message stays empty, and replays that come back are known by their mark only"},
	{seesID, []pipeline.Action{pipeline.OnMessagePublish, pipeline.OnMessageStore}, "ids are made by ingest: a message that is told twice is stored twice"},
	{seesRetain, []pipeline.Action{pipeline.OnMessageRetain, pipeline.OnRetainDelete}, "never runs"},
	{seesRetain, []pipeline.Action{pipeline.OnRetainLookup}, "finds only what others have stored"},
	{seesRetain, []pipeline.Action{pipeline.OnMessagePublish}, "a retained message is stored as any other, and so is the empty one that removes it"},
	{seesProperties, []pipeline.Action{pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub, pipeline.OnRetainLookup}, "a replay has topic and payload, and not the message's properties and expiry"},
	{seesSubscribe, []pipeline.Action{pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub, pipeline.OnRetainLookup, pipeline.OnSubscribeStore}, "never runs"},
	{seesUnsubscribe, []pipeline.Action{pipeline.OnUnsubscribeDelete, pipeline.OnAckedDelete}, "never runs"},
	{seesUnsubscribe, []pipeline.Action{pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub}, "a replay goes on when its client unsubscribes"},
	{seesAck, []pipeline.Action{pipeline.OnMessageAckedForQueue, pipeline.OnMessageAckedForPubsub}, "what is delivered live stays stored until a replay delivers it again"},
	{seesConnect, []pipeline.Action{pipeline.OnClientConnected, pipeline.OnSubscribeLookup}, "never runs"},
	{seesDisconnect, []pipeline.Action{pipeline.OnClientDisconnected}, "never runs"},
	{seesDisconnect, []pipeline.Action{pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub}, "a replay goes on when its client leaves, until its acks stay away"},
	{seesCleanStart, []pipeline.Action{pipeline.OnSubscribeLookup}, "runs at each connection, also where the session was kept"},
	{seesResumed, []pipeline.Action{pipeline.OnMessageFetchForQueue, pipeline.OnMessageFetchForPubsub}, "a replay begins replayer.resume_delay after its subscribe, whether the session is new or not"},
}

// Sight says what each source cannot tell, and what that means for the rules. It is empty without sources, and where they tell all.
func (c Config) Sight() []string {
	var out []string
	for _, name := range sortedKeys(c.Sources) {
		s := c.Sources[name]
		var missing []string
		for _, x := range senses {
			if !s.sees(x) && !c.answered(s, x) {
				missing = append(missing, string(x))
			}
		}
		if len(missing) > 0 {
			out = append(out, fmt.Sprintf("sources.%s (%s) does not tell %s", name, s.kind(), strings.Join(missing, ", ")))
		}
	}
	if len(c.Sources) == 0 {
		return nil
	}
	out = append(out, c.twice()...)
	rules, _ := c.expand()
	for _, k := range consequences {
		if c.has(func(s Source) bool { return s.sees(k.missing) }) {
			continue
		}
		var which []string
		for _, p := range rules {
			if p.Action == pipeline.OnRetainLookup && c.Delivery.Retains {
				continue // it is off
			}
			if at := fmt.Sprintf("rules[%d]", p.index); slices.Contains(k.actions, p.Action) {
				which = append(which, at+" "+string(p.Action))
			}
		}
		const most = 5
		if which = slices.Compact(which); len(which) > most {
			which = append(which[:most:most], fmt.Sprintf("%d more", len(which)-most))
		}
		if len(which) > 0 {
			out = append(out, fmt.Sprintf("no source tells %s: %s: %s", k.missing, strings.Join(which, ", "), k.text))
		}
	}
	return out
}

// twice is said where several sources tell publishes and not all of them by the broker's ids.
func (c Config) twice() []string {
	var tell, mint []string
	for _, name := range sortedKeys(c.Sources) {
		if s := c.Sources[name]; s.sees(seesPublish) {
			if tell = append(tell, name); !s.sees(seesID) {
				mint = append(mint, name)
			}
		}
	}
	if len(tell) < 2 || len(mint) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("sources %s tell publishes, %s without the broker's message ids: where two of them stand at one broker, each message is stored twice",
		strings.Join(tell, ", "), strings.Join(mint, ", "))}
}

// answered reports whether the evidence gives what the source itself does not tell.
func (c Config) answered(s Source, what sense) bool {
	return what == seesReplayAck && c.Delivery.Evidence == evidenceApp && s.answers()
}

const evidenceApp = string(pipeline.EvidenceApp)

// PrintSight writes [Config.Sight] as YAML comments.
func (c Config) PrintSight(w io.Writer) error {
	lines := c.Sight()
	if len(lines) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(w, "# What the sources do not tell:\n#   %s\n", strings.Join(lines, "\n#   ")); err != nil {
		return fmt.Errorf("print what the sources do not tell: %w", err)
	}
	return nil
}
