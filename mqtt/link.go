package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

// Server says how a broker is reached. URLs are required: mqtt://host[:port], mqtts://, ws:// or wss://; several are tried in
// turn.
type Server struct {
	URLs     []string
	TLS      *tls.Config // for mqtts and wss; nil = the system's roots
	User     string
	Password string
	// Keepalive is 30 s and ConnectTimeout 10 s when 0.
	Keepalive      time.Duration
	ConnectTimeout time.Duration
}

// Parse checks the URLs and gives each the port of its scheme where it names none.
func (s Server) Parse() ([]*url.URL, error) {
	if len(s.URLs) == 0 {
		return nil, errors.New("broker url: none is given: want mqtt://host:1883 or mqtts://host:8883")
	}
	if s.Keepalive < 0 || s.Keepalive > 65535*time.Second {
		return nil, fmt.Errorf("broker keepalive %v is out of range", s.Keepalive)
	}
	var all []*url.URL
	for _, text := range s.URLs {
		u, err := parseURL(text)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("broker url: not a url: want mqtt://host:1883 or mqtts://host:8883") // the error would show a password
	}
	port, ok := map[string]string{"mqtt": "1883", "tcp": "1883", "mqtts": "8883", "tls": "8883", "ssl": "8883", "ws": "", "wss": ""}[u.Scheme]
	switch {
	case !ok:
		return nil, fmt.Errorf("broker url: scheme %q: want mqtt, mqtts, ws or wss", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("broker url: names no host")
	case u.User != nil:
		return nil, errors.New("broker url: user and password belong into settings of their own")
	case u.Port() == "" && port != "":
		u.Host += ":" + port
	}
	return u, nil
}

// link is one connection that is made again for as long as it is wanted.
type link struct {
	cm       *autopaho.ConnectionManager
	clientID string
	log      *slog.Logger

	mu    sync.Mutex
	up    chan struct{} // closed while the connection is up
	cut   chan struct{} // closed when the connection that is up has ended
	ack   *paho.Connack // of the connection that is up
	quiet time.Time     // no complaint before
}

// dial begins to connect; cfg holds what is particular to the connection. lost is told of each connection that ends by itself. It ends
// with ctx or by close.
func (s Server) dial(ctx context.Context, log *slog.Logger, cfg autopaho.ClientConfig, lost func(Loss), onUp func(*link, *paho.Connack)) (*link, error) {
	u, err := s.Parse()
	if err != nil {
		return nil, err
	}
	l := &link{clientID: cfg.ClientID, log: log, up: make(chan struct{}), cut: make(chan struct{})}
	cfg.ServerUrls = u
	cfg.TlsCfg = s.TLS
	cfg.ConnectUsername, cfg.ConnectPassword = s.User, []byte(s.Password)
	cfg.KeepAlive = uint16(s.Keepalive / time.Second) //nolint:gosec // checked
	if cfg.KeepAlive == 0 {
		cfg.KeepAlive = 30
	}
	cfg.ConnectTimeout = s.ConnectTimeout // autopaho's default is 10 s
	cfg.ReconnectBackoff = backoff
	cfg.PacketTimeout = 24 * time.Hour // our contexts decide
	cfg.OnConnectionUp = func(_ *autopaho.ConnectionManager, ack *paho.Connack) {
		l.mu.Lock()
		l.ack, l.cut = ack, make(chan struct{})
		close(l.up)
		l.quiet = time.Time{}
		l.mu.Unlock()
		l.log.InfoContext(ctx, "connected to broker", "client", l.clientID, "session_present", ack.SessionPresent)
		if onUp != nil {
			onUp(l, ack)
		}
	}
	onDown := cfg.OnConnectionDown
	cfg.OnConnectionDown = func() bool {
		l.down()
		return onDown == nil || onDown()
	}
	onError := cfg.OnConnectError
	cfg.OnConnectError = func(err error) {
		l.complain(err)
		if onError != nil {
			onError(err)
		}
	}
	cfg.OnClientError = func(err error) {
		lost(LossBroken)
		l.log.WarnContext(ctx, "connection to broker lost", "client", l.clientID, "err", err)
	}
	cfg.OnServerDisconnect = func(d *paho.Disconnect) {
		lost(lossOf(d))
		l.log.WarnContext(ctx, "broker closed the connection", "client", l.clientID, "reason", d.ReasonCode)
	}
	l.cm, err = autopaho.NewConnection(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to broker: %w", err)
	}
	return l, nil
}

// backoff is the pause before the n-th attempt: none, then 0.1 s doubling to 5 s, each with a jitter of half.
func backoff(attempt int) time.Duration {
	if attempt <= 0 {
		return 0
	}
	d := min(100*time.Millisecond<<min(attempt-1, 10), 5*time.Second)
	return d/2 + rand.N(d/2) //nolint:gosec // a jitter
}

// complain tells once a minute why there is no connection; what does not heal by waiting with what to do.
func (l *link) complain(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.quiet) {
		return
	}
	l.quiet = time.Now().Add(time.Minute)
	var refused *autopaho.ConnackError
	if !errors.As(err, &refused) {
		l.log.Warn("cannot connect to broker, will retry", "client", l.clientID, "err", err)
		return
	}
	hint := "see the broker's log"
	switch refused.ReasonCode {
	case 0x84, 0x01:
		hint = "the broker does not speak MQTT 5: enable it there"
	case 0x85, 0x02:
		hint = "the broker does not allow this client id: allow it, or change the prefix"
	case 0x86, 0x04:
		hint = "check user and password"
	case 0x87, 0x05:
		hint = "give the user the right to connect with this client id"
	case 0x8a:
		hint = "the broker has banned this client: lift the ban"
	}
	l.log.Error("broker refuses the connection, will retry", "client", l.clientID, "reason", refused.ReasonCode, "err", err, "hint", hint)
}

// wait returns when the connection is up: its CONNACK and a channel that is closed when it ends.
func (l *link) wait(ctx context.Context) (*paho.Connack, <-chan struct{}, error) {
	for {
		l.mu.Lock()
		up, cut, ack, is := l.up, l.cut, l.ack, l.isUp()
		l.mu.Unlock()
		if is {
			return ack, cut, nil
		}
		select {
		case <-up: // cut and ack are still those of the connection before
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for the connection to the broker: %w", context.Cause(ctx))
		}
	}
}

// down notes that the connection has ended.
func (l *link) down() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isUp() {
		close(l.cut)
		l.up = make(chan struct{})
	}
}

// isUp needs mu.
func (l *link) isUp() bool {
	select {
	case <-l.up:
		return true
	default:
		return false
	}
}

// close disconnects and waits for the connection's goroutines, or for ctx.
func (l *link) close(ctx context.Context) error {
	defer l.down() // nobody else tells those who wait for an answer
	if err := l.cm.Disconnect(ctx); err != nil {
		return fmt.Errorf("disconnect from broker: %w", err)
	}
	return nil
}
