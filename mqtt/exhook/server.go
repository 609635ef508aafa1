// Package exhook receives EMQX's events by its ExHook: the broker calls a gRPC service of ours and waits for the answer. So it is
// class S while it is reachable: a publish is in the log before its publisher gets the PUBACK. A call that is not answered in time
// the broker neither repeats nor keeps: that is a gap, and counted.
package exhook

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

const (
	defBudget     = 2 * time.Second
	defDrain      = 20 * time.Second
	defMaxMessage = 4 << 20
	defMaxCalls   = 8192
	// A call over this number, of one connection, gRPC turns away before we could count it: a broker must never come there.
	maxStreams = 1 << 14
	// The broker pings every minute. gRPC's own limit of five would cut its idle connections.
	minPing   = 10 * time.Second
	ping      = time.Minute // ours, to find out that a broker is gone
	pingWait  = 20 * time.Second
	handshake = 5 * time.Second // a connection that says nothing for longer is cut
)

// Config is what a Server needs. Listen and Source are required.
type Config struct {
	// Listen is the TCP address; port 0 takes a free one, see [Server.Addr].
	Listen string
	// TLS is nil for plain connections.
	TLS *tls.Config
	// Source is the ce_source of the events; the broker's node is put behind it. Node names the node; "" = as the broker says.
	Source string
	Node   string
	// Hooks are what the broker is asked to call us for, see [Needs].
	Hooks []Hook
	// Own tells the clients of our own connections; nil = none. What they publish the pipeline drops; acks of that end here.
	Own func(event.ClientID) bool
	// Secret recognises replays where the broker tells user properties; the zero one recognises none.
	Secret mqtt.Secret
	// Envelope says that replays come in envelopes ([mqtt.Envelope]), which the broker is asked to show us too: by them acks of
	// replays find their messages. It needs the secret. Template is where replays are delivered; zero = on their own topic.
	Envelope bool
	Template mqtt.Template
	// Budget is how long a call waits for its event to be durable (2 s when 0). It must be less than the broker's request_timeout.
	Budget time.Duration
	// MaxMessage is the largest request in bytes (4 MiB when 0), MaxCalls the most calls under way (8192); others wait.
	MaxMessage int
	MaxCalls   int
	// Drain is how long a stop waits for calls under way (20 s when 0).
	Drain time.Duration
	// Count is called for each thing counted; nil counts nothing. Log may be nil.
	Count func(mqtt.Counter)
	Log   *slog.Logger
}

func (c Config) checked() (Config, error) {
	var errs []error
	if c.Listen == "" {
		errs = append(errs, errors.New("no address to listen on"))
	}
	if c.Source == "" {
		errs = append(errs, errors.New("no source name"))
	}
	if c.Budget < 0 || c.Drain < 0 || c.MaxMessage < 0 || c.MaxCalls < 0 {
		errs = append(errs, errors.New("budget, drain and limits cannot be negative"))
	}
	if c.Envelope && c.Secret.IsZero() {
		errs = append(errs, errors.New("envelopes need a secret"))
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("exhook: %w", err)
	}
	if c.Envelope {
		c.Hooks = withEnvelopes(c.Hooks, c.Template)
	}
	c.Budget = cmp.Or(c.Budget, defBudget)
	c.Drain = cmp.Or(c.Drain, defDrain)
	c.MaxMessage = cmp.Or(c.MaxMessage, defMaxMessage)
	c.MaxCalls = cmp.Or(c.MaxCalls, defMaxCalls)
	if c.Count == nil {
		c.Count = func(mqtt.Counter) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Server is a source of events that EMQX calls.
type Server struct {
	cfg      Config
	listener net.Listener
	slots    chan struct{} // one for each call under way

	gaps, refusals, held pipeline.Rarely
	// By the broker's id. What it forgets, and what another server has opened, the replayer knows from the log.
	aliases *pipeline.SafeRecent[event.ID, known]

	// Of the run: how events are handed over, and the context of what was taken, which outlives the run's by the drain.
	accept pipeline.Accept
	work   context.Context //nolint:containedctx // gRPC hands each call a context of its connection, which may end before its event is taken
}

var _ pipeline.Source = (*Server)(nil)

// Open checks the configuration and listens from now on; calls are answered while [Server.Run] runs.
func Open(cfg Config) (*Server, error) {
	cfg, err := cfg.checked()
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("exhook: %w", err)
	}
	if cfg.TLS != nil {
		// Around the listener, not as gRPC's credentials: those cut a client that does not negotiate the protocol by ALPN.
		c := cfg.TLS.Clone()
		c.NextProtos = []string{"h2"}
		l = tls.NewListener(l, c)
	}
	return &Server{
		cfg: cfg, listener: l, slots: make(chan struct{}, cfg.MaxCalls), aliases: pipeline.NewSafeRecent[event.ID, known](mostAlias, aliasLife),
	}, nil
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run answers the broker's calls until ctx ends. Then it takes no new ones, and those under way get the drain time. It runs once.
func (s *Server) Run(ctx context.Context, accept pipeline.Accept) error {
	work, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	s.accept, s.work = accept, work
	g := grpc.NewServer(
		grpc.ForceServerCodec(codec{}),
		grpc.MaxRecvMsgSize(s.cfg.MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshake),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: ping, Timeout: pingWait}),
	)
	for _, name := range Services {
		g.RegisterService(s.service(name), s) //nolint:contextcheck // calls have contexts of their own
	}
	served := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // ends with ctx or when the server has ended by itself
		select {
		case <-ctx.Done():
			s.stop(g, giveUp)
		case <-served:
		}
	})
	err := g.Serve(s.listener)
	close(served)
	wg.Wait()
	g.Stop()
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) { // it was asked to stop before it began
		return fmt.Errorf("exhook: serve %s: %w", s.Addr(), err)
	}
	return nil
}

// stop tells the brokers to go elsewhere and waits for the calls under way.
func (s *Server) stop(g *grpc.Server, giveUp func()) {
	stopped := make(chan struct{})
	go func() { // ends before stop returns
		g.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(s.cfg.Drain):
		giveUp()
		g.Stop()
		<-stopped
	}
}
