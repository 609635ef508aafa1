package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/proxy"
)

// probes asks as kubelet does, and keeps what was not 200: any other answer, or none three times in a row.
type probes struct {
	asked  int
	silent map[string]int
	bad    []string
}

func (p *probes) ask(t *testing.T, what, addr string) {
	t.Helper()
	for _, path := range []string{"/livez", "/readyz"} {
		status, body := e2etest.Get(t, addr, path)
		p.asked++
		if status != 0 {
			p.silent[what+path] = 0
		} else {
			p.silent[what+path]++ // a machine may stand still
		}
		if status != http.StatusOK && status != 0 || p.silent[what+path] == 3 {
			p.bad = append(p.bad, what+path+": "+body)
		}
	}
}

// TestAnOutageOfTheStoreRestartsNobody: while it refuses, and while it says nothing at all, every process that was ready stays alive and
// ready, for there is nothing that a restart would mend, nor a better place for its work. One that begins then is alive, and not ready.
func TestAnOutageOfTheStoreRestartsNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	wire, err := proxy.ListenTCP(strings.TrimPrefix(stack.Shared(t, stack.DynamoDB), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := wire.Close(); err != nil {
			t.Error(err)
		}
	})
	w.dynamodb("history", "http://"+wire.Address(), w.name+"_", "")
	w.offline("history")
	w.migrate()
	all := w.startAll("ingest", "writer", "replayer")
	load := e2etest.StartLoad(t, w.broker, "t/load/%d", 2, gentle)
	progress(t, load, 10)
	device := e2etest.Subscribe(t, w.broker, "device", "t/stored") // a replay waits for the store as well
	defer device.Disconnect()
	p := probes{silent: map[string]int{}}
	for _, mode := range []proxy.Mode{proxy.Refuse, proxy.Hold} {
		wire.Set(mode)
		late := ""
		if mode == proxy.Refuse {
			late = "writer-late"
			all[late] = e2etest.Start(t, "writer", "-config", w.config(late))
		}
		for until := time.Now().Add(long(5*time.Second, time.Minute)); time.Now().Before(until); time.Sleep(250 * time.Millisecond) {
			for _, name := range []string{"ingest", "writer", "replayer"} {
				p.ask(t, name, w.admin[name])
			}
		}
		progress(t, load, 1)
		if late != "" {
			w.notReady(late, "sink history")
		}
		wire.Set(proxy.Pass)
		if late != "" {
			e2etest.AwaitReady(t, w.admin[late])
		}
	}
	if len(p.bad) > 0 {
		t.Errorf("%d of %d probes failed, the first: %s", len(p.bad), p.asked, p.bad[0])
	}
	if p.asked == 0 {
		t.Error("nothing was asked")
	}
	acked := load.Stop()
	w.awaitCommitted("history")
	b := w.book()
	promised(t, b, acked)
	awaitStored(t, lookDynamoDB("http://"+strings.TrimPrefix(stack.Shared(t, stack.DynamoDB), "http://"), w.name+"_"), b.waiting())
	for name, p := range all {
		if p.Ended() {
			t.Errorf("%s has ended", name)
		}
	}
	t.Logf("%d probes, all 200; %d PUBACKs", p.asked, len(acked))
}
