package event_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
)

// levels draws topic or filter levels from a small alphabet, so that matches are frequent.
func levels(last ...string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		words := append([]string{"a", "b", "ab", "", "$a", "é"}, last...)
		parts := rapid.SliceOfN(rapid.SampledFrom(words), 1, 5).Draw(t, "levels")
		for i, p := range parts {
			if p == "#" {
				parts = parts[:i+1]
				break
			}
		}
		if s := strings.Join(parts, "/"); s != "" {
			return s
		}
		return "/"
	})
}

// naive matches level by level, straight from the words of §4.7.
func naive(filter, topic []string) bool {
	switch {
	case len(filter) == 1 && filter[0] == "#":
		return true
	case len(filter) == 0 || len(topic) == 0:
		return len(filter) == len(topic)
	case filter[0] == "+" || filter[0] == topic[0]:
		return naive(filter[1:], topic[1:])
	}
	return false
}

func naiveMatch(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	return naive(strings.Split(filter, "/"), strings.Split(topic, "/"))
}

func TestMatchAgreesWithALevelByLevelReference(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		filter, topic := levels("+", "+", "#").Draw(t, "filter"), levels().Draw(t, "topic")
		f, err := event.ParseFilter(filter)
		if err != nil {
			t.Fatal(err)
		}
		n, err := event.ParseTopic(topic)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := f.Match(n), naiveMatch(filter, topic); got != want {
			t.Fatalf("%q matches %q: got %v, want %v", filter, topic, got, want)
		}
	})
}

func TestFiltersThatShareATopicOverlap(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		topic, err := event.ParseTopic(levels().Draw(t, "topic"))
		if err != nil {
			t.Fatal(err)
		}
		// Both filters are made from the topic, so that most of them match it.
		draw := func(label string) event.Filter {
			parts := strings.Split(topic.String(), "/")
			for i := range parts {
				switch rapid.IntRange(0, 5).Draw(t, label) {
				case 0, 1:
					parts[i] = "+"
				case 2:
					parts = append(parts[:i], "#")
				}
				if parts[len(parts)-1] == "#" {
					break
				}
			}
			f, err := event.ParseFilter(strings.Join(parts, "/"))
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		f, g := draw("f"), draw("g")
		if f.Match(topic) && g.Match(topic) && !f.Overlaps(g) {
			t.Fatalf("%q and %q both match %q, but do not overlap", f, g, topic)
		}
		if f.Overlaps(g) != g.Overlaps(f) {
			t.Fatalf("whether %q and %q overlap depends on who is asked", f, g)
		}
	})
}

// Over a small alphabet every pair of filters overlaps exactly when some topic matches both.
func TestOverlapsMeansThatATopicMatchesBoth(t *testing.T) {
	t.Parallel()
	var filters []event.Filter
	var topics []event.Topic
	var grow func(prefix []string, depth int, words []string, take func(string))
	grow = func(prefix []string, depth int, words []string, take func(string)) {
		for _, w := range words {
			path := append(slices.Clip(prefix), w)
			if s := strings.Join(path, "/"); s != "" {
				take(s)
			}
			if depth > 1 && w != "#" {
				grow(path, depth-1, words, take)
			}
		}
	}
	grow(nil, 3, []string{"a", "", "$a", "+", "#"}, func(s string) { filters = append(filters, eventtest.Filter(t, s)) })
	grow(nil, 4, []string{"a", "", "$a"}, func(s string) { topics = append(topics, eventtest.Topic(t, s)) })
	matched := make([][]bool, len(filters))
	for i, f := range filters {
		matched[i] = make([]bool, len(topics))
		for j, topic := range topics {
			matched[i][j] = f.Match(topic)
		}
	}
	for i, f := range filters {
		for j, g := range filters {
			want := false
			for k := range topics {
				want = want || matched[i][k] && matched[j][k]
			}
			if got := f.Overlaps(g); got != want {
				t.Errorf("%q overlaps %q: got %v, want %v", f, g, got, want)
			}
		}
	}
}

func TestParsedTextComesBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), levels("+", "#"), rapid.StringMatching(`\$share/[a-c+]{0,2}/?[ab+#/]{0,5}`)).Draw(t, "text")
		if f, err := event.ParseFilter(s); err == nil {
			if f.String() != s {
				t.Fatalf("filter %q comes back as %q", s, f)
			}
			if f.Match(event.Topic{}) {
				t.Fatalf("filter %q matches no topic", s)
			}
		}
		if n, err := event.ParseTopic(s); err == nil {
			if n.String() != s {
				t.Fatalf("topic %q comes back as %q", s, n)
			}
			f, err := event.ParseFilter(s)
			if err == nil && f.Group() == "" && !f.Match(n) {
				t.Fatalf("topic %q does not match itself", s)
			}
		}
	})
}

// FuzzTopicsAndFilters: whatever a client names is refused, or kept as it is and matched as §4.7 says.
func FuzzTopicsAndFilters(f *testing.F) {
	for _, names := range [][2]string{
		{"a/+/b", "a//b"}, {"a/#", "a"}, {"#", "$SYS/x"}, {"$share/g/+/x", "y/x"}, {"$share/g", "a"}, {"+a", "a+"}, {"/", "/"}, {"a\x00", "\xff"}, {"é/+", "é/\x1f"},
	} {
		f.Add(names[0], names[1])
	}
	f.Fuzz(func(t *testing.T, filter, topic string) {
		n, errTopic := event.ParseTopic(topic)
		if errTopic == nil && n.String() != topic {
			t.Errorf("topic %q comes back as %q", topic, n)
		}
		s, errFilter := event.ParseFilter(filter)
		if errFilter != nil {
			return
		}
		if s.String() != filter {
			t.Errorf("filter %q comes back as %q", filter, s)
		}
		if errTopic == nil && len(topic)+len(filter) < 1000 { // the reference is recursive
			if got, want := s.Match(n), naiveMatch(strings.Join(s.Levels(), "/"), topic); got != want {
				t.Errorf("%q matches %q: got %v, want %v", filter, topic, got, want)
			}
		}
	})
}
