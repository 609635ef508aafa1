package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack/ports"
)

func TestUpSaysWhereEverythingIsAndWhatToTry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := e2etest.Start(t, "restante", "up", "-d", dir, "--listen", "127.0.0.1:0")
	p.AwaitOut("mosquitto_sub")
	wants(t, "greeting", p.Out(), "restante is up", "  mqtt      127.0.0.1:", "  kafka     127.0.0.1:", "  admin     http://127.0.0.1:",
		"  database  "+filepath.Join(dir, "restante.db"), "  data      "+dir,
		"  mosquitto_pub -h 127.0.0.1 -p ", " -q 1 -t t/1 -m hello\n", "  mosquitto_sub -h 127.0.0.1 -p ", " -q 1 -t t/1 -v\n")
	for name, mode := range map[string]os.FileMode{"replay.secret": 0o600, "restante.lock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %v", name, info, err, mode)
		}
	}
	began := time.Now()
	p.Stop()
	if took := time.Since(began); took > 18*time.Second {
		t.Errorf("it took %v to end after SIGTERM", took)
	}
}

func TestASecondUpOnTheSameDirectoryIsRefusedByName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := startUp(t, dir)
	second := e2etest.Start(t, "restante", "up", "-d", dir, "--listen", "127.0.0.1:0")
	if code := second.Code(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	wants(t, "stderr", second.Log(), "data directory "+dir+" is in use by process "+strconv.Itoa(first.Pid()), "--data")
	e2etest.Publish(t, first.at.mqtt(), "t/1", "still there")
}

func TestTheDatabaseIsReadableWhileUpRuns(t *testing.T) {
	t.Parallel()
	s := startUp(t, t.TempDir())
	e2etest.Publish(t, s.at.mqtt(), "t/1", "one", "two")
	e2etest.AwaitRows(t, s.at.database(), 2)
	columns, rows := e2etest.Table(t, s.at.database(), "mqtt_msg")
	if diff := cmp.Diff([]string{"topic", "msgid", "arrived", "payload", "qos", "retain", "sender"}, columns); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
	for i, want := range []string{"one", "two"} {
		r := rows[i]
		if r[0] != "t/1" || len(r[1]) != 32 || r[3] != want || r[4] != "1" || r[5] != "0" || !strings.HasPrefix(r[6], "publisher-") {
			t.Errorf("row %d is %q, want %q from a publisher", i, r, want)
		}
		if _, err := time.Parse("2006-01-02 15:04:05.000-0700", r[2]); err != nil {
			t.Errorf("arrived: %v", err)
		}
	}
	c := e2etest.Subscribe(t, s.at.mqtt(), "device", "t/1")
	got := e2etest.Receive(t, c, 2)
	if diff := cmp.Diff([]string{"one", "two"}, e2etest.Payloads(got)); diff != "" || e2etest.Replays(got) != nil {
		t.Errorf("replay (-want +got):\n%s%v", diff, e2etest.Replays(got))
	}
	e2etest.AwaitRows(t, s.at.database(), 0)
}

// Nobody subscribes before the end, so each PUBACK is a promise that only the disk can keep.
func TestUpLosesNothingInRestartsAndKills(t *testing.T) {
	t.Parallel()
	dir, addr := t.TempDir(), ports.Addr(t)
	config := writeConfig(t, fmt.Sprintf(`
sources: {devices: {type: embedded, listen: %q}}
kafka: {messages: {partitions: 4}, sessions: {partitions: 4}}
`, addr))
	start := func() stack { return startUp(t, dir, "-c", config) }
	s := start()
	load := e2etest.StartLoad(t, addr, "load/%d", 3, 5*time.Millisecond)
	for i, how := range []string{"SIGKILL", "SIGTERM", "SIGKILL"} {
		before := load.Acked()
		e2etest.Await(t, "50 more PUBACKs", func() bool { return load.Acked() >= before+50 })
		if how == "SIGTERM" {
			s.Stop()
		} else {
			s.Kill()
		}
		t.Logf("%d: %s after %d PUBACKs", i, how, load.Acked())
		s = start()
	}
	before := load.Acked()
	e2etest.Await(t, "50 more PUBACKs", func() bool { return load.Acked() >= before+50 })
	acked := load.Stop()
	e2etest.AwaitAll(t, addr, "device", "load/#", acked)
	e2etest.AwaitRows(t, s.at.database(), 0)
	s.Stop()
}

// A device gets half of its messages, the stack dies, and the device gets the rest, none of the first half.
func TestWhatWasAckedBeforeAKillDoesNotComeBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startUp(t, dir)
	e2etest.Publish(t, s.at.mqtt(), "t/a", "a1", "a2")
	e2etest.Publish(t, s.at.mqtt(), "t/b", "b1", "b2")
	c := e2etest.Subscribe(t, s.at.mqtt(), "device", "t/a")
	e2etest.Receive(t, c, 2)
	c.Disconnect() // the broker has read the acks before it, and they are durable with the disconnect
	e2etest.AwaitRows(t, s.at.database(), 2)
	s.Kill()
	s = startUp(t, dir)
	c = e2etest.Subscribe(t, s.at.mqtt(), "device", "t/#")
	got := e2etest.Receive(t, c, 2)
	if diff := cmp.Diff([]string{"b1", "b2"}, e2etest.Payloads(got)); diff != "" {
		t.Errorf("after the kill (-want +got):\n%s", diff)
	}
	e2etest.Quiet(t, c, time.Second)
}

func TestAMessageRightBeforeTheSubscribeIsReplayedAThousandTimes(t *testing.T) {
	t.Parallel()
	s := startUp(t, t.TempDir())
	const workers, each = 8, 125
	var wg sync.WaitGroup
	var live atomic.Int64
	for w := range workers {
		wg.Go(func() {
			name := fmt.Sprintf("w%d", w)
			pub := e2etest.Dial(t, s.at.mqtt(), "pub-"+name)
			sub := e2etest.Dial(t, s.at.mqtt(), "sub-"+name)
			for i := range each {
				topic, want := fmt.Sprintf("now/%s/%d", name, i), fmt.Sprintf("%s-%d", name, i)
				e2etest.Send(t, pub, topic, want)
				e2etest.More(t, sub, topic)
				got := e2etest.Receive(t, sub, 1)[0]
				for got.Topic != topic { // of the round before, once more
					got = e2etest.Receive(t, sub, 1)[0]
				}
				if string(got.Payload) != want {
					t.Errorf("%s: got %q", topic, got.Payload)
					return
				}
				if got.User("offline-msgid") == "" {
					live.Add(1)
				}
			}
		})
	}
	wg.Wait()
	// The broker answers the publisher before it routes the message, so now and then the subscriber is in time for that.
	if n := live.Load(); n > workers*each/20 {
		t.Errorf("%d of %d came live, want nearly all replayed", n, workers*each)
	}
}

func TestASignalDuringTheStartEndsItInPeace(t *testing.T) {
	t.Parallel()
	p := e2etest.Start(t, "restante", "up", "-d", t.TempDir(), "--listen", "127.0.0.1:0")
	p.AwaitLog(`"msg":"starting"`)
	p.Signal(syscall.SIGTERM)
	if code := p.Code(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
