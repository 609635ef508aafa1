// Package webhook receives events by HTTP: what EMQX's rule engine, EMQX's web_hook plugin and VerneMQ's webhooks post. A request is
// answered with 200 when all of its events are durable, so a broker that waits for the answer, or repeats what failed, loses nothing.
package webhook

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// Format is what a request's body is.
type Format string

// The formats.
const (
	// EMQXRule is the JSON of EMQX's rule engine, 4.3 to 6: all columns of a rule, one event or an array of them.
	EMQXRule Format = "emqx-rule"
	// EMQXWebhook is what the plugin emqx_web_hook of EMQX 4 posts. It tells no message ids.
	EMQXWebhook Format = "emqx-webhook"
	// VerneMQ is what the plugin vmq_webhooks posts. It tells no message ids and no acks.
	VerneMQ Format = "vernemq"
)

const (
	defBudget   = 2 * time.Second
	defDrain    = 20 * time.Second
	defMaxBody  = 4 << 20
	defMaxCalls = 256

	headerTime  = 5 * time.Second
	readTime    = 30 * time.Second // for a whole request
	idleTime    = 2 * time.Minute  // between two requests of a connection
	maxHeader   = 16 << 10
	minSecret   = 16 // bytes
	retryAfterS = "1"
)

// Config is what a Server needs. Listen, Format, Source and Minter are required.
type Config struct {
	// Listen is the TCP address; port 0 takes a free one, see [Server.Addr].
	Listen string
	// TLS is nil for plain connections.
	TLS *tls.Config
	// Path is where requests go; any other is answered with 404.
	Path   string
	Format Format
	// PlainPayload says that payloads stand in the JSON as text, and not in base64; not for [EMQXRule], which tells.
	PlainPayload bool
	// Token is demanded as "Authorization: Bearer …" when it is set, at least 16 bytes.
	Token string
	// HMACKey, when it is set, demands the HMAC-SHA256 of the body in hex, with or without "sha256=" before it, in HMACHeader
	// (X-Restante-Signature when empty). At least 16 bytes.
	HMACKey    string
	HMACHeader string
	// Source is the ce_source of the events; the broker's node is put behind it where it is told.
	Source string
	Minter *event.Minter
	// Own tells the clients of our own connections; nil = none.
	Own func(event.ClientID) bool
	// Secret recognises replays where the broker tells user properties; Template is where replays are published to.
	Secret   mqtt.Secret
	Template mqtt.Template
	// Answers are how clients say that they have a replay; not for [EMQXRule], which tells of acks.
	Answers mqtt.Answers
	// Budget is how long a request waits for its events to be durable (2 s when 0). It must be less than the broker's time-out.
	Budget time.Duration
	// MaxBody is the largest body in bytes (4 MiB when 0), MaxCalls the most requests under way (256 when 0); others wait.
	MaxBody  int64
	MaxCalls int
	// Drain is how long a stop waits for requests under way (20 s when 0).
	Drain time.Duration
	// Count is called for each thing counted; nil counts nothing. Log may be nil.
	Count func(mqtt.Counter)
	Log   *slog.Logger
}

func (c Config) checked() (Config, error) {
	var errs []error
	check := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Listen == "", "no address to listen on")
	check(c.Source == "", "no source name")
	check(c.Minter == nil, "no minter")
	check(!strings.HasPrefix(c.Path, "/"), "path %q does not begin with /", c.Path)
	check(c.Budget < 0 || c.Drain < 0 || c.MaxBody < 0 || c.MaxCalls < 0, "budget, drain and limits cannot be negative")
	check(c.Token != "" && len(c.Token) < minSecret, "the token has %d bytes, want at least %d", len(c.Token), minSecret)
	check(c.HMACKey != "" && len(c.HMACKey) < minSecret, "the HMAC key has %d bytes, want at least %d", len(c.HMACKey), minSecret)
	if c.Count == nil {
		c.Count = func(mqtt.Counter) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Budget = cmp.Or(c.Budget, defBudget)
	c.Drain = cmp.Or(c.Drain, defDrain)
	c.MaxBody = cmp.Or(c.MaxBody, defMaxBody)
	c.MaxCalls = cmp.Or(c.MaxCalls, defMaxCalls)
	c.HMACHeader = cmp.Or(c.HMACHeader, "X-Restante-Signature")
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("webhook: %w", err)
	}
	return c, nil
}

// Server is a source of events that brokers post.
type Server struct {
	cfg      Config
	format   format
	listener net.Listener
	slots    chan struct{} // one for each request under way

	gaps, refusals pipeline.Rarely

	// Of the run: how events are handed over, and the context of what was taken, which outlives the run's by the drain.
	accept pipeline.Accept
	work   context.Context //nolint:containedctx // a request's own context may end before its events are taken
}

var _ pipeline.Source = (*Server)(nil)

// Open checks the configuration and listens from now on; requests are answered while [Server.Run] runs.
func Open(cfg Config) (*Server, error) {
	cfg, err := cfg.checked()
	if err != nil {
		return nil, err
	}
	f, err := cfg.format()
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	if cfg.TLS != nil {
		l = tls.NewListener(l, cfg.TLS)
	}
	return &Server{cfg: cfg, format: f, listener: l, slots: make(chan struct{}, cfg.MaxCalls)}, nil
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run answers requests until ctx ends. Then it takes no new ones, and those under way get the drain time. It runs once.
func (s *Server) Run(ctx context.Context, accept pipeline.Accept) error {
	work, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	s.accept, s.work = accept, work
	h := &http.Server{
		Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: headerTime, ReadTimeout: readTime,
		WriteTimeout: readTime + 2*s.cfg.Budget + headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- h.Serve(s.listener) }() // ends before Run does
	select {
	case err := <-served:
		return fmt.Errorf("webhook: serve %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(work, s.cfg.Drain)
	defer cancel()
	if err := h.Shutdown(drain); err != nil {
		giveUp()
		_ = h.Close() // what is still under way is not answered
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("webhook: serve %s: %w", s.Addr(), err)
	}
	return nil
}
