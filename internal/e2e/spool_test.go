package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

const spoolProcesses = `
kafka:
  brokers: %[1]q
  messages: {partitions: %[2]d, replication: 1}
  sessions: {partitions: %[2]d}
  dead: {partitions: 1}
  session_timeout: 26s
sources: {emqx: {type: exhook, listen: %[3]q, budget: %[7]v}}
sinks: {history: {type: sqlite, path: %[4]q}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
delivery: {evidence: puback, mqtt: {url: "mqtt://127.0.0.1:1"}}
ingest: {spool: {path: %[5]q, size: 128MiB}}
admin: {listen: %[6]q}
`

const (
	budget   = 2 * time.Second
	generous = 30 * time.Second
)

// newSpoolSetup is a world of an ingest with an ExHook source and a spool, and of a Kafka that keeps its data.
func newSpoolSetup(t *testing.T, budget time.Duration) *setup {
	t.Helper()
	s := newSetupWithoutKafka(t)
	s.configure = func(admin string) string {
		return fmt.Sprintf(spoolProcesses, s.kafka, partitions, s.broker, s.database, filepath.Join(s.dir, "spool"), admin, budget)
	}
	return s
}

// hookLoad are the publishes of a broker's clients: each has a topic of its own, and begins a call when the one before is answered.
type hookLoad struct {
	rate    int           // calls a second; 0 = 200
	padding int           // bytes behind each payload
	timeout time.Duration // of a call; 0 = that of EMQX
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu       sync.Mutex
	next     []int
	answered [][]string // by client, in their order
	failed   int
	slowest  time.Duration
}

const hookClients = 8

func (l *hookLoad) topic(client int) string { return fmt.Sprintf("t/%d", client) }

// start publishes to the server. It goes on where the load before has ended.
func (l *hookLoad) start(t *testing.T, addr string) {
	t.Helper()
	pace := time.Second * hookClients / time.Duration(cmp.Or(l.rate, 200))
	if l.next == nil {
		l.next, l.answered = make([]int, hookClients), make([][]string, hookClients)
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	l.stop = sync.OnceFunc(func() {
		cancel()
		l.wg.Wait()
		_ = conn.Close()
	})
	t.Cleanup(l.stop)
	for c := range hookClients {
		l.wg.Go(func() {
			due := time.Now()
			for ctx.Err() == nil {
				if due = due.Add(pace); time.Until(due) > 0 {
					time.Sleep(time.Until(due))
				}
				l.publish(conn, c)
			}
		})
	}
}

func (l *hookLoad) publish(conn *grpc.ClientConn, client int) {
	l.mu.Lock()
	n := l.next[client]
	l.next[client]++
	l.mu.Unlock()
	at := time.Now()
	text := fmt.Sprintf("%d-%06d%*s", client, n, l.padding, "")
	m := &exhookpb.Message{
		Id: []byte(event.IDOf(at.UnixMicro(), uint64(client), uint16(n)).String()), Qos: 1, From: fmt.Appendf(nil, "c%d", client),
		Topic: []byte(l.topic(client)), Payload: []byte(text), Timestamp: uint64(at.UnixMilli()),
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(l.timeout, 5*time.Second)) // EMQX's request_timeout
	defer cancel()
	var answer exhookpb.ValuedResponse
	err := conn.Invoke(ctx, "/"+exhook.Services[0]+"/OnMessagePublish", &exhookpb.MessagePublishRequest{Message: m}, &answer)
	took := time.Since(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed++
		return
	}
	l.slowest = max(l.slowest, took)
	l.answered[client] = append(l.answered[client], text)
}

// count is how many calls were answered.
func (l *hookLoad) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := 0
	for _, answered := range l.answered {
		all += len(answered)
	}
	return all
}

// failures is how many calls were not answered.
func (l *hookLoad) failures() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// check compares what was answered with what is in Kafka: everything, and each topic in its order, but for repeats.
func (l *hookLoad) check(t *testing.T, s *setup) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	got := published(s.records("mqtt.messages"))
	all, repeats := 0, 0
	for c, answered := range l.answered {
		var first []string
		seen := map[string]bool{}
		for _, v := range got[l.topic(c)] {
			if seen[v] {
				repeats++
				continue
			}
			seen[v] = true
			first = append(first, v)
		}
		if !slices.IsSorted(first) {
			t.Errorf("topic %s is out of order: %v", l.topic(c), first)
		}
		lost := 0
		for _, v := range answered {
			if !seen[v] {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("topic %s: %d of %d messages that were answered are not in Kafka", l.topic(c), lost, len(answered))
		}
		all += len(answered)
	}
	t.Logf("%d publishes answered, %d failed, %d repeats, the slowest took %v", all, l.failed, repeats, l.slowest.Round(time.Millisecond))
}

// drained waits until nothing is left in the spool.
func (s *setup) drained() {
	s.t.Helper()
	e2etest.Await(s.t, "the spool is empty", func() bool {
		return e2etest.Metric(s.t, s.admin["ingest"], "restante_ingest_spooling") == 0 &&
			e2etest.Metric(s.t, s.admin["ingest"], "restante_ingest_spool_records") == 0
	})
}

// TestNoCallIsSlowAndNothingIsLostWhileKafkaIsAway: 200 publishes a second, all the time; in a soak 500, and a real Kafka is killed for
// five minutes.
func TestNoCallIsSlowAndNothingIsLostWhileKafkaIsAway(t *testing.T) {
	t.Parallel()
	limit := long(generous, budget) // a machine that stands still for a while says nothing about ingest
	s := newSpoolSetup(t, limit)
	load := hookLoad{timeout: 2 * limit}
	var leave, comeBack func()
	if soaking() {
		load.rate = 500
		leave, comeBack = s.mortalKafka()
	} else {
		leave, comeBack = s.durableKafka().Close, func() { s.durableKafka() }
	}
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	ingest := s.start("ingest")
	load.start(t, s.broker)
	time.Sleep(2 * time.Second)
	e2etest.Await(t, "it does not spool while Kafka is there", func() bool { // but for a moment, where all is slow
		return e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spooling") == 0
	})
	leave()
	time.Sleep(long(10*time.Second, 5*time.Minute))
	e2etest.Await(t, "it spools while Kafka is away", func() bool {
		return e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spooling") == 1
	})
	if status, body := e2etest.Get(t, s.admin["ingest"], "/readyz"); status != 200 {
		t.Errorf("it is not ready while it spools:\n%s", body)
	}
	t.Logf("%v records in %v bytes of the spool", e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spool_records"),
		e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spool_bytes"))
	comeBack()
	back := time.Now()
	time.Sleep(4 * time.Second)
	s.drained() // in spite of the load
	t.Logf("the spool was empty %v after Kafka was back", time.Since(back).Round(time.Second))
	load.stop()
	s.drained() // again, where Kafka was slow since
	ingest.Stop()
	if load.failed > 0 {
		t.Errorf("%d calls failed", load.failed)
	}
	if load.slowest > limit {
		t.Errorf("a call took %v, the budget is %v", load.slowest, limit)
	}
	// Once for the outage; on a slow machine once more for each time that Kafka took long to answer.
	begun := max(said(ingest, "spooling begins"), 1)
	times(t, ingest, begun, "spooling begins")
	times(t, ingest, begun, "spooling ended")
	load.check(t, s)
}

// mortalKafka is a real Kafka of the setup's own, with what kills it and what starts it again.
func (s *setup) mortalKafka() (kill, start func()) {
	s.t.Helper()
	server := stack.Own(s.t, stack.Kafka)
	s.kafka = server.Address()
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return func() { must(server.Kill()) }, func() { must(server.Start(s.t.Context())) }
}

// TestAFullDiskWithholdsAnswersAndHeals: a disk of 8 MB under a spool that may have 128. What was answered is in Kafka in the end, though
// ingest was killed while not a byte was free, and calls are answered again.
func TestAFullDiskWithholdsAnswersAndHeals(t *testing.T) {
	t.Parallel()
	const brief = time.Second
	s := newSpoolSetup(t, brief)
	disk := filepath.Join(s.dir, "spool")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=8m,mode=700"); err != nil {
		t.Skipf("make a disk of 8 MB: %v; this test needs the right to mount one", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cluster := s.durableKafka()
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	ingest := s.start("ingest")
	load := hookLoad{padding: 8 << 10, timeout: 10 * brief}
	load.start(t, s.broker)
	e2etest.Await(t, "calls are answered", func() bool { return load.count() > 100 })
	cluster.Close()
	e2etest.Await(t, "the disk is full, and the log says so", func() bool { return said(ingest, "no space left on device") > 0 })
	before := load.failures() // which may be of a machine that stood still
	e2etest.Await(t, "calls fail", func() bool { return load.failures() > before+2*hookClients })
	onceAMinute(t, ingest, "no space left on device")
	ingest.Kill()
	load.stop()

	s.durableKafka()
	ingest = s.start("ingest")
	before = load.count()
	load.start(t, s.broker)
	s.drained()
	e2etest.Await(t, "calls are answered again", func() bool { return load.count() > before+200 })
	load.stop()
	ingest.Stop()
	load.check(t, s)
}

// TestTheSpoolOutlivesItsProcess: ingest is killed and ended while Kafka is away, and each time the next one goes on without Kafka.
func TestTheSpoolOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	s := newSpoolSetup(t, budget)
	cluster := s.durableKafka()
	if err := migrateAll(t.Context(), s.config("migrate")); err != nil {
		t.Fatal(err)
	}
	ingest := s.start("ingest")
	var load hookLoad
	load.start(t, s.broker)
	time.Sleep(time.Second)
	cluster.Close()
	time.Sleep(3 * time.Second)
	e2etest.Await(t, "it spools", func() bool { return e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spool_records") > 0 })
	ingest.Kill()
	load.stop()

	ingest = s.start("ingest") // it is ready without Kafka
	if n := e2etest.Metric(t, s.admin["ingest"], "restante_ingest_spool_records"); n == 0 {
		t.Errorf("%v records were left, want those of some seconds", n)
	}
	config := strings.ReplaceAll(s.configure(ports.Addr(t)), s.broker, ports.Addr(t))
	other := e2etest.Start(t, "ingest", "-config", s.write("other.yaml", config))
	if code := other.Code(); code != 1 || said(other, fmt.Sprintf("is in use by process %d: stop it", ingest.Pid())) == 0 {
		t.Errorf("a second process on the same spool ended with %d, want 1 and who has it:\n%s", code, other.Log())
	}
	load.start(t, s.broker)
	time.Sleep(time.Second)
	load.stop()
	ingest.Stop()

	ingest = s.start("ingest")
	load.start(t, s.broker)
	time.Sleep(time.Second)
	s.durableKafka()
	s.drained()
	load.stop()
	ingest.Stop()
	load.check(t, s)
}

// TestAMissingTopicIsAnErrorBehindASpoolToo: once Kafka answers.
func TestAMissingTopicIsAnErrorBehindASpoolToo(t *testing.T) {
	t.Parallel()
	s := newSpoolSetup(t, budget)
	ingest := s.start("ingest")
	startKafka(t, s.kafka)
	if code := ingest.Code(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if said(ingest, `topic mqtt.messages is missing: run \"restante migrate\"`) == 0 {
		t.Errorf("it does not say what to do:\n%s", ingest.Log())
	}
}
