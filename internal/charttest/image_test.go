package charttest

import (
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var programs = []string{"ingest", "replayer", "restante", "writer"}

// stages are the Dockerfile's two: the one that builds, and the image.
func stages(t *testing.T) (build, image string) {
	t.Helper()
	data, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := strings.Cut(string(data), "\nFROM ${BASE}\n")
	if !ok {
		t.Fatal("the Dockerfile has no stage FROM ${BASE}")
	}
	return before, "FROM ${BASE}\n" + after
}

// buildPrograms runs the Dockerfile's own go build for this machine, into out.
func buildPrograms(t *testing.T, out string) {
	t.Helper()
	stage, _ := stages(t)
	line := regexp.MustCompile(`(?m)^ +(CGO_ENABLED=0 .*go build .*)$`).FindStringSubmatch(stage)
	if line == nil {
		t.Fatal("the Dockerfile builds nothing")
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line[1], "-o /out/", "-o "+out+"/", 1))
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH, "VERSION=1.2.3-test")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// TestTheImageHoldsFourProgramsThatNeedNothing makes the image of the Dockerfile's second stage on an empty base, without a Docker
// engine, and runs what is in it alone in its directory, as the image's user.
func TestTheImageHoldsFourProgramsThatNeedNothing(t *testing.T) {
	t.Parallel()
	buildah, err := exec.LookPath("buildah")
	if err != nil {
		t.Skip("NOT TESTED: buildah is missing, the image is not built")
	}
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: only root can change the root directory, the image is not built")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	buildPrograms(t, filepath.Join(dir, "out"))
	_, image := stages(t)
	dockerfile := "ARG BASE\nFROM scratch AS build\nCOPY out /out\n" + image
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		storage := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "runroot"), "--storage-driver", "vfs"}
		out, err := command(t, buildah, append(storage, args...)...)
		if err != nil {
			t.Fatalf("buildah %v: %v", args, err)
		}
		return strings.TrimSpace(out)
	}
	run("bud", "--isolation", "chroot", "--build-arg", "BASE=scratch", "--build-arg", "VERSION=1.2.3-test", "-t", "restante-test", dir)
	var config struct {
		OCIv1 struct {
			Config struct {
				User       string
				Entrypoint []string
				Labels     map[string]string
			} `json:"config"`
		}
	}
	if err := json.Unmarshal([]byte(run("inspect", "--type", "image", "restante-test")), &config); err != nil {
		t.Fatal(err)
	}
	c := config.OCIv1.Config
	if c.User != "65532:65532" || !cmp.Equal(c.Entrypoint, []string{"/app/restante"}) || c.Labels["org.opencontainers.image.version"] != "1.2.3-test" {
		t.Errorf("the image's configuration is %+v", c)
	}
	container := run("from", "--pull-never", "restante-test")
	root := run("mount", container)
	defer run("umount", container)
	for _, name := range programs {
		standsAlone(t, root, name)
	}
}

// standsAlone: the program is static, and tells its version with nothing but the image around it, as the image's user.
func standsAlone(t *testing.T, root, name string) {
	t.Helper()
	f, err := elf.Open(filepath.Join(root, "app", name))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer f.Close() //nolint:errcheck // nothing was written
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s needs a dynamic linker, which the image has not", name)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/app/"+name, "--version")
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "1.2.3-test") {
		t.Errorf("%s --version in the image: %v: %s", name, err, out)
	}
}
