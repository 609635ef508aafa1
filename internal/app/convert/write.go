package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
)

// secretVariable names the key that marks replays.
const secretVariable = "RESTANTE_REPLAY_SECRET" //nolint:gosec // the name, not the key

// writer writes YAML.
type writer struct {
	bytes.Buffer
	secrets []string
}

// quote writes a text so that neither YAML nor the environment changes it.
func quote(text string) string {
	if strings.Contains(text, "${") || strings.Contains(text, "$$") {
		text = strings.ReplaceAll(text, "$", "$$")
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(text) // a text can always be encoded
	return strings.TrimSuffix(b.String(), "\n")
}

// shown is a text of the conf without what must not be shown.
func (w *writer) shown(text string) string {
	for _, s := range w.secrets {
		text = strings.ReplaceAll(text, s, "******")
	}
	return strings.ReplaceAll(text, "\n", " ")
}

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

// write writes the configuration, and returns the hooks that stand in it as rules, in order.
func (c *converter) write() (text []byte, rules []hook) {
	w := &writer{secrets: c.secrets()}
	name := "emqx_backend_dynamo.conf"
	if _, bad := unwritable(c.Name); !bad && c.Name != "" {
		name = c.Name
	}
	w.line("# Made by \"restante convert\" from %s. A number behind a setting is its line there; what could not", name)
	w.line("# be carried over stands as a comment, with the reason. Kafka, sources and delivery are not in that file: put your")
	w.line("# addresses there. Credentials are in the environment variables that ${…} names.\n")
	c.writeBroker(w)
	w.line("\nsinks:%s", ifEmpty(len(c.pools), " {}"))
	for i, p := range c.pools {
		c.writePool(w, p, i == 0)
	}
	rules = c.writeRules(w)
	c.writeOdd(w)
	return w.Bytes(), rules
}

// comments carries comments over. Of a hook that was commented out the rule stands there too; a credential does not.
func (c *converter) comments(w *writer, indent string, all []comment) {
	for _, m := range all {
		if m.off != nil && m.off.sensitive() {
			w.line("%s# %s = ****** (line %d, commented out there)", indent, m.off.key, m.line)
			continue
		}
		w.line("%s%s", indent, w.shown(m.text))
		if m.off == nil || !m.off.plugin() || m.off.parts[2] != "hook" {
			continue
		}
		if h, err := parseHook(*m.off); err == nil && h.do != "" && c.sinkOf(h) != "" {
			w.line("%s# - %s # %d, commented out there", indent, w.shown(c.ruleText(h)), m.line)
		}
	}
}

// sinkOf is the sink of the hook's pool, "" = the file has no such pool.
func (c *converter) sinkOf(h hook) string {
	for _, p := range c.pools {
		if p.name == h.pool {
			return p.sink
		}
	}
	return ""
}

func ifEmpty(n int, text string) string {
	if n == 0 {
		return text
	}
	return ""
}

// secrets are the values that must stand nowhere, even when somebody wrote them into a comment too.
func (c *converter) secrets() []string {
	var out []string
	add := func(s setting) {
		if s.sensitive() && len(s.value) >= 8 {
			out = append(out, s.value)
		}
	}
	comments := slices.Clone(c.doc.below)
	for _, s := range c.doc.settings {
		add(s)
		comments = append(comments, s.above...)
	}
	for _, m := range comments {
		if m.off != nil {
			add(*m.off)
		}
	}
	return out
}

// writeBroker writes what the conf does not tell.
func (c *converter) writeBroker(w *writer) {
	brokers := make([]string, len(c.Kafka))
	for i, b := range c.Kafka {
		brokers[i] = quote(b)
	}
	w.line("kafka:")
	w.line("  brokers: [%s]", strings.Join(brokers, ", "))
	w.line("  # messages: {replication: 1} # for a Kafka of one node; 3 copies is the default\n")
	w.line("sources:")
	if c.Source == "exhook" {
		w.line("  # EMQX calls this address for each event. It does not tell which messages are retained.")
		w.line("  emqx: {type: exhook, listen: \":9000\"}\n")
	} else {
		w.line("  # EMQX's rule engine republishes its events to restante/events.")
		w.line("  emqx: {type: mqtt, decode: emqx, url: %s} # user: restante, password_file: …\n", quote(c.Broker))
	}
	w.line("delivery:")
	if slices.ContainsFunc(c.hooks, c.replaysToOne) {
		w.line("  # The plugin put what a rule of pub/sub replays into the one session; here clients subscribe to offline/<client id>/# too.")
		w.line("  to: prefix")
	} else {
		w.line("  to: topic")
	}
	w.line("  evidence: broker")
	w.line("  mqtt: {url: %s} # user: restante, password_file: …", quote(c.Broker))
	w.line("  secret: \"${%s}\"", secretVariable)
}

// replaysToOne reports whether the hook becomes a rule whose replays must reach one client only.
func (c *converter) replaysToOne(h hook) bool {
	state := c.line(h.line).State
	return h.do == string(pipeline.OnMessageFetchForPubsub) && (state == Translated || state == Partly)
}

func (c *converter) writePool(w *writer, p *pool, first bool) {
	w.line("  %s:", key(p.sink))
	w.line("    type: dynamodb")
	if c.region != nil {
		if first {
			c.comments(w, "    ", c.region.above)
		}
		w.line("    region: %s # %d", quote(c.region.value), c.region.line)
	}
	for _, option := range []string{"server", "pool_size", "aws_access_key_id", "aws_secret_access_key"} {
		s, ok := p.options[option]
		if !ok {
			continue
		}
		c.comments(w, "    ", s.above)
		value := quote(s.value)
		switch option {
		case "pool_size":
			value = s.value
		case "aws_access_key_id", "aws_secret_access_key":
			value = fmt.Sprintf("\"${RESTANTE_%s_%s}\"", variable(p.sink), strings.ToUpper(poolKeys[option]))
		}
		w.line("    %s: %s # %d", poolKeys[option], value, s.line)
	}
	w.line("    # The plugin's own form of message ids, so that what it has stored is found, and its unit of time.")
	w.line("    msgid_format: base62")
	w.line("    time_unit: s")
}

func (c *converter) writeRules(w *writer) (rules []hook) {
	w.line("\nrules:%s", ifEmpty(len(c.hooks), " []"))
	if len(c.hooks) > 0 {
		w.line("  # The plugin kept messages for ever, and so does ttl: 0s. To let them expire set one, such as 168h.")
	}
	for _, s := range c.limited {
		if c.line(s.line).State == Translated {
			c.comments(w, "  ", s.above)
			w.line("  # %s, line %d: it stands at the rules that fetch.", s.key, s.line)
		}
	}
	for _, h := range c.hooks {
		c.comments(w, "  ", h.above)
		switch l := *c.line(h.line); l.State {
		case Translated, Partly:
			if l.Why != "" {
				w.line("  # %d: %s.", h.line, w.shown(l.Why))
			}
			c.line(h.line).To = fmt.Sprintf("rules[%d]", len(rules))
			w.line("  - %s # %d", c.ruleText(h), h.line)
			rules = append(rules, h)
		case Later, Refused:
			w.line("  # %d: %s.", h.line, w.shown(l.Why))
			w.line("  # - %s", c.ruleText(h))
		case Unknown, Blank, Comment, Replaced:
			w.line("  # %d, %s: %s: %s.", h.line, l.State, h.key, w.shown(l.Why))
			w.line("  #   %s", w.shown(h.value))
		}
	}
	c.comments(w, "  ", c.doc.below)
	return rules
}

// ruleText is the rule of a hook.
func (c *converter) ruleText(h hook) string {
	parts := []string{"on: " + plain(string(h.on))}
	if h.topic != "" {
		parts = append(parts, "topic: "+quote(h.topic))
	}
	parts = append(parts, "do: "+plain(h.do))
	if n := h.limits.count; n != "" && n != infinity {
		parts = append(parts, "max_returned_count: "+n)
	}
	if d := h.limits.age; d != "" && d != infinity {
		parts = append(parts, "time_range: "+d)
	}
	if h.stores() {
		parts = append(parts, "ttl: 0s")
	}
	return "{" + strings.Join(append(parts, "sink: "+key(c.sinkOf(h))), ", ") + "}"
}

// key writes the name of a sink.
func key(sink string) string {
	if sink == "null" || sink[0] < 'a' || sink[0] > 'z' {
		return quote(sink)
	}
	return sink
}

// plain leaves a word of ours as it is.
func plain(text string) string {
	for _, r := range text {
		if r != '_' && r != '.' && (r < 'a' || r > 'z') {
			return quote(text)
		}
	}
	return text
}

// writeOdd names what has no place.
func (c *converter) writeOdd(w *writer) {
	if len(c.odd) > 0 {
		w.line("\n# What was not carried over:")
	}
	for _, s := range c.odd {
		c.comments(w, "", s.above)
		value := w.shown(s.value)
		if s.sensitive() {
			value = app.Secret(s.value).String()
		}
		l := c.line(s.line)
		w.line("# %d, %s: %s = %s: %s.", s.line, l.State, s.key, value, w.shown(l.Why))
	}
}
