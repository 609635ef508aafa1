package app

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/restante/restante/event"
)

const seedSQL = `SELECT * FROM "t/#", "$events/session_subscribed", "$events/message_acked" WHERE topic =~ 't/#'`

func TestSQLSelectsEvents(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ sql, want string }{
		"verbatim":                   {seedSQL, "[t/#] [session.subscribed message.acked] t/#"},
		"case, space and new lines":  {"select  *\n from\t\"t/#\" , \"$events/message_acked\"\nwhere TOPIC=~'t/#'", "[t/#] [message.acked] t/#"},
		"no condition":               {`SELECT * FROM "a", "$SYS/b"`, "[a $SYS/b] [] #"},
		"one topic":                  {`SELECT * FROM "t/#" WHERE topic = 't/1'`, "[t/1] [] t/1"},
		"the narrower one counts":    {`SELECT * FROM "t/+/x", "t/#" WHERE topic =~ 't/+/#'`, "[t/+/x t/+/#] [] t/+/#"},
		"a quote of the other kind":  {`SELECT * FROM "it's" WHERE topic = 'say "x"'`, "character 22: no topic of \"it's\" satisfies it"},
		"empty":                      {"", "character 1: the end stands where SELECT is expected"},
		"columns":                    {"SELECT payload FROM \"t\"", `character 8: "payload" stands where * is expected`},
		"foreach":                    {`FOREACH x FROM "t"`, `character 1: "FOREACH" stands where SELECT is expected`},
		"bare topic":                 {"SELECT * FROM t", `character 15: "t" stands where a topic in double quotes is expected`},
		"topic in single quotes":     {"SELECT * FROM 't'", `character 15: 't' stands where a topic in double quotes is expected`},
		"keyword in quotes":          {`"SELECT" * FROM "t"`, `character 1: "SELECT" stands where SELECT is expected`},
		"unclosed":                   {`SELECT * FROM "t`, `character 15: the text that begins here has no closing "`},
		"bad filter":                 {`SELECT * FROM "a/#/b"`, `character 16: filter "a/#/b": '#' must be the last level`},
		"shared":                     {`SELECT * FROM "$share/g/t"`, `character 16: filter "$share/g/t": a shared subscription selects nothing here`},
		"another event":              {`SELECT * FROM "$events/client_connected"`, `character 16: event "$events/client_connected" is not one that save_offline_messages uses`},
		"named twice":                {`SELECT * FROM "t", "t"`, "character 20: it stands in FROM for the second time"},
		"another column":             {`SELECT * FROM "t" WHERE qos = 1`, `character 25: "qos" stands where topic is expected`},
		"another operator":           {`SELECT * FROM "t" WHERE topic > 't'`, `character 31: ">" stands where =~ or = is expected`},
		"a number":                   {`SELECT * FROM "t" WHERE topic = 1`, `character 33: "1" stands where a text in single quotes is expected`},
		"more conditions":            {`SELECT * FROM "t" WHERE topic = 't' AND qos = 1`, `character 37: "AND" is not understood here`},
		"a wildcard under =":         {`SELECT * FROM "t/#" WHERE topic = 't/#'`, `character 36: "t/#" has a wildcard, which = does not know: write =~`},
		"nothing satisfies":          {`SELECT * FROM "t/#" WHERE topic =~ 'u/#'`, `character 21: no topic of "t/#" satisfies it`},
		"a partial overlap":          {`SELECT * FROM "t/+/a" WHERE topic =~ 't/b/+'`, `character 23: "t/+/a" and "t/b/+" overlap only in part: write the topics that both select into FROM`},
		"characters are not bytes":   {`SELECT * FROM "tür/€", x`, `character 24: "x" stands where a topic in double quotes is expected`},
		"a semicolon":                {`SELECT * FROM "t";`, `character 18: ";" is not understood here`},
		"NUL":                        {"SELECT * FROM \"t\x00\"", `character 16: filter "t\x00": holds NUL`},
		"an unfinished condition":    {`SELECT * FROM "t" WHERE`, "character 24: the end stands where topic is expected"},
		"a column and all":           {`SELECT *, payload.x AS x FROM "t"`, `character 9: "," stands where FROM is expected`},
		"a function":                 {`SELECT base64_encode(payload) as p FROM "t"`, `character 8: "base64_encode" stands where * is expected`},
		"a case":                     {`SELECT CASE WHEN qos = 0 THEN 1 END FROM "t"`, `character 8: "CASE" stands where * is expected`},
		"either condition":           {`SELECT * FROM "t/#" WHERE topic =~ 't/#' or topic =~ 'u/#'`, `character 42: "or" is not understood here`},
		"a negation":                 {`SELECT * FROM "t/#" WHERE not topic =~ 't/#'`, `character 27: "not" stands where topic is expected`},
		"a condition in parentheses": {`SELECT * FROM "t/#" WHERE (topic =~ 't/#')`, `character 27: "(" stands where topic is expected`},
		"another client":             {`SELECT * FROM "t/#" WHERE clientid <> 'x'`, `character 27: "clientid" stands where topic is expected`},
		"two operands swapped":       {`SELECT * FROM "t/#" WHERE 't/#' =~ topic`, `character 27: 't/#' stands where topic is expected`},
		"a comment":                  {`SELECT * FROM "t" -- all`, `character 19: "-" is not understood here`},
		"a second statement":         {`SELECT * FROM "t" SELECT * FROM "u"`, `character 19: "SELECT" is not understood here`},
		"an event's name in 6.x":     {`SELECT * FROM "$events/message/acked"`, `character 16: event "$events/message/acked" is not one that save_offline_messages uses`},
		"a delivery":                 {`SELECT * FROM "t", "$events/message_delivered"`, `character 21: event "$events/message_delivered" is not one that save_offline_messages uses`},
		"all events":                 {`SELECT * FROM "$events/#"`, `character 16: event "$events/#" is not one that save_offline_messages uses`},
		"a bridge":                   {`SELECT * FROM "$bridges/mqtt:x"`, `character 16: "$bridges/mqtt:x" names a bridge, whose messages are no publishes of clients`},
		"a comma at the end of FROM": {`SELECT * FROM "t",`, "character 19: the end stands where a topic in double quotes is expected"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := ParseSQL(tt.sql)
			got := fmt.Sprint(s.Topics, s.Hooks, s.Where)
			if err != nil {
				got = strings.TrimSuffix(err.Error(), "; "+sqlSupported)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestCoveringFilterMatchesAllThatTheOtherMatches(t *testing.T) {
	t.Parallel()
	levels := []string{"a", "b", "+", "#", "$s"}
	var filters []event.Filter
	var topics []event.Topic
	var grow func(prefix string, depth int)
	grow = func(prefix string, depth int) {
		for _, l := range levels {
			text := prefix + l
			if f, err := event.ParseFilter(text); err == nil {
				filters = append(filters, f)
			}
			if tp, err := event.ParseTopic(text); err == nil {
				topics = append(topics, tp)
			}
			if depth < 3 {
				grow(text+"/", depth+1)
			}
		}
	}
	grow("", 1)
	for _, f := range filters {
		for _, g := range filters {
			if !covers(f, g) {
				continue
			}
			for _, tp := range topics {
				if g.Match(tp) && !f.Match(tp) {
					t.Fatalf("%q covers %q, but %q matches only the second", f, g, tp)
				}
			}
		}
	}
}

// Ten thousand statements that somebody mistyped: none panics, and each that is refused says where and what is supported.
func TestMistypedSQLIsRefusedWithItsPlace(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 1))
	words := []string{"SELECT", "*", "FROM", `"t/#"`, ",", "WHERE", "topic", "=~", "'t/#'", `"`, "'", "#", "+", "AND", "(", ")", "é", "\x00", "\xff", " ", "$events/"}
	for range 10_000 {
		text := []byte(seedSQL)
		for range 1 + r.IntN(4) {
			at := r.IntN(len(text) + 1)
			end := min(len(text), at+r.IntN(8))
			text = slices.Concat(text[:at], []byte(words[r.IntN(len(words))]), text[end:])
		}
		checkSQL(t, string(text))
	}
}

func FuzzParseSQL(f *testing.F) {
	f.Add(seedSQL)
	f.Add(`SELECT * FROM "t" WHERE topic = 't'`)
	f.Add("select*from\"\xff\"")
	f.Fuzz(checkSQL)
}

func checkSQL(t *testing.T, text string) {
	s, err := ParseSQL(text)
	if err == nil {
		if len(s.Topics)+len(s.Hooks) == 0 || s.Where.IsZero() {
			t.Errorf("%q selects nothing: %+v", text, s)
		}
		return
	}
	var e *SQLError
	if !errors.As(err, &e) || e.Pos < 1 || e.Pos > utf8.RuneCountInString(text)+1 || e.Text == "" || !strings.HasSuffix(err.Error(), sqlSupported) {
		t.Errorf("%q: error without its place or what is supported: %#v", text, err)
	}
}
