package mqtt

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/restante/restante/event"
)

const (
	clientHole = "{clientid}"
	topicHole  = "{topic}"
)

// DefaultTemplate is where replays go in delivery mode prefix.
const DefaultTemplate = "offline/{clientid}/{topic}"

// DefaultFetchTopic is where a device publishes its filter on brokers that tell nobody about subscribes.
const DefaultFetchTopic = "offline/fetch/{clientid}"

// Template is a topic with a level for the client id and, in delivery mode prefix, the whole original topic at its end.
// It can be turned round: a topic that it made gives the client and the original topic back. The zero Template is none.
type Template struct {
	before, after string // around the client id
	topic         bool   // the original topic follows after
}

// ParseTemplate reads a delivery template, such as "offline/{clientid}/{topic}".
func ParseTemplate(s string) (Template, error) {
	head, ok := strings.CutSuffix(s, "/"+topicHole)
	if !ok {
		return Template{}, fmt.Errorf("delivery template %q: must end with /%s, so that the original topic can be found in it", s, topicHole)
	}
	t, err := parseHole(head)
	if err != nil {
		return Template{}, fmt.Errorf("delivery template %q: %w", s, err)
	}
	t.after += "/"
	t.topic = true
	return t, nil
}

// ParseFetchTopic reads a fetch topic, such as "offline/fetch/{clientid}".
func ParseFetchTopic(s string) (Template, error) {
	t, err := parseHole(s)
	if err != nil {
		return Template{}, fmt.Errorf("fetch topic %q: %w", s, err)
	}
	return t, nil
}

func parseHole(s string) (Template, error) {
	before, after, ok := strings.Cut(s, clientHole)
	switch {
	case !ok || strings.Contains(after, clientHole):
		return Template{}, fmt.Errorf("must hold %s once", clientHole)
	case before != "" && !strings.HasSuffix(before, "/") || after != "" && !strings.HasPrefix(after, "/"):
		return Template{}, fmt.Errorf("%s must be a level of its own", clientHole)
	case strings.Contains(s, topicHole):
		return Template{}, fmt.Errorf("%s is out of place", topicHole)
	case strings.ContainsAny(s, "+#"):
		return Template{}, errors.New("must hold no wildcard")
	case strings.HasPrefix(s, "$"):
		return Template{}, errors.New("must not begin with $")
	}
	if _, err := event.ParseTopic(before + "x" + after); err != nil {
		return Template{}, err
	}
	return Template{before: before, after: after}, nil
}

// IsZero reports whether there is no template.
func (t Template) IsZero() bool { return t == Template{} }

// String is the template's text.
func (t Template) String() string {
	switch {
	case t.IsZero():
		return ""
	case t.topic:
		return t.before + clientHole + t.after + topicHole
	}
	return t.before + clientHole + t.after
}

// escape keeps a client id in one level without wildcards.
var escape = strings.NewReplacer("%", "%25", "/", "%2F", "+", "%2B", "#", "%23")

// For is the topic for a client; topic is empty for a fetch topic. It fails when the topic gets too long for MQTT.
func (t Template) For(client event.ClientID, topic string) (event.Topic, error) {
	return event.ParseTopic(t.before + escape.Replace(string(client)) + t.after + topic)
}

// Filter matches every topic that the template makes.
func (t Template) Filter() event.Filter {
	end := "+" + t.after
	if t.topic {
		end += "#"
	}
	f, err := event.ParseFilter(t.before + end)
	if err != nil {
		panic(fmt.Sprintf("mqtt: filter of template: %v", err)) // unreachable: the template was checked
	}
	return f
}

// Original turns a topic that For made round, and says no to any other.
func (t Template) Original(topic string) (client event.ClientID, original string, ok bool) {
	rest, ok := strings.CutPrefix(topic, t.before)
	if !ok || t.IsZero() {
		return "", "", false
	}
	level, rest, more := strings.Cut(rest, "/")
	if more {
		rest = "/" + rest
	}
	if original, ok = strings.CutPrefix(rest, t.after); !ok || t.topic != (original != "") {
		return "", "", false
	}
	id, err := url.PathUnescape(level)
	if err != nil || escape.Replace(id) != level {
		return "", "", false
	}
	client, err = event.ParseClientID(id)
	return client, original, err == nil
}
