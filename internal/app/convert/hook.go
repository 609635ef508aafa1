package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
)

// hook is what the JSON of a hook line says.
type hook struct {
	setting
	on      pipeline.Hook
	topic   string // "" = the event has none
	do      string // "" = statements of its own
	pool    string
	limits  limits
	without []string // what is left out, in words
}

// limits are what a fetch returns at most, as the file says it.
type limits struct {
	count, age string // "" = not said
}

// infinity is how the plugin says that there is no limit.
const infinity = "infinity"

const hookForm = `want {"topic": "#", "action": {"function": "on_message_publish"}, "pool": "pool1"}`

// parseHook reads a hook line. Its error says what is wrong with the value.
func parseHook(s setting) (hook, error) {
	h := hook{setting: s}
	if len(s.parts) != 6 {
		return h, errors.New("is no name of a hook: want backend.dynamo.hook.<object>.<event>.<number>, such as backend.dynamo.hook.message.publish.1")
	}
	h.on = pipeline.Hook(s.parts[3] + "." + s.parts[4])
	top, err := object([]byte(s.value))
	if err != nil {
		return h, fmt.Errorf("%w; %s", err, hookForm)
	}
	topic, given := top["topic"]
	if err := text(top, "topic", &h.topic); err != nil {
		return h, err
	}
	if err := text(top, "pool", &h.pool); err != nil {
		return h, err
	}
	if h.pool == "" {
		return h, errors.New(`names no "pool"; ` + hookForm)
	}
	if err := h.action(top["action"]); err != nil {
		return h, err
	}
	if err := h.options(top["offline_opts"]); err != nil {
		return h, err
	}
	for _, key := range sorted(top) {
		if !slices.Contains([]string{"topic", "pool", "action", "offline_opts"}, key) {
			h.without = append(h.without, strconv.Quote(key)+", which has no counterpart")
		}
	}
	switch byTopic := h.on != pipeline.ClientConnected && h.on != pipeline.ClientDisconnected && h.on != pipeline.SessionCreated; {
	case byTopic && !given:
		h.topic = "#" // without one EMQX ran the hook for all
	case byTopic:
		f, err := event.ParseFilter(h.topic)
		if err == nil && f.Group() != "" {
			err = errors.New("a rule selects topics and cannot be shared")
		}
		if err != nil {
			return h, fmt.Errorf("topic %s: %w", topic, err)
		}
	case given:
		h.topic = ""
		h.without = append(h.without, fmt.Sprintf(`"topic", which means nothing to %s`, h.on))
	}
	return h, nil
}

func (h *hook) action(raw json.RawMessage) error {
	fields, err := object(raw)
	if err != nil {
		return errors.New(`has no "action" that is an object; ` + hookForm)
	}
	_, given := fields["function"]
	if err := text(fields, "function", &h.do); err != nil || given && h.do == "" {
		return errors.New(`"function" must be the name of an action; ` + hookForm)
	}
	delete(fields, "function")
	for _, key := range sorted(fields) {
		h.without = append(h.without, fmt.Sprintf("%q of the action, which has no counterpart", key))
	}
	return nil
}

func (h *hook) options(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	fields, err := object(raw)
	if err != nil {
		return errors.New(`"offline_opts" must be an object such as {"max_returned_count": 500, "time_range": "2h"}`)
	}
	for _, key := range sorted(fields) {
		value := string(fields[key])
		if s, err := strconv.Unquote(value); err == nil {
			value = s
		}
		switch known, err := h.limits.set(key, value); {
		case err != nil:
			return err
		case !known:
			h.without = append(h.without, fmt.Sprintf("%q of offline_opts, which has no counterpart", key))
		}
	}
	return nil
}

// set takes one limit; false = there is none of that name.
func (l *limits) set(key, value string) (bool, error) {
	switch key {
	case "max_returned_count":
		if n, err := strconv.Atoi(value); (err != nil || n < 0) && value != infinity {
			return true, fmt.Errorf("max_returned_count %q must be a whole number, or infinity", value)
		}
		l.count = value
	case "time_range":
		if d, err := app.ParseDuration(value); (err != nil || d < 0) && value != infinity {
			return true, fmt.Errorf("time_range %q must be a number with d, h, m or s, such as 2h, or infinity", value)
		}
		l.age = value
	default:
		return false, nil
	}
	return true, nil
}

// object reads a JSON object, whose keys may stand there once only.
func object(raw []byte) (map[string]json.RawMessage, error) {
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(raw, &whole); err != nil || whole == nil {
		syntax, ok := errors.AsType[*json.SyntaxError](err)
		switch {
		case !ok || syntax.Offset <= 1:
			return nil, errors.New("is no JSON object")
		case syntax.Offset >= int64(len(raw)) && strings.Contains(err.Error(), "unexpected end"):
			return nil, errors.New("is no JSON object: it ends too early")
		}
		return nil, fmt.Errorf("is no JSON object: character %d of the value: %w", utf8.RuneCount(raw[:syntax.Offset-1])+1, err)
	}
	out := map[string]json.RawMessage{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	for dec.More() {
		var value json.RawMessage
		key, err := dec.Token()
		if err = errors.Join(err, dec.Decode(&value)); err != nil {
			return nil, err
		}
		name := fmt.Sprint(key)
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("has %q twice", name)
		}
		out[name] = value
	}
	return out, nil
}

func text(from map[string]json.RawMessage, key string, into *string) error {
	raw, ok := from[key]
	if !ok {
		return nil
	}
	if raw[0] != '"' || json.Unmarshal(raw, into) != nil {
		return fmt.Errorf("%q must be a text; %s", key, hookForm)
	}
	if r, bad := unwritable(*into); bad {
		return fmt.Errorf("%q holds the character U+%04X", key, r)
	}
	return nil
}

// rule is the pipeline's rule of the hook, by which it is judged alone.
func (h hook) rule(sink string) pipeline.Rule {
	f, _ := event.ParseFilter(h.topic) // the zero filter of a hook without topics
	return pipeline.Rule{Hook: h.on, Action: pipeline.Action(h.do), Topic: f, Sink: sink}
}

func (h hook) fetches() bool {
	return h.do == string(pipeline.OnMessageFetchForQueue) || h.do == string(pipeline.OnMessageFetchForPubsub)
}

// stores reports whether what the action writes has a time to live.
func (h hook) stores() bool {
	return slices.Contains([]pipeline.Action{pipeline.OnMessagePublish, pipeline.OnMessageStore, pipeline.OnMessageRetain}, pipeline.Action(h.do))
}
