package app

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// SQL is what a statement of EMQX's rule engine selects.
type SQL struct {
	// Topics are the filters of the publishes that are selected.
	Topics []event.Filter
	// Hooks are the $events/… that are selected.
	Hooks []pipeline.Hook
	// Where limits what the hooks' events are about.
	Where event.Filter
}

// SQLError is a statement that is not understood, or asks for more than the selection of events.
type SQLError struct {
	// Pos counts characters from 1.
	Pos  int
	Text string
}

// sqlSupported ends each error.
const sqlSupported = `supported is SELECT * FROM "topic/#", "$events/session_subscribed", "$events/message_acked" WHERE topic =~ 'filter'`

// Error names the position and what is supported.
func (e *SQLError) Error() string {
	return fmt.Sprintf("character %d: %s; %s", e.Pos, e.Text, sqlSupported)
}

// ParseSQL reads the statements that select whole events by topic: SELECT * FROM a list of quoted topic filters and $events/…
// names, and WHERE topic =~ 'filter' or topic = 'topic' or nothing. Its error is a [*SQLError].
func ParseSQL(text string) (SQL, error) {
	p := sqlParser{text: text}
	out := p.statement()
	if p.err != nil {
		return SQL{}, p.err
	}
	return out, nil
}

type sqlParser struct {
	text string
	at   int // byte of the next token
	err  *SQLError
}

// token is a word, a text in quotes, or a sign.
type token struct {
	at    int // byte
	text  string
	quote byte // '"' or '\'', 0 = none
	end   bool
}

func (t token) String() string {
	switch {
	case t.end:
		return "the end"
	case t.quote != 0:
		return string(t.quote) + t.text + string(t.quote)
	}
	return fmt.Sprintf("%q", t.text)
}

func (p *sqlParser) fail(at int, format string, args ...any) {
	if p.err == nil {
		p.err = &SQLError{utf8.RuneCountInString(p.text[:at]) + 1, fmt.Sprintf(format, args...)}
	}
}

func (p *sqlParser) next() token {
	rest := strings.TrimLeftFunc(p.text[p.at:], unicode.IsSpace)
	p.at = len(p.text) - len(rest)
	t := token{at: p.at}
	if rest == "" {
		t.end = true
		return t
	}
	switch c := rest[0]; {
	case c == '"' || c == '\'':
		inner, _, ok := strings.Cut(rest[1:], string(c))
		if !ok {
			p.fail(t.at, "the text that begins here has no closing %c", c)
			p.at, t.end = len(p.text), true
			return t
		}
		t.text, t.quote = inner, c
		p.at += len(inner) + 2
		return t
	case strings.HasPrefix(rest, "=~"):
		t.text = "=~"
	case isWord(rune(c)):
		end := strings.IndexFunc(rest, func(r rune) bool { return !isWord(r) })
		if end < 0 {
			end = len(rest)
		}
		t.text = rest[:end]
	default:
		_, n := utf8.DecodeRuneInString(rest)
		t.text = rest[:n]
	}
	p.at += len(t.text)
	return t
}

func isWord(r rune) bool {
	return r == '_' || r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r))
}

func (t token) is(word string) bool { return t.quote == 0 && !t.end && strings.EqualFold(t.text, word) }

func (p *sqlParser) expect(word string) {
	if t := p.next(); !t.is(word) {
		p.fail(t.at, "%s stands where %s is expected", t, word)
	}
}

// selected is one item of FROM.
type selected struct {
	at     int
	filter event.Filter  // of a publish
	hook   pipeline.Hook // of $events/…
}

func (p *sqlParser) statement() SQL {
	p.expect("SELECT")
	p.expect("*")
	p.expect("FROM")
	var from []selected
	var t token
	for {
		item := p.item()
		for _, f := range from {
			if f.hook == item.hook && f.filter == item.filter {
				p.fail(item.at, "it stands in FROM for the second time")
			}
		}
		from = append(from, item)
		if t = p.next(); !t.is(",") || p.err != nil {
			break
		}
	}
	all, _ := event.ParseFilter("#")
	out := SQL{Where: all}
	where := t
	if t.is("WHERE") {
		out.Where = p.condition()
		t = p.next()
	}
	if !t.end {
		p.fail(t.at, "%s is not understood here", t)
	}
	if p.err != nil {
		return out
	}
	for _, s := range from {
		if s.hook != "" {
			out.Hooks = append(out.Hooks, s.hook)
			continue
		}
		if where.end {
			out.Topics = append(out.Topics, s.filter)
			continue
		}
		both, ok := intersect(s.filter, out.Where)
		switch {
		case !s.filter.Overlaps(out.Where):
			p.fail(where.at, "no topic of %q satisfies it", s.filter)
		case !ok:
			p.fail(where.at, "%q and %q overlap only in part: write the topics that both select into FROM", s.filter, out.Where)
		}
		out.Topics = append(out.Topics, both)
	}
	return out
}

func (p *sqlParser) item() selected {
	t := p.next()
	s := selected{at: t.at}
	if t.quote != '"' {
		p.fail(t.at, `%s stands where a topic in double quotes is expected`, t)
		return s
	}
	if name, ok := strings.CutPrefix(t.text, "$events/"); ok {
		switch name {
		case "session_subscribed":
			s.hook = pipeline.SessionSubscribed
		case "message_acked":
			s.hook = pipeline.MessageAcked
		default:
			p.fail(t.at+1, "event %q is not one that save_offline_messages uses", t.text)
		}
		return s
	}
	if strings.HasPrefix(t.text, "$bridges/") || strings.HasPrefix(t.text, "$sources/") {
		p.fail(t.at+1, "%q names a bridge, whose messages are no publishes of clients", t.text)
	}
	s.filter = p.filter(t)
	return s
}

func (p *sqlParser) filter(t token) event.Filter {
	f, err := event.ParseFilter(t.text)
	if err != nil {
		p.fail(t.at+1, "%s", err)
	}
	if f.Group() != "" {
		p.fail(t.at+1, "filter %q: a shared subscription selects nothing here", t.text)
	}
	return f
}

// condition reads what follows WHERE.
func (p *sqlParser) condition() event.Filter {
	p.expect("topic")
	op := p.next()
	if !op.is("=~") && !op.is("=") {
		p.fail(op.at, "%s stands where =~ or = is expected", op)
		return event.Filter{}
	}
	t := p.next()
	if t.quote != '\'' {
		p.fail(t.at, "%s stands where a text in single quotes is expected", t)
		return event.Filter{}
	}
	f := p.filter(t)
	if _, exact := f.Exact(); op.is("=") && !exact {
		p.fail(t.at+1, "%q has a wildcard, which = does not know: write =~", t.text)
	}
	return f
}

// intersect returns the filter of the topics that match both, when it is one of the two.
func intersect(f, g event.Filter) (event.Filter, bool) {
	switch {
	case covers(g, f):
		return f, true
	case covers(f, g):
		return g, true
	}
	return event.Filter{}, false
}

// covers reports whether every topic that matches g matches f.
func covers(f, g event.Filter) bool {
	a, b := f.Levels(), g.Levels()
	wild := func(s string) bool { return s == "+" || s == "#" }
	if wild(a[0]) && strings.HasPrefix(b[0], "$") {
		return false
	}
	for i := 0; ; i++ {
		switch {
		case i < len(a) && a[i] == "#":
			return true
		case i == len(a) || i == len(b):
			return len(a) == len(b)
		case b[i] == "#", a[i] != "+" && a[i] != b[i]:
			return false
		}
	}
}
