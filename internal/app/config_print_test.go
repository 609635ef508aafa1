package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

func TestPrintedConfigurationReadsBackEqual(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Config{"the example": example(), "the defaults": Default()} {
		var b bytes.Buffer
		if err := c.Print(&b); err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b.Bytes(), noEnv)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b.String())
		}
		if d := cmp.Diff(c, got, emptyIsNil); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

var emptyIsNil = cmp.FilterPath(func(p cmp.Path) bool { k := p.Last().Type().Kind().String(); return k == "map" || k == "slice" },
	cmp.FilterValues(func(a, b any) bool { return lenOf(a)+lenOf(b) == 0 }, cmp.Ignore()))

func lenOf(v any) int {
	b, err := json.Marshal(v)
	if err != nil || len(b) <= 2 || string(b) == "null" {
		return 0
	}
	return len(b)
}

func TestAnyTextReadsBackEqual(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := example()
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ ${}A:#'"\n-]{0,9}`), rapid.SampledFrom([]string{"null", "~", "true", "0x1", "1e3", "$$", "${A}", "$events/x", "- a", "2020-01-01", "!!str x", "*a", "&a"}))
		c.Kafka.ClientID = "x" + text.Draw(t, "client id")
		c.Kafka.TLS.CAFile = strings.ToValidUTF8(text.Draw(t, "file"), "")
		c.Writer.Hold = time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "hold"))
		c.Kafka.Dead.Retention = time.Duration(rapid.Int64Range(int64(time.Minute), 1<<62).Draw(t, "retention"))
		c.Ingest.MaxPayload = Size(rapid.Int64Range(1024, 64<<20).Draw(t, "max payload"))
		var b bytes.Buffer
		if err := c.Print(&b); err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b.Bytes(), noEnv)
		if err != nil {
			t.Fatalf("%v\n%s", err, b.String())
		}
		if d := cmp.Diff(c, got, emptyIsNil); d != "" {
			t.Fatalf("%s\n%s", d, b.String())
		}
	})
}

func TestSecretsAreNeverShown(t *testing.T) {
	t.Parallel()
	c := example()
	c.Kafka.SASL.Password, c.Delivery.Secret = "hunter2", "hunter2"
	c.Sources["plant"].MQTT.Password = "hunter2"
	var b bytes.Buffer
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&b, verb, c.Kafka.SASL)
		fmt.Fprintf(&b, verb, c.Delivery.Secret)
	}
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(c.Kafka)
	if err != nil {
		t.Fatal(err)
	}
	b.Write(j)
	b.Write(y)
	if s := b.String(); strings.Contains(s, "hunter2") || strings.Contains(s, fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("the secret is shown:\n%s", s)
	}
	if n := strings.Count(b.String(), mask); n < 10 {
		t.Errorf("only %d masks were found", n)
	}
}

func FuzzParse(f *testing.F) {
	var b bytes.Buffer
	if err := example().Print(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("rules: [{preset: emqx-backend-dynamo, sink: x}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("kafka: {brokers: ${X}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, mapEnv(map[string]string{"X": "a:1"}))
		if err != nil {
			return
		}
		c.Warnings()
		var b bytes.Buffer
		if err := c.Print(&b); err != nil {
			t.Fatal(err)
		}
		if s := c.Delivery.Secret; s != "" {
			return // masked: too short to be read back
		}
		again, err := Parse(b.Bytes(), noEnv)
		if err != nil {
			t.Fatalf("what was printed is not read: %v\n%s", err, b.String())
		}
		if d := cmp.Diff(c, again, emptyIsNil, cmp.Comparer(func(a, b Secret) bool { return a.String() == b.String() })); d != "" {
			t.Fatal(d)
		}
	})
}
