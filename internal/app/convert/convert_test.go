package convert_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/app/convert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden files anew")

const seed = "testdata/emqx_backend_dynamo.conf"

func options(name string) convert.Options {
	return convert.Options{Name: name, Kafka: []string{"kafka-1:9092"}, Broker: "mqtt://emqx:1883", Source: "rules", Secret: "sixteen bytes or more"}
}

func readFile(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// env is the environment that the result asks for.
func env(r convert.Result) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, v := range r.Env {
			if v.Name == name {
				return v.Value.Reveal(), true
			}
		}
		return "", false
	}
}

// The golden files have the configuration and what became of each line: of EMQX's own file, comments and all, and of one with several
// pools, limits, and what has no place.
func TestConvertAccountsForEveryLine(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"emqx_backend_dynamo", "pools"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conf := readFile(t, "testdata/"+name+".conf")
			r, err := convert.Dynamo(conf, options(name+".conf"))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			b.Write(r.YAML)
			for _, l := range r.Lines {
				text, err := json.Marshal(l)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "# %s\n", text)
			}
			golden := "testdata/" + name + ".golden.yaml"
			if *update {
				if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(string(readFile(t, golden)), b.String()); d != "" {
				t.Errorf("%s (-want +got):\n%s", golden, d)
			}
			check(t, conf, r)
		})
	}
}

// check holds what is true of every result.
func check(t testing.TB, conf []byte, r convert.Result) {
	t.Helper()
	if _, err := app.Parse(r.YAML, env(r)); err != nil {
		t.Errorf("the check refuses what was made of %q:\n%v\n%s", conf, err, r.YAML)
	}
	if n := len(strings.Split(strings.TrimSuffix(string(conf), "\n"), "\n")); len(r.Lines) != n && len(conf) > 0 {
		t.Errorf("%d lines are accounted for, the file has %d: %q", len(r.Lines), n, conf)
	}
	for i, l := range r.Lines {
		if carried := l.State == convert.Translated || l.State == convert.Partly; l.Number != i+1 || l.State == "" || carried != (l.To != "") || (l.State == convert.Blank) != (l.Key == "" && l.State != convert.Comment) {
			t.Errorf("line %d of %q: %+v", i+1, conf, l)
		}
		if why := l.State != convert.Translated && l.State != convert.Blank && l.State != convert.Comment; why != (l.Why != "") {
			t.Errorf("line %d of %q lacks the reason, or needs none: %+v", i+1, conf, l)
		}
	}
	for _, v := range r.Env {
		if s := v.Value.Reveal(); len(s) >= 12 && bytes.Contains(r.YAML, []byte(s)) {
			t.Errorf("the result shows %s", v.Name)
		}
	}
}

func TestConvertedRulesAndSinksAreThoseOfThePlugin(t *testing.T) {
	t.Parallel()
	r, err := convert.Dynamo(readFile(t, seed), options("x"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := app.Parse(r.YAML, env(r))
	if err != nil {
		t.Fatal(err)
	}
	preset, err := app.Parse([]byte("sinks: {pool1: {type: dynamodb}}\nrules: [{preset: emqx-backend-dynamo, sink: pool1, ttl: 0s}]"), env(r))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fmt.Sprint(preset.PipelineRules()), fmt.Sprint(c.PipelineRules())); d != "" {
		t.Errorf("rules differ from those of the preset (-preset +converted):\n%s", d)
	}
	got := c.Sinks["pool1"].DynamoDB
	want := *got
	want.Region, want.Endpoint, want.PoolSize, want.MsgIDFormat = "us-west-2", "http://localhost:8000", 8, "base62"
	want.AccessKeyID, want.SecretAccessKey = "AKIAU5IM2XOC7AQWG7HK", "TZt7XoRi+vtCJYQ9YsAinh19jR1rngm/hxZMWR2P"
	if *got != want {
		t.Errorf("sink %+v", *got)
	}
	for _, p := range []string{app.ProcessIngest, app.ProcessWriter, app.ProcessReplayer} {
		if err := c.For(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestConvertForExhookIsAccepted(t *testing.T) {
	t.Parallel()
	o := options("x")
	o.Source = "exhook"
	conf := readFile(t, seed)
	r, err := convert.Dynamo(conf, o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, conf, r)
	if c, err := app.Parse(r.YAML, env(r)); err != nil || c.Sources["emqx"].Exhook == nil || c.Delivery.Evidence != "broker" {
		t.Errorf("%v, %+v", err, c.Delivery)
	}
}

func TestMalformedConfIsRefusedWithItsLine(t *testing.T) {
	t.Parallel()
	const pool = "backend.dynamo.pool1.server = http://localhost:8000\n"
	hook := func(json string) string { return pool + "backend.dynamo.hook.message.publish.1 = " + json }
	tests := map[string]struct{ conf, want string }{
		"empty":                   {"", "the file has no setting: want lines such as backend.dynamo.region = us-west-2"},
		"comments only":           {"# backend.dynamo.region = x\n", "the file has no setting"},
		"another plugin's":        {"\nbackend.mysql.pool1.server = x\n", "backend.mysql.pool1.server (line 2): is no setting of EMQX's DynamoDB backend: only emqx_backend_dynamo.conf"},
		"no equals sign":          {pool + "secret-that-slipped", `line 2: is neither "key = value" nor a comment`},
		"no key":                  {"= x", `line 1: has no key before "="`},
		"no value":                {"backend.dynamo.region =\n", `line 1: backend.dynamo.region has no value after "="`},
		"a bad key":               {"backend..region = x", `line 1: has no key before "=" such as backend.dynamo.pool1.server`},
		"a placeholder":           {pool + "{{ platform_etc }}", "line 2: is a placeholder of a template"},
		"not UTF-8":               {pool + "# \xff", "line 2: the line is not UTF-8"},
		"UTF-16":                  {"\xff\xfeb\x00", "the file is UTF-16"},
		"a control character":     {pool + "# \x07", "line 2: holds the character U+0007"},
		"a line separator":        {pool + "# a\u2028rules: []", "line 2: holds the character U+2028"},
		"too large":               {strings.Repeat("# padding\n", 120_000), "the file is larger than 1MiB"},
		"a pool's size":           {"backend.dynamo.pool1.pool_size = many", `backend.dynamo.pool1.pool_size (line 1): "many" is no whole number`},
		"too large a pool":        {"backend.dynamo.pool1.pool_size = 5000", "backend.dynamo.pool1.pool_size (line 1): 5000 is too large, the most is 1024"},
		"a server without scheme": {"backend.dynamo.pool1.server = localhost:8000", `backend.dynamo.pool1.server (line 1): "localhost:8000" is no URL`},
		"half a login":            {"\nbackend.dynamo.pool1.aws_access_key_id = AKIA", "sinks.pool1.secret_access_key (line 2): is missing"},
		"a limit":                 {"backend.dynamo.time_range = soon", `backend.dynamo.time_range (line 1): time_range "soon" must be a number with d, h, m or s`},
		"a hook's name":           {pool + `backend.dynamo.hook.message.publish = {}`, "backend.dynamo.hook.message.publish (line 2): is no name of a hook"},
		"no JSON":                 {hook("on_message_publish"), `backend.dynamo.hook.message.publish.1 (line 2): is no JSON object; want {"topic": "#"`},
		"JSON that is cut":        {hook(`{"topic": "#", "action": {"function": "on_m`), "(line 2): is no JSON object: it ends too early"},
		"a comma too many":        {hook(`{"topic": "#", }`), "(line 2): is no JSON object: character 16 of the value: invalid character '}'"},
		"a comma too few":         {hook(`{"topic": "é", "action": {"function" "x"}}`), "(line 2): is no JSON object: character 38 of the value: invalid character '\"' after object key"},
		"something behind it":     {hook(`{"topic": "#"} x`), "(line 2): is no JSON object: character 16 of the value: invalid character 'x' after top-level value"},
		"a key twice":             {hook(`{"topic": "#", "topic": "a"}`), `(line 2): has "topic" twice`},
		"a topic that is none":    {hook(`{"topic": "a/#/b", "action": {"function": "on_message_publish"}, "pool": "pool1"}`), `(line 2): topic "a/#/b": filter "a/#/b": '#' must be the last level`},
		"a shared topic":          {hook(`{"topic": "$share/g/a", "action": {"function": "on_message_publish"}, "pool": "pool1"}`), "a rule selects topics and cannot be shared"},
		"a number for a topic":    {hook(`{"topic": 1, "action": {"function": "on_message_publish"}, "pool": "pool1"}`), `(line 2): "topic" must be a text`},
		"no action":               {hook(`{"topic": "#", "pool": "pool1"}`), `(line 2): has no "action" that is an object`},
		"no pool":                 {hook(`{"topic": "#", "action": {"function": "on_message_publish"}}`), `(line 2): names no "pool"`},
		"an unknown pool":         {hook(`{"topic": "#", "action": {"function": "on_message_publish"}, "pool": "pool2"}`), `(line 2): pool "pool2" has no settings: want backend.dynamo.pool2.server = …; the pools of the file are pool1`},
		"a negative count":        {hook(`{"topic": "#", "action": {"function": "on_message_publish"}, "offline_opts": {"max_returned_count": -1}, "pool": "pool1"}`), `max_returned_count "-1" must be a whole number`},
		"options that are none":   {hook(`{"topic": "#", "action": {"function": "on_message_publish"}, "offline_opts": 5, "pool": "pool1"}`), `"offline_opts" must be an object`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := convert.Dynamo([]byte(tt.conf), options("x"))
			var faults app.Faults
			if !errors.As(err, &faults) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got  %v\nwant %s\n%s", err, tt.want, r.YAML)
			}
			if len(faults) > 1 || strings.Contains(err.Error(), "slipped") {
				t.Errorf("more is said than the one fault: %v", err)
			}
		})
	}
}

func TestAllFaultsOfAConfAreReported(t *testing.T) {
	t.Parallel()
	_, err := convert.Dynamo([]byte("backend.dynamo.pool1.pool_size = x\nbackend.dynamo.hook.a = {}\nbackend.dynamo.time_range = 2x\n"), options("x"))
	var faults app.Faults
	if !errors.As(err, &faults) || len(faults) != 3 || faults[0].Line != 1 || faults[1].Line != 2 || faults[2].Line != 3 {
		t.Errorf("got %v", err)
	}
}

func TestNamesOfSinksAndVariablesAreDistinct(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, name := range []string{"A-b", "a_b", "a@b", "null", "1", "__", `my\.pool`, strings.Repeat("x", 200)} {
		fmt.Fprintf(&b, "backend.dynamo.%s.aws_access_key_id = id-of-%s\nbackend.dynamo.%s.aws_secret_access_key = s\n", name, strings.ReplaceAll(name, `\`, ""), name)
	}
	r, err := convert.Dynamo([]byte(b.String()), options("x"))
	if err != nil {
		t.Fatal(err)
	}
	check(t, []byte(b.String()), r)
	c, err := app.Parse(r.YAML, env(r))
	if err != nil || len(c.Sinks) != 8 || c.Sinks["a-b"].DynamoDB.AccessKeyID != "id-of-A-b" || c.Sinks["my-pool"].DynamoDB.AccessKeyID != "id-of-my.pool" {
		t.Errorf("%v: %d sinks:\n%s", err, len(c.Sinks), r.YAML)
	}
}

// Ten thousand files that somebody broke: none panics; each is refused with lines of its own, or becomes a configuration that the
// check accepts, with every line accounted for.
func TestBrokenFilesAreRefusedOrAccountedFor(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 9))
	lines := bytes.SplitAfter(slices.Concat(readFile(t, seed), readFile(t, "testdata/pools.conf")), []byte("\n"))
	head := []byte("backend.dynamo.pool1.server = http://a\nbackend.dynamo.labs.server = http://b\nbackend.dynamo.Fleet.server = http://c\n")
	bits := []string{"\n", "#", "=", ".", "{", "}", `"`, `\`, "\x00", "\xff", "\u2028", " ", ":", ",", "backend.dynamo.", "pool1", `"pool": "pool2"`, "on_", "[", "null", "1e9", "-", "$${", "{{", "\r\n", "é"}
	made := 0
	for i := range 10_000 {
		conf := slices.Clone(head)
		for range random.IntN(6) {
			conf = append(conf, lines[random.IntN(len(lines))]...)
		}
		for range 1 + random.IntN(3) {
			at := random.IntN(len(conf) + 1)
			end := min(len(conf), at+random.IntN(1<<random.IntN(7)))
			conf = slices.Concat(conf[:at], []byte(bits[random.IntN(len(bits))]), conf[end:])
		}
		r, err := convert.Dynamo(conf, options("x"))
		switch {
		case err != nil:
			checkFaults(t, conf, err)
			continue
		case i%20 == 0: // Dynamo itself asks the check; this is whether it does
			check(t, conf, r)
		}
		made++
	}
	if made < 500 || made > 9000 {
		t.Errorf("%d of 10,000 files could be converted: the test breaks too much or too little", made)
	}
}

// checkFaults holds what is true of every refusal.
func checkFaults(t testing.TB, conf []byte, err error) {
	t.Helper()
	var faults app.Faults
	if !errors.As(err, &faults) || len(faults) == 0 {
		t.Errorf("%q: no fault is named: %v", conf, err)
	}
	lines := bytes.Count(conf, []byte("\n")) + 1
	for _, f := range faults {
		if f.Text == "" || f.Line < 0 || f.Line > lines || f.Line == 0 && len(faults) > 1 {
			t.Errorf("%q: fault %+v", conf, f)
		}
	}
}

func FuzzDynamo(f *testing.F) {
	f.Add(readFile(f, seed))
	f.Add(readFile(f, "testdata/pools.conf"))
	f.Add([]byte("backend.dynamo.p.server = http://h\nbackend.dynamo.hook.message.publish.1 = {\"action\":{\"function\":\"on_message_publish\"},\"pool\":\"p\"}"))
	f.Fuzz(func(t *testing.T, conf []byte) {
		if r, err := convert.Dynamo(conf, options("x")); err != nil {
			checkFaults(t, conf, err)
		} else {
			check(t, conf, r)
		}
	})
}
