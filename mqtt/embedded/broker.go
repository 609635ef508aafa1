package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// Broker is the embedded broker. [Open] listens, [Broker.Run] serves.
type Broker struct {
	cfg      Config
	log      *slog.Logger
	server   *mochi.Server
	listener *listener
	sessions *sessions
	running  atomic.Bool

	// Set by Run before the first connection.
	accept pipeline.Accept
	// work outlives Run's ctx by the drain: what is under way may still be taken. mochi's hooks know no context.
	work     context.Context //nolint:containedctx // see above
	stopping atomic.Bool
	trail    chan pipeline.Receipt // receipts that nobody waits for before going on

	busy   gate // publishes between OnPublish and their PUBACK
	direct gate // calls of Publish
	wills  wills
	moving sync.WaitGroup // deliveries on their way from one connection to the next
	// expiring are client ids that mochi is about to forget.
	expiring gate
}

var (
	_ pipeline.Source    = (*Broker)(nil)
	_ pipeline.Publisher = (*Broker)(nil)
)

// trailing is how many receipts may be outstanding that nobody waits for.
const trailing = 4096

// errStopping is why an event was not taken.
var errStopping = errors.New("the broker stops")

// Open checks the configuration and listens. Connections wait until Run.
func Open(cfg Config) (*Broker, error) {
	cfg, err := cfg.checked()
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	if cfg.TLS != nil {
		l = tls.NewListener(l, cfg.TLS)
	}
	b := &Broker{cfg: cfg, log: cfg.Log, sessions: newSessions(), trail: make(chan pipeline.Receipt, trailing)}
	b.wills.broker = b
	b.server = mochi.New(cfg.options(slog.New(quiet{cfg.Log.Handler(), b.overflow})))
	b.listener = newListener(l, cfg)
	b.listener.done = b.finished
	if err := errors.Join(b.server.AddHook(&hook{Broker: b}, nil), b.server.AddListener(b.listener)); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	return b, nil
}

// Addr is the address that is listened on.
func (b *Broker) Addr() net.Addr { return b.listener.Addr() }

// Close releases the address of a broker that was never run. Run does it by itself.
func (b *Broker) Close() error {
	b.listener.stop()
	return nil
}

// Run serves clients until ctx ends. Then it takes no more connections, lets the publishes under way get their PUBACK,
// disconnects everybody, and waits for the events of that; all within the drain time. Accept is called from many goroutines.
func (b *Broker) Run(ctx context.Context, accept pipeline.Accept) error {
	if !b.running.CompareAndSwap(false, true) {
		return errors.New("embedded broker: was run before")
	}
	work, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	b.accept, b.work = accept, work

	trailed := make(chan struct{})
	go func() { // ends when trail is closed
		defer close(trailed)
		for r := range b.trail {
			if err := pipeline.Wait(work, r); err != nil {
				b.cfg.Count(mqtt.CountLostAck)
				b.log.WarnContext(work, "event did not become durable", "err", err)
			}
		}
	}()
	err := b.server.Serve()
	if err == nil {
		b.log.InfoContext(ctx, "broker is up", "addr", b.Addr().String())
		<-ctx.Done()
	}
	drain := time.AfterFunc(b.cfg.Drain, giveUp)
	defer drain.Stop()
	b.stop(work)
	if err == nil {
		<-b.listener.served
	}
	close(b.trail)
	<-trailed
	if work.Err() != nil {
		b.log.WarnContext(work, "broker stopped before all events were durable; unacknowledged messages come again from their publishers")
	}
	if err != nil {
		return fmt.Errorf("serve embedded broker: %w", err)
	}
	return nil
}

func (b *Broker) stop(work context.Context) {
	b.stopping.Store(true)
	b.listener.stop()
	select {
	case <-b.busy.close():
	case <-work.Done():
	}
	var wg sync.WaitGroup
	for _, cl := range b.server.Clients.GetAll() {
		if !cl.Closed() {
			// At once, since each may wait for a client that does not read.
			wg.Go(func() { _ = b.server.DisconnectClient(cl, packets.ErrServerShuttingDown) })
		}
	}
	wg.Wait()
	b.listener.cut()
	b.wills.flush()
	b.moving.Wait()
	<-b.direct.close()   // each ends with its connection
	<-b.expiring.close() // mochi's loop still runs
	_ = b.server.Close() // no client and no listener is left: stops mochi's own loop
}

// gate counts who is inside, and can be closed.
type gate struct {
	mu     sync.Mutex
	n      int
	closed bool
	empty  chan struct{}
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.n++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.closed && g.n == 0 {
		close(g.empty)
	}
}

// close lets nobody in any more; the channel is closed when the last has left.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.empty = true, make(chan struct{})
	if g.n == 0 {
		close(g.empty)
	}
	return g.empty
}

// finished is called when mochi is through with a connection, whatever became of it.
func (b *Broker) finished(w *wire, err error) {
	w.unlock()
	if w.session.Load() != nil {
		b.leave(w.client, w)
	}
	w.open()
	b.gone(w, "tcp_closed") // unless OnDisconnect came
	if w.publishing {
		w.publishing = false
		b.busy.leave()
	}
	if errors.Is(err, packets.ErrPacketTooLarge) {
		b.cfg.Count(mqtt.CountRefusedSize)
		b.log.Warn("client sent a packet over the limit, disconnected", "remote", w.RemoteAddr().String(), "limit", b.cfg.MaxPacket)
		return
	}
	b.log.Debug("connection ended", "remote", w.RemoteAddr().String(), "err", err)
}

func (b *Broker) overflow(client string) {
	b.cfg.Count(mqtt.CountDroppedInflight)
	if s := b.sessions.get(client); s != nil {
		s.mu.Lock()
		s.overflowed = true
		s.mu.Unlock()
	}
}

// head is the head of an event that happens now.
func (b *Broker) head() event.Head {
	id := b.cfg.Minter.Mint()
	return event.Head{ID: id, Source: b.cfg.Source, At: id.Time().Truncate(time.Millisecond)}
}

// take hands events over in order and returns when all are durable.
func (b *Broker) take(events ...event.Event) error {
	receipts := make([]pipeline.Receipt, 0, len(events))
	for _, e := range events {
		r, err := b.accept(b.work, e)
		if err != nil {
			return err
		}
		if r != nil {
			receipts = append(receipts, r)
		}
	}
	for _, r := range receipts {
		if err := pipeline.Wait(b.work, r); err != nil {
			return err
		}
	}
	return nil
}

// note hands an event over and goes on; the trail waits for it.
func (b *Broker) note(e event.Event) error {
	r, err := b.accept(b.work, e)
	if err != nil {
		b.cfg.Count(mqtt.CountLostAck)
		b.log.Warn("event was not taken", "type", event.TypeOf(e), "err", err)
		return err
	}
	if r == nil {
		return nil
	}
	select {
	case <-r.Done():
		if r.Err() == nil {
			return nil
		}
	default:
	}
	b.trail <- r
	return nil
}
