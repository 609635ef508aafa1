package convert

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/restante/restante/internal/app"
)

// maxConf is the size above which a file is taken for something else.
const maxConf = 1 << 20

// setting is one "key = value" of the conf, or one that is commented out.
type setting struct {
	line  int
	key   string
	parts []string // of the key, at its dots
	value string
	above []comment // what stands between it and the setting before it
}

// comment is a line of the conf that begins with #.
type comment struct {
	line int
	text string   // as it stands there, without the space around it
	off  *setting // the setting that is commented out by it; nil = prose
}

// document is a conf file in its lines.
type document struct {
	settings []setting
	below    []comment // behind the last setting
	lines    int
}

// word is one part of a key; a dot in it has a backslash before it.
const word = `(?:\\\.|[A-Za-z0-9_@/:-])+`

var (
	keyForm     = regexp.MustCompile(`^` + word + `(?:\.` + word + `)*$`)
	dotAlone    = regexp.MustCompile(`(?:` + word + `)`)
	placeholder = regexp.MustCompile(`^\{\{.*\}\}$`)
)

// read takes a conf file apart. Comments take a whole line there; whatever follows "=" is the value.
func read(conf []byte) (document, app.Faults) {
	var d document
	if fault := notText(conf); fault != nil {
		return d, app.Faults{fault}
	}
	conf = bytes.TrimPrefix(conf, []byte("\xef\xbb\xbf"))
	var faults app.Faults
	var above []comment
	lines := strings.Split(string(conf), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1] // the newline at the end begins no line
	}
	for i, line := range lines {
		n := i + 1
		line = strings.TrimSuffix(line, "\r")
		text := strings.Trim(line, " \t")
		if r, ok := unwritable(text); ok {
			faults = append(faults, &app.Fault{Line: n, Text: fmt.Sprintf("holds the character U+%04X, which no text file needs: remove it", r)})
			continue
		}
		switch {
		case text == "":
		case text[0] == '#':
			above = append(above, comment{n, text, commentedOut(n, text)})
		case placeholder.MatchString(text):
			faults = append(faults, &app.Fault{Line: n, Text: "is a placeholder of a template: write the setting that belongs here"})
		default:
			s, why := parseSetting(n, text)
			if why != "" {
				faults = append(faults, &app.Fault{Line: n, Text: why})
				continue
			}
			s.above, above = above, nil
			d.settings = append(d.settings, s)
		}
	}
	d.below, d.lines = above, len(lines)
	return d, faults
}

func notText(conf []byte) *app.Fault {
	switch {
	case len(conf) > maxConf:
		return &app.Fault{Text: fmt.Sprintf("the file is larger than %s: is it the right one?", app.Size(maxConf))}
	case bytes.HasPrefix(conf, []byte("\xff\xfe")), bytes.HasPrefix(conf, []byte("\xfe\xff")):
		return &app.Fault{Text: "the file is UTF-16: save it as UTF-8"}
	}
	for i, line := range bytes.Split(conf, []byte("\n")) {
		if !utf8.Valid(line) {
			return &app.Fault{Line: i + 1, Text: "the line is not UTF-8: convert the file, with iconv for example"}
		}
	}
	return nil
}

// unwritable finds a character that would end a comment in YAML, or that YAML does not allow.
func unwritable(text string) (rune, bool) {
	for _, r := range text {
		switch {
		case r == '\t', r >= 0x20 && r <= 0x7e, r >= 0xa0 && r <= 0xd7ff && r != 0x2028 && r != 0x2029,
			r >= 0xe000 && r <= 0xfffd && r != 0xfeff, r >= 0x10000:
		default:
			return r, true
		}
	}
	return 0, false
}

// parseSetting says why it is none. It shows nothing of the line, since a value may be a secret.
func parseSetting(line int, text string) (s setting, why string) {
	key, value, ok := strings.Cut(text, "=")
	key, value = strings.TrimRight(key, " \t"), strings.TrimLeft(value, " \t")
	switch {
	case !ok:
		return s, `is neither "key = value" nor a comment, which begins with #`
	case key == "":
		return s, `has no key before "="`
	case !keyForm.MatchString(key):
		return s, `has no key before "=" such as backend.dynamo.pool1.server: letters, digits, _ and -, with dots between`
	case value == "":
		return s, key + ` has no value after "="`
	}
	parts := dotAlone.FindAllString(key, -1)
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(p, `\.`, ".")
	}
	return setting{line: line, key: key, parts: parts, value: value}, ""
}

// commentedOut is the plugin's setting that a comment hides; nil = it is prose.
func commentedOut(line int, text string) *setting {
	s, why := parseSetting(line, strings.TrimLeft(text, "# \t"))
	if why != "" || s.parts[0] != "backend" {
		return nil
	}
	return &s
}

// sensitive reports whether the setting's value must not be shown.
func (s setting) sensitive() bool {
	last := strings.ToLower(s.parts[len(s.parts)-1])
	for _, w := range []string{"secret", "password", "passwd", "token", "key"} {
		if strings.Contains(last, w) {
			return true
		}
	}
	return false
}

// plugin reports whether the setting is one of the DynamoDB backend.
func (s setting) plugin() bool {
	return len(s.parts) > 2 && s.parts[0] == "backend" && s.parts[1] == "dynamo"
}
