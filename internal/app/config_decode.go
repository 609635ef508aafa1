package app

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds what aliases can blow a small file up to.
const maxNodes = 100_000

// decoder reads nodes into the configuration's types. Unlike package yaml's own it knows the path of each fault, reports all of
// them, and expands the environment in values only, after the parse, so that a value can never become structure.
type decoder struct {
	env    func(string) (string, bool)
	lines  map[string]int // path → line
	bad    []string       // paths that could not be read
	faults Faults
	nodes  int
}

func (d *decoder) fault(n *yaml.Node, path, format string, args ...any) {
	d.bad = append(d.bad, path)
	d.faults = append(d.faults, &Fault{Path: path, Line: n.Line, Text: fmt.Sprintf(format, args...)})
}

// line is where the path, or what it lies in, begins.
func (d *decoder) line(path string) int {
	for path != "" {
		if n, ok := d.lines[path]; ok {
			return n
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 0
}

// failed reports whether the path, or what it lies in, could not be read.
func (d *decoder) failed(path string) bool {
	return slices.ContainsFunc(d.bad, func(bad string) bool {
		rest, ok := strings.CutPrefix(path, bad)
		return ok && bad != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[Size]()
	addressType  = reflect.TypeFor[Addresses]()
	listType     = reflect.TypeFor[List]()
)

// decode reads the node into what out points to. A node that is null leaves out as it is: the defaults.
func (d *decoder) decode(n *yaml.Node, path string, out any) {
	d.value(n, path, reflect.ValueOf(out).Elem())
}

func (d *decoder) value(n *yaml.Node, path string, out reflect.Value) {
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.fault(n, path, "too many values: the file's aliases multiply")
		}
		return
	}
	d.lines[path] = n.Line
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Style&yaml.TaggedStyle != 0:
		d.fault(n, path, "tag %s: tags have no meaning here, remove it", n.Tag)
		return
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return
	}
	if v, ok := reflect.TypeAssert[variant](out.Addr()); ok {
		d.variant(n, path, v)
		return
	}
	switch {
	case out.Type() == durationType:
		setParsed(d, n, path, out, ParseDuration)
	case out.Type() == sizeType:
		setParsed(d, n, path, out, ParseSize)
	case out.Kind() == reflect.Struct:
		d.mapping(n, path, out)
	case out.Kind() == reflect.Map:
		d.named(n, path, out)
	case out.Kind() == reflect.Slice:
		d.list(n, path, out)
	case out.Kind() == reflect.Pointer:
		out.Set(reflect.New(out.Type().Elem()))
		d.value(n, path, out.Elem())
	case out.Kind() == reflect.String:
		setParsed(d, n, path, out, func(s string) (string, error) { return s, nil })
	case out.Kind() == reflect.Int:
		setParsed(d, n, path, out, parseInt)
	case out.Kind() == reflect.Bool:
		setParsed(d, n, path, out, parseBool)
	default:
		panic("config: no way to read a " + out.Type().String())
	}
}

func parseInt(s string) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no whole number", s)
	}
	return v, nil
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// text is the scalar's text with the environment filled in.
func (d *decoder) text(n *yaml.Node, path string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.fault(n, path, "must be one value, not %s", kindName(n.Kind))
		return "", false
	}
	s, err := expand(n.Value, d.env)
	if err != nil {
		d.fault(n, path, "%s", err)
		return "", false
	}
	return s, true
}

func setParsed[T any](d *decoder, n *yaml.Node, path string, out reflect.Value, parse func(string) (T, error)) {
	s, ok := d.text(n, path)
	if !ok {
		return
	}
	v, err := parse(s)
	if err != nil {
		d.fault(n, path, "%s", err)
		return
	}
	out.Set(reflect.ValueOf(v).Convert(out.Type()))
}

// pairs calls do for each key of a mapping that stands there for the first time.
func (d *decoder) pairs(n *yaml.Node, path string, do func(key, at string, k, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "must be a mapping of keys to values, not %s", kindName(n.Kind))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.fault(k, path, "a key must be a name, not %s", kindName(k.Kind))
			continue
		}
		at := join(path, k.Value)
		if line, ok := seen[k.Value]; ok {
			d.fault(k, at, "stands here for the second time, the first is in line %d", line)
			continue
		}
		seen[k.Value] = k.Line
		do(k.Value, at, k, v)
	}
}

func (d *decoder) mapping(n *yaml.Node, path string, out reflect.Value) {
	fields := fieldsOf(out.Type())
	d.pairs(n, path, func(key, at string, k, v *yaml.Node) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.Key == key })
		if i < 0 {
			d.unknown(k, at, fields)
			return
		}
		d.value(v, at, out.Field(fields[i].Index))
	})
}

func (d *decoder) unknown(k *yaml.Node, at string, fields []field) {
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.Key
	}
	switch best := nearest(k.Value, keys); {
	case k.Value == "<<":
		d.fault(k, at, "merge keys are not supported: write the keys out")
	case best != "":
		d.fault(k, at, "unknown key: did you mean %q?", best)
	case len(keys) == 0:
		d.fault(k, at, "unknown key: nothing can be set here")
	default:
		d.fault(k, at, "unknown key: known here are %s", strings.Join(keys, ", "))
	}
}

// variant reads "type" first, since it decides which keys are known.
func (d *decoder) variant(n *yaml.Node, path string, v variant) {
	var typ string
	rest := &yaml.Node{Kind: yaml.MappingNode, Line: n.Line}
	d.pairs(n, path, func(key, at string, k, val *yaml.Node) {
		if key == "type" {
			d.value(val, at, reflect.ValueOf(&typ).Elem())
			return
		}
		rest.Content = append(rest.Content, k, val)
	})
	if part := v.choose(typ); part != nil {
		d.decode(rest, path, part)
	}
}

func (d *decoder) named(n *yaml.Node, path string, out reflect.Value) {
	m := reflect.MakeMap(out.Type())
	d.pairs(n, path, func(key, at string, _, v *yaml.Node) {
		elem := reflect.New(out.Type().Elem()).Elem()
		d.value(v, at, elem)
		m.SetMapIndex(reflect.ValueOf(key), elem)
	})
	out.Set(m)
}

func (d *decoder) list(n *yaml.Node, path string, out reflect.Value) {
	switch {
	case n.Kind == yaml.ScalarNode && out.Type() == addressType:
		setParsed(d, n, path, out, func(s string) (Addresses, error) { return splitAddresses(s), nil })
		return
	case n.Kind == yaml.ScalarNode && out.Type() == listType:
		setParsed(d, n, path, out, func(s string) (List, error) { return List{s}, nil })
		return
	case n.Kind != yaml.SequenceNode:
		d.fault(n, path, "must be a list, not %s", kindName(n.Kind))
		return
	}
	list := reflect.MakeSlice(out.Type(), 0, len(n.Content))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		elem := reflect.New(out.Type().Elem()).Elem()
		if r, ok := reflect.TypeAssert[*Rule](elem.Addr()); ok {
			*r = defaultRule()
		}
		if item.Kind == yaml.ScalarNode && item.ShortTag() == "!!null" {
			d.fault(item, at, "is empty")
		}
		d.value(item, at, elem)
		list = reflect.Append(list, elem)
	}
	out.Set(list)
}

func kindName(k yaml.Kind) string {
	switch k {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		return "one value"
	case yaml.AliasNode:
		return "an alias"
	case yaml.DocumentNode:
		return "a document"
	}
	return "nothing"
}

// join puts a key behind a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// nearest is the known word that is most likely meant, "" when none is near.
func nearest(word string, known []string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, k := range known {
		dist := distance(strings.ToLower(word), k)
		if min(len(word), len(k)) >= 3 && (strings.HasPrefix(word, k) || strings.HasPrefix(k, word)) {
			dist = min(dist, 2)
		}
		if dist < least {
			best, least = k, dist
		}
	}
	return best
}

// distance counts the letters to be changed, added, taken out or swapped with the next.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// sortedKeys are the map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
