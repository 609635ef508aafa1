// Package convert turns the conf file of EMQX's DynamoDB backend plugin into a configuration of ours.
package convert

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
)

// State is what became of a line of the conf.
type State string

// The states. Each line is in exactly one of them.
const (
	Blank      State = "blank"
	Comment    State = "comment"             // stands as a comment in the result; a setting that was commented out still is
	Translated State = "translated"          // stands in the result, whole
	Partly     State = "translated in part"  // stands in the result; Why names what does not
	Later      State = "not in this version" // stands there as a comment, to be taken in when it can be carried out
	Refused    State = "refused"             // stands there as a comment: the check would refuse it
	Unknown    State = "no counterpart"      // is named in a comment
	Replaced   State = "replaced"            // a later line sets the same
)

// Line is what became of one line of the conf.
type Line struct {
	Number int    `json:"line"`
	Key    string `json:"key,omitempty"`
	State  State  `json:"state"`
	// To is where it stands in the result, such as sinks.pool1.region.
	To string `json:"to,omitempty"`
	// Why is the reason when it does not stand there whole.
	Why string `json:"why,omitempty"`
}

// Variable is a credential. The result names its environment variable only.
type Variable struct {
	Name  string
	Value app.Secret
}

// Result is a configuration that the check accepts when the variables are set.
type Result struct {
	YAML  []byte
	Env   []Variable
	Lines []Line // one for each line of the conf, in order
}

// Options are what the conf does not tell.
type Options struct {
	// Name of the conf file, for the head of the result.
	Name string
	// Kafka are the bootstrap brokers, host:port.
	Kafka []string
	// Broker is the URL of the MQTT broker.
	Broker string
	// Source is the way to the broker's events: "rules" for EMQX's rule engine, "exhook".
	Source string
	// Secret is the key that marks replays, 16 bytes or more.
	Secret app.Secret
}

// pool is a connection pool of the conf.
type pool struct {
	name    string
	sink    string
	options map[string]setting // by the last part of the key
}

// poolKeys are a pool's options and the keys that they become.
var poolKeys = map[string]string{
	"server": "endpoint", "pool_size": "pool_size", "aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key",
}

// converter holds what was read of the conf.
type converter struct {
	Options
	doc    document
	lines  []Line // index = line number - 1
	faults app.Faults

	region  *setting
	limits  limits
	limited []setting // the lines that set limits
	pools   []*pool
	hooks   []hook
	odd     []setting // named at the end of the result
	env     []Variable
}

// Dynamo converts the text of an emqx_backend_dynamo.conf. The result holds no credential. What is malformed is an [app.Faults] with
// the numbers of the lines and nothing of the values that may be secret.
func Dynamo(conf []byte, o Options) (Result, error) {
	c := &converter{Options: o}
	c.doc, c.faults = read(conf)
	if len(c.faults) > 0 {
		return Result{}, c.faults
	}
	c.lines = make([]Line, c.doc.lines)
	for i := range c.lines {
		c.lines[i] = Line{Number: i + 1, State: Blank}
	}
	c.collect()
	c.judge()
	if len(c.faults) > 0 {
		slices.SortStableFunc(c.faults, func(a, b *app.Fault) int { return cmp.Compare(a.Line, b.Line) })
		return Result{}, c.faults
	}
	return c.settle()
}

func (c *converter) line(n int) *Line { return &c.lines[n-1] }

func (c *converter) mark(s setting, state State, to, why string) {
	*c.line(s.line) = Line{Number: s.line, Key: s.key, State: state, To: to, Why: why}
}

func (c *converter) fault(s setting, format string, args ...any) {
	c.faults = append(c.faults, &app.Fault{Path: s.key, Line: s.line, Text: fmt.Sprintf(format, args...)})
}

func (c *converter) leave(s setting, state State, why string) {
	c.mark(s, state, "", why)
	c.odd = append(c.odd, s)
}

// collect sorts the settings by what they are about. Of two lines with one key the later one counts, as in EMQX.
func (c *converter) collect() {
	last := map[string]int{}
	mine := false
	for _, s := range c.doc.settings {
		last[s.key] = s.line
		mine = mine || s.plugin()
		c.note(s.above)
	}
	c.note(c.doc.below)
	switch {
	case len(c.doc.settings) == 0:
		c.faults = append(c.faults, &app.Fault{Text: "the file has no setting: want lines such as backend.dynamo.region = us-west-2"})
		return
	case !mine:
		c.fault(c.doc.settings[0], "is no setting of EMQX's DynamoDB backend: only emqx_backend_dynamo.conf can be converted, whose keys begin with backend.dynamo")
		return
	}
	for _, s := range c.doc.settings {
		if n := last[s.key]; n != s.line {
			c.leave(s, Replaced, fmt.Sprintf("line %d sets it again", n))
			continue
		}
		c.take(s)
	}
}

// note accounts for comments.
func (c *converter) note(all []comment) {
	for _, m := range all {
		*c.line(m.line) = Line{Number: m.line, State: Comment}
		if m.off != nil {
			c.line(m.line).Key = m.off.key
		}
	}
}

func (c *converter) take(s setting) {
	if !s.plugin() {
		c.leave(s, Unknown, "it is no setting of the DynamoDB backend")
		return
	}
	switch name := s.parts[2]; {
	case len(s.parts) == 3 && name == "region":
		c.region = &s
	case len(s.parts) == 3:
		switch known, err := c.limits.set(name, s.value); {
		case err != nil:
			c.fault(s, "%s", err)
		case known:
			c.limited = append(c.limited, s)
		default:
			c.leave(s, Unknown, "known are region, max_returned_count, time_range, pools and hooks")
		}
	case name == "hook":
		h, err := parseHook(s)
		if err != nil {
			c.fault(s, "%s", err)
			return
		}
		c.hooks = append(c.hooks, h)
	case len(s.parts) == 4 && poolKeys[s.parts[3]] != "":
		c.pool(name).options[s.parts[3]] = s
	case len(s.parts) == 4:
		c.pool(name)
		c.leave(s, Unknown, "known of a pool are "+strings.Join(sorted(poolKeys), ", "))
	default:
		c.leave(s, Unknown, "known are region, max_returned_count, time_range, pools and hooks")
	}
}

// pool is the pool of that name, made when it is named first.
func (c *converter) pool(name string) *pool {
	for _, p := range c.pools {
		if p.name == name {
			return p
		}
	}
	p := &pool{name: name, sink: c.sinkName(name), options: map[string]setting{}}
	c.pools = append(c.pools, p)
	return p
}

var notInNames = regexp.MustCompile(`[^a-z0-9_-]+`)

// sinkName is the pool's name in the letters that a sink's may have, and another than those of the pools before it.
func (c *converter) sinkName(name string) string {
	base := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(name), "-"), "-_")
	base = cmp.Or(base[:min(len(base), 50)], "pool")
	base = cmp.Or(strings.Trim(base, "-_"), "pool")
	name = base
	for n := 2; slices.ContainsFunc(c.pools, func(p *pool) bool { return variable(p.sink) == variable(name) }); n++ {
		name = base + "-" + strconv.Itoa(n)
	}
	return name
}

// variable is the part of an environment variable's name that stands for a sink.
func variable(sink string) string { return strings.ToUpper(strings.ReplaceAll(sink, "-", "_")) }

// judge looks at each setting alone.
func (c *converter) judge() {
	if c.region != nil && len(c.pools) == 0 {
		c.leave(*c.region, Unknown, "there is no pool that it could be the region of")
		c.region = nil
	}
	if c.region != nil {
		c.mark(*c.region, Translated, c.everySink("region"), "")
	}
	for _, p := range c.pools {
		for _, option := range sorted(p.options) {
			s := p.options[option]
			c.mark(s, Translated, "sinks."+p.sink+"."+poolKeys[option], "")
			switch option {
			case "pool_size":
				if _, err := strconv.Atoi(s.value); err != nil {
					c.fault(s, "%q is no whole number", s.value)
				}
			case "aws_access_key_id", "aws_secret_access_key":
				name := "RESTANTE_" + variable(p.sink) + "_" + strings.ToUpper(poolKeys[option])
				c.env = append(c.env, Variable{name, app.Secret(s.value)})
			}
		}
	}
	used := false
	for i := range c.hooks {
		h := &c.hooks[i]
		if h.fetches() {
			used = true
			h.limits = limits{cmp.Or(h.limits.count, c.limits.count), cmp.Or(h.limits.age, c.limits.age)}
		} else if h.limits != (limits{}) {
			h.without = append(h.without, `"offline_opts", which means nothing to `+cmp.Or(h.do, "it"))
			h.limits = limits{}
		}
		c.judgeHook(h)
	}
	for _, s := range c.limited {
		if !used {
			c.leave(s, Unknown, "there is no hook that fetches messages")
			continue
		}
		c.mark(s, Translated, "rules that fetch, as "+s.parts[2], "")
	}
}

// everySink names a key of all sinks.
func (c *converter) everySink(key string) string {
	names := make([]string, len(c.pools))
	for i, p := range c.pools {
		names[i] = "sinks." + p.sink + "." + key
	}
	return strings.Join(names, ", ")
}

func (c *converter) judgeHook(h *hook) {
	i := slices.IndexFunc(c.pools, func(p *pool) bool { return p.name == h.pool })
	if i < 0 {
		names := make([]string, len(c.pools))
		for i, p := range c.pools {
			names[i] = p.name
		}
		c.fault(h.setting, "pool %q has no settings: want backend.dynamo.%s.server = …; the pools of the file are %s", h.pool, h.pool, cmp.Or(strings.Join(names, ", "), "none"))
		return
	}
	if h.do == "" {
		c.mark(h.setting, Unknown, "", "it has no function; statements of its own cannot be carried over")
		return
	}
	rule := h.rule(c.pools[i].sink)
	_, err := pipeline.Compile([]pipeline.Rule{rule})
	var bad *pipeline.RuleError
	switch {
	case errors.As(err, &bad):
		c.mark(h.setting, Unknown, "", bad.Err.Error())
	case rule.Unsupported() != "":
		c.mark(h.setting, Later, "", strings.TrimSuffix(rule.Unsupported(), ": leave it out"))
	case len(h.without) > 0:
		c.mark(h.setting, Partly, "rules", "without "+strings.Join(h.without, ", and without "))
	default:
		c.mark(h.setting, Translated, "rules", "")
	}
}

// inRule finds the number of a rule in what the check says.
var inRule = regexp.MustCompile(`rules\[(\d+)\]`)

// settle writes the result and lets the check judge it as a whole, until it has nothing against it: rules that contradict earlier
// ones become comments.
func (c *converter) settle() (Result, error) {
	for {
		text, hooks := c.write()
		env := append(slices.Clone(c.env), Variable{secretVariable, c.Secret})
		_, err := app.Parse(text, func(name string) (string, bool) {
			i := slices.IndexFunc(env, func(v Variable) bool { return v.Name == name })
			if i < 0 {
				return "", false
			}
			return env[i].Value.Reveal(), true
		})
		if err == nil {
			return Result{text, env, c.lines}, nil
		}
		var faults app.Faults
		if !errors.As(err, &faults) {
			return Result{}, err
		}
		if left := c.refuse(faults, hooks); len(left) > 0 {
			return Result{}, left
		}
	}
}

// refuse makes comments of the rules that have faults, and returns the other faults, with the lines of the conf.
func (c *converter) refuse(faults app.Faults, hooks []hook) app.Faults {
	var left app.Faults
	for _, f := range faults {
		m := inRule.FindStringSubmatch(f.Path)
		if m == nil {
			left = append(left, c.place(f))
			continue
		}
		number := func(text string) string {
			i, err := strconv.Atoi(inRule.FindStringSubmatch(text)[1])
			if err != nil || i >= len(hooks) {
				return text
			}
			return fmt.Sprintf("line %d", hooks[i].line)
		}
		i, err := strconv.Atoi(m[1])
		if err != nil || i >= len(hooks) {
			left = append(left, f)
			continue
		}
		c.mark(hooks[i].setting, Refused, "", inRule.ReplaceAllStringFunc(f.Text, number))
	}
	return left
}

// place gives a fault of a sink the line of the conf that it comes from.
func (c *converter) place(f *app.Fault) *app.Fault {
	out := &app.Fault{Path: f.Path, Text: f.Text}
	for _, p := range c.pools {
		for _, option := range sorted(p.options) {
			s := p.options[option]
			if f.Path == "sinks."+p.sink+"."+poolKeys[option] {
				out.Path, out.Line = s.key, s.line
			} else if out.Line == 0 && strings.HasPrefix(f.Path, "sinks."+p.sink+".") {
				out.Line = s.line // what is missing belongs beside the others
			}
		}
	}
	return out
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
