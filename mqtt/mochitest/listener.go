// Package mochitest lets tests stop brokers that are made of mochi-mqtt.
package mochitest

import (
	"net"
	"sync"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// listener is mochi's but for its end.
type listener struct {
	*listeners.Net
	server *mochi.Server
}

// Listener lets a server listen on l, as [listeners.NewNet] does. When the server is closed, so is l, and every client is
// disconnected. Mochi 2.7.9 by itself never ends when a client leaves meanwhile: it counts its clients while it has locked them
// for reading, which waits for the one who wants to remove itself, which waits for the reader.
func Listener(server *mochi.Server, l net.Listener) listeners.Listener {
	return listener{listeners.NewNet("tcp", l), server}
}

// Close is called by the server with what would lock itself up.
func (l listener) Close(listeners.CloseFn) {
	l.Net.Close(func(string) {
		var all sync.WaitGroup
		for _, cl := range l.server.Clients.GetAll() {
			if !cl.Closed() {
				all.Go(func() { _ = l.server.DisconnectClient(cl, packets.ErrServerShuttingDown) })
			}
		}
		all.Wait()
	})
}
