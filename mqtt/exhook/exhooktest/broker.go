// Package exhooktest is a broker for tests that calls ExHook servers as EMQX 4.4 and 5 do, where EMQX itself cannot run: it
// registers the hooks that a server asks for, waits for each answer, and obeys it. What it does not have is the rest of EMQX: no
// other hooks, no ACL, no cluster, no delayed wills, and it sends a client more than its receive maximum.
package exhooktest

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/mochitest"
)

// The defaults are those of EMQX 5.
const (
	defRequestTimeout = 5 * time.Second
	defReconnect      = 60 * time.Second
)

// Options say what a broker does. Servers is required.
type Options struct {
	// Servers are the addresses of ExHook servers. Each of them is told of every event, one after another.
	Servers []string
	// Shared says that the servers stand behind one address: what happens to a client is told to one of them, always the same
	// while it can be reached, and a publish to the one of its publisher.
	Shared bool
	// Version is that of the gRPC service: 1 (the default) as EMQX 4.3 and 4.4 call it, 2 as 5.0 to 5.8, 3 as 5.9 and later.
	Version int
	// Listen is the address for MQTT; "" = a free one of loopback.
	Listen string
	// Node is the name of the broker node, emqx@127.0.0.1 when "".
	Node string
	// RequestTimeout is how long a call may take (5 s when 0). A call that fails changes nothing: failed_action is ignore.
	RequestTimeout time.Duration
	// AutoReconnect is after how long a server that cannot be reached or loaded is tried again (60 s when 0).
	AutoReconnect time.Duration
}

// Broker is a broker that runs until its test ends.
type Broker struct {
	tb      testing.TB
	options Options
	version version
	addr    string
	mqtt    *mochi.Server
	minter  event.Minter
	servers []*server
	ctx     context.Context //nolint:containedctx // mochi's hooks know no context
	failed  atomic.Int64
	puzzled atomic.Int64
}

// Start starts a broker. It listens when Start returns, but may have loaded no server yet: see [Broker.AwaitLoaded].
func Start(tb testing.TB, o Options) *Broker {
	tb.Helper()
	o.Node = cmp.Or(o.Node, "emqx@127.0.0.1")
	o.RequestTimeout = cmp.Or(o.RequestTimeout, defRequestTimeout)
	o.AutoReconnect = cmp.Or(o.AutoReconnect, defReconnect)
	b := &Broker{tb: tb, options: o, minter: event.Minter{Node: 0xF49D_0000_01D4, Now: time.Now}}
	var known bool
	if b.version, known = versions[cmp.Or(o.Version, 1)]; !known || len(o.Servers) == 0 {
		tb.Fatalf("a broker with version %d and servers %q", o.Version, o.Servers)
	}
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", cmp.Or(o.Listen, "127.0.0.1:0"))
	if err != nil {
		tb.Fatal(err)
	}
	b.addr = l.Addr().String()

	capabilities := mochi.NewDefaultServerCapabilities()
	capabilities.Compatibilities.NoInheritedPropertiesOnAck = true // an ack with the properties of its publish is none
	b.mqtt = mochi.New(&mochi.Options{Capabilities: capabilities, Logger: slog.New(slog.DiscardHandler)})
	if err := b.mqtt.AddHook(&hook{Broker: b}, nil); err != nil {
		tb.Fatal(err)
	}
	if err := b.mqtt.AddListener(mochitest.Listener(b.mqtt, l)); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.ctx = ctx
	var running sync.WaitGroup
	for _, addr := range o.Servers {
		s, err := b.dial(addr)
		if err != nil {
			tb.Fatal(err)
		}
		b.servers = append(b.servers, s)
		running.Go(func() { s.keepLoaded(ctx) }) // ends with ctx
	}
	tb.Cleanup(func() {
		cancel() // first, since clients wait for calls
		_ = b.mqtt.Close()
		running.Wait()
		for _, s := range b.servers {
			_ = s.conn.Close()
		}
	})
	if err := b.mqtt.Serve(); err != nil {
		tb.Fatal(err)
	}
	return b
}

// Addr is the address for MQTT.
func (b *Broker) Addr() string { return b.addr }

// Loads says how often each server has been loaded: it was connected and has said which hooks it wants.
func (b *Broker) Loads() []int {
	var out []int
	for _, s := range b.servers {
		s.mu.Lock()
		out = append(out, s.loads)
		s.mu.Unlock()
	}
	return out
}

// AwaitLoaded waits until every server has been loaded n times or more; the test fails when that takes three minutes.
func (b *Broker) AwaitLoaded(n int) {
	b.tb.Helper()
	for until := time.Now().Add(3 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		loaded := true
		for _, have := range b.Loads() {
			loaded = loaded && have >= n
		}
		switch {
		case loaded:
			return
		case time.Now().After(until):
			b.tb.Fatalf("the servers were loaded %v times, want %d", b.Loads(), n)
		}
	}
}

// Failed is how many calls about events were not answered in time or with an error. EMQX goes on and forgets them.
func (b *Broker) Failed() int { return int(b.failed.Load()) }

// Puzzled is how many answers to a publish said to go on without a message and not IGNORE: EMQX logs a warning for each.
func (b *Broker) Puzzled() int { return int(b.puzzled.Load()) }

// version is how an EMQX calls.
type version struct {
	service string
	emqx    string
	// properties: a publish tells its MQTT 5 properties. groups: the group of a shared subscription stands in its topic.
	properties, groups bool
}

var versions = map[int]version{
	1: {service: "emqx.exhook.v1.HookProvider", emqx: "4.4.19"},
	2: {service: "emqx.exhook.v2.HookProvider", emqx: "5.8.9", groups: true},
	3: {service: "emqx.exhook.v3.HookProvider", emqx: "5.10.0", groups: true, properties: true},
}

func (v version) path(call string) string { return fmt.Sprintf("/%s/%s", v.service, call) }
