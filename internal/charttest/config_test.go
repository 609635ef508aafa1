package charttest

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/restante/restante/internal/app"
)

// TestThePodsProgramsAcceptWhatIsRendered runs the check of each program with the configuration, flags and environment of its pod.
func TestThePodsProgramsAcceptWhatIsRendered(t *testing.T) {
	t.Parallel()
	for name, file := range ciFiles(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := parse(t, render(t, newest, "-f", file))
			checked := map[string]bool{}
			for pod, template := range pods(all) {
				for _, c := range template.objects("spec", "containers") {
					program := programOf(c)
					if program == "" {
						continue // not ours
					}
					config := configOf(t, all, template)
					mountsEverySecret(t, pod, c, config)
					if program == "restante" {
						continue // TestTheJobsFlagsAreThoseOfTheCommand
					}
					checked[program] = true
					file := filepath.Join(t.TempDir(), "restante.yaml")
					if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
						t.Fatal(err)
					}
					args := []string{"-check"}
					for _, a := range c.at("args").([]any) {
						args = append(args, strings.Replace(a.(string), "/etc/restante/restante.yaml", file, 1))
					}
					var stdout, stderr bytes.Buffer
					code := app.Program{
						Component: program, Args: args, Env: environment(c), Stdout: &stdout, Stderr: &stderr,
						Run: nil, // a check does not run
					}.Main()
					if code != app.ExitOK {
						t.Errorf("%s: %s %v ends with %d:\n%s", pod, program, args, code, stderr.String())
					}
				}
			}
			if len(checked) != 3 {
				t.Errorf("only %v were checked, want ingest, writer and replayer", checked)
			}
		})
	}
}

// TestTheJobsFlagsAreThoseOfTheCommand has the command parse the flags of the Jobs' pods.
func TestTheJobsFlagsAreThoseOfTheCommand(t *testing.T) {
	t.Parallel()
	text := render(t, newest, "-f", ciFiles(t)["full"])
	program := filepath.Join(t.TempDir(), "restante")
	args := []string{"build", "-o", program}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race") // what is compiled already is used
	}
	if _, err := command(t, "go", append(args, "../../cmd/restante")...); err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for pod, template := range pods(parse(t, text)) {
		for _, c := range template.objects("spec", "containers") {
			if programOf(c) != "restante" {
				continue
			}
			var args []string
			for _, a := range c.at("args").([]any) {
				args = append(args, a.(string))
			}
			verbs = append(verbs, args[0])
			out, err := command(t, program, append(args, "--help")...) // flags are read before help is given
			if err != nil || !strings.Contains(out, "restante "+args[0]+" [flags]") {
				t.Errorf("%s: restante %v: %v: %s", pod, args, err, out)
			}
		}
	}
	slices.Sort(verbs)
	if !slices.Equal(verbs, []string{"migrate", "roundtrip"}) {
		t.Errorf("the Jobs run %v", verbs)
	}
	if _, err := command(t, program, "roundtrip", "--no-such-flag", "--help"); err == nil {
		t.Error("a flag that there is none of is taken")
	}
}

// programOf is the name of our program that a container runs, "" for the others'.
func programOf(container object) string {
	cmd, _ := container.at("command").([]any)
	if len(cmd) != 1 {
		return ""
	}
	text, _ := cmd[0].(string)
	name, ours := strings.CutPrefix(text, "/app/")
	if !ours {
		return ""
	}
	return name
}

// configOf is the file that the pod's volume "config" shows.
func configOf(t *testing.T, all []object, pod object) string {
	t.Helper()
	for _, v := range pod.objects("spec", "volumes") {
		if v.text("name") != "config" {
			continue
		}
		for _, o := range all {
			if o.text("kind") == "ConfigMap" && o.text("metadata", "name") == v.text("configMap", "name") {
				return o.text("data", "restante.yaml")
			}
		}
	}
	t.Fatal("a pod has no configuration")
	return ""
}

var secretFile = regexp.MustCompile(`/run/secrets/[^/\s]+`)

// mountsEverySecret: whatever file of a secret the configuration names, the container sees its directory.
func mountsEverySecret(t *testing.T, pod string, container object, config string) {
	t.Helper()
	var mounted []string
	for _, m := range container.objects("volumeMounts") {
		mounted = append(mounted, m.text("mountPath"))
	}
	for _, dir := range secretFile.FindAllString(config, -1) {
		if !slices.Contains(mounted, dir) {
			t.Errorf("%s: the configuration names a file in %s, which is not mounted: %v", pod, dir, mounted)
		}
	}
}

// environment is what the container's environment holds; what comes from elsewhere has a number as its value.
func environment(container object) func(string) (string, bool) {
	vars := map[string]string{}
	for _, e := range container.objects("env") {
		value, plain := e.at("value").(string)
		if !plain {
			value = "7"
		}
		vars[e.text("name")] = value
	}
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// TestPodsStartAnewWhenTheirConfigurationChanges: the processes read it once.
func TestPodsStartAnewWhenTheirConfigurationChanges(t *testing.T) {
	t.Parallel()
	file := ciFiles(t)["exhook"]
	before := pods(parse(t, render(t, newest, "-f", file)))
	same := pods(parse(t, render(t, newest, "-f", file, "--set", "ingest.service.type=NodePort")))
	after := pods(parse(t, render(t, newest, "-f", file, "--set", "config.log.level=debug")))
	sum := func(all map[string]object, pod string) string {
		return all[pod].text("metadata", "annotations", "restante/config-checksum")
	}
	for _, pod := range []string{"StatefulSet r-restante-ingest", "Deployment r-restante-writer-history", "Deployment r-restante-replayer"} {
		if sum(before, pod) == "" || sum(before, pod) != sum(same, pod) {
			t.Errorf("%s: checksum %q, and %q with the same configuration", pod, sum(before, pod), sum(same, pod))
		}
		if sum(before, pod) == sum(after, pod) {
			t.Errorf("%s: another configuration has the same checksum", pod)
		}
	}
}

// TestAMigrationThatChangesIsAnotherJob: a Job cannot be changed, and one that is done is not run again.
func TestAMigrationThatChangesIsAnotherJob(t *testing.T) {
	t.Parallel()
	name := func(args ...string) string {
		args = append([]string{"-f", ciFiles(t)["aws"], "--set", "migrate.mode=job"}, args...)
		for pod := range pods(parse(t, render(t, newest, args...))) {
			if strings.Contains(pod, "-migrate-") {
				return pod
			}
		}
		t.Fatal("there is no Job that migrates")
		return ""
	}
	first := name()
	if again := name("--set", "writer.autoscaling.maxReplicas=5"); again != first {
		t.Errorf("%s became %s though nothing of it has changed", first, again)
	}
	for _, change := range []string{"config.kafka.messages.partitions=25", "image.tag=other", "migrate.backoffLimit=1"} {
		if name("--set", change) == first {
			t.Errorf("%s: still %s", change, first)
		}
	}
}
