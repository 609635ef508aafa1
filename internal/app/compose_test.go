package app

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const composeFolder = "../../deploy/compose"

// composed is what this test needs of a Compose file.
type composed struct {
	Services map[string]struct {
		Image      string
		Entrypoint []string
		Volumes    []string
	}
	Volumes map[string]any
}

func readYAML(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = yaml.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// TestComposeFitsItsConfiguration: the programs accept what they are given, and every name that one file takes from another is there.
func TestComposeFitsItsConfiguration(t *testing.T) {
	t.Parallel()
	var c composed
	readYAML(t, filepath.Join(composeFolder, "compose.yaml"), &c)
	for _, s := range []string{"kafka", "cassandra", "dynamodb", "emqx", "prometheus", "grafana", "migrate", "ingest", "writer", "replayer"} {
		if c.Services[s].Image == "" {
			t.Errorf("there is no service %s with an image", s)
		}
	}
	env := func(name string) (string, bool) {
		return map[string]string{"RESTANTE_REPLAY_SECRET": strings.Repeat("s", 32), "CASSANDRA_PASSWORD": "cassandra"}[name], true
	}
	config, err := Load(filepath.Join(composeFolder, "restante.yaml"), env)
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range []string{ProcessIngest, ProcessWriter, ProcessReplayer} {
		if err := config.For(process); err != nil {
			t.Errorf("%s: %v", process, err)
		}
		if want := []string{"/app/" + process, "-config", "/etc/restante/restante.yaml"}; !slices.Equal(c.Services[process].Entrypoint, want) {
			t.Errorf("%s is started by %q", process, c.Services[process].Entrypoint)
		}
	}
	want := []string{ // which a laptop can live with
		"sources.emqx: while Kafka is away calls fail after 2s and their events are lost to the store: set ingest.spool.path",
		"sources.emqx: anybody who reaches :9000 may make up events: set tls with client_ca_file, or keep the address inside",
	}
	if d := cmp.Diff(want, config.Warnings()); d != "" {
		t.Errorf("it warns of other things (-want +got):\n%s", d)
	}
	var names []string
	for _, b := range config.Kafka.Brokers {
		names = append(names, b)
	}
	for _, s := range config.Sinks {
		switch {
		case s.Cassandra != nil:
			names = append(names, s.Cassandra.Hosts...)
		case s.DynamoDB != nil:
			names = append(names, strings.TrimPrefix(s.DynamoDB.Endpoint, "http://"))
		}
	}
	for _, u := range config.Delivery.MQTT.URL {
		names = append(names, strings.TrimPrefix(u, "mqtt://"))
	}
	var scrape struct {
		Jobs []struct {
			DNS []struct {
				Names []string
				Port  int
			} `yaml:"dns_sd_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, filepath.Join(composeFolder, "prometheus.yaml"), &scrape)
	for _, d := range scrape.Jobs[0].DNS {
		names = append(names, d.Names...)
		if d.Port != 8080 || config.Admin.Listen != ":8080" {
			t.Errorf("port %d is scraped, and %s is listened on", d.Port, config.Admin.Listen)
		}
	}
	if len(names) < 7 {
		t.Errorf("only these names were looked for: %q", names)
	}
	for _, n := range names {
		host, _, _ := strings.Cut(n, ":")
		if _, ok := c.Services[host]; !ok {
			t.Errorf("no service is called %q", host)
		}
	}
	for name, s := range c.Services {
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(from, ".") {
				if _, ok := c.Volumes[from]; !ok {
					t.Errorf("%s: volume %q is not declared", name, from)
				}
			} else if _, err := os.Stat(filepath.Join(composeFolder, from)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestComposeIsAccepted by the program itself, where it is.
func TestComposeIsAccepted(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("docker-compose")
	args := []string{"-f", "compose.yaml", "config", "-q"}
	if err != nil {
		if program, err = exec.LookPath("docker"); err != nil {
			t.Skip("NOT TESTED: neither docker-compose nor docker is installed")
		}
		args = append([]string{"compose"}, args...)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = composeFolder
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
