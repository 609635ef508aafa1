package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

const (
	ackInterval       = 2 * time.Millisecond
	ackPatience       = 2 * time.Second // at a stop, for acks that are not written since the connection hangs
	receiveMaximum    = 1024
	minSessionExpiry  = time.Hour
	defSessionExpiry  = 24 * time.Hour
	defDrain          = 20 * time.Second
	subscribeDeadline = 30 * time.Second
)

// SourceConfig is what a Source needs; Server.URLs, Prefix, Filters and Decoder are required.
type SourceConfig struct {
	Server Server
	// The client ids are <Prefix>ingest-<Ordinal>-<k>, for k below Connections (1 when 0). They must stay the same over
	// restarts: the broker keeps what comes meanwhile under them.
	Prefix      string
	Ordinal     int
	Connections int
	// Filters are subscribed by every connection as $share/<Group>/…; without a group they are dealt out to the connections.
	Filters []event.Filter
	Group   string
	// QoS is what is subscribed with, 1 or 2 (2 when 0).
	QoS event.QoS
	// CleanStart must stay false: without a session messages are lost whenever the connection is.
	CleanStart bool
	// SessionExpiry is how long the broker keeps the sessions (24 h when 0, 1 h at least).
	SessionExpiry time.Duration
	// ReceiveMaximum is how many messages may be unacknowledged on a connection (1024 when 0).
	ReceiveMaximum uint16
	// Drain is how long a stop waits for what was taken (20 s when 0).
	Drain   time.Duration
	Decoder Decoder
	// Drops are the filters of the broker's counters of dropped deliveries ([AnyDropFilters] and the like); empty = they are not
	// watched. Dropped is told by how much one has risen; it may be nil.
	Drops   []string
	Dropped func(n uint64)
	// Up is told whether all connections are subscribed, each time one comes to be or goes; nil tells nobody.
	Up func(up bool)
	// Lost is told of each connection that ends by itself; nil tells nobody.
	Lost func(Loss)
	// Count is called for each thing counted; nil counts nothing. Log may be nil.
	Count func(Counter)
	Log   *slog.Logger
}

// Source receives events over MQTT 5 subscriptions. It is class A: the broker has answered the publisher before.
type Source struct {
	cfg   SourceConfig
	order order
	conns []*conn
	up    sync.Mutex // what Up is told keeps the order of what happened

	refusals pipeline.Rarely
}

var _ pipeline.Source = (*Source)(nil)

// NewSource checks the configuration.
func NewSource(cfg SourceConfig) (*Source, error) {
	if cfg.Connections == 0 {
		cfg.Connections = 1
	}
	if cfg.QoS == 0 {
		cfg.QoS = 2
	}
	if cfg.SessionExpiry == 0 {
		cfg.SessionExpiry = defSessionExpiry
	}
	if cfg.ReceiveMaximum == 0 {
		cfg.ReceiveMaximum = receiveMaximum
	}
	if cfg.Drain == 0 {
		cfg.Drain = defDrain
	}
	if cfg.Count == nil {
		cfg.Count = func(Counter) {}
	}
	if cfg.Up == nil {
		cfg.Up = func(bool) {}
	}
	if cfg.Lost == nil {
		cfg.Lost = func(Loss) {}
	}
	if cfg.Dropped == nil {
		cfg.Dropped = func(uint64) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	_, err := cfg.Server.Parse()
	errs := []error{err}
	check := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(cfg.Prefix == "", "no client id prefix")
	check(cfg.Decoder == nil, "no decoder")
	check(len(cfg.Filters) == 0, "no filter to subscribe to")
	check(cfg.CleanStart, "a clean start loses messages: a source needs a session that outlives its connection")
	check(cfg.SessionExpiry < minSessionExpiry || cfg.SessionExpiry > math.MaxUint32*time.Second,
		"session expiry %v: messages that come while the source is away would be lost; want %v or more", cfg.SessionExpiry, minSessionExpiry)
	check(cfg.QoS > 2, "qos %d", cfg.QoS)
	check(cfg.Group == "" && cfg.Connections > len(cfg.Filters),
		"%d connections and %d filters: name a share group, so that the connections can share each filter", cfg.Connections, len(cfg.Filters))
	for _, f := range cfg.Filters {
		check(f.Group() != "" && cfg.Group != "", "filter %q has a share group, and the source has one", f)
	}
	if cfg.Group != "" {
		_, err := event.ParseFilter("$share/" + cfg.Group + "/x")
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("mqtt source: %w", err)
	}
	s := &Source{cfg: cfg}
	for k := range cfg.Connections {
		s.conns = append(s.conns, newConn(s, k, s.filters(k)))
	}
	return s, nil
}

// filters are those of the k-th connection.
func (s *Source) filters(k int) []string {
	var out []string
	for i, f := range s.cfg.Filters {
		switch {
		case s.cfg.Group != "":
			out = append(out, "$share/"+s.cfg.Group+"/"+f.String())
		case i%s.cfg.Connections == k:
			out = append(out, f.String())
		}
	}
	return out
}

// Ready reports whether all connections are up and subscribed.
func (s *Source) Ready() bool {
	for _, c := range s.conns {
		if !c.subscribed.Load() {
			return false
		}
	}
	return true
}

// subscribed notes that a connection is subscribed, or no more.
func (s *Source) subscribed(c *conn, yes bool) {
	s.up.Lock()
	defer s.up.Unlock()
	c.subscribed.Store(yes)
	s.cfg.Up(s.Ready())
}

// Run receives until ctx ends. What was taken until then is acknowledged when it is durable, within the drain time; the
// broker keeps the rest in the sessions. Accept is called from one goroutine a connection.
func (s *Source) Run(ctx context.Context, accept pipeline.Accept) error {
	work, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	stop := context.AfterFunc(ctx, func() { // ends with work
		select {
		case <-time.After(s.cfg.Drain):
			giveUp()
		case <-work.Done():
		}
	})
	defer stop()
	errs := make([]error, len(s.conns))
	var wg sync.WaitGroup
	for i, c := range s.conns {
		wg.Go(func() { errs[i] = c.run(ctx, work, accept) })
	}
	if len(s.cfg.Drops) > 0 {
		wg.Go(func() { newDrops(s.cfg).run(ctx) }) // ends with ctx
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("mqtt source: %w", err)
	}
	return nil
}
