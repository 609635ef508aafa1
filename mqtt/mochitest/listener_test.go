package mochitest_test

import (
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"github.com/restante/restante/mqtt/mochitest"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open lets everybody in.
type open struct{ mochi.HookBase }

func (open) Provides(hook byte) bool {
	return hook == mochi.OnConnectAuthenticate || hook == mochi.OnACLCheck
}

func (open) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (open) OnACLCheck(*mochi.Client, string, bool) bool              { return true }

func TestAServerEndsWhileItsClientsLeave(t *testing.T) {
	t.Parallel()
	for range 20 {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := mochi.New(&mochi.Options{Logger: slog.New(slog.DiscardHandler)})
		for _, err := range []error{server.AddHook(&open{}, nil), server.AddListener(mochitest.Listener(server, l)), server.Serve()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		c, err := mqtttest.Dial(t.Context(), l.Addr().String(), mqtttest.Options{ID: "client"})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		var leaving sync.WaitGroup
		for range 4 {
			leaving.Go(func() {
				for {
					select {
					case <-ended:
						return
					default:
						server.Clients.Delete("one who leaves") // as mochi does at the end of a connection
					}
				}
			})
		}
		closed := make(chan error, 1)
		go func() { closed <- server.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the server has not ended")
		}
		close(ended)
		leaving.Wait()
		c.Cut()
	}
}
