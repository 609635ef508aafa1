package app

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxConfig is the size above which a file is taken for something else.
const maxConfig = 1 << 20

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	// Path names the key, such as rules[2].topic; empty when the file as a whole is meant.
	Path string
	// Line is where it stands in the file, 0 when unknown.
	Line int
	// Text says what is wrong and, where it can, what would be right.
	Text string
}

// Error is "path (line n): text".
func (f *Fault) Error() string {
	switch {
	case f.Path == "" && f.Line == 0:
		return f.Text
	case f.Path == "":
		return fmt.Sprintf("line %d: %s", f.Line, f.Text)
	case f.Line == 0:
		return f.Path + ": " + f.Text
	}
	return fmt.Sprintf("%s (line %d): %s", f.Path, f.Line, f.Text)
}

// Faults are all faults of a configuration, in the order of the file where that is known.
type Faults []*Fault

// Error has one fault a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, one := range f {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the faults one by one.
func (f Faults) Unwrap() []error {
	errs := make([]error, len(f))
	for i, one := range f {
		errs[i] = one
	}
	return errs
}

// join is nil for no faults, so that a nil error is returned and not an empty list.
func (f Faults) join() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

func (f *Faults) add(path, format string, args ...any) {
	*f = append(*f, &Fault{Path: path, Text: fmt.Sprintf(format, args...)})
}

// Load reads the file over the defaults and validates the whole. The error is a [Faults] with everything that is wrong,
// unless the file cannot be read at all.
func Load(path string, env func(string) (string, bool)) (Config, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Config{}, fmt.Errorf("read config: there is no file %s: name yours with -config, or begin with a copy of config.example.yaml", path)
	case err != nil:
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	c, err := Parse(data, env)
	if err != nil {
		return c, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

// Parse reads YAML over the defaults and validates the whole. Every fault is reported; the error is a [Faults].
func Parse(data []byte, env func(string) (string, bool)) (Config, error) {
	c := Default()
	root, fault := parseYAML(data)
	if fault != nil {
		return c, Faults{fault}
	}
	d := decoder{env: env, lines: map[string]int{}}
	d.decode(root, "", &c)
	faults := d.faults
	var invalid Faults
	if err := c.Validate(); err != nil && !errors.As(err, &invalid) {
		return c, err
	}
	for _, f := range invalid {
		if d.failed(f.Path) {
			continue // what could not be read was reported already
		}
		f.Line = d.line(f.Path)
		faults = append(faults, f)
	}
	slices.SortStableFunc(faults, func(a, b *Fault) int { return cmp.Compare(a.Line, b.Line) })
	return c, faults.join()
}

// parseYAML returns the one document's mapping.
func parseYAML(data []byte) (*yaml.Node, *Fault) {
	data, fault := checkText(data)
	if fault != nil {
		return nil, fault
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF), err == nil && isNull(&doc):
		return nil, &Fault{Text: "the file is empty: config.example.yaml shows every key"}
	case err != nil:
		return nil, yamlFault(err, data)
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, &Fault{Line: second.Line, Text: `a second YAML document begins: remove the line "---", the file must hold one`}
	case !errors.Is(err, io.EOF):
		return nil, yamlFault(err, data)
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, &Fault{Line: root.Line, Text: "the file must be a mapping, with keys such as kafka, sources, sinks and rules"}
	}
	return root, nil
}

func isNull(doc *yaml.Node) bool {
	return len(doc.Content) == 0 || doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].ShortTag() == "!!null"
}

// checkText refuses what is no UTF-8 text and takes off a byte order mark.
func checkText(data []byte) ([]byte, *Fault) {
	switch {
	case len(data) > maxConfig:
		return nil, &Fault{Text: fmt.Sprintf("the file is larger than %s: is it the right one?", Size(maxConfig))}
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return nil, &Fault{Text: "the file is UTF-16: save it as UTF-8"}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for n, line := range bytes.Split(data, []byte("\n")) {
		if !utf8.Valid(line) {
			return nil, &Fault{Line: n + 1, Text: "the line is not UTF-8"}
		}
	}
	return data, nil
}

// yamlFault makes a fault of a parser's error, "yaml: line 3: text".
func yamlFault(err error, data []byte) *Fault {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	f := &Fault{Text: text}
	if n, err := fmt.Sscanf(text, "line %d: ", &f.Line); n == 1 && err == nil {
		_, f.Text, _ = strings.Cut(text, ": ")
	}
	for n, line := range bytes.Split(data, []byte("\n")) {
		if bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("\t")) {
			return &Fault{Line: n + 1, Text: "the line is indented by a tab: YAML wants spaces"}
		}
	}
	f.Text = "not YAML: " + f.Text
	return f
}
