package stack

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// maven puts a script in Maven's place: what is tested is when and how often it is asked, and what becomes of its answer.
func maven(t *testing.T, script string) (calls func() int) {
	t.Helper()
	dir := t.TempDir()
	count := filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho call >> " + count + "\nfor arg; do case $arg in -DoutputDirectory=*) lib=${arg#*=};; esac; done\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "mvn"), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv(CacheEnv, t.TempDir())
	return func() int {
		text, err := os.ReadFile(count)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(text, []byte("\n"))
	}
}

func TestOneOfManyFetches(t *testing.T) {
	needJava(t)
	calls := maven(t, `sleep 0.2; mkdir "$lib"; touch "$lib/b.jar" "$lib/a.jar"`)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			in, err := prepare(t.Context(), DynamoDB)
			if err != nil {
				t.Error(err)
				return
			}
			lib := filepath.Join(in.dir, "lib")
			if want := lib + "/a.jar:" + lib + "/b.jar"; in.classPath != want {
				t.Errorf("class path is %s, want %s", in.classPath, want)
			}
		})
	}
	wg.Wait()
	if n := calls(); n != 1 {
		t.Errorf("it was fetched %d times, want once", n)
	}
}

func TestAFetchTriesTheNetworkAfterWhatIsThere(t *testing.T) {
	needJava(t)
	calls := maven(t, `case "$*" in *--offline*) exit 1;; esac; mkdir "$lib"; touch "$lib/a.jar"`)
	if _, err := prepare(t.Context(), DynamoDB); err != nil {
		t.Error(err)
	}
	if n := calls(); n != 2 {
		t.Errorf("Maven was asked %d times, want 2", n)
	}
}

func TestAFetchThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	needJava(t)
	calls := maven(t, `mkdir -p "$lib"; touch "$lib/half.jar"; echo "no route to the repository"; exit 1`)
	_, err := prepare(t.Context(), DynamoDB)
	if err == nil || !strings.Contains(err.Error(), "fetch dynamodb 3.1.0: run ") || !strings.Contains(err.Error(), "no route to the repository") {
		t.Errorf("it says %v", err)
	}
	if n := calls(); n != 3 {
		t.Errorf("Maven was asked %d times, want 3", n)
	}
	left, err := filepath.Glob(filepath.Join(os.Getenv(CacheEnv), "*", "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "lock" {
		t.Errorf("it left %v (%v), want the lock only", left, err)
	}
}

func TestEveryKindHasItsRelease(t *testing.T) {
	t.Parallel()
	for kind, want := range map[Kind]string{Kafka: `^4\.`, Cassandra: `^5\.0\.`, DynamoDB: `^3\.1\.0$`, HiveMQ: `^2025\.`} {
		rel, err := kind.release()
		if err != nil {
			t.Error(err)
		}
		if !regexp.MustCompile(want).MatchString(rel.version) {
			t.Errorf("%s is %s, want %s", kind, rel.version, want)
		}
		if _, ok := recipes[kind]; !ok || kind.Env() == "" {
			t.Errorf("%s cannot be started or named", kind)
		}
	}
}

// Java starts without an archive that does not fit, so its being used has to be asked for.
func TestTheArchiveOfClassesFits(t *testing.T) {
	for _, kind := range []Kind{Kafka, Cassandra} {
		in, err := prepare(t.Context(), kind)
		if err != nil {
			giveUp(t, err)
		}
		if in.archive == "" {
			t.Errorf("%s has no archive: see %s", kind, in.dir)
			continue
		}
		info, err := os.Stat(in.archive)
		if err != nil || info.Size() < 10<<20 {
			t.Errorf("archive of %s: %v, %v", kind, info, err)
		}
	}
}

func TestUniqueNamesFitEveryServer(t *testing.T) {
	t.Parallel()
	t.Run("A name that is long, with Ünicode/and signs", func(t *testing.T) {
		t.Parallel()
		one, two := Unique(t), Unique(t)
		if fits := regexp.MustCompile(`^[a-z][a-z0-9_]{2,31}$`); one == two || !fits.MatchString(one) {
			t.Errorf("got %s and %s", one, two)
		}
	})
}
