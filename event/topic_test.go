package event_test

import (
	"strings"
	"testing"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
)

// The examples of MQTT 3.1.1 and 5.0 §4.7 and of 5.0 §4.8.2, each by what the specification says with it.
func TestMatchAgreesWithTheSpecificationsExamples(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sentence, filter string
		matches, not     []string
	}{
		{
			"§4.7.1.2: a multi-level wildcard takes the parent and any number of child levels", "sport/tennis/player1/#",
			[]string{"sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"},
			[]string{"sport/tennis", "sport/tennis/player2", "sport/tennis/player11"},
		},
		{
			"§4.7.1.2: sport/# also matches the singular sport", "sport/#",
			[]string{"sport", "sport/", "sport/tennis"},
			[]string{"sports", "port"},
		},
		{"§4.7.1.2: # alone receives every message", "#", []string{"a", "/", "a/b/c", "/finance"}, nil},
		{
			"§4.7.1.3: a single-level wildcard matches one level only", "sport/tennis/+",
			[]string{"sport/tennis/player1", "sport/tennis/player2"},
			[]string{"sport/tennis/player1/ranking", "sport/tennis"},
		},
		{
			"§4.7.1.3: sport/+ does not match sport but does match sport/", "sport/+",
			[]string{"sport/", "sport/x"},
			[]string{"sport"},
		},
		{"§4.7.1.3: + is valid", "+", []string{"a", "finance"}, []string{"a/b", "/finance"}},
		{
			"§4.7.1.3: +/tennis/# is valid", "+/tennis/#",
			[]string{"sport/tennis", "/tennis", "x/tennis/player1/score"},
			[]string{"tennis", "sport/golf"},
		},
		{
			"§4.7.1.3: sport/+/player1 is valid", "sport/+/player1",
			[]string{"sport/tennis/player1", "sport//player1"},
			[]string{"sport/player1", "sport/a/b/player1"},
		},
		{"§4.7.1.3: /finance matches +/+", "+/+", []string{"/finance", "a/b", "/"}, []string{"finance", "/a/b"}},
		{"§4.7.1.3: /finance matches /+", "/+", []string{"/finance", "/"}, []string{"finance"}},
		{
			"§4.7.2: a subscription to # receives nothing from topics that begin with $", "#",
			nil,
			[]string{"$SYS", "$SYS/monitor/Clients", "$"},
		},
		{
			"§4.7.2: +/monitor/Clients receives nothing from $SYS/monitor/Clients", "+/monitor/Clients",
			[]string{"x/monitor/Clients"},
			[]string{"$SYS/monitor/Clients"},
		},
		{
			"§4.7.2: $SYS/# receives what begins with $SYS/", "$SYS/#",
			[]string{"$SYS/monitor/Clients", "$SYS/x", "$SYS"},
			[]string{"SYS/x", "$SYSTEM/x"},
		},
		{
			"§4.7.2: $SYS/monitor/+ receives $SYS/monitor/Clients", "$SYS/monitor/+",
			[]string{"$SYS/monitor/Clients"},
			[]string{"$SYS/monitor", "$SYS/monitor/a/b"},
		},
		{"§4.7.2: a $ behind the first character is an ordinary one", "+/#", []string{"a$b", "a/$SYS"}, []string{"$a/b"}},
		{
			"§4.7.3: names are case sensitive", "ACCOUNTS",
			[]string{"ACCOUNTS"},
			[]string{"Accounts", "accounts"},
		},
		{"§4.7.3: names may hold spaces", "Accounts payable", []string{"Accounts payable"}, []string{"Accounts", "Accountspayable"}},
		{"§4.7.3: a leading / makes a distinct topic", "finance", []string{"finance"}, []string{"/finance", "finance/"}},
		{"§4.7.3: a topic of / alone is valid", "/", []string{"/"}, []string{"//", "a"}},
		{"§4.7.3: nothing is normalised", "Å", []string{"\u00c5"}, []string{"A\u030a"}},
		{
			"§1.5.4: U+FEFF is a character like others, never skipped", "\ufeffa",
			[]string{"\ufeffa"},
			[]string{"a"},
		},
		{
			"§4.8.2: a shared subscription matches as the filter behind its share name", "$share/consumer1/sport/tennis/+",
			[]string{"sport/tennis/player1"},
			[]string{"$share/consumer1/sport/tennis/x", "sport/tennis"},
		},
		{
			"§4.8.2: the filter behind the share name may begin with /", "$share/consumer1//finance",
			[]string{"/finance"},
			[]string{"finance"},
		},
		{"§4.8.2 and §4.7.2: a shared # takes no $-topics", "$share/g/#", []string{"a"}, []string{"$SYS/a"}},
		{"§4.8.2: $share without a share behind it is an ordinary level", "$share", []string{"$share"}, []string{"share"}},
	} {
		f := eventtest.Filter(t, c.filter)
		for _, s := range c.matches {
			if !f.Match(eventtest.Topic(t, s)) {
				t.Errorf("%s: %q does not match %q", c.sentence, c.filter, s)
			}
		}
		for _, s := range c.not {
			if f.Match(eventtest.Topic(t, s)) {
				t.Errorf("%s: %q matches %q", c.sentence, c.filter, s)
			}
		}
	}
}

func TestParseFilterTakesWhatTheSpecificationAllows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sentence, text string
		valid          bool
		group          string
	}{
		{"§4.7.1.2: # is valid", "#", true, ""},
		{"§4.7.1.2: sport/tennis/# is valid", "sport/tennis/#", true, ""},
		{"§4.7.1.2: sport/tennis# is not valid", "sport/tennis#", false, ""},
		{"§4.7.1.2: sport/tennis/#/ranking is not valid", "sport/tennis/#/ranking", false, ""},
		{"§4.7.1.2: # must be the last character, even before an empty level", "#/", false, ""},
		{"§4.7.1.3: + is valid", "+", true, ""},
		{"§4.7.1.3: +/tennis/# is valid", "+/tennis/#", true, ""},
		{"§4.7.1.3: sport+ is not valid", "sport+", false, ""},
		{"§4.7.1.3: sport/+/player1 is valid", "sport/+/player1", true, ""},
		{"§4.7.1.3: a single-level wildcard occupies its whole level", "sport/++/x", false, ""},
		{"§4.7.1: the two wildcards do not share a level", "sport/+#", false, ""},
		{"§4.7.3: at least one character", "", false, ""},
		{"§4.7.3: / alone is valid", "/", true, ""},
		{"§4.7.3: levels may be empty", "//", true, ""},
		{"§4.7.3: no null character", "a\x00b", false, ""},
		{"§4.7.3: 65,535 bytes are allowed", strings.Repeat("a", 65535), true, ""},
		{"§4.7.3: 65,536 bytes are not", strings.Repeat("a", 65536), false, ""},
		{"§4.7.3: the limit counts bytes, not characters", strings.Repeat("é", 32768), false, ""},
		{"§4.7.3: there is no limit to levels but the length", strings.Repeat("/", 65535), true, ""},
		{"§1.5.4: ill-formed UTF-8 is refused", "a\xffb", false, ""},
		{"§1.5.4: encoded surrogates are refused", "a\xed\xa0\x80", false, ""},
		{"§4.8.2: share name and filter", "$share/consumer1/sport/tennis/+", true, "consumer1"},
		{"§4.8.2: the filter may begin with /", "$share/consumer1//finance", true, "consumer1"},
		{"§4.8.2: the share name has at least one character", "$share//finance", false, ""},
		{"§4.8.2: the share name holds no +", "$share/a+/finance", false, ""},
		{"§4.8.2: the share name holds no #", "$share/#/finance", false, ""},
		{"§4.8.2: the share name is followed by /", "$share/consumer1", false, ""},
		{"§4.8.2: a filter follows the share name", "$share/consumer1/", false, ""},
		{"§4.8.2: the filter behind the name obeys §4.7", "$share/consumer1/sport#", false, ""},
		{"§4.8.2: $share is literal and case sensitive", "$SHARE/consumer1/a", true, ""},
	} {
		f, err := event.ParseFilter(c.text)
		switch {
		case c.valid && err != nil:
			t.Errorf("%s: %v", c.sentence, err)
		case !c.valid && err == nil:
			t.Errorf("%s: %.80q is taken", c.sentence, c.text)
		case !c.valid && !f.IsZero():
			t.Errorf("%s: a filter comes with the error", c.sentence)
		case c.valid && (f.String() != c.text || f.Group() != c.group):
			t.Errorf("%s: got text %.80q and group %q, want %.80q and %q", c.sentence, f.String(), f.Group(), c.text, c.group)
		}
	}
}

func TestParseTopicTakesWhatTheSpecificationAllows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sentence, text string
		valid          bool
	}{
		{"§4.7.3: at least one character", "", false},
		{"§4.7.3: / alone is valid", "/", true},
		{"§4.7.3: spaces are valid", "Accounts payable", true},
		{"§4.7.3: no null character", "\x00", false},
		{"§4.7.3: 65,535 bytes are allowed", strings.Repeat("a", 65535), true},
		{"§4.7.3: 65,536 bytes are not", strings.Repeat("a", 65536), false},
		{"§4.7.1: a name holds no +", "sport/+", false},
		{"§4.7.1: a name holds no #, wherever it stands", "sport#", false},
		{"§4.7.2: a name may begin with $", "$SYS/monitor", true},
		{"§1.5.4: ill-formed UTF-8 is refused", "\xc3\x28", false},
		{"§1.5.4: characters beyond the basic plane are valid", "poste/✉️/🏠", true},
		{"§1.5.4: control characters are legal, if unwise", "a\nb\x7f", true},
	} {
		topic, err := event.ParseTopic(c.text)
		switch {
		case c.valid && err != nil:
			t.Errorf("%s: %v", c.sentence, err)
		case !c.valid && err == nil:
			t.Errorf("%s: %.80q is taken", c.sentence, c.text)
		case c.valid && topic.String() != c.text:
			t.Errorf("%s: got %.80q, want %.80q", c.sentence, topic, c.text)
		case !c.valid && !topic.IsZero():
			t.Errorf("%s: a topic comes with the error", c.sentence)
		}
	}
}

func TestClientIDsMayHoldAnyCharacter(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"dev 1", "a/b", "+", "#", "🛰", "$share", strings.Repeat("x", 65535)} {
		if c, err := event.ParseClientID(s); err != nil || string(c) != s {
			t.Errorf("ParseClientID(%.80q) = %.80q, %v", s, c, err)
		}
	}
	for _, s := range []string{"", "a\x00", "\xff", strings.Repeat("x", 65536)} {
		if c, err := event.ParseClientID(s); err == nil {
			t.Errorf("ParseClientID(%.80q) = %.80q, want an error", s, c)
		}
	}
}

func TestZeroTopicAndFilterMatchNothing(t *testing.T) {
	t.Parallel()
	var f event.Filter
	var topic event.Topic
	all := eventtest.Filter(t, "#")
	if f.Match(eventtest.Topic(t, "a")) || all.Match(topic) || f.Match(topic) || f.Overlaps(all) || all.Overlaps(f) {
		t.Error("a zero value matches")
	}
	if _, ok := f.Exact(); ok {
		t.Error("the zero filter names a topic")
	}
}

func TestExactNamesTheOneTopicOfAFilter(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"t/1": "t/1", "$share/g/t/1": "t/1", "/": "/", "t/+": "", "#": "", "$share/g/t/#": ""} {
		got, ok := eventtest.Filter(t, text).Exact()
		if got.String() != want || ok != (want != "") {
			t.Errorf("Exact of %q = %q, %v, want %q", text, got, ok, want)
		}
	}
}
