package mqtt_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

func template(t testing.TB, s string) mqtt.Template {
	t.Helper()
	parse := mqtt.ParseFetchTopic
	if strings.Contains(s, "{topic}") {
		parse = mqtt.ParseTemplate
	}
	tm, err := parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return tm
}

var templates = []string{mqtt.DefaultTemplate, "x/y/{clientid}/z/{topic}", "a/{clientid}//{topic}", mqtt.DefaultFetchTopic, "f/{clientid}/get"}

func TestTemplateRoundTripsAnyClientAndTopic(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.SampledFrom(templates).Draw(rt, "template")
		tm := template(t, text)
		alphabet := []rune("ab/+#%25FZ é😀 {}$~.")
		client, err := event.ParseClientID(rapid.StringOfN(rapid.SampledFrom(alphabet), 1, 12, -1).Draw(rt, "client"))
		if err != nil {
			rt.Fatal(err)
		}
		var topic string
		if strings.Contains(text, "{topic}") {
			topic = rapid.StringOfN(rapid.SampledFrom([]rune("ab/%2é😀 {}$")), 1, 12, -1).Draw(rt, "topic")
		}
		made, err := tm.For(client, topic)
		if err != nil {
			rt.Fatal(err)
		}
		gotClient, gotTopic, ok := tm.Original(made.String())
		if !ok || gotClient != client || gotTopic != topic {
			rt.Fatalf("%q for %q and %q: back came %q, %q, %v", made, client, topic, gotClient, gotTopic, ok)
		}
		if !tm.Filter().Match(made) {
			rt.Fatalf("filter %q does not match %q", tm.Filter(), made)
		}
		if again := template(t, tm.String()); again != tm {
			rt.Fatalf("%q is %q as text", text, tm)
		}
	})
}

func TestTemplateOriginalRefusesWhatItNeverMade(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ template, topic string }{
		{mqtt.DefaultTemplate, "offline/c"},
		{mqtt.DefaultTemplate, "offline/c/"},
		{mqtt.DefaultTemplate, "offline//t"},
		{mqtt.DefaultTemplate, "offlin/c/t"},
		{mqtt.DefaultTemplate, "offline/a%2fb/t"},
		{mqtt.DefaultTemplate, "offline/a%/t"},
		{mqtt.DefaultTemplate, "offline/%41/t"},
		{mqtt.DefaultTemplate, "offline/%00/t"},
		{mqtt.DefaultTemplate, "offline/%FF/t"},
		{mqtt.DefaultFetchTopic, "offline/fetch/c/"},
		{mqtt.DefaultFetchTopic, "offline/fetch/c/d"},
		{mqtt.DefaultFetchTopic, "offline/fetch/"},
		{"f/{clientid}/get", "f/c/got"},
	} {
		if client, topic, ok := template(t, c.template).Original(c.topic); ok {
			t.Errorf("%s: %q gave %q, %q", c.template, c.topic, client, topic)
		}
	}
	if _, _, ok := (mqtt.Template{}).Original("a/b"); ok || !(mqtt.Template{}).IsZero() {
		t.Error("the zero template made something")
	}
}

func TestTemplatesThatCannotBeTurnedRoundAreRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "{topic}", "offline/{topic}", "offline/{clientid}", "o/{topic}/{clientid}", "o/x{clientid}/{topic}", "o/{clientid}x/{topic}",
		"o/{clientid}/{clientid}/{topic}", "o/{clientid}{topic}", "o/{topic}/{clientid}/{topic}", "+/{clientid}/{topic}", "$x/{clientid}/{topic}",
		"o/#/{clientid}/{topic}", "o\x00/{clientid}/{topic}",
	} {
		if _, err := mqtt.ParseTemplate(s); err == nil {
			t.Errorf("template %q was taken", s)
		}
	}
	for _, s := range []string{"", "fetch", "f/{clientid}/{topic}", "f{clientid}", "$f/{clientid}", "f/{clientid}/+"} {
		if _, err := mqtt.ParseFetchTopic(s); err == nil {
			t.Errorf("fetch topic %q was taken", s)
		}
	}
}

func TestTemplateTopicTooLongIsAnError(t *testing.T) {
	t.Parallel()
	if _, err := template(t, mqtt.DefaultTemplate).For("c", strings.Repeat("x", 65530)); err == nil {
		t.Error("a topic over MQTT's limit was made")
	}
}

func FuzzTemplateOriginal(f *testing.F) {
	for _, s := range []string{"offline/c/t", "offline/a%2Fb//x", "offline/%/t", "offline/fetch/c", "a/c//t", "f/😀/get"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		for _, text := range templates {
			tm := template(t, text)
			client, original, ok := tm.Original(topic)
			if !ok {
				continue
			}
			made, err := tm.For(client, original)
			if _, invalid := event.ParseTopic(topic); invalid != nil {
				continue // cannot come
			}
			if err != nil || made.String() != topic {
				t.Errorf("%s: %q gave %q and %q, which make %q, %v", text, topic, client, original, made, err)
			}
		}
	})
}
