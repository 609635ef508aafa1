package stack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/internal/stack/filelock"
)

// CacheEnv is the environment variable that says where what is fetched and made once is kept.
const CacheEnv = "RESTANTE_STACK_CACHE"

// ErrNoJava is returned when Java, or Maven for a release that is not in the cache yet, is not installed.
var ErrNoJava = errors.New("java 17 and maven are needed to start real servers: install openjdk-17-jre-headless and maven")

// fetchLimit is how long the jars of one release may take.
const fetchLimit = 10 * time.Minute

// install is a release in the cache, ready to be started.
type install struct {
	kind      Kind
	cache     string   // of all releases
	dir       string   // of this release
	java      []string // the command, without its arguments
	classPath string
	archive   string // of the loaded classes; empty: there is none
}

func cacheDir() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w: set %s", err, CacheEnv)
	}
	return filepath.Join(dir, "restante", "stack"), nil
}

// prepare fetches the release of the kind unless the cache has it, and makes its archive unless that was tried before. Of several
// processes one does it while the others wait.
func prepare(ctx context.Context, kind Kind) (*install, error) {
	rel, err := kind.release()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	java, err := javaCommand(kind)
	if err != nil {
		return nil, err
	}
	in := &install{
		kind: kind, cache: cache, java: java,
		dir: filepath.Join(cache, fmt.Sprintf("%s-%s-%s", kind, rel.version, rel.sum)),
	}
	if err := os.MkdirAll(in.dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	held, err := filelock.Lock(ctx, filepath.Join(in.dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close() }()
	if err := in.fetch(ctx, rel.pom); err != nil {
		return nil, fmt.Errorf("fetch %s %s: %w", kind, rel.version, err)
	}
	if kind == Kafka {
		if err := in.format(ctx); err != nil {
			return nil, fmt.Errorf("format a directory for kafka: %w", err)
		}
	}
	if recipes[kind].archive {
		if err := in.train(ctx); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// javaCommand finds Java. Cassandra locks its heap into memory when it may, as root may: that takes seconds and the whole heap at once,
// so it is started without that right.
func javaCommand(kind Kind) ([]string, error) {
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, errors.Join(ErrNoJava, err)
	}
	setpriv, err := exec.LookPath("setpriv")
	if kind != Cassandra || os.Geteuid() != 0 || err != nil {
		return []string{java}, nil
	}
	return []string{setpriv, "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", java}, nil
}

// fetch copies the jars into lib. The directory takes its name when it is complete, so one that exists is.
func (in *install) fetch(ctx context.Context, pom []byte) error {
	lib := filepath.Join(in.dir, "lib")
	if _, err := os.Stat(lib); errors.Is(err, fs.ErrNotExist) {
		if err := in.download(ctx, pom, lib); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	jars, err := filepath.Glob(filepath.Join(lib, "*.jar"))
	if err != nil {
		return err
	}
	if len(jars) == 0 {
		return fmt.Errorf("%s has no jars: remove it", lib)
	}
	// In one order: an archive of classes holds for one class path only.
	slices.Sort(jars)
	in.classPath = strings.Join(jars, ":")
	return nil
}

func (in *install) download(ctx context.Context, pom []byte, lib string) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return errors.Join(ErrNoJava, err)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	work, err := os.MkdirTemp(in.dir, "fetch-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := os.WriteFile(filepath.Join(work, "pom.xml"), pom, 0o600); err != nil {
		return err
	}
	var said error
	// What Maven holds already needs no network; a network may fail once.
	for _, mode := range [][]string{{"--offline"}, {"--update-snapshots"}, {"--update-snapshots"}} {
		argv := slices.Concat([]string{mvn, "-q", "-B"}, mode, []string{
			"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=" + filepath.Join(work, "lib"),
		})
		if said = run(ctx, argv, work, filepath.Join(work, "log")); said == nil {
			return os.Rename(filepath.Join(work, "lib"), lib)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return said
}

// train makes the archive of the classes that the server loads up to its being ready. Without one it starts all the same, only later, so
// what goes wrong here is kept beside the jars and no error.
func (in *install) train(ctx context.Context) error {
	key, err := in.javaKey()
	if err != nil {
		return err
	}
	archive := filepath.Join(in.dir, "classes-"+key+".jsa")
	none := filepath.Join(in.dir, "classes-"+key+".none")
	if _, err := os.Stat(archive); err == nil {
		in.archive = archive
		return nil
	}
	if _, err := os.Stat(none); err == nil {
		return nil
	}
	err = in.makeArchive(ctx, archive)
	if ctx.Err() != nil {
		return fmt.Errorf("make an archive of the classes of %s: %w", in.kind, ctx.Err())
	}
	if err != nil {
		return os.WriteFile(none, []byte(err.Error()+"\n"), 0o600)
	}
	in.archive = archive
	return nil
}

// javaKey is another one for each Java and each set of flags.
func (in *install) javaKey() (string, error) {
	java, err := filepath.EvalSymlinks(in.java[len(in.java)-1])
	if err != nil {
		return "", fmt.Errorf("find java: %w", err)
	}
	info, err := os.Stat(java)
	if err != nil {
		return "", fmt.Errorf("find java: %w", err)
	}
	sum := sha256.Sum256(fmt.Append(nil, java, info.Size(), info.ModTime().UnixNano(), in.classPath, recipes[in.kind].flags))
	return hex.EncodeToString(sum[:6]), nil
}

func (in *install) makeArchive(ctx context.Context, archive string) error {
	// Its end writes the archive, which takes up to 20 s on a busy machine.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp(in.dir, "train-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	made := filepath.Join(dir, "classes.jsa")
	learner := *in
	learner.archive = ""
	servers, err := startNodes(ctx, &learner, startPlan{dir: dir, nodes: 1, java: []string{"-XX:ArchiveClassesAtExit=" + made}})
	if err != nil {
		return err
	}
	if err := servers[0].Stop(ctx); err != nil {
		return err
	}
	servers[0].free()
	// Java starts without an archive that it does not like, and says nothing: here it must say so.
	check := slices.Concat(in.java, recipes[in.kind].flags, []string{"-Xshare:on", "-XX:SharedArchiveFile=" + made, "-cp", in.classPath, "-version"})
	if err := run(ctx, check, dir, filepath.Join(dir, "check.log")); err != nil {
		return err
	}
	return os.Rename(made, archive)
}
