package app

import (
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/restante/restante/pipeline"
)

// Print writes the whole configuration as YAML that reads back equal, but for secrets, which are masked.
func (c Config) Print(w io.Writer) error { return writeYAML(w, encode(reflect.ValueOf(c), nil)) }

func writeYAML(w io.Writer, n *yaml.Node) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return fmt.Errorf("print config: %w", err)
	}
	return enc.Close()
}

// encode makes the node of a value. note, when there is one, is asked for the comment of each key.
func encode(v reflect.Value, note func(field) string) *yaml.Node {
	switch x := v.Interface().(type) {
	case time.Duration:
		return scalar(formatDuration(x), 0)
	case Size:
		return scalar(x.String(), 0)
	case Secret:
		return scalar(x.String(), yaml.DoubleQuotedStyle)
	}
	switch v.Kind() { //nolint:exhaustive // what a configuration holds
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		encodeFields(n, v, note)
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode, Style: flowWhenEmpty(v)}
		for _, k := range sortedStrings(v) {
			n.Content = append(n.Content, text(k), encode(v.MapIndex(reflect.ValueOf(k)), note))
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode, Style: flowWhenEmpty(v)}
		if v.Type().Elem().Kind() == reflect.String {
			n.Style = yaml.FlowStyle
		}
		for i := range v.Len() {
			n.Content = append(n.Content, encode(v.Index(i), note))
		}
		return n
	case reflect.Pointer:
		return encode(v.Elem(), note)
	case reflect.String:
		return text(unexpand(v.String()))
	case reflect.Int:
		return scalar(strconv.FormatInt(v.Int(), 10), 0)
	case reflect.Bool:
		return scalar(strconv.FormatBool(v.Bool()), 0)
	}
	panic("config: no way to print a " + v.Type().String())
}

func encodeFields(n *yaml.Node, v reflect.Value, note func(field) string) {
	for _, f := range fieldsOf(v.Type()) {
		x := v.Field(f.Index)
		if f.Omit && isEmpty(x) {
			continue
		}
		key, val := text(f.Key), encode(x, note)
		if note != nil {
			key.HeadComment = note(f)
		}
		n.Content = append(n.Content, key, val)
	}
	if part, ok := partOf(v); ok {
		encodeFields(n, part, note)
	}
}

func isEmpty(v reflect.Value) bool {
	if v.Kind() == reflect.Slice {
		return v.Len() == 0
	}
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			if !isEmpty(v.Field(i)) {
				return false
			}
		}
		return true
	}
	return v.IsZero()
}

func flowWhenEmpty(v reflect.Value) yaml.Style {
	if v.Len() == 0 {
		return yaml.FlowStyle
	}
	return 0
}

func sortedStrings(m reflect.Value) []string {
	keys := map[string]bool{}
	for _, k := range m.MapKeys() {
		keys[k.String()] = true
	}
	return sortedKeys(keys)
}

func scalar(s string, style yaml.Style) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Value: s, Style: style}
}

// text is a scalar that stays text whatever it looks like.
func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// PrintRules writes the rules as they run, one hook and one action a line, as YAML comments.
func (c Config) PrintRules(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# The rules as they run:\n")
	for _, r := range c.PipelineRules() {
		fmt.Fprintf(&b, "#   %-20s %-28s → %s", r.Hook, r.Action, r.Sink)
		if !r.Topic.IsZero() {
			fmt.Fprintf(&b, "  %q", r.Topic)
		}
		b.WriteString("\n")
	}
	if placed, _ := c.expand(); c.Delivery.Retains {
		for _, p := range placed {
			if p.Action == pipeline.OnRetainLookup {
				fmt.Fprintf(&b, "#   %-20s %-28s → nowhere: the broker hands over what it retains (delivery.broker_retains)\n", p.Hook, p.Action)
			}
		}
	}
	for _, r := range c.Rules {
		if r.looksUp() && c.noLookup() != "" {
			fmt.Fprintf(&b, "#   %-20s %-28s → nowhere: no broker is configured that can subscribe clients\n", pipeline.SessionCreated, pipeline.OnSubscribeLookup)
		}
		for _, n := range r.leftOut() {
			fmt.Fprintf(&b, "#   %-20s %-28s → nowhere: it is not in this version\n", n.hook, n.action)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("print rules: %w", err)
	}
	return nil
}
