package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/proxy"
	"github.com/restante/restante/mqtt/mqtttest"
)

// TestChaos is the kill test: a real Kafka, a real store, the broker inside ingest, two writers and two replayers. While
// publishers publish and devices come and go, one thing after another is killed, frozen or cut off, drawn from a seed. Then all is
// mended, and the books must balance: nothing that had its PUBACK is lost, nobody gets what nobody published or what is another's, the
// replays of a topic come in order, no replay is stored again, and the store ends empty.
//
//	RESTANTE_CHAOS=30m RESTANTE_CHAOS_SEED=7 go test ./internal/e2e -run Chaos -v
func TestChaos(t *testing.T) {
	outage(t)
	t.Parallel()
	length := long(50*time.Second, 30*time.Minute)
	if text := os.Getenv("RESTANTE_CHAOS"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(1)
	if text := os.Getenv("RESTANTE_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	stores := []string{"cassandra", "dynamodb"}
	if length < 2*time.Minute {
		stores = stores[(seed+1)%2:][:1] // what make test does is short
	}
	for _, store := range stores {
		t.Run(store, func(t *testing.T) { newChaos(t, store, seed).run(length) })
	}
}

// chaos is a world and what may happen to it.
type chaos struct {
	*world
	draw  *rand.Rand
	kafka *stack.Server
	wire  *proxy.TCP // to the store
	look  plainStore

	processes map[string]*e2etest.Process
	load      *e2etest.Load
	callers   []*caller
	happened  map[string]int
}

const chaosTopics = 4

func newChaos(t *testing.T, store string, seed uint64) *chaos {
	t.Helper()
	server := stack.Own(t, stack.Kafka)
	c := &chaos{
		world: newWorld(t, server.Address()), kafka: server, draw: rand.New(rand.NewPCG(seed, 1)),
		processes: map[string]*e2etest.Process{}, happened: map[string]int{},
	}
	address := stack.Shared(t, map[string]stack.Kind{"cassandra": stack.Cassandra, "dynamodb": stack.DynamoDB}[store])
	var err error
	if c.wire, err = proxy.ListenTCP(strings.TrimPrefix(address, "http://")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.wire.Close(); err != nil {
			t.Error(err)
		}
	})
	if store == "cassandra" {
		c.cassandra("history", c.wire.Address(), c.name, "")
		look := lookCassandra(t, address, c.name)
		for i := range chaosTopics {
			look.topics = append(look.topics, fmt.Sprintf("t/load/%d", i))
		}
		c.look = look
	} else {
		c.dynamodb("history", "http://"+c.wire.Address(), c.name+"_", "")
		c.look = lookDynamoDB(address, c.name+"_")
	}
	c.offline("history")
	c.migrate()
	return c
}

// launch starts a process, as often as it must; two of a kind differ by the number behind the name.
func (c *chaos) launch(name string) {
	kind, _, _ := strings.Cut(name, "-")
	c.processes[name] = e2etest.Start(c.t, kind, "-config", c.config(name))
}

func (c *chaos) run(length time.Duration) {
	t := c.t
	for _, name := range []string{"ingest", "writer-1", "writer-2", "replayer-1", "replayer-2"} {
		c.launch(name)
	}
	for name := range c.processes {
		e2etest.AwaitReady(t, c.admin[name])
	}
	c.load = e2etest.StartLoad(t, c.broker, "t/load/%d", chaosTopics, 30*time.Millisecond)
	for i := range chaosTopics {
		c.callers = append(c.callers, startCaller(t, c.broker, i, c.draw.Uint64()))
	}
	for until := time.Now().Add(length); time.Now().Before(until); {
		time.Sleep(time.Duration(c.draw.IntN(3000)) * time.Millisecond)
		c.strike()
	}

	acked := c.load.Stop()
	had, copies := map[string]bool{}, 0
	for _, v := range c.callers {
		had, copies = v.stop(had, copies)
	}
	left := map[string]bool{}
	for p := range acked {
		if !had[p] {
			left[p] = true
		}
	}
	e2etest.AwaitAll(t, c.broker, "the last", "t/load/#", left)
	c.awaitCommitted("history")
	// The last one takes what nobody was promised as well: in the end nothing waits.
	var b book
	e2etest.Await(t, "the last ack is in Kafka", func() bool {
		b = c.book()
		return len(b.waiting()) == 0
	})
	promised(t, b, acked)
	published := payloads(t, b.published)
	for p := range had {
		if !published[p] {
			t.Errorf("a device got %q, which nobody published", p)
		}
	}
	awaitStored(t, c.look, b.waiting())
	t.Logf("%d PUBACKs, %d published, %d had by devices before the end (%d more copies), %d left for the last one; 0 lost; the longest stall was %v; %v",
		len(acked), len(b.published), len(had), copies, len(left), c.load.Stall().Round(100*time.Millisecond), c.happened)
	if len(acked) == 0 || len(had) == 0 {
		t.Error("nothing was published, or nobody got anything: that shows nothing")
	}
}

// strike does one thing to one part, and mends it.
func (c *chaos) strike() {
	t := c.t
	names := []string{"ingest", "writer-1", "writer-2", "replayer-1", "replayer-2"}
	name := names[c.draw.IntN(len(names))]
	pause := func(most time.Duration) { time.Sleep(most/10 + time.Duration(c.draw.Int64N(int64(most)))) }
	what := []string{"kill", "kill", "kill", "end", "freeze", "freeze for long", "kafka freezes", "kafka dies", "store refuses", "store hangs", "store swallows"}[c.draw.IntN(11)]
	switch what {
	case "kill":
		c.processes[name].Kill()
		pause(time.Second)
		c.launch(name)
		what += " " + name
	case "end":
		c.processes[name].Signal(syscall.SIGTERM)
		c.processes[name].Code() // 0, or 3 where something else is away
		c.launch(name)
		what += " " + name
	case "freeze", "freeze for long":
		most := 3 * time.Second
		if what == "freeze for long" {
			most = 20 * time.Second // longer than a session: it wakes as one who has been replaced
		}
		c.processes[name].Signal(syscall.SIGSTOP)
		pause(most)
		c.processes[name].Signal(syscall.SIGCONT)
		what += " " + name
	case "kafka freezes":
		c.fatal(c.kafka.Pause())
		pause(5 * time.Second)
		c.fatal(c.kafka.Resume())
	case "kafka dies":
		c.fatal(c.kafka.Kill())
		pause(2 * time.Second)
		c.fatal(c.kafka.Start(t.Context()))
	default:
		c.wire.Set(map[string]proxy.Mode{"store refuses": proxy.Refuse, "store hangs": proxy.Hold, "store swallows": proxy.Swallow}[what])
		pause(5 * time.Second)
		c.wire.Set(proxy.Pass)
	}
	c.happened[what]++
	for name, p := range c.processes {
		if p.Ended() {
			t.Errorf("%s ended by itself with code %d after %q", name, p.Code(), what)
			c.launch(name)
		}
	}
}

func (c *chaos) fatal(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// caller is the device whose topic it is: it calls, takes what there is for a while, and leaves, by DISCONNECT or without a word.
type caller struct {
	t      *testing.T
	addr   string
	topic  string
	draw   *rand.Rand
	cancel context.CancelFunc
	wg     sync.WaitGroup

	times map[string]int // by payload
	first []string       // of this visit, what was replayed and came for the first time
}

func startCaller(t *testing.T, addr string, i int, seed uint64) *caller {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	v := &caller{
		t: t, addr: addr, topic: fmt.Sprintf("t/load/%d", i), draw: rand.New(rand.NewPCG(seed, 2)), cancel: cancel, times: map[string]int{},
	}
	v.wg.Go(func() { // ends with ctx; stop waits
		for ctx.Err() == nil {
			v.visit(ctx)
			time.Sleep(time.Duration(v.draw.IntN(2000)) * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		cancel()
		v.wg.Wait()
	})
	return v
}

func (v *caller) visit(ctx context.Context) {
	dial, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := mqtttest.Dial(dial, v.addr, mqtttest.Options{ID: "device of " + v.topic, Version: mqtttest.V5})
	if err != nil {
		return
	}
	if _, err := c.Subscribe(dial, 1, v.topic); err == nil {
		stay, cancel := context.WithTimeout(ctx, time.Duration(500+v.draw.IntN(4000))*time.Millisecond)
		v.take(stay, c)
		cancel()
	}
	if v.draw.IntN(2) == 0 {
		c.Disconnect()
	} else {
		c.Cut()
	}
	v.take(context.WithoutCancel(ctx), c) // what it acknowledged and nobody has read
	v.inOrder()
}

// inOrder checks the replays of a visit. The first may be what the replay of the visit before had on its way: where ingest, which is
// the broker, stood still, the new subscription was there before it.
func (v *caller) inOrder() {
	for len(v.first) > 0 && v.first[0] != slices.Min(v.first) {
		v.first = v.first[1:]
	}
	if !slices.IsSorted(v.first) {
		v.t.Errorf("%s: replayed for the first time in this order: %q", v.topic, v.first)
	}
	v.first = nil
}

// take reads until the time is over or the connection has ended.
func (v *caller) take(ctx context.Context, c *mqtttest.Client) {
	for {
		m, err := c.Receive(ctx)
		if err != nil {
			return
		}
		p := string(m.Payload)
		if m.Topic != v.topic || !strings.HasPrefix(p, v.topic+" #") {
			v.t.Errorf("%s got %q on %s", v.topic, p, m.Topic)
		}
		if m.User("offline-msgid") != "" && v.times[p] == 0 {
			v.first = append(v.first, p)
		}
		v.times[p]++
	}
}

// stop ends the visits. It adds what it had, and counts what came more than once.
func (v *caller) stop(had map[string]bool, copies int) (map[string]bool, int) {
	v.cancel()
	v.wg.Wait()
	for p, n := range v.times {
		had[p] = true
		copies += n - 1
	}
	return had, copies
}
